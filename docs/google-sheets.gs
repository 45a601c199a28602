/**
 * Notecast for Google Sheets: tells Notecast that a row is ready to be read aloud.
 *
 * 1. Fill in the five lines below.
 * 2. Project Settings -> Script Properties: NOTECAST_SECRET = whsec_...
 * 3. Run `install` once and allow what it asks for.
 *
 * The script gives each row a key of its own, because row numbers move, and sends a signed message
 * (Standard Webhooks) for each row whose status column holds the trigger value. It never changes
 * anything but the key column, and leaves a note on a cell where sending failed.
 *
 * @OnlyCurrentDoc
 */
const NOTECAST = {
  url: 'https://notes.example/hooks/team_sync', // the address of the endpoint
  tab: 'Notes', // the tab with the rows; its first row holds the column names
  column: 'Status', // the trigger column...
  value: 'Ready', // ...and the value that means: read this row
  key: 'notecast_id', // an empty column for the keys; it may be hidden
};

const MOST_ROWS = 100; // in one run; the rest is found by Notecast's own walk over the tab
const WAITS_MS = [1000, 4000]; // between the three tries of a message

/** Run this once. Running it again changes nothing but renews the triggers. */
function install() {
  secretKey();
  const names = ['onRowEdit', 'onRowForm', 'sweep'];
  ScriptApp.getProjectTriggers()
    .filter((trigger) => names.includes(trigger.getHandlerFunction()))
    .forEach((trigger) => ScriptApp.deleteTrigger(trigger));
  const book = SpreadsheetApp.getActive();
  ScriptApp.newTrigger('onRowEdit').forSpreadsheet(book).onEdit().create();
  ScriptApp.newTrigger('onRowForm').forSpreadsheet(book).onFormSubmit().create();
  ScriptApp.newTrigger('sweep').timeBased().everyMinutes(10).create();
}

/** Somebody edited or pasted cells. */
function onRowEdit(event) {
  visit(event.range.getSheet(), event.range.getRow(), event.range.getNumRows(), false);
}

/** A form added a row. */
function onRowForm(event) {
  visit(event.range.getSheet(), event.range.getRow(), event.range.getNumRows(), false);
}

/** Rows that other programs added start no edit trigger: look for ready ones without a key. */
function sweep() {
  const sheet = SpreadsheetApp.getActive().getSheetByName(NOTECAST.tab);
  if (!sheet) throw new Error('There is no tab named ' + NOTECAST.tab);
  visit(sheet, 2, sheet.getLastRow() - 1, true);
}

/** Give keys to ready rows, then send them. */
function visit(sheet, firstRow, count, onlyNew) {
  if (sheet.getName() !== NOTECAST.tab || sheet.getLastRow() < 2) return;
  const header = sheet.getRange(1, 1, 1, sheet.getLastColumn()).getDisplayValues()[0];
  const first = Math.max(firstRow, 2);
  const last = Math.min(firstRow + count - 1, sheet.getLastRow());
  if (last < first) return;
  const statusAt = columnOf(header, NOTECAST.column);
  const keyAt = columnOf(header, NOTECAST.key);
  const statuses = sheet.getRange(first, statusAt + 1, last - first + 1, 1).getDisplayValues();
  if (!statuses.some(([status]) => status === NOTECAST.value)) return; // most edits end here
  const lock = LockService.getDocumentLock();
  lock.waitLock(30000);
  let rows = [];
  try {
    rows = claim(sheet, header, first, last, statusAt, keyAt, onlyNew);
  } finally {
    lock.releaseLock();
  }
  rows.forEach((row) => report(sheet.getRange(row.row, statusAt + 1), send(row)));
}

/** The ready rows among first..last, each with a key that no other row has. */
function claim(sheet, header, first, last, statusAt, keyAt, onlyNew) {
  const values = sheet.getRange(first, 1, last - first + 1, header.length).getDisplayValues();
  const column = sheet.getRange(2, keyAt + 1, sheet.getLastRow() - 1, 1).getDisplayValues();
  const seen = {};
  column.forEach(([key]) => (seen[key] = (seen[key] || 0) + 1));
  const rows = [];
  values.forEach((cells, at) => {
    const old = cells[keyAt];
    if (cells[statusAt] !== NOTECAST.value || (onlyNew && old !== '')) return;
    if (old === '' || seen[old] > 1) {
      // a copied row brought the key of another one along
      seen[old] -= 1;
      cells[keyAt] = Utilities.getUuid();
      sheet.getRange(first + at, keyAt + 1).setValue(cells[keyAt]);
    }
    rows.push({ key: cells[keyAt], row: first + at, values: byName(header, cells) });
  });
  SpreadsheetApp.flush();
  return rows.slice(0, MOST_ROWS);
}

/** Sign and post one row, three times if need be; gives '' or what went wrong. */
function send(row) {
  const id = Utilities.getUuid(); // the same in every try, so that it is read aloud once
  const body = JSON.stringify({
    type: 'row.ready',
    timestamp: new Date().toISOString(),
    data: {
      sheet: SpreadsheetApp.getActive().getId(),
      tab: NOTECAST.tab,
      key: row.key,
      row: row.row,
      values: row.values,
    },
  });
  let wrong = '';
  for (let n = 0; n <= WAITS_MS.length; n += 1) {
    if (n > 0) Utilities.sleep(WAITS_MS[n - 1]);
    try {
      const answer = UrlFetchApp.fetch(NOTECAST.url, {
        method: 'post',
        contentType: 'application/json',
        headers: signed(id, body),
        payload: body,
        followRedirects: false,
        muteHttpExceptions: true,
      });
      const status = answer.getResponseCode();
      if (status >= 200 && status < 300) return '';
      wrong = 'Notecast answered ' + status + ': ' + answer.getContentText().slice(0, 300);
      if (status !== 429 && status < 500) return wrong;
    } catch (error) {
      wrong = 'Notecast was not reached: ' + error.message;
    }
  }
  return wrong;
}

/** The three headers of Standard Webhooks. */
function signed(id, body) {
  const now = String(Math.floor(Date.now() / 1000));
  const message = Utilities.newBlob(id + '.' + now + '.' + body).getBytes();
  const mac = Utilities.computeHmacSha256Signature(message, secretKey());
  return {
    'webhook-id': id,
    'webhook-timestamp': now,
    'webhook-signature': 'v1,' + Utilities.base64Encode(mac),
  };
}

function secretKey() {
  const secret = PropertiesService.getScriptProperties().getProperty('NOTECAST_SECRET') || '';
  if (!secret.startsWith('whsec_')) {
    throw new Error('Set the script property NOTECAST_SECRET to the whsec_... of the endpoint');
  }
  return Utilities.base64Decode(secret.slice('whsec_'.length));
}

/** Show on the status cell what went wrong; a later success takes it away. */
function report(cell, wrong) {
  if (wrong) console.error(wrong);
  if (wrong) cell.setNote(wrong);
  else if (cell.getNote().startsWith('Notecast ')) cell.clearNote();
}

function columnOf(header, name) {
  const at = header.indexOf(name);
  if (at < 0) throw new Error('The tab ' + NOTECAST.tab + ' has no column named ' + name);
  return at;
}

function byName(header, cells) {
  const values = {};
  header.forEach((name, at) => {
    if (name !== '' && !(name in values)) values[name] = cells[at];
  });
  return values;
}

// Runs docs/google-sheets.gs under node against a small twin of the Apps Script services.
// stdin: {script, call, event, cells, secret, answers, keep}; stdout: what it sent and left behind.
// An answer is a status, or text for a network that throws.
const fs = require('fs');
const vm = require('vm');
const crypto = require('crypto');

const input = JSON.parse(fs.readFileSync(0, 'utf8'));
const book = { cells: input.cells, notes: {}, toSigned: (buffer) => [...new Int8Array(buffer)] };
const sent = [];
const waits = [];
const triggers = (input.triggers || []).map((handler) => ({ handler }));
const bytes = (list) => {
  if (!Array.isArray(list) || list.some((n) => n < -128 || n > 127)) throw new Error('not Byte[]');
  return Buffer.from(Int8Array.from(list).buffer);
};

const sheet = {
  getName: () => input.tab || 'Notes',
  getLastRow: () => book.cells.length,
  getLastColumn: () => Math.max(...book.cells.map((row) => row.length)),
  getRange: (row, column, rows = 1, columns = 1) => {
    if (row < 1 || column < 1 || rows < 1 || columns < 1) throw new Error('range out of bounds');
    const name = `${row}:${column}`;
    return {
      getSheet: () => sheet,
      getRow: () => row,
      getNumRows: () => rows,
      getDisplayValues: () =>
        Array.from({ length: rows }, (_, r) =>
          Array.from({ length: columns }, (_, c) =>
            String((book.cells[row - 1 + r] || [])[column - 1 + c] ?? ''))),
      setValue: (value) => { book.cells[row - 1][column - 1] = value; },
      setNote: (text) => { book.notes[name] = text; },
      getNote: () => book.notes[name] || '',
      clearNote: () => { delete book.notes[name]; },
    };
  },
};
const newTrigger = (handler) => {
  const trigger = { handler, source: 'clock' };
  const builder = {
    forSpreadsheet: () => { trigger.source = 'sheet'; return builder; },
    onEdit: () => { trigger.on = 'edit'; return builder; },
    onFormSubmit: () => { trigger.on = 'form'; return builder; },
    timeBased: () => builder,
    everyMinutes: (n) => { trigger.on = `every ${n} min`; return builder; },
    create: () => triggers.push(trigger),
  };
  return builder;
};
const services = {
  console: { error: () => {} },
  SpreadsheetApp: {
    getActive: () => ({
      getId: () => '1DemoSheetId',
      getSheetByName: (name) => (name === (input.tab || 'Notes') ? sheet : null),
    }),
    flush: () => {},
  },
  LockService: { getDocumentLock: () => ({ waitLock: () => {}, releaseLock: () => {} }) },
  PropertiesService: {
    getScriptProperties: () => ({
      getProperty: (name) => (name === 'NOTECAST_SECRET' ? input.secret ?? null : null),
    }),
  },
  ScriptApp: {
    getProjectTriggers: () => triggers.map((one) => ({ ...one, getHandlerFunction: () => one.handler })),
    deleteTrigger: (gone) => triggers.splice(triggers.findIndex((t) => t.handler === gone.handler), 1),
    newTrigger,
  },
  Utilities: {
    getUuid: () => crypto.randomUUID(),
    sleep: (ms) => waits.push(ms),
    newBlob: (text) => ({ getBytes: () => book.toSigned(Buffer.from(text, 'utf8')) }),
    base64Decode: (text) => book.toSigned(Buffer.from(text, 'base64')),
    base64Encode: (list) => bytes(list).toString('base64'),
    computeHmacSha256Signature: (value, key) =>
      book.toSigned(crypto.createHmac('sha256', bytes(key)).update(bytes(value)).digest()),
  },
  UrlFetchApp: {
    fetch: (url, options) => {
      const answer = input.answers.length > 1 ? input.answers.shift() : input.answers[0];
      sent.push({ url, ...options });
      if (typeof answer === 'string') throw new Error(answer);
      return { getResponseCode: () => answer, getContentText: () => `{"status": ${answer}}` };
    },
  },
};

const context = vm.createContext(services);
vm.runInContext(fs.readFileSync(input.script, 'utf8'), context);
const event = input.rows && { range: sheet.getRange(input.rows[0], 1, input.rows[1], 1) };
let error = null;
try {
  context[input.call](event);
} catch (thrown) {
  error = thrown.message;
}
process.stdout.write(
  JSON.stringify({ sent, waits, triggers, cells: book.cells, notes: book.notes, error }));

// Draws the tables, keeps them true with server-sent events, and sends a person's edits.

const LOOKS = {
  waiting: ["待播报", "ready", "speak", "to speak"],
  queued: ["排队中", "queued"],
  live: ["播报中", "live", "speaking"],
  done: ["已完成", "done", "finished"],
  failed: ["失败", "failed"],
};
const tables = new Map();
let titles = {};

const make = (name, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(name), attributes);
  element.append(...children);
  return element;
};
const lookOf = (text) => Object.keys(LOOKS).find((look) => LOOKS[look].includes(String(text).toLowerCase())) ?? "";
const isSafe = (url) => /^(https?:\/\/|\/)/i.test(url);
const linkTo = (url, text) => (isSafe(url) ? make("a", { href: url, target: "_blank", rel: "noreferrer", textContent: text }) : text);

async function send(table, row, column, typed) {
  const [tool, container, id] = table.key;
  const body = JSON.stringify({ tool, container, table: id, row: row.id, cells: { [column.id]: typed } });
  const answer = await fetch("/_fake/rows", { method: "PUT", headers: { "Content-Type": "application/json" }, body });
  if (!answer.ok) alert((await answer.json()).detail);
}

function selectCell(table, row, column, value) {
  const options = ["", ...new Set([...column.options, value ?? ""])].filter((text, at) => at === 0 || text !== "");
  const select = make("select", { ariaLabel: column.name });
  select.append(...options.map((text) => make("option", { value: text, textContent: text || "–", selected: text === (value ?? "") })));
  select.dataset.look = lookOf(value ?? "");
  select.onchange = () => send(table, row, column, select.value);
  return select;
}

function shown(column, value) {
  if (value === undefined || value === null) return "";
  if (column.kind === "date") return new Date(value).toLocaleString();
  if (column.kind === "checkbox") return value ? "✓" : "";
  if (Array.isArray(value)) {
    return make("div", {}, ...value.flatMap((one) => (one.url ? fileCell(one) : [one, " "])));
  }
  if (typeof value === "object") return linkTo(value.url, value.text || value.url);
  if (typeof value === "string" && /^https?:\/\/\S+$/.test(value)) return linkTo(value, value);
  return make("div", { className: "clamp", textContent: String(value) });
}

function fileCell(file) {
  const parts = [linkTo(file.url, file.name)];
  if (/\.(mp3|ogg|opus|wav)$/.test(file.name)) parts.push(make("audio", { src: file.url, controls: true, preload: "none" }));
  return parts;
}

const plain = (value) => (value && typeof value === "object" ? (Array.isArray(value) ? value.join(", ") : value.url) : String(value ?? ""));

function openEditor(cell, table, row, column, value) {
  if (cell.querySelector("textarea")) return;
  const area = make("textarea", { value: plain(value), ariaLabel: column.name });
  let isOver = false;
  const end = (keep) => {
    if (isOver) return;
    isOver = true;
    if (keep && area.value !== plain(value)) send(table, row, column, area.value);
    fill(cell, table, row, column);
  };
  area.onblur = () => end(true);
  area.onkeydown = (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") end(false);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) end(true);
    event.stopPropagation();
  };
  cell.replaceChildren(area);
  area.focus();
}

function fill(cell, table, row, column) {
  const value = row.cells[column.id];
  cell.className = column.kind;
  cell.replaceChildren(column.kind === "select" ? selectCell(table, row, column, value) : shown(column, value));
  if (["select", "files", "formula"].includes(column.kind)) return;
  cell.tabIndex = 0;
  cell.ondblclick = () => openEditor(cell, table, row, column, value);
  cell.onkeydown = (event) => {
    if (event.key === "Enter" && event.target === cell) {
      event.preventDefault();
      openEditor(cell, table, row, column, value);
    }
  };
}

function drawRow(table, row, changed = []) {
  const isNew = !table.lines.has(row.id);
  const line = table.lines.get(row.id) ?? make("tr");
  table.columns.forEach((column, at) => {
    const cell = line.cells[at] ?? line.insertCell();
    if (cell.querySelector("textarea")) return; // somebody is typing there
    fill(cell, table, row, column);
    if (changed.includes(column.id)) {
      void cell.offsetWidth; // lets the same animation begin again
      cell.classList.add("changed");
    }
  });
  table.lines.set(row.id, line);
  if (isNew) table.body.append(line);
}

function drawTable(table) {
  table.lines = new Map();
  table.body = make("tbody");
  const head = make("tr", {}, ...table.columns.map((column) => make("th", { scope: "col", textContent: column.name })));
  const sheet = make("div", { className: "sheet" }, make("table", {}, make("thead", {}, head), table.body));
  const name = make("div", { className: "name" }, make("h2", { textContent: table.name }), make("small", { textContent: titles[table.key[0]] ?? table.key[0] }));
  table.rows.forEach((row) => drawRow(table, row));
  tables.set(table.key.join("\n"), table);
  return make("section", {}, name, sheet);
}

function drawMessage(message) {
  const list = document.getElementById("messages");
  const where = `${titles[message.tool] ?? message.tool} · ${new Date(message.at_ms).toLocaleTimeString()}`;
  const item = make("li", {}, make("small", { textContent: where }), make("div", {}, make("strong", { textContent: message.title })), make("p", { textContent: message.text }));
  if (message.link && isSafe(message.link)) item.append(linkTo(message.link, message.button || "Listen"));
  list.prepend(item);
  list.parentElement.hidden = false;
}

function drawAll(state) {
  titles = state.tools;
  tables.clear();
  document.getElementById("tables").replaceChildren(...state.tables.map(drawTable));
  document.getElementById("messages").replaceChildren();
  state.messages.forEach(drawMessage);
}

const live = document.getElementById("live");
const feed = new EventSource("/_fake/live");
feed.addEventListener("state", ({ data }) => {
  drawAll(JSON.parse(data)); // also after a break, so that nothing that happened meanwhile is missed
  live.textContent = "live";
  live.className = "on";
});
feed.onerror = () => {
  live.textContent = "connecting";
  live.className = "";
};
feed.addEventListener("row", ({ data }) => {
  const { key, row, changed } = JSON.parse(data);
  const table = tables.get(key.join("\n"));
  if (table) drawRow(table, row, changed);
});
feed.addEventListener("gone", ({ data }) => {
  const { key, row } = JSON.parse(data);
  const table = tables.get(key.join("\n"));
  table?.lines.get(row)?.remove();
  table?.lines.delete(row);
});
feed.addEventListener("message", ({ data }) => data && drawMessage(JSON.parse(data)));

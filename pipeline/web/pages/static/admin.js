// Keeps the page fresh without a reload, and asks before what cannot be taken back.

const EVERY_MS = 2000;
const live = document.getElementById("live");
const stale = document.getElementById("stale");
let since = Date.now();

async function refresh() {
  if (document.hidden || live.contains(document.activeElement)) return;
  try {
    const answer = await fetch("/admin/part", { cache: "no-store" });
    if (answer.status === 401) return location.reload();
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    live.replaceChildren(...page.body.childNodes);
    since = Date.now();
    stale.hidden = true;
  } catch {
    stale.textContent = `The server does not answer; this is what it said ${Math.round((Date.now() - since) / 1000)} s ago.`;
    stale.hidden = false;
  }
}

live.addEventListener("submit", (event) => {
  const question = event.target.dataset.sure;
  if (question && !confirm(question)) event.preventDefault();
});
setInterval(refresh, EVERY_MS);

/** The chapters: a list to jump from, the one that is heard, and those that are still to be spoken. */

import { $, announce, follow, put } from "./dom.js";
import { clock, say } from "./strings.js";

export class Chapters {
  #all = []; // {ms, title, node}, ascending
  #now = null;
  #open;

  /** `seek(ms)` when a chapter is chosen; `open(number)` gives the link of an offered one. */
  constructor({ seek, open }) {
    this.#open = open;
    $("chapter-list").addEventListener("click", ({ target }) => {
      const chapter = this.#all.find(({ node }) => node.contains(target));
      if (chapter) seek(chapter.ms);
    });
  }

  /** Where chapters begin, in ms. */
  get starts() {
    return this.#all.map(({ ms }) => ms);
  }

  /** A chapter begins at `ms`; one that began within a second of it is the same. */
  add(ms, title) {
    if (!title || this.#all.some((one) => Math.abs(one.ms - ms) < 1_000)) return;
    const node = entry(title, clock(ms));
    const at = this.#all.findIndex((one) => one.ms > ms);
    $("chapter-list").insertBefore(node, this.#all[at]?.node ?? null);
    this.#all.splice(at < 0 ? this.#all.length : at, 0, { ms, title, node });
    this.#unfold();
    this.#now = null;
  }

  /** What was spoken from `ms` on is void. */
  cut(ms) {
    for (const one of this.#all.filter((chapter) => chapter.ms >= ms)) one.node.remove();
    this.#all = this.#all.filter((one) => one.ms < ms);
    this.#unfold();
  }

  /** Chapters that the session leaves out; a tap lets one be spoken, and goes there. */
  offer(offered) {
    const nodes = offered.map(({ number, title, minutes }) => {
      const node = entry(title, say("moreMinutes", minutes));
      node.firstChild.addEventListener("click", () => this.#follow(node.firstChild, number));
      return node;
    });
    $("more-list").replaceChildren(...nodes);
    $("more-label").hidden = !nodes.length;
    put($("more-label"), say("more"));
    this.#unfold();
  }

  async #follow(button, number) {
    button.disabled = true;
    try {
      follow(await this.#open(number));
    } catch {
      put($("more-label"), say("moreFailed"));
      announce(say("moreFailed"));
    }
    button.disabled = false;
  }

  #unfold() {
    $("chapters").hidden = this.#all.length < 2 && $("more-label").hidden;
  }

  /** Take the file of chapters that belongs to a recording (podcast namespace, JSON 1.2). */
  load(file) {
    for (const { startTime, title } of JSON.parse(file).chapters ?? []) this.add(startTime * 1_000, title);
  }

  /** Mark the chapter that is heard at `ms`. */
  show(ms) {
    const chapter = this.#all.findLast((one) => one.ms <= ms + 50) ?? this.#all[0];
    if (!chapter || chapter === this.#now) return;
    this.#now?.node.firstChild.removeAttribute("aria-current");
    this.#now = chapter;
    chapter.node.firstChild.setAttribute("aria-current", "true");
    put($("chapters-label"), say("chapterOf", this.#all.indexOf(chapter) + 1, this.#all.length));
    put($("chapter-now"), chapter.title);
  }
}

function entry(title, note) {
  const node = document.createElement("li");
  const button = document.createElement("button");
  const [more, name] = [document.createElement("span"), document.createElement("bdi")];
  button.type = "button";
  more.textContent = note;
  name.textContent = title;
  button.append(name, more);
  node.append(button);
  return node;
}

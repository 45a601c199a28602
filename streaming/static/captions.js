/** The transcript: sentences in order, words that light up as they are heard and can be jumped to. */

/** Words whose times are only estimated light up phrase by phrase; these end a phrase. */
const PHRASE_END = /[,.;:!?，。；：！？、…—]/;
const SETTLE_MS = 4_000; // after the reader scrolled by hand, or moved the focus here

export class Captions {
  following = true;
  #box;
  #seek;
  #onFollow;
  #sentences = []; // {seg, epoch, ms, text, node, units: [{ms, end, node}]}, by seg
  #early = new Map(); // words that came before their sentence
  #now = { sentence: null, unit: null };
  #scrolled = 0;

  /** `seek(ms)` when a word is chosen, `onFollow()` when the text stops or starts following. */
  constructor(box, { seek, onFollow }) {
    this.#box = box;
    this.#seek = seek;
    this.#onFollow = onFollow;
    box.addEventListener("click", (event) => this.#choose(event.target));
    box.addEventListener("keydown", (event) => this.#key(event));
    for (const type of ["wheel", "touchmove"]) {
      addEventListener(type, () => this.follow(false), { passive: true });
    }
  }

  get empty() {
    return this.#sentences.length === 0;
  }

  set language(tag) {
    this.#box.lang = tag;
  }

  /** Keep the voice's place in view, or let the reader read elsewhere. */
  follow(on) {
    if (this.#now.sentence === null) return;
    if (on) this.#scrolled = 0;
    if (on !== this.following) {
      this.following = on;
      this.#onFollow();
    }
    if (on) this.#bringIntoView();
  }

  /** A `seg` message. */
  addSentence({ seg, e, text, ms }) {
    const known = this.#sentences.findIndex((s) => s.seg === seg);
    if (known >= 0) {
      if (this.#sentences[known].epoch >= e) return;
      this.#remove(known);
    }
    const node = document.createElement("p");
    node.dir = "auto"; // a note may mix languages
    const sentence = { seg, epoch: e, ms, text, node, units: [] };
    const at = this.#sentences.findIndex((s) => s.seg > seg);
    this.#box.insertBefore(node, at < 0 ? null : this.#sentences[at].node);
    this.#sentences.splice(at < 0 ? this.#sentences.length : at, 0, sentence);
    this.#write(sentence, [[text, ms, Infinity]]);
    const words = this.#early.get(seg);
    this.#early.delete(seg);
    if (words) this.addWords(words);
  }

  /** A `w` message. */
  addWords(message) {
    const sentence = this.#sentences.find((s) => s.seg === message.seg);
    if (!sentence) this.#early.set(message.seg, message);
    else if (sentence.epoch === message.e) {
      this.#write(sentence, message.q === "estimate" ? phrases(sentence.text, message.w) : message.w);
    }
  }

  /** Sentences from `fromSeg` on are void in epochs before `epoch`; `spare` may stay until replaced. */
  cut(epoch, fromSeg, spare = -1) {
    const isVoid = (s) => s.seg >= fromSeg && s.epoch < epoch && s.seg !== spare;
    for (let i = this.#sentences.length - 1; i >= 0; i--) if (isVoid(this.#sentences[i])) this.#remove(i);
    for (const [seg, words] of this.#early) if (seg >= fromSeg && words.e < epoch) this.#early.delete(seg);
  }

  /** Light up what is heard at `ms`. */
  show(ms) {
    const sentence = this.#sentences.findLast((s) => s.ms <= ms) ?? null;
    const unit = sentence?.units.findLast((u) => u.ms <= ms) ?? null;
    if (unit !== this.#now.unit) {
      this.#now.unit?.node.classList.remove("now");
      unit?.node.classList.add("now");
    }
    if (sentence !== this.#now.sentence) {
      this.#now.sentence?.node.classList.remove("now");
      sentence?.node.classList.add("now");
      for (const s of this.#sentences) s.node.classList.toggle("said", sentence !== null && s.seg < sentence.seg);
      this.#now = { sentence, unit };
      if (this.#scrolled && performance.now() - this.#scrolled > SETTLE_MS) this.#scrolled = 0;
      if (this.following && !this.#scrolled) this.#bringIntoView();
    }
    this.#now.unit = unit;
  }

  /** Where the sentence `step` away from the one at `ms` begins (ms), or null. */
  neighbour(ms, step) {
    const at = this.#sentences.findLastIndex((s) => s.ms <= ms);
    // Back means the beginning of this sentence first, as on every player.
    if (step < 0 && at >= 0 && ms - this.#sentences[at].ms > 1_500) return this.#sentences[at].ms;
    return this.#sentences[Math.max(0, at + step)]?.ms ?? null;
  }

  /** The number of the sentence at `ms`, or -1. */
  segAt(ms) {
    return this.#sentences.findLast((s) => s.ms <= ms)?.seg ?? -1;
  }

  #remove(index) {
    const [sentence] = this.#sentences.splice(index, 1);
    sentence.node.remove();
    if (this.#now.sentence === sentence) this.#now = { sentence: null, unit: null };
  }

  /** Fill a sentence with its text, cut at `parts` [text, start, end] as far as they are found. */
  #write(sentence, parts) {
    const { text, node } = sentence;
    const focused = node.contains(document.activeElement);
    const units = [];
    const pieces = [];
    let from = 0;
    for (const [part, ms, end] of parts) {
      const at = text.indexOf(part, from);
      if (at < 0 || !part) continue;
      if (at > from) pieces.push(text.slice(from, at));
      const span = document.createElement("span");
      span.textContent = part;
      span.tabIndex = -1;
      units.push({ ms, end, node: span });
      pieces.push(span);
      from = at + part.length;
    }
    if (!units.length) return;
    pieces.push(text.slice(from));
    node.replaceChildren(...pieces);
    sentence.units = units;
    if (this.#now.sentence === sentence) this.#now.unit = null;
    if (focused) units[0].node.focus({ preventScroll: true });
    this.#keepOneTabStop();
  }

  #keepOneTabStop() {
    if (this.#box.querySelector('[tabindex="0"]')) return;
    const first = this.#sentences[0]?.units[0];
    if (first) first.node.tabIndex = 0;
  }

  #unitOf(node) {
    for (const sentence of this.#sentences) {
      const unit = sentence.units.find((u) => u.node === node);
      if (unit) return { sentence, unit };
    }
    return null;
  }

  #choose(node) {
    if (getSelection()?.toString()) return; // somebody copies text
    const found = this.#unitOf(node);
    if (!found) return;
    this.following = true;
    this.#onFollow();
    this.#seek(found.unit.ms);
  }

  /** Inside the transcript the arrows walk over words and sentences, Enter plays from there. */
  #key(event) {
    const found = this.#unitOf(event.target);
    if (!found || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = this.#sentences.flatMap((s) => s.units);
    const at = all.indexOf(found.unit);
    const index = this.#sentences.indexOf(found.sentence);
    const goal = {
      ArrowRight: () => all[at + 1],
      ArrowLeft: () => all[at - 1],
      ArrowDown: () => this.#sentences[index + 1]?.units[0],
      ArrowUp: () => this.#sentences[index - 1]?.units[0],
      Enter: () => found.unit,
    }[event.key]?.();
    if (!goal) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Enter") {
      this.#choose(goal.node);
      return;
    }
    this.#scrolled = performance.now();
    found.unit.node.tabIndex = -1;
    goal.node.tabIndex = 0;
    goal.node.focus();
  }

  #bringIntoView() {
    const node = this.#now.sentence?.node;
    if (!node) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const top = scrollY + node.getBoundingClientRect().top - innerHeight * 0.32;
    scrollTo({ top, behavior: calm || document.hidden ? "auto" : "smooth" });
  }
}

/** Join words to phrases of `text`: a phrase runs to the next punctuation mark. */
function phrases(text, words) {
  const joined = [];
  let from = 0;
  let open = null; // [start in text, start ms]
  words.forEach(([word, start, end], i) => {
    const at = text.indexOf(word, from);
    if (at < 0) return;
    open ??= [at, start];
    from = at + word.length;
    const next = words[i + 1] ? text.indexOf(words[i + 1][0], from) : text.length;
    if (next < 0 || i === words.length - 1 || PHRASE_END.test(word.at(-1) + text.slice(from, next))) {
      joined.push([text.slice(open[0], from), open[1], end]);
      open = null;
    }
  });
  return joined;
}

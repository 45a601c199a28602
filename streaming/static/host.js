/**
 * The host's strip: what only the owner of a session may do, for everybody who listens. When the
 * session is over, and for listeners whose link allows it, it asks for a reading of one's own.
 */

import { $, announce, follow, put } from "./dom.js";
import { clock, known, say } from "./strings.js";

const CHANGES = ["speed", "emotion", "voice"];
const SPEEDS = [0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2];
const EMOTIONS = ["calm", "happy", "sad", "angry", "afraid", "surprised", "melancholic", "disgusted"];
const WIDE = "(min-width: 40rem) and (min-height: 40rem)";

export class HostStrip {
  #order;
  #here;
  #role = "listener";
  #mayFork = false;
  #isForking = false; // the fields are for a reading of one's own
  #isPaused = false;
  #last = {}; // what each field showed before it was asked to change

  /**
   * `order(order)` gives an order and resolves to its answer; `here()` is the place that is heard,
   * {ms, seg, isEnd}.
   */
  constructor({ order, here }) {
    this.#order = order;
    this.#here = here;
    const click = (id, action) => $(id).addEventListener("click", action);
    click("host-pause", () => this.#give(this.#isPaused ? "resume" : "pause"));
    click("host-skip", () => this.#give("skip", this.#here().seg + 1, "now"));
    click("host-stop", () => $("stop-dialog").showModal());
    click("host-fork", () => this.#fork());
    $("stop-dialog").addEventListener("close", () => {
      if ($("stop-dialog").returnValue) this.#give("stop");
      $("stop-dialog").returnValue = "";
    });
    for (const op of CHANGES) {
      $(`host-${op}`).addEventListener("change", () => {
        if (!this.#isForking) this.#give(op, chosen(op));
      });
    }
  }

  /**
   * Show the strip to an owner, to an admin, who may only stop, or to a listener who may fork.
   *
   * `voices` are [{id, name, lang}], empty if nobody says which there are.
   */
  show(role, voices, mayFork) {
    this.#role = role;
    this.#mayFork = mayFork;
    if ($("host").hidden) $("host").open = matchMedia(WIDE).matches;
    $("host").hidden = false;
    this.label();
    options("host-speed", SPEEDS.map((speed) => [speed, `${speed}×`]), 1);
    options("host-emotion", [["", say("asWritten")], ...EMOTIONS.map((name) => [name, say(name)])], "");
    options("host-voice", [["", say("asWritten")]], "");
    $("host-voice").options[0].disabled = true; // a voice is replaced by another one only
    $("host-voice").append(...byLanguage(voices));
    for (const op of CHANGES) $(`host-${op}`).parentElement.hidden = role === "admin";
    $("host-voice").parentElement.hidden ||= !voices.length;
  }

  /** Texts that change with the language. */
  label() {
    put($("host-label"), say(this.#role === "listener" ? "own" : "host"));
    for (const key of CHANGES) {
      put($(`host-${key}`).previousElementSibling, say(`host_${key}`));
    }
    for (const key of ["skip", "stop", "fork"]) put($(`host-${key}`).lastChild, say(`host_${key}`));
    for (const key of ["pause", "skip", "stop", "fork"]) $(`host-${key}`).title = say(`${key}All`);
    put($("stop-question"), say("stopQuestion"));
    put($("stop-no"), say("stopNo"));
    put($("stop-yes"), say("host_stop"));
    for (const option of $("host-emotion").options) option.text = say(option.value || "asWritten");
  }

  /** What is the case now. */
  paint({ state, listeners, queue, isUp }) {
    this.#isPaused = state === "paused";
    const isOver = ["ended", "failed"].includes(state);
    this.#isForking = this.#mayFork && (isOver || this.#role === "listener");
    $("host-panel").classList.toggle("forking", this.#isForking);
    $("host-fork").hidden = !this.#isForking;
    for (const op of ["pause", "skip"]) $(`host-${op}`).hidden = this.#isForking || this.#role !== "owner";
    $("host-stop").hidden = this.#isForking;
    put($("host-pause").lastChild, say(this.#isPaused ? "host_resume" : "host_pause"));
    $("host-pause-icon").setAttribute("href", this.#isPaused ? "#i-play" : "#i-pause");
    const facts = [
      listeners === null ? "" : say(listeners === 1 ? "listener" : "listeners", listeners),
      queue?.pos == null ? "" : say("queuePlace", queue.pos),
      isOver ? say("hostOver") : "",
    ];
    put($("host-facts"), facts.filter(Boolean).join(" · "));
    const isOff = !isUp || (isOver && !this.#isForking);
    for (const node of $("host").querySelectorAll("button, select")) node.disabled = isOff;
  }

  async #give(op, value, at = "playhead") {
    this.#answer(say("asking"));
    const order = { op, play_ms: Math.round(this.#here().ms), at };
    const answer = await this.#order(value === undefined ? order : { ...order, value });
    const done = answer?.t === "ctl" && answer.ok;
    const field = $(`host-${op}`);
    if (field instanceof HTMLSelectElement) {
      if (done) this.#last[op] = field.selectedIndex;
      else field.selectedIndex = this.#last[op] ?? [...field.options].findIndex((o) => o.defaultSelected);
    }
    const text = done ? outcome(op, field, answer) : refusal(answer);
    this.#answer(text);
    announce(text);
  }

  /** Have it read anew from here on, or from its start to who has heard all of it. */
  async #fork() {
    this.#answer(say("asking"));
    const { ms, isEnd } = this.#here();
    const changed = CHANGES.filter((op) => op in this.#last || !isDefault(op));
    const value = Object.fromEntries(changed.map((op) => [op, chosen(op)]));
    const place = isEnd ? {} : { play_ms: Math.round(ms), at: "now" };
    const answer = await this.#order({ op: "fork", value, ...place });
    const link = answer?.t === "ctl" && answer.effect?.listen_url;
    const text = link ? say("done_fork") : refusal(answer);
    this.#answer(text);
    announce(text);
    if (link) follow(link);
  }

  #answer(text) {
    put($("host-answer"), text);
  }
}

const chosen = (op) => (op === "speed" ? Number($("host-speed").value) : $(`host-${op}`).value);
const isDefault = (op) => $(`host-${op}`).selectedOptions[0]?.defaultSelected ?? true;

function outcome(op, field, { effect, degraded }) {
  if (!effect) return say("noted");
  const what = field instanceof HTMLSelectElement ? field.selectedOptions[0].text : "";
  const place = effect?.ms == null ? "" : clock(effect.ms);
  const text = what && place ? say("takesEffect", say(`host_${op}`), what, place) : say(`done_${op}`, place);
  const names = (degraded ?? []).map((name) => (known(`host_${name}`) ? say(`host_${name}`) : name));
  return names.length ? `${text} ${say("degraded", names.join(", "))}` : text;
}

function refusal(answer) {
  if (!answer) return say("noAnswer");
  const code = answer.code ?? answer.error?.code;
  return known(`order_${code}`) ? say(`order_${code}`) : say("refused", answer.message ?? code ?? "");
}

/** Voices in a group for each language, that of the page first. */
function byLanguage(voices) {
  const page = document.documentElement.lang;
  const languages = [...new Set(voices.map(({ lang }) => lang ?? ""))];
  const names = new Intl.DisplayNames([page], { type: "language" });
  languages.sort((a, b) => b.startsWith(page) - a.startsWith(page));
  return languages.map((lang) => {
    const group = document.createElement("optgroup");
    group.label = /^[a-z]{2,3}(-|$)/i.test(lang) ? names.of(lang) : lang;
    const its = voices.filter((voice) => (voice.lang ?? "") === lang);
    group.append(...its.map(({ id, name }) => new Option(name || id, id)));
    return group;
  });
}

function options(id, pairs, chosen) {
  const nodes = pairs.map(([value, text]) => new Option(text, value, value === chosen, value === chosen));
  $(id).replaceChildren(...nodes);
}

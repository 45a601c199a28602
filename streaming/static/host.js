/** The host's strip: what only the owner of a session may do, for everybody who listens. */

import { $, announce, put } from "./dom.js";
import { clock, known, say } from "./strings.js";

const SPEEDS = [0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2];
const EMOTIONS = ["calm", "happy", "sad", "angry", "afraid", "surprised", "melancholic", "disgusted"];
const WIDE = "(min-width: 40rem) and (min-height: 40rem)";

export class HostStrip {
  #order;
  #here;
  #isPaused = false;
  #last = {}; // what each field showed before it was asked to change

  /** `order(order)` gives an order and resolves to its answer; `here()` is the place that is heard. */
  constructor({ order, here }) {
    this.#order = order;
    this.#here = here;
    const click = (id, action) => $(id).addEventListener("click", action);
    click("host-pause", () => this.#give(this.#isPaused ? "resume" : "pause"));
    click("host-skip", () => this.#give("skip", this.#here().seg + 1, "now"));
    click("host-stop", () => $("stop-dialog").showModal());
    $("stop-dialog").addEventListener("close", () => {
      if ($("stop-dialog").returnValue) this.#give("stop");
      $("stop-dialog").returnValue = "";
    });
    for (const op of ["speed", "emotion", "voice"]) {
      $(`host-${op}`).addEventListener("change", ({ target }) => {
        this.#give(op, op === "speed" ? Number(target.value) : target.value);
      });
    }
  }

  /**
   * Show the strip to an owner, or to an admin, who may only stop.
   *
   * `voices` are [{id, name, lang}], empty if nobody says which there are.
   */
  show(role, voices) {
    if ($("host").hidden) $("host").open = matchMedia(WIDE).matches;
    $("host").hidden = false;
    this.label();
    options("host-speed", SPEEDS.map((speed) => [speed, `${speed}×`]), 1);
    options("host-emotion", [["", say("asWritten")], ...EMOTIONS.map((name) => [name, say(name)])], "");
    options("host-voice", [["", say("asWritten")]], "");
    $("host-voice").options[0].disabled = true; // a voice is replaced by another one only
    $("host-voice").append(...byLanguage(voices));
    for (const part of $("host-panel").children) part.hidden = role !== "owner" && part.id !== "host-stop";
    $("host-voice").parentElement.hidden ||= !voices.length;
  }

  /** Texts that change with the language. */
  label() {
    put($("host-label"), say("host"));
    for (const key of ["speed", "emotion", "voice"]) {
      put($(`host-${key}`).previousElementSibling, say(`host_${key}`));
    }
    for (const key of ["skip", "stop"]) put($(`host-${key}`).lastChild, say(`host_${key}`));
    for (const key of ["pause", "skip", "stop"]) $(`host-${key}`).title = say(`${key}All`);
    put($("stop-question"), say("stopQuestion"));
    put($("stop-no"), say("stopNo"));
    put($("stop-yes"), say("host_stop"));
    for (const option of $("host-emotion").options) option.text = say(option.value || "asWritten");
  }

  /** What is the case now. */
  paint({ state, listeners, queue, isUp }) {
    this.#isPaused = state === "paused";
    const isOver = ["ended", "failed"].includes(state);
    put($("host-pause").lastChild, say(this.#isPaused ? "host_resume" : "host_pause"));
    $("host-pause-icon").setAttribute("href", this.#isPaused ? "#i-play" : "#i-pause");
    const facts = [
      listeners === null ? "" : say(listeners === 1 ? "listener" : "listeners", listeners),
      queue?.pos == null ? "" : say("queuePlace", queue.pos),
      isOver ? say("hostOver") : "",
    ];
    put($("host-facts"), facts.filter(Boolean).join(" · "));
    for (const node of $("host").querySelectorAll("button, select")) node.disabled = isOver || !isUp;
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

  #answer(text) {
    put($("host-answer"), text);
  }
}

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

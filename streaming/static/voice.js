/** What makes the sound of a live session: frames to a decoder, samples to the worklet. */

import { decoderFor } from "./decoder.js";
import { FLAG, TICKS_PER_MS } from "./protocol.js";

const RATE_HZ = 48_000;
const LEAD_TICKS = 10_000 * TICKS_PER_MS; // decoded sound to keep in the worklet
const ASSUMED_LATENCY_S = 0.02; // where the browser does not say

export class LiveVoice {
  state = "idle"; // idle | waiting | playing | paused | done
  report = { targetMs: 0, underruns: { n: 0, ms: 0 }, tap: null };
  #timeline;
  #host;
  #context = null;
  #node = null;
  #starting = null;
  #wanted = false;
  #held = false;
  #tempo = { speed: 1, live: false };
  #generation = 0;
  #skip = 0;
  #end = null; // ticks, once known
  #at; // where to read when nothing was fed yet: {ticks} or {epoch, seg}
  #last = null; // the frame fed last
  #run = null; // the decoder of an unbroken stretch
  #flushing = null; // a stretch whose decoder gives its rest
  #pending = 0; // samples given to the decoder
  #sent = 0; // samples given to the worklet
  #sentences = []; // where fed sentences begin: {pts, seg}
  #finished = false;
  #early = []; // messages from before the worklet was there

  /** `host` hears of changes (`onVoice`) and of places that must be fetched (`onNeed`). */
  constructor(timeline, host) {
    this.#timeline = timeline;
    this.#host = host;
    this.#at = { ticks: 0 };
    // A phone call or another app may have taken the sound; who comes back wants to hear again.
    for (const event of ["pageshow", "focus"]) addEventListener(event, () => this.#wake());
    document.addEventListener("visibilitychange", () => document.hidden || this.#wake());
  }

  /** Can this page make live sound at all? */
  static get supported() {
    return typeof AudioWorkletNode === "function";
  }

  /** The place being played, as heard now (ms): what has left the loudspeaker, not the buffer. */
  get positionMs() {
    const { report } = this;
    if (report.generation !== this.#generation || report.pts === undefined) return this.#startMs();
    const age = report.rate ? this.#context.currentTime - report.at : 0;
    const late = report.rate ? this.#context.outputLatency || ASSUMED_LATENCY_S : 0;
    const ticks = report.pts + Math.min(report.left, (age - late) * report.rate * RATE_HZ);
    return Math.max(this.#startMs(), ticks / TICKS_PER_MS);
  }

  /** Unbroken sound from the place being played on (ms). */
  get bufferedMs() {
    const from = this.positionMs * TICKS_PER_MS;
    return Math.max(0, this.#timeline.reach(from) - from) / TICKS_PER_MS;
  }

  get contextState() {
    return this.#context?.state ?? "none";
  }

  configure({ skip, preMs }) {
    this.#skip = skip;
    if (preMs) this.#post({ t: "advise", ms: preMs });
  }

  /** Call inside a gesture. */
  async play() {
    this.#wanted = true;
    if (this.state === "done") this.seek(0);
    this.#setState("waiting");
    this.#starting ??= this.#start();
    await this.#starting;
    await this.#context.resume();
    this.#post({ t: "play", on: this.#wanted });
    this.feed();
  }

  pause() {
    this.#wanted = false;
    this.#post({ t: "play", on: false });
    this.#setState("paused");
  }

  close() {
    this.pause();
    this.#context?.close();
    this.#context = this.#node = null;
  }

  seek(ms) {
    this.#jump({ ticks: Math.round(ms * TICKS_PER_MS) });
  }

  tempo(tempo) {
    Object.assign(this.#tempo, tempo);
    this.#post({ t: "tempo", ...this.#tempo });
  }

  /** The host has paused the reading, or goes on. */
  hold(on) {
    this.#held = on;
    this.#post({ t: "hold", on });
  }

  /** A frame came in. */
  arrived(frame) {
    const ptsMs = frame.pts / TICKS_PER_MS;
    this.#post({ t: "arrival", atMs: performance.now(), ptsMs });
    this.feed();
  }

  /** The session ends at `ms`. */
  finish(ms) {
    this.#end = Math.round(ms * TICKS_PER_MS);
    this.feed();
  }

  /**
   * Sentences from `fromSeg` on begin anew in `epoch`, at `ms`.
   *
   * Before that place: play up to it. Beyond it: where the host skips, follow at once; after a crash
   * (`retry`) the sentence is not whole, so go to its new beginning; else finish the sentence and go
   * on with the next.
   */
  cut({ epoch, fromSeg, ms, why }) {
    this.#end = null;
    const border = Math.round(ms * TICKS_PER_MS);
    const here = this.positionMs * TICKS_PER_MS;
    const seg = this.#sentences.findLast((s) => s.pts <= here)?.seg ?? fromSeg;
    if (here <= border) {
      if (this.#last && this.#last.pts + this.#last.dur > border + TICKS_PER_MS) {
        this.#takeBack(border);
        this.#last = this.#timeline.at(border - 2 * TICKS_PER_MS) ?? null;
        if (!this.#last) this.#at = { epoch, seg: fromSeg, ticks: border };
      }
    } else if (why === "skip") {
      this.#jump({ epoch, seg: fromSeg, ticks: border });
    } else if (why === "retry" || !this.#last) {
      // Where all is spoken again from the start, nobody has to hear again what he knows.
      this.#jump({ epoch, seg: Math.max(fromSeg, seg), ticks: seg > fromSeg ? here : border });
    } else {
      const following = this.#sentences.find((s) => s.pts > here && s.seg > seg);
      if (following) this.#takeBack(following.pts);
      this.#at = { epoch, seg: Math.max(fromSeg, seg + 1), ticks: border };
      this.#last = null;
    }
    this.feed();
  }

  /** Decode what comes next, as far as the worklet should be ahead. */
  feed() {
    while (this.#node && !this.#flushing && !this.#finished && this.#lead() < LEAD_TICKS) {
      const frame = this.#pick();
      if (frame) this.#decode(frame);
      else return this.#dry();
    }
  }

  // Starting.

  #wake() {
    const isAsleep = ["suspended", "interrupted"].includes(this.contextState);
    // Where that needs a gesture, the page says so.
    if (this.#wanted && isAsleep) this.#context.resume().catch(() => this.#host.onVoice());
  }

  async #start() {
    if (navigator.audioSession) navigator.audioSession.type = "playback";
    // A fixed rate leaves resampling to the browser, which does it better than a worklet can.
    this.#context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: "playback" });
    this.#context.onstatechange = () => this.#host.onVoice();
    await this.#context.audioWorklet.addModule("/static/jitter-worklet.js");
    this.#node = new AudioWorkletNode(this.#context, "notecast-playout", {
      numberOfInputs: 0, outputChannelCount: [1],
    });
    this.#node.port.onmessage = ({ data }) => this.#hear(data);
    this.#node.connect(this.#context.destination);
    for (const message of this.#early) this.#node.port.postMessage(message);
    this.#early = [];
    this.#post({ t: "flush", generation: this.#generation });
    this.#post({ t: "tempo", ...this.#tempo });
    this.#post({ t: "hold", on: this.#held });
  }

  #post(message, transfer = []) {
    if (this.#node) {
      this.#node.port.postMessage(message, transfer);
    } else if (message.t === "arrival" || message.t === "advise") {
      this.#early.push(message);
      if (this.#early.length > 200) this.#early.shift();
    }
  }

  #hear(data) {
    if (data.t === "sound") {
      this.#host.onSound(data.at - this.#context.currentTime);
      return;
    }
    const worse = data.underruns.n > this.report.underruns.n;
    this.report = data;
    if (data.generation === this.#generation && this.#wanted) this.#setState(data.state);
    if (worse) this.#host.onUnderrun();
    this.feed();
  }

  #setState(state) {
    if (state === this.state) return;
    this.state = state;
    this.#host.onVoice();
  }

  // Feeding.

  #startMs() {
    return (this.#at.ticks ?? 0) / TICKS_PER_MS;
  }

  #lead() {
    const mine = this.report.generation === this.#generation;
    const unseen = this.#sent - (mine ? this.report.pushed : 0);
    return this.#pending + unseen + (mine ? this.report.left : 0);
  }

  #pick() {
    if (this.#last) return this.#timeline.after(this.#last);
    if ("epoch" in this.#at) return this.#timeline.firstOf(this.#at.epoch, this.#at.seg);
    return this.#timeline.at(this.#at.ticks);
  }

  #decode(frame) {
    if (this.#run && !this.#runsOn(frame)) {
      this.#flush();
      return;
    }
    if (frame.silence) {
      this.#run ??= { generation: this.#generation, from: frame.pts, ts: frame.pts, seam: false };
      this.#pending += frame.dur;
      this.#emit(this.#run, new Float32Array(frame.dur));
    } else {
      this.#run ??= this.#begin(frame);
      this.#give(frame);
    }
    if (this.#sentences.at(-1)?.seg !== frame.seg) this.#sentences.push({ pts: frame.pts, seg: frame.seg });
    this.#last = frame;
  }

  #runsOn(frame) {
    return this.#last && this.#last.codec === frame.codec && this.#last.silence === frame.silence
      && !(frame.flags & (FLAG.epoch | FLAG.discontinuity))
      && Math.abs(frame.pts - this.#last.pts - this.#last.dur) < TICKS_PER_MS;
  }

  #begin(frame) {
    const early = this.#last ? undefined : this.#timeline.before(frame);
    const first = early ?? frame;
    if (!this.#last && "epoch" in this.#at) this.#at.ticks = frame.pts;
    const wanted = this.#last ? frame.pts : this.#at.ticks;
    const run = { generation: this.#generation, from: Math.max(wanted, frame.pts), seam: this.#sent > 0 };
    run.decoder = decoderFor(first, this.#skip, {
      emit: (samples) => this.#emit(run, samples),
      fail: () => this.#lose(run),
    });
    run.ts = first.pts - run.decoder.delay;
    this.#run = run;
    if (early) this.#give(early); // a decoder needs some run-up before what is to be heard
    return run;
  }

  #give(frame) {
    this.#pending += frame.dur;
    this.#run.decoder.decode(frame);
  }

  #emit(run, samples) {
    if (run.generation !== this.#generation) return;
    this.#pending = Math.max(0, this.#pending - samples.length);
    const drop = Math.min(samples.length, Math.max(0, run.from - run.ts));
    const keep = Math.min(samples.length, (run.until ?? Infinity) - run.ts);
    if (keep > drop) {
      const part = samples.slice(drop, keep);
      this.#sent += part.length;
      this.#post({
        t: "push", generation: this.#generation, pts: run.ts + drop, samples: part, seam: run.seam,
      }, [part.buffer]);
      run.seam = false;
    }
    run.ts += samples.length;
  }

  /** End the current stretch; feeding goes on when the decoder has given everything. */
  #flush() {
    const run = this.#run;
    this.#run = null;
    if (!run.decoder) return;
    this.#flushing = run;
    run.decoder.flush().catch(() => {}).then(() => {
      run.decoder.close();
      if (this.#flushing !== run) return;
      this.#pending = 0;
      this.#flushing = null;
      this.feed();
    });
  }

  /** The decoder gave up on a stretch: go on with the next frame. */
  #lose(run) {
    if (run.generation !== this.#generation) return;
    run.generation = null;
    if (this.#run === run) this.#run = null;
    this.#pending = 0;
    this.#flushing = null;
    this.feed();
  }

  /** Nothing to feed: the end, a place to fetch, or just not yet here. */
  #dry() {
    if (!this.#last && "epoch" in this.#at && this.#end === null) return undefined;
    const here = this.#last ? this.#last.pts + this.#last.dur : this.#at.ticks;
    if (this.#end !== null && here >= this.#end - TICKS_PER_MS && !this.#timeline.hasBeyond(here)) {
      if (this.#run) return this.#flush();
      this.#finished = true;
      this.#post({ t: "end" });
      return undefined;
    }
    return this.#host.onNeed(here / TICKS_PER_MS);
  }

  // Going elsewhere.

  #jump(place) {
    this.#generation++;
    this.#run?.decoder?.close();
    this.#run = null;
    this.#flushing = null;
    this.#pending = 0;
    this.#sent = 0;
    this.#last = null;
    this.#sentences = [];
    this.#finished = false;
    this.#at = place;
    this.#post({ t: "flush", generation: this.#generation });
    if (this.state === "done") this.#setState("paused");
    this.feed();
  }

  /** Take back what was fed from `ticks` on. */
  #takeBack(ticks) {
    for (const run of [this.#run, this.#flushing]) if (run) run.until = ticks;
    this.#finished = false;
    this.#sentences = this.#sentences.filter((s) => s.pts < ticks);
    this.#post({ t: "truncate", pts: ticks });
  }
}

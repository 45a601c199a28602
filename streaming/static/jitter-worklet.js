/**
 * The playout end: a ring of decoded samples, the jitter buffer's rules, tempo, and the clock.
 *
 * The context runs at 48 kHz, so a sample is a tick. The page keeps about ten seconds in here; all
 * rules below speak of what is in the ring.
 */

import { Cushion } from "./jitter.js";
import { Stretcher } from "./stretch.js";

const TICKS_PER_MS = 48;
const RING = 1 << 20; // 21.8 s
const FADE = 5 * TICKS_PER_MS;
const REPORT_EVERY = 50 * TICKS_PER_MS;
const PATIENCE = 1_500 * TICKS_PER_MS; // then start with what is there,
const LITTLE = 200 * TICKS_PER_MS; // if it is at least this
const AHEAD_OK = 1_000 * TICKS_PER_MS;
const LIVE_SLACK = 1_500 * TICKS_PER_MS;
const CATCH_UP = 1.04;

class Playout extends AudioWorkletProcessor {
  ring = new Float32Array(RING);
  cushion = new Cushion();
  stretcher = new Stretcher();
  generation = 0;
  wanted = false; // somebody pressed play
  state = "waiting"; // waiting | playing | done
  speed = 1;
  held = false;
  live = false; // hold on to the live edge
  gain = 0;
  underruns = { n: 0, samples: 0 };
  sounded = false;
  tap = 0x811c9dc5; // FNV-1a over what is played at natural tempo
  tapped = 0;
  sinceReport = 0;

  constructor() {
    super();
    this.clear();
    this.port.onmessage = ({ data }) => this[data.t](data);
  }

  // What the page asks for; each method is a message of the same name.

  push({ generation, pts, samples, seam }) {
    if (generation !== this.generation) return;
    if (seam && this.write) this.seams.push(this.write);
    const last = this.marks.at(-1);
    if (pts !== last.pts + this.write - last.at || !this.write) this.marks.push({ at: this.write, pts });
    for (let i = 0; i < samples.length; i++) this.ring[(this.write + i) & (RING - 1)] = samples[i];
    this.write += samples.length;
  }

  flush({ generation }) {
    this.generation = generation;
    this.clear();
    this.cushion.restart();
    this.report();
  }

  /** Take back what was pushed from `pts` on. */
  truncate({ pts }) {
    const mark = this.marks.find((m, i) => pts < (this.marks[i + 1]?.pts ?? Infinity) && pts >= m.pts);
    if (!mark) return;
    const at = mark.at + pts - mark.pts;
    if (at >= this.write) return;
    this.write = Math.max(at, this.read);
    this.marks = this.marks.filter((m) => m.at <= this.write);
    this.seams = this.seams.filter((s) => s < this.write);
    this.ended = false;
  }

  end() {
    this.ended = true;
  }

  play({ on }) {
    this.wanted = on;
    if (on) this.waited = 0;
  }

  tempo({ speed, live }) {
    this.speed = speed;
    this.live = live;
  }

  /** The voice is silent on purpose: running dry is no fault of the network now. */
  hold({ on }) {
    this.held = on;
  }

  arrival({ atMs, ptsMs }) {
    this.cushion.arrive(atMs, ptsMs);
  }

  advise({ ms }) {
    this.cushion.advise(ms);
  }

  // Playing.

  clear() {
    this.read = 0;
    this.write = 0;
    this.marks = [{ at: 0, pts: 0 }];
    this.seams = [];
    this.ended = false;
    this.starved = false;
    this.eased = false;
    this.catching = false;
    this.waited = 0;
    this.state = "waiting";
    this.stretcher.reset();
  }

  get position() {
    return this.stretcher.position(this.read, this.rate);
  }

  get buffered() {
    return Math.max(0, this.write - this.position);
  }

  get target() {
    return this.cushion.target(currentTime * 1_000) * TICKS_PER_MS;
  }

  process(_inputs, [[out]]) {
    if (this.wanted && this.state === "waiting" && this.ready(out.length)) this.begin();
    if (this.state === "playing" && (this.wanted || this.gain > 0)) this.sound(out);
    else if (this.starved && this.wanted) this.underruns.samples += out.length;
    this.sinceReport += out.length;
    if (this.sinceReport >= REPORT_EVERY) this.report();
    return true;
  }

  ready(quantum) {
    this.waited += quantum;
    const { buffered } = this;
    return this.ended
      || buffered >= this.target * Math.max(1, this.speed)
      || (this.waited >= PATIENCE && buffered >= LITTLE);
  }

  begin() {
    this.state = "playing";
    this.starved = false;
    this.report();
  }

  sound(out) {
    this.rate = this.chooseRate();
    const left = Math.min(this.seams[0] ?? Infinity, this.ended ? Infinity : this.write) - this.position;
    const made = this.produce(out);
    this.shape(out, made, left);
    this.pass();
    if (made < out.length) this.runDry(out.length - made);
  }

  /** Faster than natural only while there is something to be fast on. */
  chooseRate() {
    const { buffered, target } = this;
    if (this.ended) return this.speed;
    if (this.speed > 1) {
      if (buffered < target) this.eased = true;
      else if (buffered > target + AHEAD_OK) this.eased = false;
      return this.eased ? 1 : this.speed;
    }
    if (buffered > target + LIVE_SLACK) this.catching = this.live;
    else if (buffered <= target) this.catching = false;
    return this.catching && this.speed === 1 ? CATCH_UP : this.speed;
  }

  produce(out) {
    let made = 0;
    while (made < out.length) {
      if (this.stretcher.pending) {
        made += this.stretcher.take(out, made);
        continue;
      }
      const read = this.rate === 1 ? -1 : this.stretcher.step(this.ring, this.read, this.write, this.rate);
      if (read >= 0) {
        this.read = read;
        continue;
      }
      this.stretcher.reset();
      const n = Math.min(out.length - made, this.write - this.read);
      if (n <= 0) break;
      for (let i = 0; i < n; i++) out[made + i] = this.hear(this.ring[(this.read + i) & (RING - 1)]);
      this.read += n;
      made += n;
    }
    return made;
  }

  hear(sample) {
    const value = Math.round(sample * 32_768);
    this.tap = Math.imul(this.tap ^ (value & 0xff), 0x01000193);
    this.tap = Math.imul(this.tap ^ ((value >> 8) & 0xff), 0x01000193);
    this.tapped++;
    return sample;
  }

  /** Fade over 5 ms into pauses, seams and dry ends, and out of them. */
  shape(out, made, left) {
    for (let i = 0; i < made; i++) {
      const room = (left - i * this.rate) / FADE;
      const goal = this.wanted ? Math.min(1, Math.max(0, room)) : 0;
      this.gain += Math.max(-1 / FADE, Math.min(1 / FADE, goal - this.gain));
      out[i] *= this.gain;
      if (!this.sounded && out[i] !== 0) {
        this.sounded = true;
        this.port.postMessage({ t: "sound", at: currentTime });
      }
    }
  }

  /** Drop marks and seams that lie behind. */
  pass() {
    const { position } = this;
    while (this.marks.length > 1 && this.marks[1].at <= position) this.marks.shift();
    while (this.seams.length && this.seams[0] <= position) this.seams.shift();
  }

  runDry(missing) {
    this.gain = 0;
    this.stretcher.reset();
    if (this.ended) {
      this.state = "done";
    } else {
      this.state = "waiting";
      this.waited = 0;
      if (!this.held) this.starve(missing);
    }
    this.report();
  }

  starve(missing) {
    this.starved = true;
    this.underruns.n++;
    this.underruns.samples += missing;
    this.cushion.underrun(currentTime * 1_000);
  }

  report() {
    this.sinceReport = 0;
    const { position } = this;
    this.port.postMessage({
      t: "report",
      generation: this.generation,
      state: this.state,
      pts: this.marks[0].pts + position - this.marks[0].at,
      at: currentTime,
      rate: this.state === "playing" && this.wanted ? (this.rate ?? 1) : 0,
      pushed: this.write,
      left: this.buffered,
      targetMs: this.target / TICKS_PER_MS,
      underruns: { n: this.underruns.n, ms: Math.round(this.underruns.samples / TICKS_PER_MS) },
      tap: `${(this.tap >>> 0).toString(16).padStart(8, "0")}:${this.tapped}`,
    });
  }
}

registerProcessor("notecast-playout", Playout);

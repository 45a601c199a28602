/** How much sound to hold before playing: enough for what the network did lately, no more. */

const WINDOW = 200; // chunks looked back upon
const MARGIN_MS = 60;
const LEAST_MS = 160;
const MOST_MS = 2_000;
const START_MS = 240;
const CALM_MS = 30_000; // without underrun for so long: begin to give the extra back
const STEP_MS = 5_000;
const STEP = 0.9;

export class Cushion {
  #arrivals = []; // of the last chunks: when they came, relative to their place in time
  #measured = LEAST_MS;
  #extra = START_MS; // learnt from the server and from underruns; fades
  #calmAt = 0;

  /** The server's advice, `opened.pre_ms`. */
  advise(ms) {
    this.#extra = Math.max(this.#extra, Math.min(MOST_MS, ms));
  }

  /**
   * A chunk of position `ptsMs` arrived at `atMs`.
   *
   * Lateness is counted against the best schedule up to then, so chunks that come ever earlier (a
   * replay, a voice faster than its sound) need no cushion, and a path that has become longer for
   * good needs none either once the window has passed.
   */
  arrive(atMs, ptsMs) {
    this.#arrivals.push(atMs - ptsMs);
    if (this.#arrivals.length > WINDOW) this.#arrivals.shift();
    let best = Infinity;
    const late = Float64Array.from(this.#arrivals, (offset) => {
      best = Math.min(best, offset);
      return offset - best;
    }).sort();
    const p97 = late[Math.floor(0.97 * (late.length - 1))];
    this.#measured = Math.min(MOST_MS, Math.max(LEAST_MS, p97 + MARGIN_MS));
  }

  /** Another place or another connection: old arrivals say nothing about the new ones. */
  restart() {
    this.#arrivals = [];
  }

  /** Playback ran dry at `nowMs`: hold more from now on. */
  underrun(nowMs) {
    const target = this.target(nowMs);
    this.#extra = Math.min(MOST_MS, Math.max(1.5 * target, target + 200));
    this.#calmAt = nowMs + CALM_MS;
  }

  /** What to hold, in ms. */
  target(nowMs) {
    if (!this.#calmAt) this.#calmAt = nowMs + CALM_MS;
    while (nowMs > this.#calmAt && this.#extra > LEAST_MS) {
      this.#extra *= STEP;
      this.#calmAt += STEP_MS;
    }
    return Math.max(this.#measured, this.#extra);
  }
}

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
  #late = [];
  #measured = LEAST_MS;
  #best = Infinity; // earliest arrival so far, relative to the time line
  #extra = START_MS; // learnt from the server and from underruns; fades
  #calmAt = 0;

  /** The server's advice, `opened.pre_ms`. */
  advise(ms) {
    this.#extra = Math.max(this.#extra, Math.min(MOST_MS, ms));
  }

  /**
   * A chunk of position `ptsMs` arrived at `atMs`.
   *
   * Lateness is counted against the best schedule so far, not against the best ever: a voice that
   * is made faster than it plays comes ever earlier, and needs no cushion for that.
   */
  arrive(atMs, ptsMs) {
    const lateness = atMs - ptsMs;
    this.#best = Math.min(this.#best, lateness);
    this.#late.push(lateness - this.#best);
    if (this.#late.length > WINDOW) this.#late.shift();
    const sorted = [...this.#late].sort((a, b) => a - b);
    const p97 = sorted[Math.floor(0.97 * (sorted.length - 1))];
    this.#measured = Math.min(MOST_MS, Math.max(LEAST_MS, p97 + MARGIN_MS));
  }

  /** Another place or another connection: old arrivals say nothing about the new ones. */
  restart() {
    this.#best = Infinity;
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

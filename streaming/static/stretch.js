/**
 * Time-stretching with the pitch kept: WSOLA (Verhelst and Roelands, 1993), mono, 48 kHz.
 *
 * Half-windows of 15 ms overlap. Each step fades from the natural continuation of what was said
 * last into the place, within 15 ms of where the new tempo wants to be, that is most like it.
 * Left alone the continuation is the sound itself, so entering and leaving make no seam.
 */

export const HOP = 720; // half of the 30 ms window
const SEARCH = 720;
const COARSE = 4; // look at every fourth place with every fourth sample, then around the winner

const RISE = Float32Array.from({ length: HOP }, (_, i) => 0.5 - 0.5 * Math.cos((Math.PI * (i + 0.5)) / HOP));

export class Stretcher {
  #out = new Float32Array(HOP);
  #taken = HOP;
  #nominal = null; // where the tempo wants to read next

  /** Samples made but not taken. */
  get pending() {
    return HOP - this.#taken;
  }

  /** Forget the tempo's place: the next step begins at `read`. */
  reset() {
    this.#taken = HOP;
    this.#nominal = null;
  }

  /** Where in the source the next taken sample belongs, `read` when idle. */
  position(read, rate) {
    return this.#nominal === null ? read : this.#nominal - this.pending * rate;
  }

  /** Copy pending samples into `out` from `at` on; returns how many. */
  take(out, at) {
    const n = Math.min(this.pending, out.length - at);
    out.set(this.#out.subarray(this.#taken, this.#taken + n), at);
    this.#taken += n;
    return n;
  }

  /**
   * Make one hop from ring buffer `data` (its length is a power of two).
   *
   * Returns the new `read`, or -1 when `write` is too near to look ahead.
   */
  step(data, read, write, rate) {
    const nominal = this.#nominal ?? read;
    const centre = Math.round(nominal);
    if (Math.max(read, centre + SEARCH) + HOP > write) return -1;
    const best = this.#mostAlike(data, read, centre);
    const mask = data.length - 1;
    for (let i = 0; i < HOP; i++) {
      const old = data[(read + i) & mask];
      this.#out[i] = old + RISE[i] * (data[(best + i) & mask] - old);
    }
    this.#taken = 0;
    this.#nominal = nominal + HOP * rate;
    return best + HOP;
  }

  #mostAlike(data, read, centre) {
    if (Math.abs(centre - read) < COARSE) return read;
    const near = search(data, read, centre - SEARCH, centre + SEARCH, COARSE);
    return search(data, read, near - COARSE, near + COARSE, 1);
  }
}

/** The place from `low` to `high` whose next HOP samples correlate best with those at `read`. */
function search(data, read, low, high, stride) {
  const mask = data.length - 1;
  let best = low;
  let most = -Infinity;
  for (let place = Math.max(0, low); place <= high; place += stride) {
    let dot = 0;
    let energy = 1e-9;
    for (let i = 0; i < HOP; i += stride) {
      const sample = data[(place + i) & mask];
      dot += sample * data[(read + i) & mask];
      energy += sample * sample;
    }
    const score = dot / Math.sqrt(energy);
    if (score > most) {
      most = score;
      best = place;
    }
  }
  return best;
}

/**
 * What was received of a session: its audio frames, in order, without what cuts made void.
 * Positions are ticks (48 per ms) on the session's time line.
 */

import { CODEC, FLAG, TICKS_PER_MS } from "./protocol.js";

const QUIET_BYTES = 20; // an Opus packet of a pause at 24 kb/s,
const LOUD_BYTES = 75; // and one of a stressed syllable
const PCM_PART = 480; // 20 ms at 24 kHz, as long as a packet

const SEAM_TICKS = TICKS_PER_MS; // frames closer than this follow each other
const PCM_KEEP_TICKS = 600_000 * TICKS_PER_MS; // ten minutes of PCM are 29 MB

const endOf = (frame) => frame.pts + frame.dur;

export class Timeline {
  #frames = []; // effective, by seq; seq and pts grow together
  #cuts = [];
  #gaps = []; // [from_seq, to_seq] that the server will never send

  /** The newest position received, in ticks. */
  get end() {
    return this.#frames.length ? endOf(this.#frames.at(-1)) : 0;
  }

  /** Keep a frame; false if we have it already or a cut made it void. */
  add(frame) {
    if (this.#cuts.some((cut) => frame.epoch < cut.epoch && frame.seg >= cut.fromSeg)) return false;
    const at = this.#lowerBound((f) => f.seq < frame.seq);
    if (this.#frames[at]?.seq === frame.seq) return false;
    frame.levels = levelsOf(frame);
    this.#frames.splice(at, 0, frame);
    return true;
  }

  /** Drop what a cut makes void: sentences from `fromSeg` on in epochs before `epoch`. */
  cut(epoch, fromSeg) {
    this.#cuts.push({ epoch, fromSeg });
    this.#frames = this.#frames.filter((f) => f.epoch >= epoch || f.seg < fromSeg);
  }

  /** The server will not send these; play over the hole. */
  gap(fromSeq, toSeq) {
    this.#gaps.push([fromSeq, toSeq]);
  }

  /** The frame that sounds at `ticks`, or undefined if it is not here. */
  at(ticks) {
    const frame = this.#frames[this.#lowerBound((f) => endOf(f) <= ticks)];
    return frame && frame.pts <= ticks + SEAM_TICKS ? frame : undefined;
  }

  /** The frame right after `frame`, or undefined if it is missing. */
  after(frame) {
    const next = this.#frames[this.#lowerBound((f) => f.seq <= frame.seq)];
    return next && this.#follows(frame, next) ? next : undefined;
  }

  /** The frame right before `frame` whose sound runs on into it, or undefined. */
  before(frame) {
    if (frame.flags & (FLAG.epoch | FLAG.discontinuity)) return undefined;
    const previous = this.#frames[this.#lowerBound((f) => f.seq < frame.seq) - 1];
    return previous?.codec === frame.codec && previous.seq === frame.seq - 1 ? previous : undefined;
  }

  /** The first frame of `epoch` or later with a sentence number of at least `seg`. */
  firstOf(epoch, seg) {
    return this.#frames.find((f) => f.epoch >= epoch && f.seg >= seg);
  }

  /** Is something received beyond `ticks`? */
  hasBeyond(ticks) {
    return this.#frames.length > 0 && this.#frames.at(-1).pts > ticks;
  }

  /** End of the unbroken stretch that holds `ticks`; `ticks` itself if nothing does. */
  reach(ticks) {
    const range = this.ranges().find(([from, to]) => from <= ticks + SEAM_TICKS && ticks < to);
    return range ? range[1] : ticks;
  }

  /** The unbroken stretches received, as [from, to] in ticks. */
  ranges() {
    const ranges = [];
    this.#frames.forEach((frame, i) => {
      if (i && this.#follows(this.#frames[i - 1], frame)) ranges.at(-1)[1] = endOf(frame);
      else ranges.push([frame.pts, endOf(frame)]);
    });
    return ranges;
  }

  /**
   * How loud the sound is, one value (0 to 1) for each of `count` equal parts of `ticks` from 0 on;
   * NaN where nothing is here.
   */
  levels(ticks, count) {
    const sums = new Float32Array(count);
    const parts = new Uint16Array(count);
    for (const { pts, dur, levels } of this.#frames) {
      levels.forEach((level, i) => {
        const at = Math.floor((count * (pts + ((i + 0.5) * dur) / levels.length)) / ticks);
        if (at >= count) return;
        sums[at] += level;
        parts[at]++;
      });
    }
    return sums.map((sum, i) => sum / parts[i]);
  }

  /** Forget PCM that lies far behind `ticks`; Opus is small and stays. */
  trim(ticks) {
    const keep = (f) => f.codec !== CODEC.pcm || endOf(f) > ticks - PCM_KEEP_TICKS;
    if (this.#frames.length && !keep(this.#frames[0])) this.#frames = this.#frames.filter(keep);
  }

  /** SHA-256 (hex) of all Opus payloads, or null unless all `chunks` frames are here. */
  async digest(chunks) {
    const sound = this.#frames;
    if (sound.length !== chunks || sound.some((f) => f.codec === CODEC.pcm)) return null;
    const bytes = new Uint8Array(sound.reduce((sum, f) => sum + f.payload.length, 0));
    let at = 0;
    for (const { payload } of sound) {
      bytes.set(payload, at);
      at += payload.length;
    }
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  #follows(a, b) {
    return b.seq === a.seq + 1
      || Math.abs(b.pts - endOf(a)) <= SEAM_TICKS
      || this.#gaps.some(([from, to]) => from <= a.seq + 1 && b.seq - 1 <= to);
  }

  #lowerBound(isBefore) {
    let low = 0;
    let high = this.#frames.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (isBefore(this.#frames[middle])) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/**
 * Loudness of each 20 ms, 0 to 1.
 *
 * Nothing is decoded for it: a variable rate spends its bytes where something is said.
 */
function levelsOf({ packets, pcm }) {
  const clamp = (x) => Math.min(1, Math.max(0, x));
  if (packets) {
    return Float32Array.from(packets, (p) => clamp((p.length - QUIET_BYTES) / (LOUD_BYTES - QUIET_BYTES)) ** 2);
  }
  return Float32Array.from({ length: Math.ceil((pcm?.length ?? 1) / PCM_PART) }, (_, i) => {
    const part = pcm?.subarray(i * PCM_PART, (i + 1) * PCM_PART) ?? [];
    const energy = part.reduce((sum, x) => sum + x * x, 0) / PCM_PART;
    return clamp(Math.sqrt(energy) / 6_000);
  });
}

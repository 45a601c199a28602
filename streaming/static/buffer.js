/**
 * What was received of a session: its audio frames, in order, without what cuts made void.
 * Positions are ticks (48 per ms) on the session's time line.
 */

import { CODEC, FLAG, TICKS_PER_MS } from "./protocol.js";

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

/**
 * Sound through an `<audio>` element, with the same face as `LiveVoice`: a finished recording, or
 * the endless HTTP stream of a session where WebSockets or AudioWorklet are missing.
 */

const STALL_MS = 8_000; // the stream gives nothing for so long: ask for it again

export class FileVoice {
  report = { targetMs: 0, underruns: { n: 0, ms: 0 }, tap: null };
  audio = new Audio();
  #dryAt = 0;

  constructor(url, host) {
    this.host = host;
    const { audio } = this;
    audio.preload = "auto";
    for (const event of ["playing", "pause", "waiting", "ended", "durationchange"]) {
      audio.addEventListener(event, () => host.onVoice());
    }
    audio.addEventListener("waiting", () => this.#dry());
    audio.addEventListener("playing", () => this.#flows());
    audio.addEventListener("playing", () => host.onSound(0), { once: true });
    audio.addEventListener("error", () => this.failed());
    audio.src = url;
  }

  get state() {
    const { ended, paused, readyState, currentTime } = this.audio;
    if (ended) return "done";
    if (paused) return currentTime ? "paused" : "idle";
    return readyState > 2 ? "playing" : "waiting";
  }

  get contextState() {
    return "running";
  }

  get positionMs() {
    return this.audio.currentTime * 1_000;
  }

  get durationMs() {
    return Number.isFinite(this.audio.duration) ? this.audio.duration * 1_000 : 0;
  }

  get bufferedMs() {
    const { buffered, currentTime } = this.audio;
    return buffered.length ? Math.max(0, buffered.end(buffered.length - 1) - currentTime) * 1_000 : 0;
  }

  async play() {
    if (navigator.audioSession) navigator.audioSession.type = "playback";
    await this.audio.play();
  }

  pause() {
    this.audio.pause();
  }

  seek(ms) {
    this.audio.currentTime = ms / 1_000;
  }

  tempo({ speed }) {
    if (speed) this.audio.playbackRate = speed;
  }

  close() {
    this.audio.pause();
    this.audio.removeAttribute("src");
    this.audio.load();
  }

  failed() {
    this.host.onProblem("gone", {});
  }

  #dry() {
    if (!this.audio.currentTime || this.audio.seeking || this.#dryAt) return;
    this.#dryAt = performance.now();
    this.report.underruns.n++;
    this.host.onUnderrun();
  }

  #flows() {
    if (this.#dryAt) this.report.underruns.ms += Math.round(performance.now() - this.#dryAt);
    this.#dryAt = 0;
  }
}

/** The endless stream: it has no length, and where it breaks off it is asked for again. */
export class StreamVoice extends FileVoice {
  #address;
  #startMs;
  #endMs = Infinity;
  #wanted = false;
  #watch = 0;

  /** `address(ms)` is where the session is streamed from `ms` on. */
  constructor(address, host, startMs = 0) {
    super(address(startMs), host);
    this.#address = address;
    this.#startMs = startMs;
    this.audio.addEventListener("ended", () => this.#broken());
    this.audio.addEventListener("timeupdate", () => this.#moves());
  }

  get state() {
    if (this.audio.ended && !this.#isOver) return "waiting";
    return super.state;
  }

  get positionMs() {
    return this.#startMs + super.positionMs;
  }

  get durationMs() {
    return undefined; // the session's, not the element's
  }

  async play() {
    this.#wanted = true;
    const { ended, error } = this.audio;
    if (ended || error) this.#again(this.state === "done" ? 0 : this.positionMs);
    this.#moves();
    await super.play();
  }

  pause() {
    this.#wanted = false;
    super.pause();
  }

  /** At once inside what was received, else by a new request. */
  seek(ms) {
    const at = (ms - this.#startMs) / 1_000;
    const { seekable } = this.audio;
    for (let i = 0; i < seekable.length; i++) {
      if (seekable.start(i) <= at && at <= seekable.end(i) && at >= 0) {
        this.audio.currentTime = at;
        return;
      }
    }
    this.#again(ms);
  }

  /**
   * Sound from `ms` on is void, and some of it may be in the element already: ask again.
   *
   * (A live voice would finish its sentence; what an element holds cannot be looked into.)
   */
  cut({ ms }) {
    this.#endMs = Infinity;
    if (this.positionMs + this.bufferedMs > ms) this.#again(Math.min(this.positionMs, ms));
  }

  /** The session ends at `ms`. */
  finish(ms) {
    this.#endMs = ms;
  }

  close() {
    clearTimeout(this.#watch);
    this.#wanted = false;
    super.close();
  }

  failed() {
    if (this.audio.getAttribute("src")) this.#broken();
  }

  get #isOver() {
    return this.positionMs >= this.#endMs - 500;
  }

  #moves() {
    clearTimeout(this.#watch);
    if (this.#wanted) this.#watch = setTimeout(() => this.#broken(), STALL_MS);
  }

  #broken() {
    clearTimeout(this.#watch);
    if (this.#isOver || !this.#wanted) return;
    this.host.onBroken(() => this.#again(this.positionMs));
  }

  #again(ms) {
    this.#startMs = ms;
    const { playbackRate } = this.audio;
    this.audio.src = this.#address(ms);
    this.audio.defaultPlaybackRate = this.audio.playbackRate = playbackRate;
    if (this.#wanted) this.audio.play().catch(() => this.host.onVoice());
  }
}

/** The page: a session's frames go from the connection to the voice, its words to the transcript. */

import { Timeline } from "./buffer.js";
import { Captions } from "./captions.js";
import { wireControls } from "./controls.js";
import { playableCodecs } from "./decoder.js";
import { Connection, TICKS_PER_MS, sessionOf } from "./protocol.js";
import { chooseLanguage, known } from "./strings.js";
import { $, View, address } from "./view.js";
import { FileVoice, LiveVoice } from "./voice.js";
import { parseVtt } from "./vtt.js";

const FETCH_AHEAD_MS = 5_000; // a place nearer than this comes by itself soon enough
const URGENT_MS = 5_000; // with less sound left than this, a lost connection is a problem
const EVENTS_KEPT = 500;

class Player {
  #timeline = new Timeline();
  #captions = new Captions($("transcript"), {
    seek: (ms) => this.seek(ms),
    onFollow: () => this.#paintFollow(),
  });
  #view = new View();
  #voice = new LiveVoice(this.#timeline, this);
  #connection = null;
  #opened = null;
  #cursor = null; // position of the last thing received in order
  #sent = 0; // ms: how far the server's own reading has come
  #edge = 0; // ms: how far the session is spoken
  #state = "generating";
  #queue = null;
  #end = null;
  #file = null;
  #down = null; // how the connection was lost, while it is
  #problem = null;
  #started = false;
  #atLive = false;
  #goal = null; // ms asked of the server, "live", or null
  #clickedAt = 0;
  #openedAt = 0;
  #stats = { ttfa_ms: null, first_frame_ms: null, recv_seq: -1, received_sha256: null, codec: null };
  #events = [];

  async begin() {
    chooseLanguage();
    wireControls(this);
    setInterval(() => this.#second(), 1_000);
    this.#frame();
    this.#view.label();
    const token = new URLSearchParams(location.hash.slice(1)).get("t");
    const sid = token && sessionOf(token);
    if (!sid) this.#fail("no_token");
    else if (!isSecureContext) this.#fail("insecure");
    else if (!LiveVoice.supported) this.#fail("unsupported");
    else await this.#connect(token, sid);
    this.#paint();
  }

  async #connect(token, sid) {
    const codecs = await playableCodecs();
    const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/live`;
    this.#openedAt = performance.now();
    this.#connection = new Connection({ url, token, sid, codecs, host: this });
  }

  // What the connection asks and tells.

  from() {
    if (typeof this.#goal === "number") return { ms: Math.floor(this.#goal) };
    if (!this.#cursor) return { at: "start" };
    return { seq: this.#cursor[0], k: this.#cursor[1] };
  }

  progress() {
    const { underruns } = this.#voice.report;
    return {
      seq: Math.max(0, this.#stats.recv_seq), play_ms: Math.round(this.#voice.positionMs),
      buf_ms: Math.round(this.#voice.bufferedMs), under: underruns,
    };
  }

  onFrame(frame, current) {
    this.#back();
    if (current) {
      this.#cursor = [frame.seq, 0];
      this.#sent = (frame.pts + frame.dur) / TICKS_PER_MS;
    }
    if (frame.end) return;
    this.#stats.recv_seq = Math.max(this.#stats.recv_seq, frame.seq);
    this.#stats.first_frame_ms ??= performance.now() - this.#openedAt;
    this.#stats.codec = frame.codec;
    if (!this.#timeline.add(frame)) return;
    this.#edge = Math.max(this.#edge, this.#timeline.end / TICKS_PER_MS);
    this.#view.received();
    this.#voice.arrived?.(frame);
    this.#finish();
  }

  onMessage(message, current) {
    this.#back();
    if (message.p && current) this.#cursor = message.p;
    this.#messages[message.t]?.(message);
    if (!["seg", "w", "pong"].includes(message.t)) this.#paint();
  }

  #messages = {
    queued: (m) => {
      this.#queue = m;
      this.#note("queued", { pos: m.pos });
    },
    opened: (m) => this.#onOpened(m),
    seg: (m) => this.#captions.addSentence(m),
    w: (m) => this.#captions.addWords(m),
    cut: (m) => this.#onCut(m),
    gap: (m) => this.#timeline.gap(m.from_seq, m.to_seq),
    state: (m) => {
      this.#state = m.state;
      if (m.state === "failed") this.#voice.finish?.(this.#edge);
      this.#note("state", { state: m.state });
    },
    end: (m) => {
      this.#end = m;
      this.#state = "ended";
      this.#view.received();
      this.#note("end", { why: m.why });
      if (m.url) this.#file ??= { url: m.url };
      this.#view.offer(this.#file);
      this.#finish();
    },
    file: (m) => {
      this.#file = m;
      this.#view.offer(this.#file);
    },
    error: () => {
      this.#problem = "engine_failed";
    },
  };

  onDown(how) {
    this.#down = how;
    this.#note("down", how);
    this.#paint();
  }

  onUnderrun() {
    this.#note("underrun", this.#voice.report.underruns);
    this.#connection?.ack();
  }

  onProblem(code, message) {
    this.#note("problem", { code });
    const url = message.url ?? message.file?.url ?? this.#file?.url;
    if (code === "gone" && url) this.#playFile({ ...this.#file, ...message.file, ...message, url });
    else if (!this.#whole()) this.#fail(known(code) ? code : message.retry_ms == null ? "internal" : "busy");
  }

  #onOpened(m) {
    const first = !this.#opened;
    this.#opened = m;
    this.#queue = null;
    this.#state = m.state;
    this.#edge = Math.max(this.#timeline.end / TICKS_PER_MS, m.head.ms);
    this.#sent = m.from.ms;
    this.#view.received();
    this.#note("opened", { from_ms: m.from.ms });
    this.#voice.configure?.({ skip: m.skip, preMs: m.pre_ms ?? 0 });
    if (first) this.#introduce(m);
    // The place we asked for may not be there any more, or may be wherever the voice is now.
    if (this.#goal === "live" || (this.#goal !== null && m.from.ms > this.#goal + 1_000)) {
      this.#voice.seek(m.from.ms);
    }
    this.#goal = null;
  }

  #onCut(m) {
    const crashed = m.why === "retry";
    const here = this.#voice.positionMs;
    this.#note("cut", { from_seg: m.from_seg, cut_ms: m.cut_ms, why: m.why });
    this.#timeline.cut(m.e, m.from_seg);
    this.#captions.cut(m.e, m.from_seg, crashed || here < m.cut_ms ? -1 : this.#captions.segAt(here));
    this.#end = null;
    this.#edge = this.#sent = m.cut_ms;
    this.#view.received();
    this.#stats.received_sha256 = null;
    this.#voice.cut?.({ epoch: m.e, fromSeg: m.from_seg, ms: m.cut_ms, crashed });
  }

  /** Once the end is known: tell the voice, and take the digest when all is here. */
  async #finish() {
    if (!this.#end) return;
    this.#edge = this.#end.dur_ms;
    this.#voice.finish?.(this.#end.dur_ms);
    this.#stats.received_sha256 ??= await this.#timeline.digest(this.#end.chunks);
  }

  /** Is everything of the session here? Then no server is needed any more. */
  #whole() {
    return this.#end !== null && this.#timeline.reach(0) / TICKS_PER_MS >= this.#end.dur_ms - 1;
  }

  #back() {
    if (!this.#down) return;
    this.#down = null;
    this.#problem = null;
    this.#note("back", {});
    this.#paint();
  }

  // What the voice asks and tells.

  onVoice() {
    this.#view.received();
    this.#note("voice", { state: this.#voice.state });
    this.#paint();
  }

  onSound(agoS) {
    this.#stats.ttfa_ms ??= Math.round(performance.now() + agoS * 1_000 - this.#clickedAt);
    this.#note("sound", { ttfa_ms: this.#stats.ttfa_ms });
  }

  /** The voice lacks the place at `ms`; ask for it, unless it is on its way. */
  onNeed(ms) {
    const onItsWay = ms >= this.#sent - 1 && ms <= this.#sent + FETCH_AHEAD_MS;
    if (onItsWay || this.#goal !== null || !this.#connection?.up) return;
    this.#goal = ms;
    this.#connection.open({ ms: Math.floor(ms) });
  }

  // What the listener wants.

  async play() {
    if (!this.#ready()) return;
    this.#clickedAt ||= performance.now();
    this.#started = true;
    try {
      await this.#voice.play();
    } catch {
      this.#fail("unsupported");
    }
    this.#connection?.ack();
    this.#paint();
  }

  pause() {
    this.#voice.pause();
    this.#paint();
  }

  toggle() {
    const stopped = ["idle", "paused", "done"].includes(this.#voice.state);
    if (stopped || this.#interrupted()) this.play();
    else this.pause();
  }

  seek(ms) {
    if (!this.#ready()) return;
    this.#live(false);
    this.#voice.seek(Math.max(0, Math.min(ms, Math.max(0, this.#reachable() - 200))));
    this.#connection?.ack();
    this.#captions.follow(true);
    this.#paint();
  }

  /** Go `ms` further, or back if it is negative. */
  skip(ms) {
    this.seek(this.#voice.positionMs + ms);
  }

  jumpToLive() {
    this.#live(true);
    const cushionMs = Math.max(this.#voice.report.targetMs, 300);
    if (this.#timeline.end / TICKS_PER_MS >= this.#edge - 100) {
      this.#voice.seek(Math.max(0, this.#edge - cushionMs));
    } else if (this.#connection?.up) {
      this.#goal = "live";
      this.#connection.open({ at: "live" });
    }
    this.#connection?.ack();
    this.#captions.follow(true);
    this.play();
  }

  speed(value) {
    $("speed").value = String(value);
    this.#voice.tempo({ speed: value });
  }

  sentence(step) {
    const ms = this.#captions.neighbour(this.#voice.positionMs, step);
    if (ms !== null) this.seek(ms);
  }

  follow() {
    this.#captions.follow(true);
  }

  #live(on) {
    this.#atLive = on;
    this.#voice.tempo({ live: on });
  }

  #ready() {
    return this.#opened !== null || this.#voice instanceof FileVoice;
  }

  /** Is the length known, because nothing more will come? */
  #over() {
    return Boolean(this.#end || this.#voice.durationMs || this.#state === "failed");
  }

  #reachable() {
    return this.#voice.durationMs ?? this.#edge;
  }

  #interrupted() {
    return this.#started && ["suspended", "interrupted"].includes(this.#voice.contextState);
  }

  /** The session is gone, its recording is not: the same controls, another source. */
  async #playFile(file) {
    const at = this.#voice.positionMs;
    const wanted = ["waiting", "playing"].includes(this.#voice.state);
    this.#voice.pause();
    this.#file = file;
    this.#problem = this.#down = null;
    this.#state = "ended";
    this.#voice = new FileVoice(address(file.url), this);
    this.#voice.tempo({ speed: Number($("speed").value) });
    this.#voice.seek(at);
    if (!this.#opened) this.#introduce(file);
    if (wanted) this.#voice.play().catch(() => this.onVoice());
    this.#view.offer(this.#file);
    this.#paint();
    if (!file.vtt || !this.#captions.empty) return;
    const answer = await fetch(address(file.vtt)).catch(() => null);
    if (!answer?.ok) return;
    for (const { sentence, words } of parseVtt(await answer.text())) {
      this.#captions.addSentence(sentence);
      this.#captions.addWords(words);
    }
  }

  #fail(code) {
    this.#problem = code;
    this.#paint();
  }

  // Watching.

  stats() {
    const { report } = this.#voice;
    return {
      ...this.#stats,
      state: this.#face(),
      underruns: report.underruns,
      target_ms: Math.round(report.targetMs),
      buf_ms: Math.round(this.#voice.bufferedMs),
      play_ms: Math.round(this.#voice.positionMs),
      edge_ms: Math.round(this.#edge),
      reconnects: this.#connection?.reconnects ?? 0,
      end_sha256: this.#end?.sha256 ?? null,
      tap: report.tap,
    };
  }

  events() {
    return this.#events;
  }

  #note(type, more) {
    this.#events.push({ at: Math.round(performance.now()), type, ...more });
    if (this.#events.length > EVENTS_KEPT) this.#events.shift();
  }

  // Showing: `#face` names what is the case, the view does the rest.

  #face() {
    if (this.#voice instanceof FileVoice && this.#voice.state !== "done") return "file";
    if (this.#voice.state === "done") return "ended";
    if (this.#down && !this.#whole()) return this.#opened ? "reconnecting" : "connecting";
    const isHopeless = this.#connection?.isClosed ?? true;
    if (this.#problem && isHopeless && !this.#ready()) return "problem";
    if (this.#interrupted()) return "suspended";
    if (this.#queue) return "queued";
    if (!this.#opened) return "connecting";
    if (!this.#edge && this.#state === "generating" && !this.#started) return "waitingForVoice";
    if (this.#voice.state === "waiting") return this.#state === "paused" ? "hostPaused" : "buffering";
    return { idle: "ready", playing: "playing", paused: "paused" }[this.#voice.state];
  }

  #trouble() {
    if (this.#problem) return this.#problem;
    if (!this.#down || this.#whole()) return null;
    if (!navigator.onLine) return "offline";
    if (this.#down.busy) return "busy";
    const isUrgent = this.#voice.bufferedMs < URGENT_MS;
    return this.#down.failures > 3 && isUrgent ? "unreachable" : null;
  }

  /** All that the view needs to know. */
  #model() {
    const face = this.#face();
    const stopped = ["idle", "paused", "done"].includes(this.#voice.state);
    return {
      face,
      trouble: this.#trouble(),
      queue: this.#queue,
      isReady: this.#ready(),
      isStarted: this.#started,
      isStopped: stopped || face === "suspended",
      isLive: this.#opened !== null && ["generating", "paused"].includes(this.#state),
      isOver: this.#over(),
      isDown: this.#down !== null,
      followsLive: this.#atLive,
      hasText: !this.#captions.empty,
      positionMs: this.#voice.positionMs,
      bufferedMs: this.#voice.bufferedMs,
      edgeMs: this.#reachable(),
    };
  }

  #paint() {
    this.#view.paint(this.#model());
  }

  #paintFollow() {
    $("follow").hidden = this.#captions.following || !this.#started;
  }

  /** Each frame: the word that is heard, and the place on the bar. */
  #frame() {
    requestAnimationFrame(() => this.#frame());
    if (!this.#ready()) return;
    const { positionMs } = this.#voice;
    if (this.#started) this.#captions.show(positionMs);
    const edgeMs = this.#reachable();
    const isOver = this.#over();
    // While the voice speaks, the bar has some room for what is still to come.
    const spanMs = isOver ? Math.max(1, edgeMs) : Math.max(edgeMs * 1.1, edgeMs + 10_000);
    this.#view.move({ positionMs, edgeMs, isOver, spanMs, ranges: () => this.#ranges() });
  }

  /** The stretches received, as [from, to] in ms. */
  #ranges() {
    if (this.#voice.durationMs) return [[0, this.#voice.durationMs]];
    return this.#timeline.ranges().map((range) => range.map((ticks) => ticks / TICKS_PER_MS));
  }

  /** Once a second: what needs no more haste, and what a hidden page still must do. */
  #second() {
    this.#paint();
    if (!this.#ready()) return;
    this.#timeline.trim(this.#voice.positionMs * TICKS_PER_MS);
    this.#view.tell(this.#model());
  }

  #introduce(about) {
    this.#view.introduce(about);
    this.#captions.language = about.lang || "";
  }
}

const player = new Player();
window.__nc = { stats: () => player.stats(), events: () => player.events() };
player.begin();

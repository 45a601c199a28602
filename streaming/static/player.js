/** The page: a session's frames go from the connection to the voice, its words to the transcript. */

import { Timeline } from "./buffer.js";
import { Captions } from "./captions.js";
import { Chapters } from "./chapters.js";
import { wireControls } from "./controls.js";
import { playableCodecs } from "./decoder.js";
import { $, address } from "./dom.js";
import { FileVoice, StreamVoice } from "./element.js";
import { HostStrip } from "./host.js";
import { EventFeed, buyTicket, listOffered, listVoices, openChapter, read } from "./http.js";
import { Connection, TICKS_PER_MS, backoffMs, sessionOf } from "./protocol.js";
import { chooseLanguage, known } from "./strings.js";
import { View } from "./view.js";
import { LiveVoice } from "./voice.js";
import { parseVtt } from "./vtt.js";

const FETCH_AHEAD_MS = 5_000; // a place nearer than this comes by itself soon enough
const URGENT_MS = 5_000; // with less sound left than this, a lost connection is a problem
const EVENTS_KEPT = 500;
const DELAYS_KEPT = 200;
const HTTP_RETRY_MS = 5_000;

class Player {
  #timeline = new Timeline();
  #captions = new Captions($("transcript"), {
    seek: (ms) => this.seek(ms),
    onFollow: () => this.#paintFollow(),
  });
  #chapters = new Chapters({
    seek: (ms) => this.seek(ms),
    open: (number) => openChapter(this.#token, this.#sid, number),
  });
  #view = new View();
  #host = new HostStrip({
    order: (order) => this.#order(order),
    here: () => ({
      ms: this.#voice.positionMs,
      seg: this.#captions.segAt(this.#voice.positionMs),
      isEnd: this.#voice.state === "done",
    }),
  });
  #voice = new LiveVoice(this.#timeline, this);
  #token = null;
  #sid = null;
  #connection = null;
  #feed = null; // captions, where there is no connection
  #ticket = null;
  #address = null; // of its sound then; without a time: of the recording
  #isAsking = false; // for the session over HTTP
  #tried = new Set(); // recordings that were played, or could not be
  #knowsMore = false; // what the session leaves out and offers
  #role = "listener";
  #mayFork = false; // have the rest read anew
  #listeners = null;
  #isAtEdge = false; // the server's replay is over: what comes is new
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
  #toldTtfa = false;
  #openedAt = 0;
  #stats = { ttfa_ms: null, first_frame_ms: null, recv_seq: -1, received_sha256: null, codec: null };
  #delays = []; // ms from the engine to this page, of the last chunks that were new
  #events = [];

  async begin() {
    chooseLanguage();
    wireControls(this);
    setInterval(() => this.#second(), 1_000);
    this.#frame();
    this.#view.label();
    this.#token = new URLSearchParams(location.hash.slice(1)).get("t");
    this.#sid = this.#token && sessionOf(this.#token);
    if (!this.#sid) this.#fail("no_token");
    else if (!isSecureContext) this.#fail("insecure");
    else if (LiveVoice.supported) await this.#connect();
    else this.onShut();
    this.#paint();
  }

  async #connect() {
    const codecs = await playableCodecs();
    const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/live`;
    this.#openedAt = performance.now();
    this.#connection = new Connection({ url, token: this.#token, sid: this.#sid, codecs, host: this });
  }

  // What the connection, or the feed, asks and tells.

  from() {
    if (typeof this.#goal === "number") return { ms: Math.floor(this.#goal) };
    if (this.#goal === "live") return { at: "live" };
    if (!this.#cursor) return { at: "start" };
    return { seq: this.#cursor[0], k: this.#cursor[1] };
  }

  get policy() {
    return this.#atLive ? "live" : "complete";
  }

  progress() {
    const { underruns } = this.#voice.report;
    const { ttfa_ms } = this.#stats;
    const news = ttfa_ms !== null && !this.#toldTtfa;
    this.#toldTtfa ||= news;
    return {
      seq: Math.max(0, this.#stats.recv_seq), play_ms: Math.round(this.#voice.positionMs),
      buf_ms: Math.round(this.#voice.bufferedMs), under: underruns, ...(news && { ttfa_ms }),
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
    if (current && this.#isAtEdge) this.#measure(frame);
    this.#edge = Math.max(this.#edge, this.#timeline.end / TICKS_PER_MS);
    this.#view.received();
    this.#voice.arrived?.(frame);
    this.#finish();
  }

  onMessage(message, current) {
    this.#back();
    if (message.p && current) this.#cursor = message.p;
    this.#edge = Math.max(this.#edge, message.ms ?? 0, message.w?.at(-1)?.[2] ?? 0);
    this.#messages[message.t]?.(message);
    if (!["seg", "w", "pong"].includes(message.t)) this.#paint();
  }

  #messages = {
    welcome: (m) => this.#onWelcome(m),
    caught_up: () => {
      this.#isAtEdge = true;
    },
    listeners: (m) => {
      this.#listeners = m.n;
    },
    codec: (m) => this.#voice.configure?.({ skip: m.skip }),
    queued: (m) => {
      this.#queue = m;
      if (!this.#opened) this.#introduce(m);
      this.#note("queued", { pos: m.pos });
    },
    opened: (m) => (this.#feed ? this.#onTold(m) : this.#onOpened(m)),
    seg: (m) => {
      this.#learnMore();
      this.#captions.addSentence(m);
      this.#chapters.add(m.ms, m.chapter);
    },
    w: (m) => this.#captions.addWords(m),
    cut: (m) => this.#onCut(m),
    gap: (m) => this.#timeline.gap(m.from_seq, m.to_seq),
    state: (m) => {
      this.#state = m.state;
      this.#queue = null;
      this.#voice.hold?.(m.state === "paused");
      if (m.state === "failed") this.#voice.finish?.(this.#edge);
      this.#note("state", { state: m.state });
    },
    end: (m) => {
      this.#end = m;
      this.#state = "ended";
      this.#view.received();
      this.#note("end", { why: m.why });
      if (m.url && !this.#file) this.#offer({ url: m.url });
      this.#finish();
    },
    file: (m) => this.#offer(m),
    error: (m) => {
      if (m.fatal) this.onProblem(m.code, m);
      else this.#problem = "engine_failed";
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
    const urls = code === "gone" ? [message.url, this.#file?.url, this.#address?.()] : [];
    const url = urls.find((one) => one && !this.#tried.has(one));
    if (url) this.#playFile({ ...this.#file, ...message, url });
    else if (!this.#whole()) this.#fail(known(code) ? code : message.retry_ms == null ? "internal" : "busy");
  }

  /** Nobody has answered through a WebSocket; see whether the session can be had over HTTP. */
  async onShut() {
    if (this.#isAsking || this.#feed || this.#opened || this.#queue || this.#problem) return;
    this.#isAsking = true;
    this.#note("shut", {});
    try {
      this.#ticket = await buyTicket(this.#token, this.#sid);
    } catch (refused) {
      this.#note("refused", { code: refused.code });
      if (known(refused.code) || refused.code === "gone") this.onProblem(refused.code, refused.more);
      if (!this.#connection) setTimeout(() => this.onShut(), HTTP_RETRY_MS);
    }
    this.#isAsking = false;
    if (this.#ticket && !this.#opened) this.#overHttp();
  }

  /** The stream's way broke: go on with a new ticket, unless the server says why not. */
  async onBroken(again) {
    this.#down = { failures: (this.#down?.failures ?? 0) + 1 };
    this.#note("down", this.#down);
    this.#paint();
    await new Promise((resolve) => setTimeout(resolve, backoffMs(this.#down.failures)));
    try {
      this.#ticket = await buyTicket(this.#token, this.#sid);
      again();
    } catch ({ code, more }) {
      if (code === "unreachable" || more.status >= 500) this.onBroken(again);
      else this.onProblem(code, more);
    }
  }

  #onWelcome({ grants = [], role }) {
    const grant = grants.find(({ sid }) => sid === this.#sid) ?? { role };
    const mayFork = grant.role === "owner" || Boolean(grant.scopes?.includes("fork"));
    if (grant.role === this.#role && mayFork === this.#mayFork) return;
    this.#role = grant.role;
    this.#mayFork = mayFork;
    listVoices(this.#token).then((voices) => {
      this.#host.show(this.#role, voices, this.#mayFork);
      this.#paint();
    });
  }

  get #hasStrip() {
    return this.#role !== "listener" || this.#mayFork;
  }

  async #order(order) {
    const sentAt = performance.now();
    const answer = await (this.#connection?.up ? this.#connection.order(order) : null);
    this.#note("order", { ...order, answer, ms: Math.round(performance.now() - sentAt) });
    return answer;
  }

  #onOpened(m) {
    const first = !this.#opened;
    this.#isAtEdge = false;
    this.#opened = m;
    this.#queue = null;
    this.#state = m.state;
    this.#voice.hold?.(m.state === "paused");
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

  /** What the session is, where its sound comes by another way. */
  #onTold(m) {
    this.#state = m.state;
    this.#queue = null;
    this.#edge = Math.max(this.#edge, m.head.ms);
    this.#introduce(m);
  }

  #onCut(m) {
    const isSudden = m.why === "retry" || m.why === "skip";
    const here = this.#voice.positionMs;
    this.#note("cut", { from_seg: m.from_seg, cut_ms: m.cut_ms, why: m.why });
    this.#timeline.cut(m.e, m.from_seg);
    this.#chapters.cut(m.cut_ms);
    this.#captions.cut(m.e, m.from_seg, isSudden || here < m.cut_ms ? -1 : this.#captions.segAt(here));
    this.#end = null;
    this.#edge = this.#sent = m.cut_ms;
    this.#view.received();
    this.#stats.received_sha256 = null;
    this.#voice.cut?.({ epoch: m.e, fromSeg: m.from_seg, ms: m.cut_ms, why: m.why });
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

  /** How long a chunk was on its way, by the server's clock. */
  #measure({ emitMs }) {
    const now = Math.round(Date.now() + this.#connection.offsetMs) >>> 0;
    this.#delays.push((now - emitMs) | 0);
    if (this.#delays.length > DELAYS_KEPT) this.#delays.shift();
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
    if (this.#feed && this.#voice.state === "playing") this.#back();
    if (this.#voice.state === "done") this.#connection?.ack(); // so that its whole continuity is known
    this.#view.received();
    this.#note("voice", { state: this.#voice.state });
    this.#paint();
  }

  onSound(agoS) {
    this.#stats.ttfa_ms ??= Math.round(performance.now() + agoS * 1_000 - this.#clickedAt);
    this.#note("sound", { ttfa_ms: this.#stats.ttfa_ms });
    if (!this.#toldTtfa) this.#connection?.ack();
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
      // An element says by itself what is wrong with it.
      if (this.#voice instanceof LiveVoice) this.#fail("unsupported");
    }
    this.#connection?.ack();
    this.#paint();
  }

  pause() {
    this.#live(false);
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
    const isHere = this.#timeline.end / TICKS_PER_MS >= this.#edge - 100;
    if (!isHere) this.#goal = "live";
    this.#live(true);
    if (isHere) this.#voice.seek(Math.max(0, this.#edge - Math.max(this.#voice.report.targetMs, 300)));
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
    if (this.#atLive === on) return;
    this.#atLive = on;
    this.#voice.tempo({ live: on });
    if (this.#connection?.up) this.#connection.open(this.from()); // the policy is part of `open`
  }

  #ready() {
    return this.#opened !== null || this.#voice instanceof FileVoice;
  }

  /** Is the length known, because nothing more will come? */
  #over() {
    return Boolean(this.#end || this.#voice.durationMs || this.#state === "failed");
  }

  #reachable() {
    return this.#voice.durationMs ?? Math.max(this.#edge, this.#voice.positionMs);
  }

  #interrupted() {
    return this.#started && ["suspended", "interrupted"].includes(this.#voice.contextState);
  }

  /** The session is gone, its recording is not: the same controls, another source. */
  async #playFile(file) {
    this.#tried.add(file.url);
    this.#problem = this.#down = null;
    this.#state = "ended";
    this.#feed?.close();
    this.#feed = null;
    this.#change((at) => {
      const voice = new FileVoice(address(file.url), this);
      voice.seek(at);
      return voice;
    });
    if (!this.#opened) this.#introduce(file);
    this.#offer(file);
    this.#learnMore();
    this.#paint();
    const captions = file.vtt ?? (this.#ticket && `/episodes/${this.#sid}.vtt`);
    if (!captions || !this.#captions.empty) return;
    for (const { sentence, words } of parseVtt(await read(this.#token, address(captions)))) {
      this.#captions.addSentence(sentence);
      this.#captions.addWords(words);
    }
  }

  /** No WebSocket, or no worklet: an `<audio>` element plays the session's HTTP stream. */
  #overHttp() {
    this.#connection?.close();
    this.#connection = null;
    const format = document.createElement("audio").canPlayType("audio/ogg; codecs=opus") ? "ogg" : "mp3";
    this.#address = (ms) => {
      const query = new URLSearchParams({ ticket: this.#ticket });
      if (ms !== undefined) query.set("from", Math.floor(ms));
      return `/v1/live/${this.#sid}/audio.${format}?${query}`;
    };
    this.#change((at) => new StreamVoice(this.#address, this, at));
    this.#feed = new EventFeed({
      sid: this.#sid, token: this.#token, onMessage: (m) => this.onMessage(m, false),
    });
    this.#note("http", { format });
    this.#introduce({});
    this.#paint();
  }

  /** Another source of sound, at the same place. */
  #change(make) {
    const old = this.#voice;
    const wanted = ["waiting", "playing"].includes(old.state);
    const voice = make(old.positionMs);
    old.close();
    this.#voice = voice;
    this.#voice.tempo({ speed: Number($("speed").value) });
    if (wanted) this.#voice.play().catch(() => this.onVoice());
  }

  async #offer(file) {
    this.#file = file;
    this.#view.offer(file);
    const chapters = file.chapters && await read(this.#token, address(file.chapters));
    if (chapters) this.#chapters.load(chapters);
  }

  /** Once somebody has spoken, it is known what the session leaves out. */
  async #learnMore() {
    if (this.#knowsMore) return;
    this.#knowsMore = true;
    this.#chapters.offer(await listOffered(this.#token, this.#sid));
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
      transport: this.#feed ? "http" : this.#voice instanceof FileVoice ? "file" : "websocket",
      role: this.#role,
      policy: this.policy,
      reconnects: this.#connection?.reconnects ?? 0,
      clock_offset_ms: Math.round(this.#connection?.offsetMs ?? 0),
      delay_ms: [...this.#delays],
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
    if (this.#voice.state === "done") return "ended";
    if (this.#voice instanceof FileVoice && !this.#feed) return "file";
    if (this.#down && !this.#whole()) return this.#ready() ? "reconnecting" : "connecting";
    const isHopeless = this.#connection?.isClosed ?? true;
    if (this.#problem && isHopeless && !this.#ready()) return "problem";
    if (this.#interrupted()) return "suspended";
    if (this.#queue) return "queued";
    if (!this.#opened && !this.#feed) return "connecting";
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
      isHalted: stopped || face === "suspended",
      isStopped: this.#end?.why === "stopped",
      isOverHttp: this.#feed !== null,
      isLive: Boolean(this.#opened ?? this.#feed) && ["generating", "paused"].includes(this.#state),
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
    if (!this.#hasStrip) return;
    this.#host.paint({
      state: this.#state, queue: this.#queue, listeners: this.#listeners,
      isUp: Boolean(this.#connection?.up),
    });
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
    this.#chapters.show(positionMs);
    this.#view.move({
      positionMs, edgeMs: this.#reachable(), reachMs: positionMs + this.#voice.bufferedMs,
      isOver: this.#over(), marks: this.#chapters.starts,
      // Nothing is known of the loudness of what an element fetches by itself.
      levels: (spanMs, count) =>
        this.#timeline.end ? this.#timeline.levels(spanMs * TICKS_PER_MS, count) : [],
    });
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
    if (this.#hasStrip) this.#host.label();
    this.#captions.language = about.lang || "";
  }
}

const player = new Player();
window.__nc = { stats: () => player.stats(), events: () => player.events() };
player.begin();

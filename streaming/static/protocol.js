/**
 * `notecast.v1` on the wire: frames, the link token, and a connection that comes back by itself.
 * The protocol is described in docs/listening-protocol.md.
 */

/** One tick is a sample at 48 kHz, so both codecs have whole positions. */
export const TICKS_PER_MS = 48;
export const CODEC = { none: 0, pcm: 1, opus: 2 };
export const FLAG = { epoch: 1, discontinuity: 2, firstOfSentence: 4, lastOfSentence: 8 };

const HEADER_BYTES = 32;
const MAGIC = 0x4e;
const VERSION = 1;
const AUDIO = 1;
const SILENCE = 2;
const END = 3;

const PING_MS = 15_000; // unless the server wishes otherwise
const ACK_MS = 5_000;
const SILENT_MS = 25_000; // nothing at all for so long: the path is dead
const GOOD_MS = 30_000; // a connection that held so long resets the backoff
const BACKOFF_MS = { base: 250, max: 10_000 };
const DOOR_MS = 3_000; // no welcome by then: something on the way may block WebSockets
const ANSWER_MS = 12_000; // for an order
const ROUND_TRIPS = 8; // the clock follows the fastest of the last ones

/** Errors after which another try cannot help. */
const FINAL = new Set([
  "token_expired", "unauthenticated", "forbidden", "not_found", "gone", "replaced", "bad_message",
  "unsupported_codec", "engine_failed",
]);

/** What a close code means when no error message came before it. */
const CLOSE_CODES = {
  4400: "bad_message", 4413: "bad_message", 4426: "unsupported", 4401: "unauthenticated",
  4403: "forbidden", 4404: "not_found", 4409: "replaced", 4410: "gone", 4429: "busy",
};

/**
 * One binary message as an object, or null if it is not ours.
 *
 * `pts` and `dur` are ticks (48 per ms). `packets` are the Opus packets of the frame, `pcm` its
 * samples at 24 kHz; `payload` is what the session's digest is made of.
 */
export function parseFrame(buffer) {
  if (buffer.byteLength < HEADER_BYTES) return null;
  const view = new DataView(buffer);
  if (view.getUint8(0) !== MAGIC || view.getUint8(1) >> 4 !== VERSION) return null;
  const kind = view.getUint8(1) & 15;
  const frame = {
    end: kind === END,
    silence: kind === SILENCE,
    codec: view.getUint8(2),
    flags: view.getUint8(3),
    stream: view.getUint32(4),
    epoch: view.getUint16(8),
    seg: view.getUint16(10),
    seq: view.getUint32(12),
    pts: Number(view.getBigUint64(16)),
    dur: view.getUint32(24),
    emitMs: view.getUint32(28),
    payload: new Uint8Array(buffer, HEADER_BYTES),
  };
  if (kind === AUDIO && frame.codec === CODEC.opus) frame.packets = splitPackets(frame.payload);
  if (kind === AUDIO && frame.codec === CODEC.pcm) frame.pcm = readSamples(view);
  return kind >= AUDIO && kind <= END ? frame : null;
}

function splitPackets(payload) {
  const packets = [];
  for (let i = 0, at = 1; i < payload[0]; i++) {
    const size = (payload[at] << 8) | payload[at + 1];
    packets.push(payload.subarray(at + 2, at + 2 + size));
    at += 2 + size;
  }
  return packets;
}

function readSamples(view) {
  const samples = new Int16Array((view.byteLength - HEADER_BYTES) >> 1);
  for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(HEADER_BYTES + 2 * i, true);
  return samples;
}

/** The session a link token speaks for, or null if it is no link token. */
export function sessionOf(token) {
  try {
    const [prefix, payload] = token.split(".");
    if (prefix !== "nc1") return null;
    return JSON.parse(atob(payload.replaceAll("-", "+").replaceAll("_", "/"))).s ?? null;
  } catch {
    return null;
  }
}

/** How long to wait after the n-th failure: full jitter, so that nobody comes back together. */
export const backoffMs = (n) => Math.random() * Math.min(BACKOFF_MS.max, BACKOFF_MS.base * 2 ** (n - 1));

/**
 * A connection to the gateway that is renewed until the session is over.
 *
 * `host` is told what happens (`onMessage`, `onFrame`, `onDown`, `onProblem`, `onShut` while nobody
 * has ever answered) and asked for what the connection must say: `from()` and `policy` for a new
 * `open`, `progress()` for an `ack`.
 */
export class Connection {
  reconnects = 0;
  offsetMs = 0; // the server's clock less ours
  #id = crypto.randomUUID(); // so that a new connection of this page replaces its old one
  #welcomed = false; // somebody has answered, once at least
  #door = 0;
  #trips = [];
  #orders = new Map(); // by request: what to do with the answer
  #socket = null;
  #failures = 0;
  #retryMs = null;
  #timer = 0;
  #upSince = 0;
  #heardAt = 0;
  #saidAt = 0;
  #ackMs = ACK_MS;
  #pingMs = PING_MS;
  #request = 0;
  #asked = 0; // the `open` that this socket has of ours
  #opened = 0; // the request whose answer we follow
  #closed = false;

  constructor({ url, token, sid, codecs, host }) {
    Object.assign(this, { url, token, sid, codecs, host });
    setInterval(() => this.#beat(), 1_000);
    for (const event of ["online", "pageshow"]) addEventListener(event, () => this.tryNow());
    document.addEventListener("visibilitychange", () => document.hidden || this.tryNow());
    this.#connect();
  }

  get up() {
    return this.#socket?.readyState === WebSocket.OPEN && this.#opened > 0;
  }

  /** Did we give up? */
  get isClosed() {
    return this.#closed;
  }

  /** Do not wait for the backoff: the network, or the page, is back. */
  tryNow() {
    if (this.#timer) this.#connect();
  }

  /** Listen from another place: `from` as in `open`. */
  open(from) {
    if (this.#asked) this.#send({ t: "close", sid: this.sid });
    this.#asked = ++this.#request;
    this.#opened = 0;
    this.#send({
      t: "open", req: this.#asked, sid: this.sid, from, codec: this.codecs[0],
      policy: this.host.policy, words: true,
    });
  }

  /** Tell the server how far we are. */
  ack() {
    if (!this.up) return;
    this.#saidAt = Date.now();
    this.#send({ t: "ack", sid: this.sid, ...this.host.progress(), ts: Date.now() });
  }

  /**
   * Give an order about the session, for everybody (`control`).
   *
   * Resolves to the `ctl` or `error` that answers it, to null if none came.
   */
  order(order) {
    const req = ++this.#request;
    return new Promise((resolve) => {
      const done = (answer) => {
        clearTimeout(timer);
        this.#orders.delete(req);
        resolve(answer);
      };
      const timer = setTimeout(done, ANSWER_MS, null);
      this.#orders.set(req, done);
      this.#send({ t: "control", req, sid: this.sid, ...order });
    });
  }

  /** The session is over for us; no more tries. */
  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#door);
    this.#timer = 0;
    this.#socket?.close(1000);
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #connect() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#opened = 0;
    this.#asked = 0;
    this.#heardAt = this.#saidAt = Date.now();
    if (!this.#welcomed) this.#door = setTimeout(() => this.host.onShut(), DOOR_MS);
    const socket = new WebSocket(this.url, ["notecast.v1"]);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    socket.onopen = () => this.#send({
      t: "hello", v: 1, token: this.token, codecs: this.codecs,
      client: { name: "notecast-player", ver: "1", id: this.#id },
    });
    socket.onmessage = ({ data }) => this.#hear(socket, data);
    socket.onclose = (event) => this.#down(socket, event);
  }

  #hear(socket, data) {
    if (socket !== this.#socket) return;
    this.#heardAt = Date.now();
    if (typeof data !== "string") {
      const frame = parseFrame(data);
      if (frame) this.host.onFrame(frame, this.#opened > 0);
      return;
    }
    const message = JSON.parse(data);
    if (message.t === "welcome") {
      clearTimeout(this.#door);
      this.#welcomed = true;
      this.#upSince = Date.now();
      this.#pingMs = message.ping_ms ?? PING_MS;
      this.open(this.host.from());
    } else if (message.t === "opened") {
      if (message.req !== this.#asked) return;
      this.#opened = message.req;
      this.#ackMs = message.ack_ms ?? ACK_MS;
    } else if (message.t === "pong") {
      this.#tell(message);
    } else if (message.t === "goaway") {
      this.#retryMs = message.retry_ms;
    } else if (this.#orders.has(message.req)) {
      this.#orders.get(message.req)(message);
      return;
    } else if (message.t === "error") {
      this.#problem(message);
      return;
    }
    this.host.onMessage(message, this.#opened > 0);
  }

  /** A `pong`: the trip that took least says best what the server's clock shows. */
  #tell({ ts, now }) {
    const tripMs = Date.now() - ts;
    this.#trips.push({ tripMs, offsetMs: now - ts - tripMs / 2 });
    if (this.#trips.length > ROUND_TRIPS) this.#trips.shift();
    this.offsetMs = this.#trips.reduce((a, b) => (b.tripMs < a.tripMs ? b : a)).offsetMs;
  }

  #problem(message) {
    if (message.retry_ms != null) this.#retryMs = message.retry_ms;
    if (message.code === "engine_failed" && message.req == null) { // part of the log: it ends so
      this.host.onMessage(message, this.#opened > 0);
      return;
    }
    if (!message.fatal && message.req == null) return; // a remark about one message of ours
    if (FINAL.has(message.code)) this.close();
    this.host.onProblem(message.code, message);
    if (!FINAL.has(message.code)) this.#socket.close(1000);
  }

  #beat() {
    const now = Date.now();
    if (this.#closed || this.#timer) return;
    if (now - this.#heardAt > SILENT_MS) {
      // Do not wait for a closing handshake that a dead path will never answer.
      const dead = this.#socket;
      dead.onclose = null;
      dead.close();
      this.#down(dead, { code: 1006 });
    } else if (this.up && now - this.#saidAt >= this.#ackMs) {
      this.ack();
    } else if (now - this.#saidAt >= this.#pingMs) {
      this.#saidAt = now;
      this.#send({ t: "ping", ts: now });
    }
  }

  #down(socket, { code }) {
    if (this.#closed || socket !== this.#socket) return;
    clearTimeout(this.#door);
    for (const done of [...this.#orders.values()]) done(null);
    if (this.#upSince && Date.now() - this.#upSince > GOOD_MS) this.#failures = 0;
    const meaning = CLOSE_CODES[code];
    if (FINAL.has(meaning) || meaning === "unsupported") {
      this.close();
      this.host.onProblem(meaning, {});
      return;
    }
    const wait = this.#retryMs ?? backoffMs(++this.#failures);
    if (this.#upSince) this.reconnects++;
    this.#upSince = 0;
    this.#retryMs = null;
    this.#opened = 0;
    this.#timer = setTimeout(() => this.#connect(), wait);
    this.host.onDown({ failures: this.#failures, busy: meaning === "busy" });
    if (!this.#welcomed) this.host.onShut();
  }
}

/** Drives the page's own play-out processor by hand, on a clock that the test turns. */

const QUANTUM = 128;
const TICKS_PER_MS = 48;
let now = 0;
let Processor;

Object.defineProperty(globalThis, "currentTime", { get: () => now });
globalThis.AudioWorkletProcessor = class {
  port = { postMessage: (message) => this.said.push(message) };
  said = [];
};
globalThis.registerProcessor = (_name, made) => {
  Processor = made;
};
await import("/static/jitter-worklet.js");

/**
 * Play `arrivals` ({atMs, ptsMs, samples, seam?}, by time) and return what came out.
 *
 * Time starts with the press on play. `endAtMs` is when the end of the session is known.
 */
export function play(arrivals, { lengthMs, speed = 1, live = false, preMs = 0, endAtMs = Infinity }) {
  now = 0;
  const node = new Processor();
  const tell = (t, more) => node.port.onmessage({ data: { t, ...more } });
  tell("flush", { generation: 1 });
  tell("advise", { ms: preMs });
  tell("tempo", { speed, live });
  tell("play", { on: true });
  const out = new Float32Array(Math.ceil((lengthMs * TICKS_PER_MS) / QUANTUM) * QUANTUM);
  const rates = [];
  let next = 0;
  let isEnded = false;
  for (let at = 0; at < out.length; at += QUANTUM) {
    const ms = at / TICKS_PER_MS;
    now = ms / 1_000;
    while (next < arrivals.length && arrivals[next].atMs <= ms) {
      const { atMs, ptsMs, samples, seam = false } = arrivals[next++];
      tell("arrival", { atMs, ptsMs });
      tell("push", { generation: 1, pts: ptsMs * TICKS_PER_MS, samples, seam });
    }
    if (!isEnded && ms >= endAtMs) {
      isEnded = true;
      tell("end", {});
    }
    node.process([], [[out.subarray(at, at + QUANTUM)]]);
    if (node.state === "playing") rates.push(node.rate);
    if (node.state === "done") break;
  }
  node.report();
  const { underruns, targetMs, state, pts, tap } = node.said.at(-1);
  return { out, rates, underruns, targetMs, state, tap, playedMs: pts / TICKS_PER_MS };
}

/** `ms` of a sine at 48 kHz. */
export function sine(hz, ms) {
  return Float32Array.from({ length: ms * TICKS_PER_MS }, (_, i) =>
    0.5 * Math.sin((2 * Math.PI * hz * i) / 48_000));
}

/** Chunks of `chunkMs` cut from `samples`, one arriving at each of `times` (ms). */
export function chunks(samples, chunkMs, times) {
  const size = chunkMs * TICKS_PER_MS;
  return times.map((atMs, i) => ({
    atMs, ptsMs: i * chunkMs, samples: samples.slice(i * size, (i + 1) * size),
  }));
}

/** Captions of a finished recording: WebVTT to the `seg` and `w` messages that a live session has. */

const CUE_TIME = /^(?:(\d+):)?(\d\d):(\d\d\.\d{3})\s+-->\s+(?:(\d+):)?(\d\d):(\d\d\.\d{3})/;
const STAMP = /<(?:(\d+):)?(\d\d):(\d\d\.\d{3})>/;
const ENTITIES = { amp: "&", lt: "<", gt: ">", nbsp: "\u00a0", lrm: "\u200e", rlm: "\u200f" };

const toMs = (hours, minutes, seconds) =>
  Math.round(1_000 * (3_600 * Number(hours ?? 0) + 60 * Number(minutes) + Number(seconds)));

const plain = (text) =>
  text.replace(/<[^>]*>/g, "").replace(/&(\w+);/g, (all, name) => ENTITIES[name] ?? all);

/** Parse a file; returns [{sentence, words}], a cue each. */
export function parseVtt(file) {
  const cues = [];
  for (const block of file.replaceAll("\r\n", "\n").split(/\n{2,}/)) {
    const lines = block.split("\n");
    const at = lines.findIndex((line) => CUE_TIME.test(line));
    if (at < 0) continue;
    const [, ...time] = CUE_TIME.exec(lines[at]);
    const body = lines.slice(at + 1).join(" ");
    const head = { seg: cues.length, e: 1 };
    cues.push({
      sentence: { ...head, text: plain(body), ms: toMs(...time.slice(0, 3)) },
      words: { ...head, w: words(body, toMs(...time.slice(0, 3)), toMs(...time.slice(3))) },
    });
  }
  return cues;
}

/** A piece between two stamps begins at the first and ends at the second. */
function words(body, start, end) {
  // split() with groups gives: piece, hours, minutes, seconds, piece, ...
  const parts = body.split(STAMP);
  const pieces = [];
  for (let i = 0; i < parts.length; i += 4) {
    pieces.push({ text: plain(parts[i]).trim(), ms: i ? toMs(...parts.slice(i - 3, i)) : start });
  }
  return pieces
    .map(({ text, ms }, i) => [text, ms, pieces[i + 1]?.ms ?? end])
    .filter(([text]) => text);
}

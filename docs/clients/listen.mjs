// Hear a Notecast link: node listen.mjs LINK OUT.ogg (Node 22 or newer, no packages).
import { createHash } from "node:crypto";
import { write } from "./ogg_file.mjs"; // beside this file: a container for the packets

const [address, token] = process.argv[2].split("#t=");
const url = address.split("/l/")[0].replace(/^http/, "ws") + "/v1/live";
let chunks = [], seen = [-2, 0]; // [sentence, packets] of each; position of the last message

// Follows the link over one connection; gives the last message, or nothing if it broke off.
const hear = () => new Promise((resolve) => {
  const socket = new WebSocket(url, "notecast.v1");
  const send = (message) => socket.send(JSON.stringify(message));
  socket.binaryType = "arraybuffer";
  socket.onopen = () => send({ t: "hello", v: 1, token, codecs: ["opus"] });
  socket.onclose = socket.onerror = () => resolve();
  socket.onmessage = ({ data }) => {
    const frame = typeof data === "string" ? null : Buffer.from(data);
    const event = frame ? { t: "audio", p: [frame.readUInt32BE(12), 0] } : JSON.parse(data);
    const [seq, k] = event.p ?? [Infinity, 0];
    if (seq < seen[0] || (seq === seen[0] && k <= seen[1])) return; // came before the break
    seen = event.p ?? seen;
    if (event.t === "welcome") {
      const from = seen[0] < -1 ? { at: "start" } : { seq: seen[0], k: seen[1] };
      send({ t: "open", sid: event.grants[0].sid, from });
    } else if (event.t === "audio" && (frame[1] & 15) === 1) { // else silence, or the end
      chunks.push([frame.readUInt16BE(10), frame.subarray(32)]);
    } else if (event.t === "seg") {
      console.log((event.ms / 1000).toFixed(1).padStart(7), event.text);
      send({ t: "ack", sid: event.sid, play_ms: event.ms });
    } else if (event.t === "cut") { // this sentence, and what follows, is said anew
      chunks = chunks.filter(([seg]) => seg < event.from_seg);
    } else if (event.t === "end" || (event.t === "error" && event.code !== "internal")) {
      resolve(event);
      socket.close();
    }
  };
});

let end;
while (!(end = await hear())) await new Promise((again) => setTimeout(again, 500));
const bodies = chunks.map(([, bytes]) => bytes);
write(process.argv[3], bodies);
const digest = createHash("sha256").update(Buffer.concat(bodies)).digest("hex");
console.log(digest);
if (digest !== end.sha256) throw new Error(end.message ?? "this is not all that was said");

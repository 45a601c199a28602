/** What is seen and read out: everything of the page but the transcript, painted from a model. */

import { chooseLanguage, clock, say, spokenClock } from "./strings.js";

const BEHIND_MS = 8_000; // so far behind the live edge, going there is worth a button
const LATE_MS = 20_000; // so late at the door, where to begin is worth a question

export const $ = (id) => document.getElementById(id);

export class View {
  #barIsStale = true;

  /** Names and texts that change with the language only. */
  label() {
    for (const id of ["back", "previous", "next", "forward", "seek", "transcript"]) {
      $(id).setAttribute("aria-label", say(id));
    }
    for (const id of ["back", "previous", "next", "forward"]) $(id).title = say(id);
    put($("speed-label"), say("speed"));
    put($("follow"), say("follow"));
    put($("still"), say("still"));
    this.#barIsStale = true;
  }

  /** The note's own title and language. */
  introduce({ title, lang }) {
    chooseLanguage(lang);
    this.label();
    put($("title"), title || "Notecast");
    $("title").lang = lang || "";
    document.title = title ? `${title} · Notecast` : "Notecast";
    if (!("mediaSession" in navigator)) return;
    navigator.mediaSession.metadata = new MediaMetadata({
      title: title || "Notecast", artist: say("artist"),
      artwork: [{ src: "/static/favicon.svg", type: "image/svg+xml", sizes: "any" }],
    });
  }

  /** The received stretches have changed. */
  received() {
    this.#barIsStale = true;
  }

  /** State in words and buttons; see `Player.model`. */
  paint(m) {
    const text = sentenceFor(m);
    const isQuiet = ["ready", "playing", "paused", "file"].includes(m.face);
    document.body.dataset.phase = m.isStarted ? "on" : m.isReady ? "ready" : "connecting";
    document.body.dataset.face = m.face;
    put($("status"), isQuiet ? say(m.isLive ? "spokenNow" : "spoken") : text);
    $("problem").hidden = !m.trouble;
    put($("problem"), m.trouble ? say(m.trouble) : "");
    if (m.face === "problem") put($("title"), say("nothing"));
    if ($("announce").dataset.face !== m.face) {
      $("announce").dataset.face = m.face;
      put($("announce"), text);
    }
    this.#paintButtons(m);
    $("badge").hidden = !m.isLive && m.face !== "queued";
    $("badge").classList.toggle("quiet", m.face === "queued" || m.isDown);
    put($("badge"), say(m.face === "queued" ? "badgeQueued" : "badgeLive"));
    $("still").hidden = !m.isLive || !m.hasText;
    if ("mediaSession" in navigator) {
      const sounding = ["playing", "buffering", "reconnecting"].includes(m.face);
      navigator.mediaSession.playbackState = !m.isStarted ? "none" : sounding ? "playing" : "paused";
    }
  }

  #paintButtons(m) {
    const isLate = !m.isStarted && m.isLive && m.edgeMs > LATE_MS;
    const first = isLate ? "listenStart" : "listen";
    const label = m.face === "ended" ? "again" : !m.isStopped ? "pause" : m.isStarted ? "play" : first;
    $("play").disabled = !m.isReady;
    $("play").setAttribute("aria-label", say(label));
    $("play-text").hidden = m.isStarted;
    put($("play-text"), say(label));
    $("play-icon").setAttribute("href", m.isStopped ? "#i-play" : "#i-pause");
    const isBehind = m.edgeMs - m.positionMs > BEHIND_MS;
    const isAtLive = m.followsLive && m.isStarted;
    $("live").hidden = !m.isLive || (m.isStarted ? !isBehind && !isAtLive : !isLate);
    $("live").disabled = isAtLive;
    put($("live"), say(!m.isStarted ? "joinLive" : isAtLive ? "atLive" : "jumpLive"));
  }

  /** The place on the bar; called for each frame that the screen shows. */
  move({ positionMs, spanMs, edgeMs, isOver, ranges }) {
    if (!$("seek").matches(":active")) $("seek").value = positionMs;
    const share = (ms) => `${Math.min(100, (100 * ms) / spanMs)}%`;
    $("spoken").style.width = share($("seek").valueAsNumber);
    put($("now"), clock($("seek").valueAsNumber));
    if (!this.#barIsStale) return;
    this.#barIsStale = false;
    $("seek").max = Math.ceil(spanMs);
    $("edge").style.width = share(edgeMs);
    $("received").replaceChildren(...ranges().map(([from, to]) => {
      const piece = document.createElement("i");
      piece.style.left = share(from);
      piece.style.right = `calc(100% - ${share(to)})`;
      return piece;
    }));
    put($("total"), isOver ? clock(edgeMs) : say("soFar", clock(edgeMs)));
  }

  /** What the slider tells those who do not see it, and the system's own controls; once a second. */
  tell({ positionMs, bufferedMs, edgeMs, isOver, isStarted }) {
    const place = spokenClock(positionMs);
    const received = spokenClock(positionMs + bufferedMs);
    $("seek").setAttribute("aria-valuetext", isOver
      ? say("position", place, spokenClock(edgeMs))
      : say("positionLive", place, received, spokenClock(edgeMs)));
    if (!isStarted || edgeMs <= 0) return;
    navigator.mediaSession?.setPositionState?.({
      duration: edgeMs / 1_000, position: Math.min(positionMs, edgeMs) / 1_000,
      playbackRate: Number($("speed").value),
    });
  }

  /** Links to the recording and what belongs to it, as far as they are known. */
  offer(file) {
    const links = [["recording", file?.url], ["captions", file?.vtt], ["chapters", file?.chapters]];
    const nodes = links.flatMap(([key, url]) => {
      const href = url && address(url);
      if (!href) return [];
      const link = document.createElement("a");
      link.href = href;
      link.download = "";
      link.textContent = say(key);
      return [link];
    });
    $("files").replaceChildren(...nodes);
    $("files").hidden = !nodes.length;
  }
}

function sentenceFor({ face, queue, bufferedMs }) {
  if (face === "problem") return "";
  if (face === "reconnecting") return say(face, Math.round(bufferedMs / 1_000));
  if (face !== "queued") return say(face);
  if (queue.pos == null) return say("waitingForVoice");
  return queue.eta_ms ? say("queuedSoon", queue.pos, spokenClock(queue.eta_ms)) : say("queued", queue.pos);
}

/** Write only what changed: a live region speaks each writing, and layout is not free. */
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** `url` made absolute, or null unless it is http(s). */
export function address(url) {
  const { protocol, href } = new URL(url, location.href);
  return /^https?:$/.test(protocol) ? href : null;
}

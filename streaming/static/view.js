/** What is seen and read out: everything of the page but the transcript, painted from a model. */

import { $, address, announce, put } from "./dom.js";
import { chooseLanguage, clock, say, spokenClock } from "./strings.js";
import { Waveform } from "./waveform.js";

const BEHIND_MS = 8_000; // so far behind the live edge, going there is worth a button
const LATE_MS = 20_000; // so late at the door, where to begin is worth a question
const SPANS_MS = 15_000; // the bar of a session that is still spoken grows by halves of this

export class View {
  #barIsStale = true;
  #waveform = new Waveform($("waveform"));
  #face = "";

  /** Names and texts that change with the language only. */
  label() {
    for (const id of ["back", "previous", "next", "forward", "seek", "transcript"]) {
      $(id).setAttribute("aria-label", say(id));
    }
    for (const id of ["back", "previous", "next", "forward"]) $(id).title = say(id);
    put($("speed-label"), say("speed"));
    put($("follow"), say("follow"));
    put($("still"), say("still"));
    this.received();
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
    const about = m.isOverHttp ? "overHttp" : m.isLive ? "spokenNow" : m.isStopped ? "stopped" : "spoken";
    put($("status"), isQuiet ? say(about) : text);
    $("problem").hidden = !m.trouble;
    put($("problem"), m.trouble ? say(m.trouble) : "");
    if (m.face === "problem") put($("title"), say("nothing"));
    const news = `${m.face} ${m.trouble}`;
    if (news !== this.#face) {
      this.#face = news;
      announce([text, m.trouble && say(m.trouble)].filter(Boolean).join(" "));
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
    const label = m.face === "ended" ? "again" : !m.isHalted ? "pause" : m.isStarted ? "play" : first;
    $("play").disabled = !m.isReady;
    $("play").setAttribute("aria-label", say(label));
    $("play-text").hidden = m.isStarted;
    put($("play-text"), say(label));
    $("play-icon").setAttribute("href", m.isHalted ? "#i-play" : "#i-pause");
    const isBehind = m.edgeMs - m.positionMs > BEHIND_MS;
    const isAtLive = m.followsLive && m.isStarted;
    $("live").hidden = !m.isLive || m.isOverHttp || (m.isStarted ? !isBehind && !isAtLive : !isLate);
    $("live").disabled = isAtLive;
    put($("live"), say(!m.isStarted ? "joinLive" : isAtLive ? "atLive" : "jumpLive"));
  }

  /** The place on the bar; called for each frame that the screen shows. */
  move({ positionMs, edgeMs, reachMs, isOver, marks, levels }) {
    if (!$("seek").matches(":active")) $("seek").value = positionMs;
    put($("now"), clock($("seek").valueAsNumber));
    const spanMs = isOver ? Math.max(1, edgeMs) : roomFor(edgeMs);
    if (this.#barIsStale) {
      this.#barIsStale = false;
      $("seek").max = Math.ceil(spanMs);
      this.#waveform.levels = levels(spanMs, this.#waveform.count);
      put($("total"), isOver ? clock(edgeMs) : say("soFar", clock(edgeMs)));
    }
    this.#waveform.paint({
      position: $("seek").valueAsNumber / spanMs,
      edge: edgeMs / spanMs,
      reach: reachMs / spanMs,
      marks: marks.map((ms) => ms / spanMs),
    });
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

/** A span with room for what is still to come; it grows in steps, so that the bars hold still. */
function roomFor(edgeMs) {
  let spanMs = SPANS_MS;
  while (spanMs < edgeMs * 1.08 + 2_000) spanMs *= 1.5;
  return spanMs;
}

function sentenceFor({ face, queue, bufferedMs, isStopped }) {
  if (face === "problem") return "";
  if (face === "ended" && isStopped) return say("stopped");
  if (face === "reconnecting") return say(face, Math.round(bufferedMs / 1_000));
  if (face !== "queued") return say(face);
  if (queue.pos == null) return say("waitingForVoice");
  return queue.eta_ms ? say("queuedSoon", queue.pos, spokenClock(queue.eta_ms)) : say("queued", queue.pos);
}

/** Buttons, keys and the system's media controls: each does one thing of the player. */

import { $ } from "./dom.js";

const SPEEDS = [0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5];
const BACK_MS = 15_000;
const FORWARD_MS = 30_000;

export function wireControls(player) {
  wireButtons(player);
  wireKeys(player);
  wireMediaSession(player);
  addEventListener("hashchange", () => location.reload()); // another link was pasted
}

function wireButtons(player) {
  const click = (id, action) => $(id).addEventListener("click", action);
  click("play", () => player.toggle());
  click("back", () => player.skip(-BACK_MS));
  click("forward", () => player.skip(FORWARD_MS));
  click("previous", () => player.sentence(-1));
  click("next", () => player.sentence(1));
  click("live", () => player.jumpToLive());
  click("follow", () => player.follow());
  $("seek").addEventListener("change", () => player.seek($("seek").valueAsNumber));
  $("speed").replaceChildren(
    ...SPEEDS.map((value) => new Option(`${value}×`, value, value === 1, value === 1)),
  );
  $("speed").addEventListener("change", () => player.speed(Number($("speed").value)));
}

function wireKeys(player) {
  const faster = (by) => {
    const index = $("speed").selectedIndex + by;
    player.speed(SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, index))]);
  };
  const actions = {
    " ": () => player.toggle(),
    ArrowLeft: () => player.skip(-BACK_MS),
    ArrowRight: () => player.skip(FORWARD_MS),
    ArrowUp: () => faster(1),
    ArrowDown: () => faster(-1),
    ",": () => player.sentence(-1),
    ".": () => player.sentence(1),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const { target, key } = event;
    const ownsSpace = target instanceof HTMLButtonElement || target instanceof HTMLAnchorElement;
    if (target instanceof HTMLSelectElement || (key === " " && ownsSpace)) return;
    if (!actions[key]) return;
    event.preventDefault();
    actions[key]();
  });
}

function wireMediaSession(player) {
  const actions = {
    play: () => player.play(),
    pause: () => player.pause(),
    stop: () => player.pause(),
    seekbackward: ({ seekOffset }) => player.skip(-(seekOffset * 1_000 || BACK_MS)),
    seekforward: ({ seekOffset }) => player.skip(seekOffset * 1_000 || FORWARD_MS),
    seekto: ({ seekTime }) => player.seek(seekTime * 1_000),
    previoustrack: () => player.sentence(-1),
    nexttrack: () => player.sentence(1),
  };
  for (const [name, action] of Object.entries(actions)) {
    try {
      navigator.mediaSession?.setActionHandler(name, action);
    } catch {
      // A browser may not know every action.
    }
  }
}

/** What the page says, in English and Chinese. `{0}` is filled by `say`. */

const EN = {
  connecting: "Connecting…",
  queued: "Waiting for its turn: number {0} in line",
  queuedSoon: "Waiting for its turn: number {0} in line, about {1}",
  waitingForVoice: "The voice is about to begin",
  spokenNow: "Being spoken now by a synthetic voice",
  spoken: "Read by a synthetic voice",
  ready: "Ready to play",
  playing: "Playing",
  paused: "Paused",
  buffering: "Waiting for the voice…",
  reconnecting: "Reconnecting, {0} s buffered",
  ended: "That was all",
  hostPaused: "Paused by the host; it goes on from here",
  suspended: "Another app took the sound. Press play to go on.",
  file: "Playing the recording",
  listen: "Listen",
  listenStart: "Listen from the start",
  play: "Play",
  pause: "Pause",
  again: "Listen again",
  back: "Back 15 seconds",
  forward: "Forward 30 seconds",
  previous: "Previous sentence",
  next: "Next sentence",
  speed: "Speed",
  joinLive: "Join live",
  jumpLive: "Jump to live",
  atLive: "Live",
  badgeLive: "Live",
  badgeQueued: "In line",
  follow: "Back to the voice",
  seek: "Position",
  transcript: "Transcript",
  position: "{0} of {1}",
  positionLive: "{0}; {1} received, {2} spoken so far",
  minute: "1 minute {1}",
  minutes: "{0} minutes {1}",
  seconds: "{0} seconds",
  soFar: "{0} so far",
  still: "The voice is still speaking; more text follows.",
  recording: "Recording",
  captions: "Captions",
  chapters: "Chapters",
  artist: "Notecast · synthetic voice",
  nothing: "Nothing to play",
  no_token: "This link is incomplete. Open the whole address, including the part after #, or ask for it again.",
  insecure: "Live sound needs a secure address. Open this page over https.",
  unsupported: "This browser is too old for live sound. Update it, or open the link in another browser.",
  unreachable: "The server cannot be reached. Check the network; the page tries again by itself.",
  offline: "You are offline. The page goes on by itself when the network is back.",
  token_expired: "This link has expired. Ask whoever sent it for a new one.",
  unauthenticated: "This link is not valid. Copy it again in full, or ask whoever sent it for a new one.",
  forbidden: "This link was withdrawn. Ask whoever sent it for a new one.",
  not_found: "There is nothing at this link any more. Check the address, or ask whoever sent it.",
  gone: "The live session is over and its recording is not ready here. Try the link again later.",
  too_many_listeners: "This link has reached its number of listeners. The page tries again by itself.",
  busy: "The server is busy. The page tries again by itself.",
  replaced: "This session was opened in another window. Reload to listen here.",
  engine_failed: "The voice stopped because of a fault. What was spoken so far can still be heard.",
  stopped: "The host ended the reading here.",
  internal: "Something went wrong on the server. Reload the page; if it stays, tell whoever sent the link.",
};

const ZH = {
  connecting: "正在连接…",
  queued: "排队中，前面还有 {0} 位",
  queuedSoon: "排队中，前面还有 {0} 位，大约 {1}",
  waitingForVoice: "朗读即将开始",
  spokenNow: "合成语音正在朗读",
  spoken: "由合成语音朗读",
  ready: "可以播放",
  playing: "正在播放",
  paused: "已暂停",
  buffering: "正在等待语音…",
  reconnecting: "正在重新连接，已缓冲 {0} 秒",
  ended: "朗读结束",
  hostPaused: "主持人已暂停，稍后从这里继续",
  suspended: "声音被其他应用占用，点播放继续",
  file: "正在播放录音",
  listen: "收听",
  listenStart: "从头收听",
  play: "播放",
  pause: "暂停",
  again: "重新收听",
  back: "后退 15 秒",
  forward: "前进 30 秒",
  previous: "上一句",
  next: "下一句",
  speed: "语速",
  joinLive: "加入直播",
  jumpLive: "跳到直播",
  atLive: "直播",
  badgeLive: "直播",
  badgeQueued: "排队中",
  follow: "回到正在朗读处",
  seek: "播放位置",
  transcript: "文稿",
  position: "{0}，共 {1}",
  positionLive: "{0}；已接收 {1}，已朗读 {2}",
  minute: "1 分 {1} 秒",
  minutes: "{0} 分 {1} 秒",
  seconds: "{0} 秒",
  soFar: "已朗读 {0}",
  still: "朗读仍在继续，后文将陆续出现。",
  recording: "录音",
  captions: "字幕",
  chapters: "章节",
  artist: "Notecast · 合成语音",
  nothing: "无法播放",
  no_token: "链接不完整。请打开完整地址（包括 # 之后的部分），或重新索取链接。",
  insecure: "实时收听需要安全连接，请用 https 打开此页面。",
  unsupported: "浏览器版本过旧，无法实时收听。请更新，或换一个浏览器打开。",
  unreachable: "无法连接服务器。请检查网络，页面会自动重试。",
  offline: "网络已断开。恢复后页面会自动继续。",
  token_expired: "链接已过期，请向发送者索取新链接。",
  unauthenticated: "链接无效。请重新完整复制，或向发送者索取新链接。",
  forbidden: "链接已被撤回，请向发送者索取新链接。",
  not_found: "此链接没有内容。请检查地址，或询问发送者。",
  gone: "直播已结束，录音尚未就绪，请稍后再打开此链接。",
  too_many_listeners: "此链接的收听人数已满，页面会自动重试。",
  busy: "服务器繁忙，页面会自动重试。",
  replaced: "此内容已在另一个窗口打开。刷新页面可在此收听。",
  engine_failed: "语音因故障中断，已朗读的部分仍可收听。",
  stopped: "主持人已结束朗读。",
  internal: "服务器出错。请刷新页面；若仍有问题，请告知发送者。",
};

let table = EN;

/** Choose the language: that of the note if we speak it, else that of the browser. */
export function chooseLanguage(noteLanguage = "") {
  const known = [noteLanguage, navigator.language].find((tag) => /^(zh|en)\b/i.test(tag)) ?? "en";
  table = /^zh/i.test(known) ? ZH : EN;
  document.documentElement.lang = table === ZH ? "zh" : "en";
}

/** The text under `key` with its places filled. */
export function say(key, ...values) {
  return table[key].replace(/\{(\d)\}/g, (_, i) => values[i]);
}

/** Is there a text under `key`? */
export const known = (key) => key in table;

/** `65000` -> `1:05`, `3665000` -> `1:01:05`. */
export function clock(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const two = (n) => String(n).padStart(2, "0");
  const minutes = Math.floor(s / 60) % 60;
  const hours = Math.floor(s / 3600);
  return hours ? `${hours}:${two(minutes)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
}

/** The same in words, for those who hear it: `1 minute 5`. */
export function spokenClock(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const minutes = Math.floor(s / 60);
  return minutes ? say(minutes === 1 ? "minute" : "minutes", minutes, s % 60) : say("seconds", s);
}

/** Listening without a WebSocket: tickets for addresses, and captions as server-sent events. */

const RETRY_MS = 2_000;

/** A refusal by the server, or (`code` "unreachable") by the way to it. */
export class Refused extends Error {
  constructor(code, more = {}) {
    super(code);
    Object.assign(this, { code, more });
  }
}

/** Trade the link's token for a ticket that an address may carry. */
export async function buyTicket(token, sid) {
  const { ticket } = await ask("/v1/tickets", {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ sid }),
  });
  return ticket;
}

/** A text file of this server. */
export async function read(token, address) {
  const isOurs = new URL(address, location.href).origin === location.origin;
  const headers = isOurs ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(address, { headers }).catch(() => null);
  return answer?.ok ? answer.text() : "";
}

/** The voices that a host may choose from; none if this server does not say. */
export async function listVoices(token) {
  const headers = { Authorization: `Bearer ${token}` };
  return ask("/v1/audio/voices", { headers }).then(({ voices }) => voices ?? [], () => []);
}

/** What the session leaves out, `[{number, title, minutes}]`; each is spoken when it is opened. */
export async function listOffered(token, sid) {
  const headers = { Authorization: `Bearer ${token}` };
  return ask(`/v1/live/${sid}/chapters`, { headers }).then(({ offered }) => offered, () => []);
}

/** Let an offered chapter be spoken; gives its link. */
export async function openChapter(token, sid, number) {
  const headers = { Authorization: `Bearer ${token}` };
  return (await ask(`/v1/live/${sid}/chapters/${number}`, { method: "POST", headers })).listen_url;
}

async function ask(address, options) {
  const answer = await fetch(address, options).catch(() => {
    throw new Refused("unreachable");
  });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(body.error?.code ?? `http_${answer.status}`, body.error);
  return body;
}

/** The messages of a session that are not sound, one after the other, again after each break. */
export class EventFeed {
  #last = "";
  #address;
  #token;
  #onMessage;
  #stop = new AbortController();

  constructor({ sid, token, onMessage }) {
    this.#address = `/v1/live/${sid}/events`;
    this.#token = token;
    this.#onMessage = onMessage;
    this.#run();
  }

  close() {
    this.#stop.abort();
  }

  async #run() {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const headers = { Authorization: `Bearer ${this.#token}`, Accept: "text/event-stream" };
      if (this.#last) headers["Last-Event-ID"] = this.#last;
      try {
        const answer = await fetch(this.#address, { headers, signal });
        if (answer.status === 204) return; // nothing follows any more
        if (!answer.ok) {
          const { error } = await answer.json();
          if (answer.status < 500) return this.#onMessage({ t: "error", fatal: true, ...error });
          throw new Refused(error.code);
        }
        await this.#read(answer.body.pipeThrough(new TextDecoderStream()).getReader());
      } catch {
        // Broken off: go on after the last event.
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  async #read(reader) {
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (text + value).replaceAll("\r\n", "\n").split("\n\n");
      text = events.pop();
      events.forEach((event) => this.#take(event));
    }
  }

  #take(event) {
    const data = [];
    for (const line of event.split("\n")) {
      const [, name, value] = /^(\w+): ?(.*)$/.exec(line) ?? [];
      if (name === "data") data.push(value);
      if (name === "id") this.#last = value;
    }
    if (!data.length) return;
    const message = JSON.parse(data.join("\n"));
    this.#onMessage(message);
  }
}

// The server as the page sees it: models, health and streamed answers. It knows nothing of what is shown.

const KEY = "slm.key"; // in sessionStorage only: closing the tab forgets it

// status 0: the server was not reached. code: the server's own, or "unreachable", "cut_off".
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", wait = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, wait });
  }

  get engineIsAway() {
    return this.status === 0 || this.status === 503 || this.code.startsWith("engine_");
  }
}

export class Server {
  // askKey(wrong): resolves to the API key the user gives, or null.
  constructor(askKey, words) {
    this.askKey = askKey;
    this.words = words;
    this.key = stored();
    this.asking = null;
  }

  async models() {
    const { data } = await (await this.call("v1/models")).json();
    const [base, ...adapters] = [data.find((row) => !row.parent), ...data.filter((row) => row.parent)];
    return { base: base.id, retrieval: Boolean(base.retrieval), adapters: adapters.map(({ id, language }) => ({ name: id, language })) };
  }

  // ready, starting, down or unreachable; asks for no key and never fails.
  async state() {
    try {
      const { status } = await (await fetch("health", { cache: "no-store" })).json();
      return { ok: "ready", starting: "starting" }[status] ?? "down";
    } catch {
      return "unreachable";
    }
  }

  // The events of a streamed answer, until its [DONE].
  async *chat(body, signal) {
    const reply = await this.call("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
    for await (const data of dataOf(reply, this.words().cutOff)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message, { status: 200, code: String(event.error.code ?? "") });
      yield event;
    }
    throw new ApiError(this.words().cutOff, { code: "cut_off" });
  }

  async call(path, options = {}) {
    for (;;) {
      const key = this.key;
      const reply = await this.fetched(path, options);
      if (reply.status !== 401) return checked(reply);
      if (key !== this.key) continue; // another request has been given a key meanwhile
      this.asking ??= this.askKey(Boolean(key)).finally(() => (this.asking = null));
      const given = await this.asking;
      if (!given) return checked(reply);
      keep((this.key = given));
    }
  }

  async fetched(path, options) {
    const headers = { "content-type": "application/json", ...(this.key && { authorization: `Bearer ${this.key}` }) };
    try {
      return await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(this.words().unreached, { code: "unreachable" });
    }
  }
}

async function checked(reply) {
  if (reply.ok) return reply;
  const text = await reply.text().catch(() => "");
  let error = {};
  try { error = JSON.parse(text).error ?? {}; } catch { /* not ours, a proxy's page perhaps: its status is shown */ }
  throw new ApiError(error.message ?? `HTTP ${reply.status} ${reply.statusText}`.trim(), {
    status: reply.status, code: String(error.code ?? ""), wait: Number(reply.headers.get("retry-after")) || 0,
  });
}

// Server-sent events: the data of each (https://html.spec.whatwg.org/multipage/server-sent-events.html).
async function* dataOf(reply, lost) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError(lost, { code: "cut_off" });
      });
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // ending early must not leave the request running
  }
}

function stored() {
  try { return sessionStorage.getItem(KEY) ?? ""; } catch { return ""; } // storage may be forbidden: the tab remembers
}

function keep(key) {
  try { sessionStorage.setItem(KEY, key); } catch { /* as above */ }
}

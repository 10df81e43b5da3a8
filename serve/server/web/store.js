// Conversations and settings, kept in this browser only. It knows nothing of what is shown or of the server.
//
// A conversation: {id, title, updated, messages}. A message: {role, content} and, for an answer, `meta`: adapter,
// reason, ttft (s), rate (tokens/s), tokens, finish, citations.

const CHAT = "slm.chat.", SETTINGS = "slm.settings", LANGUAGE = "slm.text.language";

export class Store {
  // fault(kind): called with "unavailable", "full" or "damaged" when the browser does not keep what it should.
  constructor(fault) {
    this.fault = fault;
    this.kept = open(fault);
    this.chats = new Map();
    let damaged = false;
    for (const key of keysOf(this.kept)) {
      if (!key.startsWith(CHAT)) continue;
      const chat = parsed(this.kept.getItem(key));
      if (isChat(chat)) this.chats.set(chat.id, chat);
      else damaged = true; // left where it is: another version of the page may read it
    }
    if (damaged) fault("damaged");
  }

  // Newest first.
  list() {
    return [...this.chats.values()].sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.chats.get(id);
  }

  put(chat) {
    this.chats.set(chat.id, chat);
    this.set(CHAT + chat.id, chat);
  }

  remove(id) {
    this.chats.delete(id);
    this.kept.removeItem(CHAT + id);
  }

  // Another tab changed a key: true when it was a conversation.
  changed(key, value) {
    if (!key?.startsWith(CHAT)) return false;
    const chat = parsed(value);
    if (isChat(chat)) this.chats.set(chat.id, chat);
    else this.chats.delete(key.slice(CHAT.length));
    return true;
  }

  get settings() {
    const value = parsed(this.kept.getItem(SETTINGS));
    return value && typeof value === "object" ? value : {};
  }

  set settings(value) {
    this.set(SETTINGS, value);
  }

  get language() {
    return parsed(this.kept.getItem(LANGUAGE)) ?? (navigator.language.startsWith("ja") ? "ja" : "en");
  }

  set language(value) {
    this.set(LANGUAGE, value);
  }

  set(key, value) {
    try {
      this.kept.setItem(key, JSON.stringify(value));
    } catch {
      this.fault("full");
    }
  }
}

export function newChat() {
  // randomUUID needs a secure context, which a page on another machine's plain address has not.
  return { id: Date.now().toString(36) + Math.random().toString(36).slice(2, 8), title: "", updated: Date.now(), messages: [] };
}

// What a model is asked: the system prompt, then every question that was answered, and the last one. A question
// whose answer failed is left out, because many chat templates refuse two user turns in a row.
export function conversation(system, messages) {
  const turns = messages.filter((turn, n) => turn.role !== "user" || n === messages.length - 1 || messages[n + 1].role === "assistant");
  return [...(system ? [{ role: "system", content: system }] : []), ...turns.map(({ role, content }) => ({ role, content }))];
}

// A conversation as Markdown; names are the headings of the two sides.
export function asMarkdown(chat, names) {
  const parts = chat.messages.map(({ role, content, meta }) => {
    const sources = (meta?.citations ?? []).filter((c) => c.cited).map((c) => `- [${c.number}] ${[c.title, c.heading].filter(Boolean).join(" > ")} (${c.source})`);
    return [`## ${names[role]}${meta?.adapter ? ` (${meta.adapter})` : ""}`, content, sources.join("\n")].filter(Boolean).join("\n\n");
  });
  return [`# ${chat.title}`, ...parts].join("\n\n") + "\n";
}

function isChat(value) {
  return typeof value?.id === "string" && typeof value.title === "string" && Number.isFinite(value.updated) && Array.isArray(value.messages)
    && value.messages.every((turn) => ["user", "assistant"].includes(turn?.role) && typeof turn.content === "string" && citationsAreWhole(turn.meta));
}

function citationsAreWhole(meta) {
  return (meta?.citations ?? []).every((c) => Number.isInteger(c?.number) && typeof c.text === "string");
}

function parsed(text) {
  try { return JSON.parse(text); } catch { return null; }
}

const keysOf = (kept) => Array.from({ length: kept.length }, (_, n) => kept.key(n));

// The browser's storage, or one that lives as long as the page.
function open(fault) {
  try {
    localStorage.setItem("slm.probe", "1");
    localStorage.removeItem("slm.probe");
    return localStorage;
  } catch (error) {
    if (error.name === "QuotaExceededError") return localStorage;
    fault("unavailable");
    const map = new Map();
    return {
      get length() { return map.size; },
      key: (n) => [...map.keys()][n],
      getItem: (key) => map.get(key) ?? null,
      setItem: (key, value) => map.set(key, value),
      removeItem: (key) => map.delete(key),
    };
  }
}

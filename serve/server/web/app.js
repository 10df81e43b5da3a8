// The page: it joins the server, the store and what is shown, and holds what is going on now.

import { requestOf, receive } from "./answering.js";
import { ApiError, Server } from "./api.js";
import { ask, askSettings, closeOutside } from "./dialogs.js";
import { $, clone, copy, download, el, languageOf, translate } from "./dom.js";
import { answerMessage, errorMessage, hello, showSource, userMessage } from "./messages.js";
import { Store, asMarkdown, newChat } from "./store.js";
import { WORDS, fill } from "./words.js";

const store = new Store((kind) => queueMicrotask(() => notice(words()[kind])));
const words = () => WORDS[store.language === "ja" ? "ja" : "en"];
const server = new Server((wrong) => ask({ title: words().keyTitle, text: wrong ? words().keyWrong : words().keyText, label: words().keyTitle, secret: true }), words);

let chat = newChat();
let models = null;
let running = null; // {abort, chat} while an answer is on its way
let failure = null; // {text, lang} of the last request of this conversation
let follows = true; // whether the log stays at its end
const removed = new Set(); // ids of deleted conversations: an answer that was under way must not bring one back

// --- what is shown -------------------------------------------------------------------------------------------------

function notice(text) {
  $("notice").querySelector("p").textContent = text;
  $("notice").hidden = false;
}

function say(text) {
  $("say").textContent = text;
}

function languageName(code) {
  try { return new Intl.DisplayNames([store.language], { type: "language" }).of(code); } catch { return code; }
}

function drawPage() {
  document.documentElement.lang = store.language;
  translate(document, words());
  $("language").lang = store.language === "ja" ? "en" : "ja";
  drawModels();
  drawStatus($("status").dataset.state);
  drawChat();
}

function drawModels() {
  if (!models) return;
  const chosen = $("model").value || "auto", w = words();
  const rows = [["auto", w.auto], ["base", `${w.base} (${models.base})`], ...models.adapters.map(({ name, language }) =>
    [name, language && languageName(language) !== name ? `${name} (${languageName(language)})` : name])];
  // A chosen adapter that has been unloaded stays chosen, and asking it is an error: nothing falls back silently.
  if (!rows.some(([value]) => value === chosen)) rows.push([chosen, `${chosen} (${w.gone})`]);
  $("model").replaceChildren(...rows.map(([value, text]) => new Option(text, value, false, value === chosen)));
  $("brand").textContent = models.base;
  $("ragLabel").hidden = !models.retrieval;
}

function drawStatus(state) {
  const text = words()[state];
  $("status").dataset.state = state;
  if ($("status").firstElementChild.textContent !== text) $("status").firstElementChild.textContent = text;
}

function drawChats() {
  const rows = store.list().map(({ id, title }) => {
    const button = el("button", { type: "button", "data-id": id, lang: languageOf(title) }, title);
    if (id === chat.id) button.setAttribute("aria-current", "true");
    return el("li", {}, button);
  });
  $("chats").replaceChildren(...(rows.length ? rows : [el("li", { class: "note" }, words().noChats)]));
}

function drawTitle() {
  $("title").textContent = chat.title || words().newChat;
  $("title").lang = chat.title ? languageOf(chat.title) : store.language;
  document.title = `${chat.title || words().newChat} · ${models?.base ?? "slm"}`;
  $("more").hidden = !store.get(chat.id);
}

function drawChat({ asking = false } = {}) {
  drawTitle();
  drawChats();
  if (running?.chat === chat) return; // the answer under way draws itself
  const w = words(), last = chat.messages.at(-1);
  const nodes = chat.messages.map((message) => {
    if (message.role === "user") return userMessage(message.content, w);
    const { node, show } = answerMessage(w);
    show(message);
    return node;
  });
  if (failure) nodes.push(errorMessage(failure.text, w, failure));
  else if (last?.role === "user" && !asking) nodes.push(errorMessage(w.unanswered, w, { lang: store.language }));
  if (!nodes.length && models) nodes.push(hello(models, w, languageName));
  $("log").replaceChildren(...nodes);
  markLast();
  if (chat.messages.length) toEnd();
  else $("log").scrollTop = 0;
}

function markLast() {
  const answers = $("log").querySelectorAll("article.assistant");
  answers.forEach((node, n) => (node.querySelector("[data-do=again]").hidden = n < answers.length - 1 || chat.messages.at(-1)?.role !== "assistant"));
}

function toEnd() {
  follows = true;
  $("log").scrollTop = $("log").scrollHeight;
  $("latest").hidden = true;
}

function busy(on) {
  const focused = document.activeElement;
  $("send").hidden = on;
  $("stop").hidden = !on;
  document.body.classList.toggle("busy", on);
  if (focused === $("send") || focused === $("stop")) (on ? $("stop") : $("input")).focus();
}

// --- asking --------------------------------------------------------------------------------------------------------

function send(text) {
  text = text.trim();
  if (!text || running) return false;
  chat.messages.push({ role: "user", content: text });
  chat.title ||= titleOf(text);
  answer();
  return true;
}

const titleOf = (text) => [...text.replace(/\s+/g, " ")].slice(0, 48).join("");

// Ask for the answer to the conversation's last question, which is a user's.
async function answer() {
  const asked = chat, abort = new AbortController(), { node, show } = answerMessage(words());
  failure = null;
  drawChat({ asking: true });
  keep(asked);
  running = { abort, chat: asked };
  $("log").append(node);
  markLast();
  busy(true);
  say(words().writing);
  const rag = Boolean(models?.retrieval && $("rag").checked);
  const body = requestOf(asked.messages, { model: $("model").value || "auto", rag, settings: store.settings });
  const { message, error } = await receive(server, body, { signal: abort.signal, languageOfAdapter, show: (now) => show(now, true) });
  running = null;
  busy(false);
  finish(asked, message, error, { node, show });
}

function finish(asked, message, broke, { node, show }) {
  const w = words();
  if (message.content || !broke) {
    asked.messages.push(message);
    show(message);
  } else node.remove();
  if (broke) {
    if (!(broke instanceof ApiError)) console.error(broke);
    const wait = broke.wait ? ` ${fill(w.wait, { s: broke.wait })}` : "";
    const why = broke.message + wait, lang = broke.code === "unreachable" || broke.code === "cut_off" ? store.language : "en";
    const text = message.content ? fill(w.broken, { why }) : why;
    if (chat === asked) {
      failure = { text, lang };
      $("log").append(errorMessage(text, w, failure));
    }
    if (broke.engineIsAway) watch();
    say("");
  } else say(message.meta.finish === "stopped" ? w.stopped : message.content.slice(0, 2000));
  keep(asked);
  if (chat === asked) { markLast(); if (follows) toEnd(); } else drawChats();
}

const languageOfAdapter = (name) => models?.adapters.find((adapter) => adapter.name === name)?.language;

function keep(which) {
  if (removed.has(which.id)) return;
  which.updated = Date.now();
  store.put(which);
  drawTitle();
  drawChats();
}

function stop() {
  running?.abort.abort();
}

// The last question once more, without what was answered to it.
function again() {
  if (running) return;
  while (chat.messages.at(-1)?.role === "assistant") chat.messages.pop();
  if (chat.messages.length) answer();
}

function edit(node) {
  if (running) return;
  const at = [...$("log").querySelectorAll("article.user, article.assistant")].indexOf(node), text = node.querySelector(".text");
  const form = clone("t-edit"), area = form.querySelector("textarea");
  translate(form, words());
  area.value = chat.messages[at].content;
  text.replaceWith(form);
  node.classList.add("editing");
  area.focus();
  const leave = () => { drawChat(); $("input").focus(); };
  form.querySelector(".cancel").onclick = leave;
  area.onkeydown = (event) => { if (entered(event)) form.requestSubmit(); else if (event.key === "Escape") { event.stopPropagation(); leave(); } };
  form.onsubmit = (event) => {
    event.preventDefault();
    if (!area.value.trim() || running) return;
    chat.messages.length = at;
    $("input").focus();
    send(area.value);
  };
}

// --- the server's state --------------------------------------------------------------------------------------------

let watching = 0;

// Ask how the server is: every half second while it is away, else every 15 s while the page is seen.
async function watch() {
  clearTimeout(watching);
  const state = await server.state(), before = $("status").dataset.state;
  drawStatus(state);
  if (state === "ready" && (before !== "ready" || !models)) refresh();
  clearTimeout(watching);
  watching = setTimeout(() => (document.hidden ? (watching = 0) : watch()), state === "ready" ? 15_000 : 500);
}

async function refresh() {
  const had = JSON.stringify(models);
  try {
    models = await server.models();
  } catch (error) {
    if (!models && !chat.messages.length) $("log").replaceChildren(errorMessage(error.message, words(), { lang: error.status ? "en" : store.language }));
    if (error.engineIsAway) watch();
    return;
  }
  if (JSON.stringify(models) === had) return;
  drawModels();
  drawTitle();
  if (!chat.messages.length && !failure) drawChat();
}

// --- conversations -------------------------------------------------------------------------------------------------

function open(next) {
  if (next !== chat) stop();
  chat = next;
  failure = null;
  drawChat();
  showSide(false);
  $("input").focus();
}

async function rename() {
  const title = await ask({ title: words().renameTitle, label: words().name, value: chat.title });
  if (!title) return;
  chat.title = title;
  keep(chat);
}

async function remove() {
  if ((await ask({ title: words().removeTitle, text: fill(words().removeText, { title: chat.title }) })) === null) return;
  removed.add(chat.id);
  store.remove(chat.id);
  open(newChat());
}

function exported(kind) {
  const name = (chat.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "chat") + "." + kind;
  if (kind === "json") download(name, "application/json", JSON.stringify(chat, null, 2) + "\n");
  else download(name, "text/markdown", asMarkdown(chat, { user: words().you, assistant: words().assistant }));
}

function showSide(on) {
  const was = document.body.classList.contains("side");
  document.body.classList.toggle("side", on);
  $("veil").hidden = !on;
  $("openSide").setAttribute("aria-expanded", String(on));
  if (on) $("closeSide").focus();
  else if (was) $("openSide").focus();
}

// --- what the user does --------------------------------------------------------------------------------------------

// Enter that means "send": not with Shift, and not the one that ends a kana-kanji conversion (229: Safari tells so).
const entered = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229 && (event.preventDefault(), true);

async function copied(button, text) {
  try {
    await copy(text);
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1500);
    say(words().copied);
  } catch {
    notice(words().copyFailed);
  }
}

const actions = {
  edit: (_, node) => edit(node),
  copy: (button, node) => copied(button, messageOf(node).content),
  again,
  retry: () => (chat.messages.length ? again() : refresh()),
  source: (button, node) => source(button, node),
  example: (button) => send(button.textContent),
  documents: () => { $("rag").checked = true; $("input").value = words().docsStart; grow(); $("input").focus(); },
};

function messageOf(node) {
  return chat.messages[[...$("log").querySelectorAll("article.user, article.assistant")].indexOf(node)];
}

function source(button, node) {
  const passage = messageOf(node)?.meta.citations.find((c) => c.number === Number(button.dataset.n));
  if (passage) showSource(passage, words());
}

function grow() {
  $("input").style.height = "auto"; // for browsers without field-sizing
  $("input").style.height = `${$("input").scrollHeight}px`;
}

$("log").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const node = button.closest("article");
  if (button.classList.contains("copy")) copied(button, button.closest("figure").querySelector("code").textContent);
  else if (button.classList.contains("cite")) source(button, node);
  else actions[button.dataset.do]?.(button, node);
});
$("log").addEventListener("drawn", () => { if (follows) toEnd(); });
$("log").addEventListener("scroll", () => {
  const away = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight;
  follows = away < 48;
  $("latest").hidden = away < 200;
}, { passive: true });
$("latest").onclick = toEnd;
$("form").onsubmit = (event) => {
  event.preventDefault();
  if (!send($("input").value)) return;
  $("input").value = "";
  grow();
};
$("input").addEventListener("keydown", (event) => { if (entered(event)) $("form").requestSubmit(); });
$("input").addEventListener("input", grow);
$("stop").onclick = stop;
$("newChat").onclick = () => open(newChat());
$("chats").onclick = (event) => { const id = event.target.closest("button")?.dataset.id; if (id) open(store.get(id)); };
$("language").onclick = () => { store.language = store.language === "ja" ? "en" : "ja"; drawPage(); };
$("openSettings").onclick = async () => { const next = await askSettings(store.settings); if (next) store.settings = next; };
$("openSide").onclick = () => showSide(true);
$("closeSide").onclick = $("veil").onclick = () => showSide(false);
for (const [id, act] of Object.entries({ rename, remove, exportJson: () => exported("json"), exportMarkdown: () => exported("md") }))
  $(id).onclick = () => { $("menu").hidePopover(); act(); };
$("notice").querySelector("button").onclick = () => ($("notice").hidden = true);
for (const dialog of document.querySelectorAll("dialog")) closeOutside(dialog);

document.addEventListener("keydown", (event) => {
  if (event.isComposing || document.querySelector("dialog[open], :popover-open")) return;
  const typing = /^(?:input|textarea|select)$/.test(event.target.localName);
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "k") { event.preventDefault(); open(newChat()); }
  else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); $("input").focus(); }
  else if (event.key === "Escape" && document.body.classList.contains("side")) showSide(false);
  else if (event.key === "Escape") stop();
});
addEventListener("storage", (event) => {
  if (!store.changed(event.key, event.newValue)) return;
  const same = store.get(chat.id);
  if (same && !running) { chat = same; drawChat(); } else drawChats();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) { watch(); refresh(); } });
$("model").addEventListener("focus", refresh);

chat = store.list()[0] ?? chat;
drawPage();
refresh();
watch();

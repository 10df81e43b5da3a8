// How messages look: questions, answers with their figures, sources and citations (the cited lines highlighted in their
// passage), errors, the empty page. It knows nothing of requests or of storage; buttons carry data-do and app.js acts on
// them.

import { $, clone, el, languageOf, patch, translate } from "./dom.js";
import { parse } from "./markdown.js";
import { places } from "./places.js";
import { EXAMPLES, fill } from "./words.js";

export function userMessage(content, words) {
  const node = clone("t-user"), text = node.querySelector(".text");
  translate(node, words);
  text.textContent = content;
  text.lang = languageOf(content);
  return node;
}

// An answer that can grow: show(message, live) draws what there is of it, at most once a frame.
export function answerMessage(words) {
  const node = clone("t-assistant");
  translate(node, words);
  let due = null;
  const draw = () => {
    const { message, live } = due;
    due = null;
    drawAnswer(node, message, live, words);
    node.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
  };
  const show = (message, live = false) => {
    if (live && !due) requestAnimationFrame(() => due && draw());
    due = { message, live };
    if (!live) draw();
  };
  return { node, show };
}

function drawAnswer(node, { content, meta = {} }, live, words) {
  const citations = meta.citations ?? [], text = node.querySelector(".text");
  node.classList.toggle("live", live);
  node.setAttribute("aria-busy", String(live));
  node.querySelector(".who").textContent = meta.adapter ?? meta.model ?? words.assistant;
  const labels = { copy: words.copy, source: (n) => fill(words.source, { n }) };
  const waits = live && !content;
  text.classList.toggle("waits", waits);
  text.lang = waits ? document.documentElement.lang : languageOf(content, meta.language);
  patch(text, waits ? [words.thinking] : parse(content, { live, cites: new Set(citations.map((c) => c.number)), labels }));
  if (!live) {
    drawSources(node.querySelector(".sources"), citations, meta.refused, words);
    node.querySelector(".meta").replaceChildren(...figures(meta, words));
  }
}

// Why this adapter, how soon and how fast, and how it ended.
function figures(meta, words) {
  const finish = { length: words.length, stopped: words.stopped }[meta.finish];
  const parts = [
    meta.reason, meta.ttft != null && fill(words.ttft, { s: meta.ttft.toFixed(2) }), meta.rate != null && fill(words.rate, { r: meta.rate.toFixed(1) }),
    meta.tokens > 0 && fill(words.tokens, { n: meta.tokens }), finish,
  ].filter(Boolean);
  return parts.map((part, n) => el("span", n === 0 && meta.reason ? { lang: "en" } : {}, part));
}

// The cited passages; when none is cited, all that were given, since then they say nothing about the answer. refused:
// a reader found that none of them answers, so their nearest lines are shown as what they are.
function drawSources(box, citations, refused, words) {
  const cited = citations.filter((c) => c.cited), shown = cited.length ? cited : citations;
  box.hidden = !shown.length;
  box.classList.toggle("nearest", Boolean(refused));
  box.querySelector("h3").textContent = refused ? words.nearest : cited.length ? words.sources : words.given;
  box.querySelector("ol").replaceChildren(...shown.map((c) => {
    const name = [c.title, c.heading].filter(Boolean).join(" › ") || c.source;
    const button = el("button", { type: "button", "data-do": "source", "data-n": c.number }, el("b", {}, String(c.number)), ` ${name}`);
    button.lang = languageOf(name);
    return el("li", {}, button, ...(refused && c.quote ? [el("q", { lang: languageOf(c.quote) }, c.quote)] : []));
  }));
}

// The passage in full, with its lines or its quote marked.
export function showSource(c, words) {
  const language = languageOf(c.text);
  $("sourceNumber").textContent = fill(words.source, { n: c.number });
  $("sourceTitle").textContent = c.title || c.source;
  $("sourceHeading").textContent = c.heading ?? "";
  for (const id of ["sourceTitle", "sourceHeading", "sourceText"]) $(id).lang = language;
  patch($("sourceText"), parse(c.text));
  // A quote that is worded otherwise than in the text is shown above it.
  if (c.quote && !markLines($("sourceText"), c) && !mark($("sourceText"), c.quote)) $("sourceText").prepend(el("blockquote", {}, el("q", {}, c.quote)));
  const linked = /^https?:\/\//.test(c.source ?? "");
  $("sourcePlace").replaceChildren(linked ? el("a", { href: c.source, target: "_blank", rel: "noopener noreferrer" }, c.source) : c.source ?? "");
  $("source").showModal();
  $("sourceText").querySelector("mark")?.scrollIntoView({ block: "nearest" });
}

// Mark a quote in what was made of a text, across elements and whatever the white space; whether it was found.
function mark(root, quote) {
  const plain = (kid) => (typeof kid === "string" ? kid : kid.kids.map(plain).join(" "));
  const terms = parse(quote).map(plain).join(" ").split(/[\s|]+/).filter(Boolean);
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  const pattern = terms.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("\\s*");
  const match = terms.length ? new RegExp(pattern).exec(nodes.map((text) => text.data).join("")) : null;
  if (match) markRange(root, match.index, match.index + match[0].length);
  return Boolean(match);
}

// Mark the lines that a reader pointed at, each where it stands in the passage; whether all were found.
function markLines(root, c) {
  const said = (c.lines ?? []).filter((line) => line.said === c.cited);
  const found = said.map(({ start, end }) => places(c.text, root.textContent, start, end));
  if (!found.length || !found.every(Boolean)) return false;
  for (const { from, to } of found) markRange(root, from, to);
  return true;
}

// Mark the text between two places (UTF-16 units of the root's text), across elements.
function markRange(root, begin, stop) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  let from = 0;
  for (const text of nodes) {
    const length = text.length, start = Math.max(begin - from, 0), end = Math.min(stop - from, length);
    from += length;
    if (start >= end) continue;
    const part = text.splitText(start), rest = el("mark");
    part.splitText(end - start);
    part.replaceWith(rest);
    rest.append(part);
  }
}

export function errorMessage(text, words, { lang = "en", retry = true } = {}) {
  const node = clone("t-error");
  translate(node, words);
  node.querySelector("p").textContent = text;
  node.querySelector("p").lang = lang;
  if (!retry) node.querySelector("button").remove();
  return node;
}

// What an empty conversation shows: the model, its adapters and questions to begin with.
export function hello(models, words, languageName) {
  const node = clone("t-hello");
  translate(node, words);
  node.querySelector("h2").textContent = fill(words.hello, { model: models.base });
  const chips = models.adapters.map(({ name, language }) => el("span", {}, language && languageName(language) !== name ? `${name} · ${languageName(language)}` : name));
  node.querySelector(".chips").replaceChildren(...(chips.length ? [`${words.loaded}: `, ...chips] : [words.noAdapters]));
  const cards = EXAMPLES.map(({ lang, text }) => el("button", { type: "button", "data-do": "example", lang }, text));
  if (models.retrieval) cards.unshift(el("button", { type: "button", "data-do": "documents", class: "docs" }, el("b", {}, words.docsExample), el("span", {}, words.docsHint)));
  node.querySelector(".cards").append(...cards);
  return node;
}

// Elements from trees, texts from words. Everything is made with createElement and text nodes: no HTML is parsed.

export const $ = (id) => document.getElementById(id);

// patch(parent, tree): make the parent's children equal to a tree of strings and {tag, props, kids}, keeping every
// element that is right already, so that a growing answer neither flickers nor loses a selection.
export function patch(parent, tree) {
  tree.forEach((want, n) => {
    const have = parent.childNodes[n];
    if (!have) parent.append(made(want));
    else if (typeof want === "string") {
      if (have.nodeType !== Node.TEXT_NODE) have.replaceWith(want);
      else if (have.data !== want) have.data = want;
    } else if (have.localName !== want.tag) have.replaceWith(made(want));
    else dress(have, want);
  });
  while (parent.childNodes.length > tree.length) parent.lastChild.remove();
}

function made(want) {
  if (typeof want === "string") return document.createTextNode(want);
  const element = document.createElement(want.tag);
  dress(element, want);
  return element;
}

function dress(element, { props, kids }) {
  for (const { name } of [...element.attributes]) if (!(name in props)) element.removeAttribute(name);
  for (const [name, value] of Object.entries(props)) if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  patch(element, kids);
}

// el(tag, props, ...kids): a new element; strings become text.
export function el(tag, props = {}, ...kids) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) element.setAttribute(name, value);
  element.append(...kids);
  return element;
}

// A copy of a <template>'s only element.
export const clone = (id) => $(id).content.firstElementChild.cloneNode(true);

// translate(root, words): data-t is a text, data-label a name and tooltip, data-hint a placeholder.
export function translate(root, words) {
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = words[node.dataset.t];
  for (const node of root.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", words[node.dataset.label]);
    if (node.localName === "button") node.title = words[node.dataset.label];
  }
  for (const node of root.querySelectorAll("[data-hint]")) node.placeholder = words[node.dataset.hint];
}

// Copy a text; where the page has no secure context the clipboard API is missing and the old command is used.
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = el("textarea", { class: "unseen" });
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser did not copy");
}

export function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// The language of a text, for screen readers and fonts: kana and hangul decide; Han alone follows `otherwise`.
export function languageOf(text, otherwise) {
  if (/[\u3041-\u30ff\uff66-\uff9d]/.test(text)) return "ja";
  if (/[\uac00-\ud7af]/.test(text)) return "ko";
  if (/[\u3400-\u9fff]/.test(text)) return otherwise === "zh" ? "zh" : "ja";
  return otherwise && !["ja", "ko", "zh"].includes(otherwise) ? otherwise : "en";
}

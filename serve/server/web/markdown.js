// Markdown to a tree of plain nodes: strings and {tag, props, kids}. It knows nothing of the DOM or of where the text
// comes from; dom.js makes elements of the tree, so no text is ever read as HTML.
//
// What chat models write is understood: headings, lists, quotes, fenced code, tables, emphasis, links, bare addresses.
// Left out on purpose: raw HTML, images (shown as links), setext headings and indented code, which chat text means
// by accident. Three rules differ from CommonMark: a line end is a line break; emphasis may open and close beside
// full-width punctuation, as in これは**「重要」**です; and with `live` the end of the text counts as unfinished, so
// that what has begun is shown the way it will look when it is whole.

const MAX_DEPTH = 12; // nested quotes, lists and emphasis; deeper ones stay text
const MAX_LABEL = 400; // characters of a link's text

const node = (tag, kids = [], props = {}) => ({ tag, props, kids });

// --- blocks --------------------------------------------------------------------------------------------------------

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:( +)(.*))?$/;
// A last line that may yet become a list item, a heading, a quote, a fence, a rule or a table.
const UNDECIDED = /^ *(?:[-*+]|\d{1,3}[.)]|#{1,6}|[-*_]{2,3}|>|`{1,2}|~{1,2}|\|) *$/;

// parse(text, {live, cites, labels}): the blocks of a text. live: more is to come. cites: the numbers that [n] may name.
export function parse(text, { live = false, cites = new Set(), labels = {} } = {}) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\0/g, "\ufffd").split("\n");
  return blocks(lines.map((line) => line.replace(/^[ \t]+/, (space) => space.replace(/\t/g, "    "))), { cites, labels }, live, 0);
}

function blocks(lines, context, live, depth) {
  const out = [];
  if (live && lines.length && (UNDECIDED.test(lines.at(-1)) || (lines.length > 1 && /^ *\d{1,3}$/.test(lines.at(-1))))) lines = lines.slice(0, -1);
  for (let at = 0; at < lines.length; ) {
    const read = !lines[at].trim() ? blank : readers.find((reader) => reader.begins(lines, at, live, depth)).read;
    const { next, made } = read(lines, at, context, live, depth);
    if (made) out.push(made);
    at = next;
  }
  return out;
}

const blank = (_, at) => ({ next: at + 1 });

const fence = {
  begins: (lines, at) => FENCE.test(lines[at]),
  read(lines, at, context, live) {
    const [, marks, info] = FENCE.exec(lines[at]);
    const closes = (line) => line.trim().length >= marks.length && line.trim() === marks[0].repeat(line.trim().length);
    const indent = /^ */.exec(lines[at])[0].length;
    let end = at + 1;
    while (end < lines.length && !closes(lines[end])) end++;
    const body = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent, /^ */.exec(line)[0].length)));
    if (live && end === lines.length && /^ *[`~]*$/.test(body.at(-1) ?? "x")) body.pop(); // the closing fence, perhaps
    const language = info.trim().split(/\s/)[0].slice(0, 24);
    const copy = node("button", [context.labels.copy ?? "Copy"], { type: "button", class: "copy" });
    const code = node("code", [body.join("\n")]);
    return { next: end + 1, made: node("figure", [node("figcaption", [node("span", [language]), copy]), node("pre", [code])], { class: "code" }) };
  },
};

const heading = {
  begins: (lines, at) => HEADING.test(lines[at]),
  read(lines, at, context, live) {
    const [, marks, text = ""] = HEADING.exec(lines[at]);
    const kids = inline(text.trimEnd().replace(/[ \t]#+$/, "").trimEnd(), context, live && at === lines.length - 1);
    return { next: at + 1, made: node(`h${Math.min(6, marks.length + 2)}`, kids) }; // the page itself has h1 and h2
  },
};

const rule = {
  begins: (lines, at) => RULE.test(lines[at]),
  read: (_, at) => ({ next: at + 1, made: node("hr") }),
};

const quote = {
  begins: (lines, at, live, depth) => depth < MAX_DEPTH && QUOTE.test(lines[at]),
  read(lines, at, context, live, depth) {
    let end = at + 1;
    while (end < lines.length && (QUOTE.test(lines[end]) || (lines[end].trim() && !interrupts(lines, end)))) end++;
    const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
    return { next: end, made: node("blockquote", blocks(inner, context, live && end === lines.length, depth + 1)) };
  },
};

const list = {
  begins: (lines, at, live, depth) => depth < MAX_DEPTH && ITEM.test(lines[at]),
  read(lines, at, context, live, depth) {
    const [, , first] = ITEM.exec(lines[at]);
    const kind = first.at(-1), ordered = /\d/.test(first), items = [];
    let end = at;
    while (end < lines.length) {
      const match = ITEM.exec(lines[end]);
      if (!match || match[2].at(-1) !== kind || RULE.test(lines[end])) break;
      const indent = match[1].length, inner = [match[4] ?? ""];
      const offset = indent + match[2].length + Math.min((match[3] ?? " ").length, 4);
      for (end++; end < lines.length; end++) {
        const line = lines[end], depthOf = /^ */.exec(line)[0].length;
        // Two columns are enough to belong to an item: models indent below "1." by two, three or four.
        if (line.trim() && depthOf < indent + 2 && (!lines[end - 1].trim() || ITEM.test(line) || interrupts(lines, end))) break;
        inner.push(line.slice(Math.min(depthOf, offset)));
      }
      items.push({ inner, last: end === lines.length });
    }
    const kids = items.map(({ inner, last }) => {
      const task = /^\[([ xX])\] /.exec(inner[0]);
      if (task) inner[0] = (task[1] === " " ? "☐ " : "☑ ") + inner[0].slice(4);
      const made = blocks(inner, context, live && last, depth + 1);
      const tight = made.filter((kid) => kid.tag === "p").length < 2;
      return node("li", tight ? made.flatMap((kid) => (kid.tag === "p" ? kid.kids : [kid])) : made);
    });
    const start = ordered && parseInt(first, 10) !== 1 ? { start: String(parseInt(first, 10)) } : {};
    return { next: end, made: node(ordered ? "ol" : "ul", kids, start) };
  },
};

const cells = (line) => line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));

const table = {
  begins(lines, at, live) {
    if (!lines[at].includes("|")) return false;
    const below = lines[at + 1];
    if (below === undefined) return live && /^ *\|/.test(lines[at]);
    if (live && at + 2 === lines.length && /^ *\|/.test(lines[at]) && /^(?: *\|[ :|-]*)?$/.test(below)) return true; // its second line is being written
    const sides = cells(below);
    return sides.length === cells(lines[at]).length && sides.every((side) => /^:?-+:?$/.test(side));
  },
  read(lines, at, context, live) {
    const head = cells(lines[at]), sides = cells(lines[at + 1] ?? "");
    let end = Math.min(at + 2, lines.length);
    while (end < lines.length && lines[end].trim() && !interrupts(lines, end)) end++;
    const row = (texts, tag, last) =>
      node("tr", head.map((_, column) => {
        const side = sides[column] ?? "";
        const align = side.endsWith(":") ? (side.startsWith(":") ? "center" : "right") : "";
        return node(tag, inline(texts[column] ?? "", context, last && column === texts.length - 1), align ? { class: align } : {});
      }));
    const rows = lines.slice(at + 2, end).map((line, n) => row(cells(line), "td", live && at + 2 + n === lines.length - 1));
    const parts = [node("thead", [row(head, "th", live && at === lines.length - 1)]), node("tbody", rows)];
    return { next: end, made: node("div", [node("table", parts)], { class: "scroll" }) };
  },
};

const paragraph = {
  begins: () => true,
  read(lines, at, context, live, depth) {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && !interrupts(lines, end) && !table.begins(lines, end, live)) end++;
    const text = lines.slice(at, end).map((line) => line.trim()).join("\n");
    return { next: end, made: node("p", inline(text, context, live && end === lines.length)) };
  },
};

const readers = [fence, heading, rule, quote, list, table, paragraph];

// Whether a line ends the paragraph, quote or item before it without a blank line between.
function interrupts(lines, at) {
  return [fence, heading, rule].some((reader) => reader.begins(lines, at)) || QUOTE.test(lines[at]) || ITEM.test(lines[at]);
}

// --- inline --------------------------------------------------------------------------------------------------------

const PLAIN = /[^\\`*_~[!<&\nh]+/y;
const ADDRESS = /https?:\/\/[!#-;=?-_a-~]{1,2000}/y;
const TARGET = /\(\s*(<[^<>\n]*>|[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const CITATION = /\[(\d{1,3})\](?!\()/y;
const ENTITY = /&(?:amp|lt|gt|quot|nbsp|#39);/y;
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&nbsp;": "\u00a0", "&#39;": "'" };
const PUNCTUATION = /[\p{P}\p{S}]/u;
const WORD = /[\p{L}\p{N}]/u;
const CJK = /[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Hang}\u3000-\u303f\uff00-\uffef]/u;

const match = (pattern, text, at) => ((pattern.lastIndex = at), pattern.exec(text));

// The address, if it is one that a link may have, else null.
function safe(address) {
  const bare = address.replace(/^<|>$/g, "").replace(/[\u0000-\u0020\u007f-\u009f]/g, "");
  return /^(?:https?:\/\/[^/]|mailto:[^/])/i.test(bare) ? bare : null;
}

const link = (address, kids) => node("a", kids, { href: address, target: "_blank", rel: "noopener noreferrer" });

function inline(text, context, live, inLink = false) {
  if (live) text = text.slice(0, -64) + text.slice(-64).replace(/(?:[*_~`\\]+|!?\[\d*|!)$/, ""); // perhaps half a mark
  const frames = [{ kids: [] }]; // open emphasis, outermost first
  const deadTicks = new Set(); // lengths of runs of backticks that have no closing run
  const put = (kid) => frames.at(-1).kids.push(kid);
  let at = 0;
  while (at < text.length) {
    const plain = match(PLAIN, text, at);
    if (plain) { put(plain[0]); at += plain[0].length; continue; }
    const here = text[at];
    const made =
      here === "\\" ? escape(text, at)
      : here === "`" ? code(text, at, live, deadTicks)
      : here === "[" && !inLink ? bracket(text, at, context, live)
      : here === "!" && text[at + 1] === "[" && !inLink ? image(text, at, context, live)
      : here === "<" ? angle(text, at)
      : here === "&" ? entity(text, at)
      : here === "h" && !inLink ? address(text, at)
      : here === "\n" ? { kids: [node("br")], next: at + 1 }
      : null;
    if (made) { made.kids.forEach(put); at = made.next; continue; }
    const run = /^(?:\*+|_+|~~(?!~))/.exec(text.slice(at, at + 64));
    if (run) emphasis(frames, run[0], text, at);
    else put(here);
    at += run ? run[0].length : 1;
  }
  while (frames.length > 1) unwind(frames, live);
  return joined(frames[0].kids);
}

function escape(text, at) {
  const next = text[at + 1];
  return next && /[!-/:-@[-`{-~]/.test(next) ? { kids: [next], next: at + 2 } : null;
}

function code(text, at, live, dead) {
  const marks = /`+/.exec(text.slice(at, at + 256))[0];
  const literal = { kids: [marks], next: at + marks.length };
  if (dead.has(marks.length)) return literal;
  let end = at + marks.length;
  while ((end = text.indexOf(marks, end)) >= 0) {
    let after = end + marks.length;
    while (text[after] === "`") after++;
    if (after - end === marks.length) break;
    end = after;
  }
  if (end < 0) {
    dead.add(marks.length);
    if (!live) return literal;
  }
  const inner = text.slice(at + marks.length, end < 0 ? undefined : end).replace(/\n/g, " ");
  const shown = /^ .* $/.test(inner) && inner.trim() ? inner.slice(1, -1) : inner;
  return { kids: [node("code", [shown])], next: end < 0 ? text.length : end + marks.length };
}

// [n] that names a passage, or [text](address). Anything else stays as it is written.
function bracket(text, at, context, live) {
  const cited = match(CITATION, text, at);
  if (cited && context.cites.has(+cited[1])) {
    const label = context.labels.source ? context.labels.source(+cited[1]) : `[${cited[1]}]`;
    const props = { type: "button", class: "cite", "data-n": cited[1], "aria-label": label };
    return { kids: [node("button", [cited[1]], props)], next: at + cited[0].length };
  }
  const end = closing(text, at);
  if (end < 0) return live && text.length - at < MAX_LABEL && !text.includes("]", at) ? { kids: [], next: at + 1 } : null;
  const label = text.slice(at + 1, end);
  if (live && end === text.length - 1 && !/^[\dxX ]$/.test(label)) return { kids: inline(label, context, false, true), next: text.length };
  if (text[end + 1] !== "(") return null;
  const target = match(TARGET, text, end + 1);
  if (!target) {
    return live && /^\([^\s)]*$/.test(text.slice(end + 1)) ? { kids: inline(label, context, false, true), next: text.length } : null;
  }
  const href = safe(target[1]);
  return href && { kids: [link(href, inline(label, context, false, true))], next: end + 1 + target[0].length };
}

// An image would be a request to a stranger: it is shown as a link to it.
function image(text, at, context, live) {
  const made = bracket(text, at + 1, { ...context, cites: new Set() }, live);
  return made && { ...made, kids: made.kids.map((kid) => (kid.tag === "a" && !kid.kids.length ? { ...kid, kids: [kid.props.href] } : kid)) };
}

function closing(text, at) {
  for (let end = at, open = 0; end < Math.min(text.length, at + MAX_LABEL); end++) {
    if (text[end] === "\\") end++;
    else if (text[end] === "[") open++;
    else if (text[end] === "]" && --open === 0) return end;
  }
  return -1;
}

function angle(text, at) {
  const end = text.indexOf(">", at);
  if (end < 0 || end - at > 2000) return null;
  const inner = text.slice(at + 1, end), next = end + 1;
  if (/^br\s*\/?$/i.test(inner)) return { kids: [node("br")], next };
  const href = /\s/.test(inner) ? null : safe(inner);
  return href && { kids: [link(href, [inner.replace(/^mailto:/i, "")])], next };
}

function entity(text, at) {
  const found = match(ENTITY, text, at);
  return found && { kids: [ENTITIES[found[0]]], next: at + found[0].length };
}

function address(text, at) {
  const found = match(ADDRESS, text, at);
  if (!found || WORD.test(text[at - 1] ?? "")) return null;
  let url = found[0].replace(/(?:[.,;:!?'*_~|]|&\w*;)+$/, "");
  while (url.endsWith(")") && url.split("(").length < url.split(")").length) url = url.slice(0, -1);
  return safe(url) && { kids: [link(url, [url])], next: at + url.length };
}

// A run of * or _ (or ~~) closes the innermost frame with its mark, as much of it as both have, and opens with the rest.
function emphasis(frames, run, text, at) {
  const mark = run[0], before = text[at - 1] ?? " ", after = text[at + run.length] ?? " ";
  const cjk = CJK.test(before) || CJK.test(after);
  const flanks = (near, far) => !/\s/.test(near) && (!PUNCTUATION.test(near) || /\s/.test(far) || PUNCTUATION.test(far) || cjk);
  let opens = flanks(after, before), closes = flanks(before, after), left = run.length;
  if (mark === "_") [opens, closes] = [opens && !WORD.test(before), closes && !WORD.test(after)];
  while (closes && left) {
    const depth = frames.findLastIndex((frame) => frame.mark === mark);
    if (depth < 1) break;
    while (frames.length - 1 > depth) unwind(frames, false);
    const frame = frames.at(-1), used = frame.left >= 2 && left >= 2 ? 2 : 1;
    const made = wrapped(mark, used, frame.kids);
    frame.left -= used;
    left -= used;
    if (frame.left) frame.kids = [made];
    else { frames.pop(); frames.at(-1).kids.push(made); }
  }
  if (!left) return;
  if (opens && frames.length <= MAX_DEPTH) frames.push({ mark, left, kids: [] });
  else frames.at(-1).kids.push(mark.repeat(left));
}

const wrapped = (mark, used, kids) => node(mark === "~" ? "del" : used === 2 ? "strong" : "em", joined(kids));

// End the innermost frame that nothing closed: as text, or, while the text is being written, as if it were closed.
function unwind(frames, live) {
  const { mark, left, kids } = frames.pop();
  const made = !live ? [mark.repeat(left), ...kids] : kids.length ? [wrapped(mark, Math.min(left, 2), kids)] : [];
  frames.at(-1).kids.push(...made);
}

function joined(kids) {
  const out = [];
  for (const kid of kids) {
    if (typeof kid === "string" && typeof out.at(-1) === "string") out.push(out.pop() + kid);
    else out.push(kid);
  }
  return out;
}

// Where a stretch of a passage's Markdown stands in what is shown of it. It knows nothing of the DOM.

import { parse } from "./markdown.js";

// places(source, shown, start, end): {from, to} in UTF-16 units of the shown text for source[start:end] in code points,
// which is how the server counts; null where the two cannot be told to be the same.
//
// Marks of lists, tables and emphasis are not shown, so what comes before a place is measured in characters that are
// neither blanks nor bars of a table, once the beginning of the source is parsed as it is when all of it is.
export function places(source, shown, start, end) {
  const points = Array.from(source);
  if (!(Number.isInteger(start) && Number.isInteger(end) && 0 <= start && start < end && end <= points.length)) return null;
  const before = bare(points.slice(0, start).join("")), until = bare(points.slice(0, end).join(""));
  if (before.length >= until.length || !until.startsWith(before) || !squeezed(shown).startsWith(until)) return null;
  return { from: unitOf(shown, before.length), to: unitOf(shown, until.length - 1) + 1 };
}

const plain = (kid) => (typeof kid === "string" ? kid : kid.kids.map(plain).join(""));
const squeezed = (text) => text.replace(/[\s|]+/g, "");
const bare = (source) => squeezed(parse(source).map(plain).join(""));

// The unit of the n-th character that is neither blank nor bar.
function unitOf(text, n) {
  for (let unit = 0; unit < text.length; unit++) if (!/[\s|]/.test(text[unit]) && n-- === 0) return unit;
  return text.length;
}

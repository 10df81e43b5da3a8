// Where a line of a passage stands in what is shown of it.
import assert from "node:assert/strict";
import test from "node:test";

import { parse } from "../../serve/server/web/markdown.js";
import { places } from "../../serve/server/web/places.js";

const textOf = (kid) => (typeof kid === "string" ? kid : kid.kids.map(textOf).join(""));
const shownOf = (source) => parse(source).map(textOf).join("");

// What is marked of a line that stands in the source once.
function marked(source, line) {
  const start = Array.from(source.slice(0, source.indexOf(line))).length, shown = shownOf(source);
  const found = places(source, shown, start, start + Array.from(line).length);
  return found && shown.slice(found.from, found.to);
}

const HOTELS = "Ask first.\n\n| City | Night |\n|---|---|\n| Nara | 3,000 yen |\n| Osaka | 13,000 yen |\n| Kobe | 3,000 yen |";

test("a sentence is marked where it stands, emphasis and all", () => {
  assert.equal(marked("One. You have **ten days** off. Three.", "You have **ten days** off."), "You have ten days off.");
});

test("of two equal rows the one that is meant is marked", () => {
  assert.equal(marked(HOTELS, "| Osaka | 13,000 yen |"), "Osaka13,000 yen");
  const again = "| Kobe | 3,000 yen |", shown = shownOf(HOTELS), start = HOTELS.indexOf(again);
  const { from } = places(HOTELS, shown, start, start + again.length);
  assert.equal(from, shown.indexOf("Kobe"));
});

test("a sentence that stands twice is marked where the server says", () => {
  const source = "いいえ。\n\n- はい。\n- いいえ。", shown = shownOf(source);
  const last = Array.from(source).length;
  assert.equal(places(source, shown, last - 6, last).from, shown.lastIndexOf("いいえ。"));
  assert.equal(places(source, shown, 0, 4).from, 0);
});

test("characters outside the basic plane count once, as the server counts", () => {
  assert.equal(marked("🍣 は昼だけ。𠮷野さんに聞きます。", "𠮷野さんに聞きます。"), "𠮷野さんに聞きます。");
});

test("list marks and code are where they are shown", () => {
  assert.equal(marked("1. Open it.\n2. Close it. Lock it.\n3. Go.", "2. Close it."), "Close it.");
  assert.equal(marked("Run:\n\n```sh\nslm serve\n- x | y\n```\n", "- x | y"), "- x | y");
});

test("what cannot be placed is not marked somewhere else", () => {
  assert.equal(marked("**One. Two** three.", "**One."), null, "the emphasis goes on behind the line");
  for (const [start, end] of [[-1, 3], [2, 2], [0, 99], [undefined, 3], ["0", 3], [0.5, 3]]) {
    assert.equal(places("One. Two.", "One. Two.", start, end), null);
  }
  assert.equal(places("One.", "Another text.", 0, 4), null);
});

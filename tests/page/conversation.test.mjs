// What the page asks of a model, and what it exports.
import assert from "node:assert/strict";
import test from "node:test";

import { asMarkdown, conversation, newChat } from "../../serve/server/web/store.js";
import { EXAMPLES, WORDS, fill } from "../../serve/server/web/words.js";

const turn = (role, content, meta) => ({ role, content, meta });

test("a question whose answer failed is left out", () => {
  const asked = conversation("Be brief.", [turn("user", "a"), turn("user", "b"), turn("assistant", "B"), turn("user", "c")]);
  assert.deepEqual(asked, [turn0("system", "Be brief."), turn0("user", "b"), turn0("assistant", "B"), turn0("user", "c")]);
});

test("without a system prompt there is no system turn", () => {
  assert.deepEqual(conversation("", [turn("user", "こんにちは")]), [turn0("user", "こんにちは")]);
});

test("an exported conversation names its cited sources", () => {
  const meta = { adapter: "ja", citations: [{ number: 1, cited: true, title: "休暇", heading: "日数", source: "a.md", text: "x" },
    { number: 2, cited: false, title: "他", heading: "", source: "b.md", text: "y" }] };
  const out = asMarkdown({ title: "T", messages: [turn("user", "q"), turn("assistant", "10日です [1]。", meta)] }, { user: "You", assistant: "Model" });
  assert.ok(out.includes("- [1] 休暇 > 日数 (a.md)") && !out.includes("b.md") && out.includes("## Model (ja)"));
});

test("two chats never share an id", () => {
  assert.notEqual(newChat().id, newChat().id);
});

test("both languages have the same words", () => {
  const languages = Object.values(WORDS);
  assert.ok(languages.length >= 2);
  for (const words of languages) assert.deepEqual(Object.keys(words).sort(), Object.keys(languages[0]).sort());
  assert.ok(EXAMPLES.length > 0);
  assert.equal(fill("{a} and {b}", { a: 1, b: 2 }), "1 and 2");
});

function turn0(role, content) {
  return { role, content };
}

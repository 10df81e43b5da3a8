// What an answer's events leave behind in the conversation.
import assert from "node:assert/strict";
import test from "node:test";

import { receive } from "../../serve/server/web/answering.js";

const told = (events) => ({ chat: async function* () { yield* events; } });
const event = (delta, more = {}) => ({ choices: [{ delta, finish_reason: null }], ...more });

async function received(events) {
  const { message, error } = await receive(told(events), {}, { languageOfAdapter: () => undefined, show: () => {} });
  assert.equal(error, null);
  return message;
}

test("a refusal is kept with its nearest lines", async () => {
  const near = { refused: true, citations: [{ number: 1, cited: false, text: "x", start: 0, end: 1 }] };
  const { content, meta } = await received([event({ content: "" }, near), event({ content: "資料には見つかりませんでした。" }), event({}, near)]);
  assert.equal(content, "資料には見つかりませんでした。");
  assert.equal(meta.refused, true);
  assert.deepEqual(meta.citations, near.citations);
});

test("an answer that no reader gave says nothing of refusing", async () => {
  const { meta } = await received([event({ content: "Hello" }, { citations: [] })]);
  assert.equal(meta.refused, undefined);
});

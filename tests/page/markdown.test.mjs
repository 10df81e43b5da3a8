// The page's Markdown, without a page: `node --test tests/page`.
import assert from "node:assert/strict";
import test from "node:test";

import { parse } from "../../serve/server/web/markdown.js";

const tags = (tree) => tree.flatMap((node) => (typeof node === "string" ? [] : [node.tag, ...tags(node.kids)]));
const text = (tree) => tree.map((node) => (typeof node === "string" ? node : text(node.kids))).join("");

test("raw HTML stays text", () => {
  const tree = parse("<script>alert(1)</script> <img src=x onerror=y>");
  assert.equal(text(tree), "<script>alert(1)</script> <img src=x onerror=y>");
  assert.ok(!tags(tree).includes("script") && !tags(tree).includes("img"));
});

test("what chat models write becomes elements, in Japanese too", () => {
  const found = tags(parse("# 見出し\n\n- 一\n- 二\n\nこれは**「重要」**です。\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1\n```"));
  for (const tag of ["h1", "ul", "li", "strong", "table", "pre", "code"]) {
    assert.ok(found.some((name) => name === tag || (tag === "h1" && /^h\d$/.test(name))), `${tag} in ${found}`);
  }
});

test("a link runs no script", () => {
  const links = [];
  const walk = (tree) => tree.forEach((node) => typeof node === "string" || (node.props.href !== undefined && links.push(node.props.href), walk(node.kids)));
  walk(parse("[a](javascript:alert(1)) [b](https://a.example/) [c](data:text/html,x)"));
  assert.deepEqual(links.filter((href) => !/^https?:/.test(href)), []);
  assert.equal(links.length, 1);
});

test("only numbers of passages are citations", () => {
  const cites = (source) => tags(parse(source, { cites: new Set([1, 2]) })).filter((tag) => tag === "button" || tag === "cite" || tag === "sup").length;
  assert.ok(cites("As said [1] and [2].") > cites("As said [7] and a[1]."));
});

test("time grows with the text, not faster", () => {
  for (const junk of ["[", "*", "`", "> ", "| a ", "- \n", "_a", "![", "<"]) {
    const started = performance.now();
    parse(junk.repeat(20_000));
    assert.ok(performance.now() - started < 5_000, JSON.stringify(junk));
  }
});

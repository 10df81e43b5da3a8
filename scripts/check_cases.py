"""Runs `slm` over a folder of inputs that went wrong once, and prints a line for each: what is right, or what came.

    python scripts/check_cases.py DIR [--only documents|serving|training|checkpoints] [--match WORD]

DIR holds documents/, serving/, training/ and checkpoints/ (its two scripts build small checkpoints and adapters).
Everything is done as a user does it, by the commands and over HTTP. It knows nothing of how they work.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHECKS: list[tuple[str, str, Callable[[Path, Path], None]]] = []
CHAT, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
_NAME_IN_SHIFT_JIS = "一覧".encode("cp932") + b".txt"


def check(part: str, name: str) -> Callable[[Callable[[Path, Path], None]], Callable[[Path, Path], None]]:
    """A check is called with the part's folder and an empty folder; it fails by an AssertionError."""

    def keep(function: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        CHECKS.append((part, name, function))
        return function

    return keep


def slm(*arguments: str | Path, ok: bool | None = True, stdin: bytes | None = None, cwd: Path | None = None,
        **environment: str) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """Run the command; ok says whether it must succeed (None: either). There is never a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "slm_cli", *map(str, arguments)], input=stdin, capture_output=True, timeout=900,
        cwd=cwd or ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    shown = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert "Traceback" not in shown, shown[-600:]
    assert ok is None or (done.returncode == 0) is ok, f"exit {done.returncode}: {shown[-500:]}"
    return done


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def read(*paths: Path) -> str:
    """The text that files are read as."""
    answer = json.loads(slm("rag", "read", *paths, "--json").stdout)
    return "\n\n".join(document["text"] for document in answer["documents"])


def has(text: str, *wanted: str) -> None:
    for word in wanted:
        assert word in text, f"{word!r} is missing in {text[:400]!r}"


def lacks(text: str, *unwanted: str) -> None:
    for word in unwanted:
        assert word not in text, f"{word!r} is in {text[max(0, text.find(word) - 100) : text.find(word) + 200]!r}"


def first(index: Path, query: str) -> str:
    """The best passage of a search."""
    results = json.loads(slm("rag", "search", index, query, "--json").stdout)["results"]
    return f"{results[0]['title']} {results[0]['heading']} {results[0]['text']}" if results else ""


# documents ---------------------------------------------------------------------------------------------------------


@check("documents", "r01 rosters in CP932 and EUC-JP without hiragana")
def _(folder: Path, _work: Path) -> None:
    for name in ("fine_cp932.txt", "roster_cp932.txt", "roster_eucjp.txt"):
        has(read(folder / "r01" / name), "佐藤", "鈴木", "経理部")


@check("documents", "r02 HTML without a charset, with a wrong one")
def _(folder: Path, _work: Path) -> None:
    for file in sorted([*(folder / "r02").iterdir(), *(folder / "r02b").iterdir()]):
        text = read(file)
        has(text, "清掃" if file.name.startswith(("cleaning", "long", "plain")) else "棚卸")
        lacks(text, "\ufffd", "縺", "繧", "ã")


@check("documents", "r03 cp1252, and one bad byte in UTF-8")
def _(folder: Path, _work: Path) -> None:
    has(read(folder / "r03/travel_cp1252.txt"), "Travel policy – Zürich office", "Don’t forget the café receipts")
    done = slm("rag", "read", folder / "r03/one_bad_byte.md", "--json")
    has(said(done), "Visitors park on level B2", "one_bad_byte.md")
    has(json.loads(done.stdout)["documents"][0]["text"], "\ufffd")


@check("documents", "r04b variants of characters in names are found, first")
def _(folder: Path, work: Path) -> None:
    slm("rag", "add", work / "i", folder / "r04b/seats.md")
    for asked, written in (("渡辺", "渡邉"), ("高橋", "髙橋"), ("浜田", "濵田")):
        has(first(work / "i", f"{asked}さんの席はどこですか"), written)


@check("documents", "r07b years of either calendar are found, first")
def _(folder: Path, work: Path) -> None:
    slm("rag", "add", work / "i", folder / "r07b/rev.md")
    for asked, written in (("2024年の改定", "令和6年"), ("2018年の改定", "平成30年"), ("令和6年の改定", "令和6年")):
        has(first(work / "i", asked), written)


@check("documents", "r08 code in XHTML")
def _(folder: Path, _work: Path) -> None:
    text = read(folder / "r08/restore.xhtml")
    has(text, "ledgerctl restore --from vault7 --until 04:30")
    lacks(text, "CDATA", "]]>", "bashledgerctl")


@check("documents", "r10 tables: a rowspan's label in every row, exponents")
def _(folder: Path, _work: Path) -> None:
    text = read(folder / "r10/shifts.html")
    rows = [line for line in text.splitlines() if "Wed 10:00" in line or "Fri 08:00" in line]
    assert len(rows) == 2 and all("Nagoya" in row for row in rows), rows
    lacks(text, "10-3 ")


@check("documents", "r11 what begins with three hyphens")
def _(folder: Path, _work: Path) -> None:
    has(read(folder / "r11/starts_with_rule.md"), "Fire drill", "north lawn", "safety desk")
    has(read(folder / "r11/empty_front.md"), "07:45", "16:10")
    answer = json.loads(slm("rag", "read", folder / "r11", "--json").stdout)["documents"]
    assert {"Guest wifi for visitors", "Locker rules"} <= {document["title"] for document in answer}, answer
    lacks(read(folder / "r11/hugo.md"), "draft")


@check("documents", "r12 a data URI of 90 kB: dropped, in a moment")
def _(folder: Path, work: Path) -> None:
    text = read(folder / "r12/gdoc_export.md")
    has(text, "room 214")
    lacks(text, "base64")
    start = time.monotonic()
    slm("rag", "add", work / "i", folder / "r12")
    assert time.monotonic() - start < 12, f"{time.monotonic() - start:.0f} s"


@check("documents", "r14 a name in NFD is removed by its NFC spelling")
def _(folder: Path, work: Path) -> None:
    docs = work / "docs"
    docs.mkdir()
    for file in (folder / "r14").iterdir():
        shutil.copy(file, docs / unicodedata.normalize("NFD", file.name))
    slm("rag", "add", work / "i", docs)
    slm("rag", "remove", work / "i", unicodedata.normalize("NFC", "ガイドブック.txt"))
    status = json.loads(slm("rag", "status", work / "i", "--json").stdout)
    assert len(status["documents"]) == 1, status


@check("documents", "r15 a deleted file no longer answers when its folder is added again")
def _(folder: Path, work: Path) -> None:
    docs = Path(shutil.copytree(folder / "r15", work / "docs"))
    slm("rag", "add", work / "i", docs)
    (docs / "b.md").unlink()
    has(said(slm("rag", "add", work / "i", docs)), "b.md")
    lacks(said(slm("rag", "search", work / "i", "gym code")), "8812")


@check("documents", "r18 readings beside characters are dropped")
def _(folder: Path, work: Path) -> None:
    has(read(folder / "r18/ruby.html"), "避難場所", "備蓄品")
    slm("rag", "add", work / "i", folder / "r18/ruby.html")
    has(first(work / "i", "避難場所"), "避難場所")


@check("documents", "r21 text inside a form, r22 every article")
def _(folder: Path, _work: Path) -> None:
    has(read(folder / "r21/webforms.html"), "Leave desk")
    assert len(read(folder / "r21/webforms.html")) > 30
    has(read(folder / "r22/notices.html"), "out of order on Monday", "off on Tuesday", "Spare keys")


@check("documents", "r24 code keeps its tags and comments, attributes hide nothing")
def _(folder: Path, _work: Path) -> None:
    has(read(folder / "r24/fences.md"), "Use the runtime 8.", "token teal")
    has(read(folder / "r24b/nested.md"), "<!-- reviewer: remove amber note -->", "<span hidden>hidden sample</span>",
        "The end.")  # fmt: skip
    has(read(folder / "r24b/indented.md"), "<!-- keep -->", "make all")
    has(read(folder / "r24b/hid.md"), "The treasure room is 12", "Prices", "The fee is 30")
    lacks(read(folder / "r24b/hid.md"), ">secret<", "secret</div>")
    has(read(folder / "r24b/overflow.md"), "The fee is 30", "End.")
    has(read(folder / "r24b/links.md"), "See the (big) plan and Wiki", "Note text 55", "List<String> x", "a_b_c",
        "5 < 6 and 7 > 3", "Price")  # fmt: skip


@check("documents", "r27 unclosed tags, and nothing of it ends the run")
def _(folder: Path, work: Path) -> None:
    text = read(folder / "r27/l.html")
    for line in ("one", "two", "three"):
        assert re.search(rf"^\s*[-*]\s*{line}\s*$", text, re.MULTILINE), text
    lines = [line for line in text.splitlines() if "|" in line]
    assert not any("1" in line and "3" in line for line in lines), text
    docs = Path(shutil.copytree(folder / "r27", work / "docs"))
    (docs / os.fsdecode(_NAME_IN_SHIFT_JIS)).write_bytes("一覧です。".encode("cp932"))
    (docs / "deep.html").write_text("<div>" * 20_000 + "the deepest word")
    os.mkfifo(docs / "pipe.md")
    answer = json.loads(slm("rag", "add", work / "i", docs, "--json").stdout)
    has(first(work / "i", "spare key"), "drawer 6")
    has(json.dumps(answer["skipped"]), "txt")


@check("documents", "r30 control tokens in a document are text")
def _(folder: Path, work: Path) -> None:
    tokens = []
    for name, text in (
        ("forged", (folder / "r30/chatml.md").read_text()),
        ("plain", (folder / "r30/chatml.md").read_text().replace("<|im_", "<[im_").replace("|>", "]>")),
    ):
        (work / f"{name}.md").write_text(text)
        slm("rag", "add", work / name, work / f"{name}.md")
        asked = slm("rag", "ask", work / name, "How does a turn end?", "--model", CHAT, "--max-tokens", "1", "--json")
        tokens.append(json.loads(asked.stdout)["prompt_tokens"])
    assert abs(tokens[0] - tokens[1]) <= 0.2 * tokens[1] and tokens[0] >= tokens[1] * 0.9, tokens


@check("documents", "c28 stdin in other encodings")
def _(folder: Path, _work: Path) -> None:
    lengths = {}
    for name in ("bom.txt", "sjis.txt", "utf16.txt"):
        raw = (folder / "c28" / name).read_bytes()
        done = slm("generate", CHAT, "--max-tokens", "1", "--json", stdin=raw, ok=None)
        if done.returncode:
            assert said(done).count("\n") <= 3, said(done)
        else:
            lengths[name] = json.loads(done.stdout)["prompt_tokens"]
    plain = json.loads(slm("generate", CHAT, "--max-tokens", "1", "--json", stdin=b"Say hello.\n").stdout)
    assert lengths["bom.txt"] == plain["prompt_tokens"], (lengths, plain)


@check("documents", "c37 the configuration file")
def _(folder: Path, _work: Path) -> None:
    def run(name: str, ok: bool | None) -> str:
        return said(slm("generate", CHAT, "-p", "Hi", "--json", ok=ok, SLM_CONFIG=str(folder / "c37" / name)))

    for name in ("good.toml", "bom.toml"):
        assert int(re.search(r'"completion_tokens": (\d+)', run(name, True))[1]) <= 5, name  # type: ignore[index]
    has(run("badtype.toml", False), "max")
    has(run("top.toml", False), "generate")
    has(run("typo.toml", None), "max_token")


# training ----------------------------------------------------------------------------------------------------------


def masks(folder: Path, name: str, *more: str, ok: bool | None = True) -> str:
    return said(slm("train", "sft", "--base", CHAT, "--data", folder / name, "--show-masks", "1", *more, "-o",
                    Path(tempfile.gettempdir()) / "no-such-adapter", ok=ok))  # fmt: skip


@check("training", "t4 turns with weight 0 or train false are not learned")
def _(folder: Path, _work: Path) -> None:
    for name in ("t4_weight0.jsonl", "t4b_train_false.jsonl"):
        learned = "".join(re.findall("⟦(.*?)⟧", masks(folder, name), re.DOTALL))
        has(learned, "Gladly")
        lacks(learned, "BADWORD")


@check("training", "every other file: read, or named for what it is")
def _(folder: Path, _work: Path) -> None:
    for file in sorted(folder.iterdir()):
        text = masks(folder, file.name, ok=None)
        print(f"      {file.name:32} {' / '.join(text.strip().splitlines()[:2])[:160]}")


@check("training", "t26 all system text in the prompt with gemma's template")
def _(folder: Path, _work: Path) -> None:
    has(masks(folder, "t26_two_systems.jsonl", "--template", "gemma"), "RULE-A", "RULE-B", "RULE-C")


# serving -----------------------------------------------------------------------------------------------------------


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Callable[[str, Any], tuple[int, Any]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "slm_cli", "serve", *map(str, arguments), "--port", str(port)], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def post(path: str, body: Any) -> tuple[int, Any]:
        raw = json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", raw, {"Content-Type": "application/json"}
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.25)
        yield post
    finally:
        process.terminate()
        process.wait(20)


def body(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((folder / f"{name}.json").read_text()), **changes}


@check("serving", "bodies for SmolLM2")
def _(folder: Path, _work: Path) -> None:
    with serving(CHAT) as post:
        for file in sorted(folder.glob("*.json")):
            path = (
                "/v1/embeddings"
                if file.stem.startswith("emb")
                else ("/v1/responses" if file.stem == "responses" else "/v1/chat/completions")
            )
            status, answer = post(path, json.loads(file.read_text()))
            shown = json.dumps(answer, ensure_ascii=False)
            print(f"      {file.stem:32} {status} {shown[:230]}")
            if file.stem.startswith(("embeddings", "tool_format", "tool_if", "responses", "tool_params")):
                assert status == 200, (file.stem, shown[:300])
            else:
                assert status in (200, 400), (file.stem, shown[:300])
            if file.stem == "tool_params_without_type":
                call = answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
                cut = answer["choices"][0]["finish_reason"] == "length"
                assert call.startswith("{") if cut else isinstance(json.loads(call), dict), call
            if file.stem == "image_part":
                has(shown, "text", "messages[0]")
                assert status == 400
            lacks(shown, "lark", "Grammar", "messages.0.content.str")


@check("serving", "all system text and tools reach Gemma's template")
def _(folder: Path, _work: Path) -> None:
    with serving(GEMMA) as post:
        for name in ("two_systems_tools_gemma", "system_last_gemma"):
            whole = body(folder, name)
            bare = {**whole, "messages": [m for m in whole["messages"] if m["role"] != "system"]}
            bare.pop("tools", None)
            few, many = (post("/v1/chat/completions", b) for b in (bare, whole))
            assert many[0] == 400 or many[1]["usage"]["prompt_tokens"] > few[1]["usage"]["prompt_tokens"] + 8, (
                few,
                many,
            )
            print("     ", name, [x[1].get("usage", x[1]) for x in (few, many)])


# checkpoints -------------------------------------------------------------------------------------------------------


def built(folder: Path) -> Path:
    """The checkpoints and adapters that the folder's two scripts make; made once a day."""
    out = Path(tempfile.gettempdir()) / f"cases-{time.strftime('%Y%m%d')}"
    if not (out / "done").exists():
        for name in ("checkpoints", "adapters"):
            subprocess.run([sys.executable, str(folder / f"{name}.py"), str(out)], check=True, capture_output=True)
        (out / "done").touch()
    return out


@check("checkpoints", "c2_generation_tag converts, chats and trains")
def _(folder: Path, work: Path) -> None:
    source = built(folder) / "c2_generation_tag"
    slm("convert", source, "-o", work / "m.gguf")
    slm("generate", work / "m.gguf", "-p", "Hi", "--max-tokens", "4")
    (work / "d.jsonl").write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": f"q{i}"},
        {"role": "assistant", "content": f"a{i}"}]}) for i in range(8)))  # fmt: skip
    slm("train", "sft", "--base", source, "--data", work / "d.jsonl", "-o", work / "a", "--max-steps", "2")


@check("checkpoints", "c5 end-of-turn tokens that only generation_config names")
def _(folder: Path, work: Path) -> None:
    for name in ("c5_gen_eos", "c5b_gen_eos_custom"):
        slm("convert", built(folder) / name, "-o", work / f"{name}.gguf")
        answer = json.loads(slm("generate", work / f"{name}.gguf", "-p", "Hi", "--max-tokens", "20", "--json").stdout)
        assert answer["finish_reason"] == "stop" and answer["completion_tokens"] <= 1, (name, answer)


@check("checkpoints", "c6 a stale index: what transformers reads, or both are named")
def _(folder: Path, work: Path) -> None:
    done = slm("convert", built(folder) / "c6_stale_index", "-o", work / "m.gguf", ok=None)
    slm("convert", built(folder) / "base", "-o", work / "b.gguf")
    if done.returncode:
        has(said(done), "model.safetensors.index.json", "model.safetensors")
    else:
        one, two = (json.loads(slm("inspect", work / f"{n}.gguf", "--json").stdout) for n in "mb")
        assert one["fingerprint"] == two["fingerprint"], (one["fingerprint"], two["fingerprint"])


@check("checkpoints", "c7, c8 pointers and quantized weights are named before anything loads")
def _(folder: Path, work: Path) -> None:
    (work / "d.jsonl").write_text('{"text": "abc"}\n' * 4)
    for name, word in (("c7_lfs_pointer", "LFS"), ("c7_lfs_tokenizer", "LFS"), ("c8_bnb4", "bitsandbytes"),
                       ("c8_gptq", "gptq"), ("c8_fp8", "fp8")):  # fmt: skip
        source = built(folder) / name
        for command in (
            ("convert", source, "-o", work / "m.gguf"),
            ("train", "lora", "--base", source, "--data", work / "d.jsonl", "-o", work / "a", "--max-steps", "1"),
            ("merge", "--base", source, "--adapter", built(folder) / "a_all_linear", "-o", work / "merged"),
        ):  # fmt: skip
            text = said(slm(*command, ok=False))
            assert word.lower() in text.lower(), (name, command[0], text[-300:])


@check("checkpoints", "a_newtok_trainable merges to 395 rows, a_zero3_empty is explained")
def _(folder: Path, work: Path) -> None:
    tree = built(folder)
    slm("merge", "--base", tree / "base_tied", "--adapter", tree / "a_newtok_trainable", "-o", work / "m")
    assert json.loads((work / "m/config.json").read_text())["vocab_size"] == 395
    for command in (("merge", "--base", tree / "base", "--adapter", tree / "a_zero3_empty", "-o", work / "z"),
                    ("convert", tree / "a_zero3_empty", "--base", tree / "base", "-o", work / "z.gguf")):  # fmt: skip
        has(said(slm(*command, ok=False)), "empty")


@check("checkpoints", "a_unsloth in a watched folder: refused on _other, then loaded on base")
def _(folder: Path, work: Path) -> None:
    tree = built(folder)
    (work / "adapters").mkdir()
    shutil.copytree(tree / "a_unsloth", work / "adapters/u")
    for name in ("_other", "base"):
        slm("convert", tree / name, "-o", work / f"{name}.gguf")
        with serving(work / f"{name}.gguf", "--adapters-dir", work / "adapters") as post:
            time.sleep(6)
            status, answer = post("/v1/chat/completions", {"model": "u", "max_tokens": 2,
                                  "messages": [{"role": "user", "content": "Hi"}]})  # fmt: skip
        print(f"      on {name}: {status} {json.dumps(answer)[:160]}")
        assert name == "_other" or status == 200, answer


@check("checkpoints", "convert -> train on the file -> convert the adapter -> serve, for every type")
def _(folder: Path, work: Path) -> None:
    (work / "d.jsonl").write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": f"q{i}"},
        {"role": "assistant", "content": f"a{i}"}]}) for i in range(8)))  # fmt: skip
    for kind in ("f32", "f16", "q8_0", "q4_k_m"):
        file, adapter = work / f"{kind}.gguf", work / f"a_{kind}"
        slm("convert", built(folder) / "base", "-o", file, "--type", kind)
        slm("train", "sft", "--base", file, "--data", work / "d.jsonl", "-o", adapter, "--max-steps", "2")
        slm("convert", adapter, "-o", work / f"a_{kind}.gguf")
        for other in {file, work / "f32.gguf"}:
            slm(
                "generate",
                other,
                "--adapter",
                f"x={work / f'a_{kind}.gguf'}",
                "-m",
                "x",
                "-p",
                "Hi",
                "--max-tokens",
                "2",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=["documents", "serving", "training", "checkpoints"])
    parser.add_argument("--match", default="")
    options = parser.parse_args()
    failed = 0
    for part, name, function in CHECKS:
        if options.only not in (None, part) or options.match not in name:
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                function((options.folder / part).resolve(), Path(work))
                print(f"ok    {part:12} {name}", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"FAIL  {part:12} {name}: {str(error)[:700]}", flush=True)
    print(f"{failed} failed" if failed else "all right")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

"""Documents and texts that were read wrongly once, and the configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import unicodedata
from pathlib import Path

from scripts.cases.doing import CHAT, check, first, has, lacks, read, said, slm

_NAME_IN_SHIFT_JIS = "一覧".encode("cp932") + b".txt"


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
        asked = slm(
            "rag",
            "ask",
            work / name,
            "How does a turn end?",
            "--model",
            CHAT,
            "--reader",
            "model",
            "--max-tokens",
            "1",
            "--json",
        )
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

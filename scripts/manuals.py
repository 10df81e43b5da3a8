"""Makes an English and Japanese corpus from unpacked Debian manuals: documents to train on, parallel text to measure.

    apt-get download debian-reference-en debian-reference-ja maint-guide maint-guide-ja developers-reference \\
        developers-reference-ja debian-policy debian-policy-ja manpages manpages-dev manpages-ja
    for package in *.deb; do dpkg -x "$package" manuals; done
    python scripts/manuals.py manuals corpus

Writes en.jsonl and ja.jsonl (one document a line), and from three chapters of the Debian Reference that are left out
of them: parallel-en.txt and parallel-ja.txt, whose lines are translations of each other.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from slm.artifacts import new_file, require_folder  # noqa: E402
from slm.errors import InputError  # noqa: E402

HELD_OUT = ("ch03", "ch05", "ch08")  # of the Debian Reference: system start, network, languages
_BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "dt", "li", "pre", "td", "th"}
_SKIPPED = {"script", "style", "head"}
_SHORTEST = 200  # characters of a document worth keeping
_MACRO = re.compile(r"^[.']\s*(\w+)\s*(.*)$")
_TEXT_MACROS = {"SH", "SS", "B", "I", "BR", "RB", "IR", "RI", "BI", "IB", "SM", "SB"}
_ESCAPES = (
    (r"\-", "-"),
    (r"\e", "\\"),
    (r"\&", ""),
    (r"\ ", " "),
    (r"\(aq", "'"),
    (r"\(dq", '"'),
    (r"\(bu", "-"),
    (r"\,", ""),
    (r"\/", ""),
)


class _Blocks(HTMLParser):
    """The text of each block element in order, with white space folded except in <pre>."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[tuple[str, str]] = []
        self._open = ""
        self._skip = ""
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED and not self._skip:
            self._skip = tag
        elif tag in _BLOCKS:
            self.close_block()
            self._open = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._skip:
            self._skip = ""
        elif tag in _BLOCKS:
            self.close_block()

    def handle_data(self, data: str) -> None:
        if self._open and not self._skip:
            self._text.append(data)

    def close_block(self) -> None:
        text = "".join(self._text)
        text = text.strip("\n") if self._open == "pre" else " ".join(text.split())
        if self._open:
            self.blocks.append((self._open, text))
        self._open, self._text = "", []


def html_blocks(path: Path) -> list[tuple[str, str]]:
    """(tag, text) of a page's blocks, empty ones included."""
    parser = _Blocks()
    parser.feed(path.read_text(encoding="utf-8", errors="strict"))
    parser.close_block()
    return parser.blocks


def html_document(path: Path) -> str:
    """A page as plain text, a block a line."""
    return "\n".join(text for _, text in html_blocks(path) if text)


def man_document(path: Path) -> str:
    """A manual page's words without its layout: macros give way to line breaks, font changes to nothing."""
    lines: list[str] = [""]
    for raw in gzip.decompress(path.read_bytes()).decode("utf-8", "strict").splitlines():
        if raw.startswith(('.\\"', "'\\\"")):
            continue
        macro = _MACRO.match(raw)
        text = (macro[2] if macro[1] in _TEXT_MACROS else "") if macro else raw
        text = re.sub(r"\\f(\[\w*\]|\(..|.)|\\s[-+]?\d|\\\".*$", "", text)
        for escape, plain in _ESCAPES:
            text = text.replace(escape, plain)
        text = re.sub(r"\\\*?(\(..|\[\w+\])", "", text).replace('"', "") if macro else text
        if macro and macro[1] not in _TEXT_MACROS - {"SH", "SS"}:
            lines.append("")
        joint = "" if not lines[-1] or (ord(lines[-1][-1]) > 0x2E80 and ord(text[:1] or " ") > 0x2E80) else " "
        if text.strip():
            lines[-1] += joint + text.strip()
        if macro and macro[1] in ("SH", "SS"):
            lines.append("")
    return "\n".join(line for line in lines if line)


def documents(root: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of every document to train on."""
    share = root / "usr/share"
    for lang in ("en", "ja"):
        for page in sorted((share / "debian-reference").glob(f"*.{lang}.html")):
            if not page.name.startswith(HELD_OUT):
                yield lang, html_document(page)
        guide = share / ("doc/maint-guide/html" if lang == "en" else "doc/maint-guide-ja/html")
        for page in sorted(guide.glob(f"*.{lang}.html")):
            yield lang, html_document(page)
        reference = share / ("developers-reference" if lang == "en" else "developers-reference/ja")
        for page in sorted(reference.glob("*.html")):
            if page.stem not in ("developers-reference", "search"):
                yield lang, html_document(page)
        policy = share / ("doc/debian-policy" if lang == "en" else "doc/debian-policy/ja")
        for page in sorted((policy / "policy.html").glob("*.html")):
            yield lang, html_document(page)
        pages = share / ("man" if lang == "en" else "man/ja")
        for page in sorted(pages.glob("man[1-8]/*.gz")):
            if not page.is_symlink():
                yield lang, man_document(page)


def parallel_lines(root: Path) -> list[tuple[str, str]]:
    """(English, Japanese) blocks of the held-out chapters: pages of the same structure, translated, one sentence up."""
    pairs: list[tuple[str, str]] = []
    for chapter in HELD_OUT:
        sides = [html_blocks(root / f"usr/share/debian-reference/{chapter}.{lang}.html") for lang in ("en", "ja")]
        if [tag for tag, _ in sides[0]] != [tag for tag, _ in sides[1]]:
            raise InputError(f"the two languages of chapter {chapter} differ in structure")
        for (tag, english), (_, japanese) in zip(*sides, strict=True):
            translated = re.search(r"[぀-ヿ一-鿿]", japanese) and not re.search(r"[぀-ヿ一-鿿]", english)
            if tag == "p" and translated and len(english) > 30:
                pairs.append((english, japanese))
    return list(dict.fromkeys(pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manuals", type=Path, help="where the packages were unpacked")
    parser.add_argument("corpus", type=Path, help="folder to write")
    arguments = parser.parse_args()
    root, out = require_folder(arguments.manuals), arguments.corpus
    written: dict[str, list[int]] = {}
    with ExitStack() as stack:
        paths = {lang: stack.enter_context(new_file(out / f"{lang}.jsonl")) for lang in ("en", "ja")}
        files = {lang: stack.enter_context(path.open("w", encoding="utf-8")) for lang, path in paths.items()}
        seen: set[str] = set()
        for lang, text in documents(root):
            if len(text) < _SHORTEST or text in seen:
                continue
            seen.add(text)
            files[lang].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written.setdefault(lang, []).append(len(text.encode()))
    pairs = parallel_lines(root)
    for side, lang in enumerate(("en", "ja")):
        with new_file(out / f"parallel-{lang}.txt") as path:
            path.write_text("".join(pair[side] + "\n" for pair in pairs), encoding="utf-8")
    for lang, sizes in sorted(written.items()):
        print(f"{lang}: {len(sizes)} documents, {sum(sizes) / 1e6:.1f} MB")
    print(f"parallel: {len(pairs)} pairs")


if __name__ == "__main__":
    main()

"""Reads Markdown, HTML and text files into documents, and reports by name what could not be read.

It knows nothing of chunks, embeddings or indexes. HTML becomes Markdown; hidden text, scripts and navigation
are dropped, links and images leave their words.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rag.document import Document, Section, one_line, sections_of, visible
from slm.errors import DamagedFileError, InputError, MissingFileError, SlmError, UnsupportedError
from slm.language import detect

MARKDOWN = (".md", ".markdown", ".mdown")
HTML = (".html", ".htm", ".xhtml")
TEXT = (".txt", ".text")
# Parts of web pages that belong to the site and not to the page; they are never worth an error or a report.
_SITE_FILES = (".css", ".js", ".map", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".ico", ".webp", ".woff", ".woff2")
_DROPPED_TAGS = (
    "script", "style", "template", "noscript", "iframe", "object", "embed", "svg", "canvas", "form", "nav", "head",
)  # fmt: skip
_HIDING_STYLE = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])|opacity\s*:\s*0(?![.\d])", re.IGNORECASE
)
_HIDDEN_INLINE = re.compile(
    r"<(\w+)\b[^>]*?(?:\bhidden\b|display\s*:\s*none|visibility\s*:\s*hidden)[^>]*>.*?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
_CODE = re.compile(r"(^ {0,3}(?:```|~~~).*?^ {0,3}(?:```|~~~)[^\n]*$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_LANG_SAMPLE = 4000
_SAMPLE_BYTES = 8192


@dataclass(frozen=True)
class Skipped:
    """A file that gave no document or a folder that could not be listed, and why in words."""

    path: Path
    reason: str


@dataclass
class Reading:
    """What a set of paths gave: documents, and files and folders that could not be read."""

    documents: list[Document] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def find_files(paths: Sequence[Path | str], on_error: Callable[[OSError], None] = lambda _: None) -> list[Path]:
    """The files of these files and folders, sorted, each once; hidden files and folders are left out.

    `on_error` is told of folders that cannot be listed. Raises MissingFileError.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_file():
            found[path.resolve()] = None
        elif path.is_dir():
            for file in sorted(_files_below(path, on_error)):
                if file.is_file() and file.suffix.lower() not in _SITE_FILES:
                    found[file.resolve()] = None
        else:
            raise MissingFileError(f"there is no file or folder '{path}'")
    return list(found)


def _files_below(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Unhidden names below a folder; one that is removed meanwhile does not stop the walk."""
    for parent, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = (name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def read_files(
    paths: Sequence[Path | str], on_file: Callable[[int], None] = lambda _: None, *, none_ok: bool = False
) -> Reading:
    """Read everything below the paths. `on_file` is told how many files are done.

    Raises MissingFileError for a path that is not there, InputError when no document at all came out (unless none_ok).
    """
    reading = Reading()

    def unlisted(error: OSError) -> None:
        reading.skipped.append(Skipped(Path(error.filename), error.strerror or str(error)))

    files = find_files(paths, unlisted)
    for number, path in enumerate(files, start=1):
        try:
            reading.documents.append(read_file(path))
        except SlmError as error:
            reading.skipped.append(Skipped(path, error.what))
        except OSError as error:
            reading.skipped.append(Skipped(path, error.strerror or str(error)))
        on_file(number)
    if not reading.documents and not none_ok:
        raise nothing_read(paths, reading)
    return reading


def nothing_read(paths: Sequence[Path | str], reading: Reading) -> InputError:
    """The error for paths that gave no document at all, with the reasons."""
    named = ", ".join(str(path) for path in paths)
    reasons = "; ".join(f"{skipped.path.name}: {skipped.reason}" for skipped in reading.skipped[:5])
    return InputError(
        f"no document was found in {named}",
        found=reasons or "no files",
        hint=f"Files that are read: {', '.join((*MARKDOWN, *HTML, *TEXT))}.",
    )


def read_file(path: Path) -> Document:
    """One file as a document. Raises UnsupportedError (its kind), DamagedFileError (empty, binary, encoding)."""
    suffix = path.suffix.lower()
    if suffix not in (*MARKDOWN, *HTML, *TEXT):
        raise UnsupportedError(f"files of the kind '{suffix or path.name}' are not read")
    raw = path.read_bytes()
    if not raw.strip():
        raise DamagedFileError("it is empty")
    bom = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not bom and b"\0" in raw[:_SAMPLE_BYTES]:
        raise DamagedFileError("it is binary, not text")
    if suffix in HTML:
        document = html_document(raw, path.stem)
    elif suffix in MARKDOWN:
        document = markdown_document(decode(raw), path.stem)
    else:
        text = visible(decode(raw)).strip("\n")
        document = Document(path.stem, "", "und", (Section((), text),) if text.strip() else ())
    if not document.sections:
        raise DamagedFileError("it holds no visible text")
    sample = " ".join([document.title, *(section.text for section in document.sections)])[:_LANG_SAMPLE]
    return replace(document, source=path.as_posix(), lang=detect(sample).language or "und")


def decode(raw: bytes) -> str:
    """Text of bytes in UTF-8, UTF-16 with a mark, ISO-2022-JP, EUC-JP or Shift_JIS. Raises DamagedFileError.

    The two Japanese 8-bit encodings decode each other's bytes to rare characters, so that the one which
    yields more hiragana is right.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", "replace")
    try:
        text = raw.decode("utf-8-sig")
        return raw.decode("iso2022_jp") if b"\x1b$" in raw else text
    except UnicodeDecodeError:
        pass
    best, most = "", 0
    for encoding in ("cp932", "euc_jp"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        hiragana = len(re.findall(r"[\u3041-\u3096]", text))
        if hiragana > most:
            best, most = text, hiragana
    if not best:
        raise DamagedFileError("its encoding is not UTF-8, UTF-16, EUC-JP or Shift_JIS")
    return best


def markdown_document(text: str, name: str) -> Document:
    """A document of Markdown text: front matter and comments gone; titled by front matter, the first H1 or `name`."""
    text = visible(text)
    title = ""
    front = re.match(r"\A---\n(.*?)\n(?:---|\.\.\.)\n", text, re.DOTALL)
    if front:
        named = re.search(r"^title:[ \t]*(.+)$", front.group(1), re.MULTILINE)
        title = one_line(named.group(1)).strip("\"'") if named else ""
        text = text[front.end() :]
    pieces = _CODE.split(text)
    # Odd pieces are code and stay as they are.
    text = "".join(piece if i % 2 else _plain_inline(piece) for i, piece in enumerate(pieces))
    return _titled(sections_of(text), title, name)


def _plain_inline(text: str) -> str:
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = _HIDDEN_INLINE.sub("", text)
    text = re.sub(r"<(script|style|template)\b.*?</\1\s*>", "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"!\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\[([^\]]+)\]\([^)\s]*(?:\s+\"[^\"]*\")?\)", r"\1", text)


def _titled(sections: list[Section], title: str, name: str) -> Document:
    """Give the document its title; a single top heading that is the title is taken out of the heading paths."""
    first = sections[0].headings if sections else ()
    if first and all(section.headings[:1] == first[:1] for section in sections) and title in ("", first[0]):
        title = first[0]
        sections = [Section(section.headings[1:], section.text) for section in sections]
    title = title or (first[0] if first else name)
    return Document(title, "", "und", tuple(section for section in sections if section.text or section.headings))


def html_document(raw: bytes | str, name: str) -> Document:
    """A document of an HTML page; titled by its first H1, its <title> or `name`."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(raw, "html.parser")
    page_title = one_line(soup.title.get_text()) if soup.title else ""
    _drop_hidden(soup)
    for image in soup.find_all("img"):
        image.replace_with(str(image.get("alt") or ""))
    body: Any = soup.find("main") or soup.find(id="main-content") or soup.find("article") or soup.body or soup
    converter = MarkdownConverter(
        heading_style="ATX", bullets="-", strip=["a"], wrap=False,
        escape_asterisks=False, escape_underscores=False, escape_misc=False,
    )  # fmt: skip
    markdown = visible(str(converter.convert_soup(body)))
    markdown = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t\u00a0]+\n", "\n", markdown))
    document = _titled(sections_of(markdown), "", page_title or name)
    return document if document.title else replace(document, title=name)


def _drop_hidden(soup: Any) -> None:
    from bs4 import Comment

    for comment in soup.find_all(string=lambda string: isinstance(string, Comment)):
        comment.extract()
    for tag in soup.find_all(_DROPPED_TAGS):
        tag.decompose()
    for tag in soup.find_all(True):
        if tag.decomposed:
            continue
        hidden = tag.has_attr("hidden") or tag.get("aria-hidden") == "true" or tag.get("type") == "hidden"
        if hidden or _HIDING_STYLE.search(str(tag.get("style") or "")):
            tag.decompose()

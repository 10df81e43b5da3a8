"""The one decoder for text that comes from elsewhere: files, pages, standard input, training data, questions.

Valid UTF-8 is always UTF-8, and a byte order mark is believed. What is older than Unicode is judged by
slm/text/encoding/charsets.py. Whatever is not certain is said in a note, which the caller puts beside the file's name.
It knows nothing of formats: what a page declares comes as `declared`.
"""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from slm.errors import DamagedFileError
from slm.text.encoding import charsets, doubt, unmarked
from slm.text.encoding.labels import codec_of

_BOMS = (  # the longer ones first: UTF-32-LE begins as UTF-16-LE does
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
# Where Python's own codec leaves out what vendors added, streams take a wider one.
_STREAMED = {"EUC-JP": "euc_jis_2004", "ISO-2022-JP": "iso2022_jp_2004"}
_SELDOM = re.compile("[\x00-\x7f\u0700-\u07ff]*")  # Syriac, Thaana and N'Ko
_OR_EUC = "its encoding is not certain: it is read as UTF-8, EUC-JP fits nearly as well"
_SAMPLE = 1 << 13
_DAMAGE = 17.0  # bits a character above ASCII costs where no encoding fits
_SURE = 25.0  # bits by which the best candidate has to be ahead of the next to be called certain
_DECLARED = 1.0  # bits for each high byte by which a declared encoding may be worse than a guess besides
# What Windows-1252 makes of letters of DOS and the old Macintosh: symbols inside words, capitals behind small letters.
_IN_WORDS = re.compile(
    r"[a-zß-ÿ](?:[†‡•…‰‹›€„‚ƒˆ˜™”“‘¤¥¢£¬®©¶¦§¹¼½¾¿](?=[a-zß-ÿ])|[‚„](?=\W|\Z)|[ŽŠŒŸ](?![A-Z]))"
    r"|(?<!\w)[£¼½¾º](?=[a-zß-ÿ])|[A-Z](?:½|[À-ÖØ-ÞŠŽŒ])(?=[a-z])"
)
# Letters of Iceland and Estonia, which are Turkish and Hungarian ones in other tables: alone they prove nothing.
_RARE = frozenset("ýÝþÞðÐõÕ")
# Latin letters that touch kanji, half-width kana, symbols, and what is no character.
_NO_JAPANESE_WORD = re.compile("[A-Za-z](?=[^\x00-\x7f])|(?<=[^\x00-\x7f])[A-Za-z]|[\x80-\u303f\ue000-\uffff]")
_HALF_WIDTH_ALONE = re.compile("[\x00-\x7f\uff61-\uff9f]*")
_SCRIPTS = frozenset(("cp1251", "koi8_r", "koi8_u", "cp1253"))
_HIGH = re.compile(rb"[\x80-\xff]")
_LAST_BOUNDARY = re.compile(rb"(?s:.*)[\t -/:-?]")  # characters that are the second byte of no other
_DOS = next(charset for charset in charsets.CANDIDATES if charset.codec == "cp850")


@dataclass(frozen=True)
class Decoded:
    """The text, the encoding's name, and what is not certain about it ("" where all is), as a sentence's end."""

    text: str
    encoding: str
    note: str = ""


def decode(raw: bytes, *, declared: str = "") -> Decoded:
    """Text of bytes in any encoding that is still met; `declared` is believed where the bytes agree.

    Bytes that do not belong become U+FFFD and a note. Raises DamagedFileError when the bytes are no text at all.
    """
    for mark, codec, name in _BOMS:
        if raw.startswith(mark):
            return _replaced(raw[len(mark) :].decode(codec, "replace"), name)
    codec, note = unmarked.wide_codec(raw)
    if codec:
        return _replaced(raw.decode(codec, "replace"), codec[:6].upper(), note)
    found = _narrow(raw, declared)
    zeros = found.text.count("\0")
    if zeros and not found.note:
        note = f"it holds {zeros} zero {'character' if zeros == 1 else 'characters'}, which no text has"
    return found if found.note or not note else replace(found, note=note)


def _narrow(raw: bytes, declared: str) -> Decoded:
    """As `decode`, for what is not UTF-16 and has no mark."""
    _refuse_binary(raw)
    if charsets.is_iso2022_jp(raw) and (raw.isascii() or codec_of(declared) == "iso2022_jp"):
        return _replaced(charsets.decode_iso2022_jp(raw), "ISO-2022-JP")
    try:
        text = raw.decode("utf-8")
        return Decoded(text, "UTF-8", _OR_EUC if _may_be_euc_jp(text, raw) else "")
    except UnicodeDecodeError:
        pass
    if unmarked.is_nearly_utf8(raw):
        return _replaced(unmarked.SURROGATE.sub(unmarked.NO_CHARACTER, raw).decode("utf-8", "replace"), "UTF-8")
    return _legacy(raw, codec_of(declared), declared)


def _may_be_euc_jp(text: str, raw: bytes) -> bool:
    """Whether all that UTF-8 makes of the bytes are letters of scripts that are hardly met, and EUC-JP makes kanji."""
    return not text.isascii() and _SELDOM.fullmatch(text) is not None and "\ufffd" not in charsets.decode_euc_jp(raw)


def _replaced(text: str, name: str, note: str = "") -> Decoded:
    """With a note of how many characters could not be read."""
    count = text.count("\ufffd")
    if count:
        bad = f"it is read as {name}, in which {count} {'byte sequence is' if count == 1 else 'byte sequences are'} no "
        bad += "character and became U+FFFD"
        note = f"{bad}; {note}" if note else bad
    return Decoded(text, name, note)


def _refuse_binary(raw: bytes) -> None:
    """Raise DamagedFileError where control characters or zero bytes are more than a slip."""
    sample = raw[: 1 << 16]
    found = len(unmarked.CONTROL.findall(sample))
    if found > 2 + len(sample) // 200 or (found and len(sample) < 64 and b"\0" in sample):
        if name := unmarked.resembles(sample):
            raise DamagedFileError(f"it is binary, or damaged {name} without a byte order mark: save it as UTF-8")
        raise DamagedFileError("it is binary, not text")


def _sample_of(raw: bytes) -> bytes:
    """Lines, or parts of long ones, that hold bytes above ASCII: about 8 kB that begin and end with a character."""
    pieces: list[bytes] = []
    size = 0
    match = _HIGH.search(raw)
    while match and size < _SAMPLE:
        # All before the first high byte is ASCII, so that a cut there divides no character.
        begin = max(raw.rfind(b"\n", 0, match.start()) + 1, match.start() - 40)
        newline = raw.find(b"\n", match.start())
        end = len(raw) if newline < 0 else newline + 1
        if end - begin > _SAMPLE:
            cut = _LAST_BOUNDARY.search(raw[begin : begin + _SAMPLE])
            end = begin + (cut.end() if cut else _SAMPLE)
        pieces.append(raw[begin:end])
        size += end - begin
        match = _HIGH.search(raw, end)
    return b"".join(pieces)


def _legacy(raw: bytes, codec: str, declared: str) -> Decoded:
    sample = _sample_of(raw)
    words = charsets.distinct(sample)
    order = charsets.ranked(words)
    best_cost, best = order[0]
    if codec and codec not in ("utf-8", "iso2022_jp"):
        named = next((charset for charset in charsets.CANDIDATES if charset.codec == codec), None)
        if named is not None and charsets.cost(named, words) - named.prior <= best_cost + _allowance(words):
            return _replaced(named.decode(raw), named.name)
        if named is None and _reads_as_letters(raw, codec):
            return _replaced(raw.decode(codec, "replace"), codec)
    text, once = best.decode(sample), best.decode(words)
    # A byte here and there that makes sense in no encoding is damage, not a language.
    if best_cost - best.prior - charsets.ascii_cost(once) > _DAMAGE * _characters(once):
        return _replaced(raw.decode("utf-8", "replace"), "UTF-8")
    dos = doubt.of_dos(text, _DOS.decode(sample)) if best.codec == "cp1252" else doubt.Dos.NO
    if dos is doubt.Dos.LIKELY:
        note = f"its encoding is not certain: it is read as {_DOS.name}, {best.name} fits nearly as well"
        return _replaced(_DOS.decode(raw), _DOS.name, note)
    note = ""
    rivals = [(bits - best_cost, charset) for bits, charset in order[1:] if charset.decode(words) != once]
    near = [charset for ahead, charset in rivals if ahead < _margin(once, words, charset)]
    if codec and codec != best.codec:
        note = f"it declares the encoding {declared.strip()}, but is read as {best.name}"
    elif near and best.codec != "cp1252":
        note = f"its encoding is not certain: it is read as {best.name}, {near[0].name} fits nearly as well"
    elif dos is doubt.Dos.PERHAPS:
        note = f"its encoding is not certain: it is read as {best.name}, {_DOS.name} fits nearly as well"
    elif rivals and rivals[0][0] < _SURE / 5:
        note = f"its encoding is not certain: it is read as {best.name}"
    elif best.codec not in charsets.EAST_ASIAN and (name := _japanese_words(words, order, best_cost)):
        note = f"its encoding is not certain: it is read as {best.name}, {name} fits nearly as well"
    elif best.codec == "cp1252" and _IN_WORDS.search(once):
        note = f"its encoding is not certain: read as {best.name} it has symbols inside words"
    elif best.codec == "cp1252" and _RARE.issuperset(char for char in text if char > "\x7f" and char.isalpha()):
        note = f"its encoding is not certain: it is read as {best.name}" if _RARE & set(text) else ""
    if best.codec == "cp1252" and not note and doubt.is_doubtful(once):
        note = f"its encoding is not certain: it is read as {best.name}"
    return _replaced(best.decode(raw), best.name, note)


def _allowance(words: bytes) -> float:
    """Bits by which a declared encoding may be behind the best guess: a guess that is a little better is no proof."""
    return _SURE + _DECLARED * sum(byte > 0x7F for byte in words)


def _margin(once: str, words: bytes, rival: charsets.Charset) -> float:
    """Bits the best guess has to be ahead; more for half-width kana alone, which are capitals of Greek or Cyrillic."""
    return 2 * _allowance(words) if rival.codec in _SCRIPTS and _HALF_WIDTH_ALONE.fullmatch(once) else _SURE


def _japanese_words(words: bytes, order: list[tuple[float, charsets.Charset]], best_cost: float) -> str:
    """The Japanese encoding that makes whole words of kanji or kana of all bytes above ASCII, or "".

    åkån of Scandinavia is 蛆蝪 of Japan: where both make words, neither is certain, however rare the kanji are.
    """
    for bits, charset in order:
        near = charset.codec in ("cp932", "euc_jp") and bits - best_cost < _SURE
        if near and not _NO_JAPANESE_WORD.search(charset.decode(words)):
            return charset.name
    return ""


def _characters(text: str) -> int:
    return sum(char > "\x7f" for char in text)


def _reads_as_letters(raw: bytes, codec: str) -> bool:
    """Whether a declared encoding that is not judged by its letters at least makes letters of most high bytes."""
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError:
        return False
    high = [char for char in text if char > "\x7f"]
    marks = "“”‘’«»–—…°§№€₪\xa0"
    return sum(unicodedata.category(char)[0] in "LM" or char in marks for char in high) >= 0.8 * len(high)


class DecodedLines:
    """Lines of a file of any size, decoded as they are read; `note` grows when a bad byte is met.

    The encoding is found from the beginning and the first part that is not ASCII. Lines end with \\n whatever ends
    them in the file.
    """

    def __init__(self, file: BinaryIO, encoding: str, codec: str, note: str) -> None:
        self.encoding, self._first_note, self._bad = encoding, note, 0
        wide = codec.startswith(("utf-16", "utf-32"))
        stray = {"cp932": charsets.STRAY.pattern, "cp850": "\xa0"}.get(codec, "")
        self._bad_characters = re.compile(f"[\ud800-\udfff]{'|' + stray if stray else ''}")
        self._text = io.TextIOWrapper(file, encoding=codec, errors="replace" if wide else "surrogateescape")

    @property
    def note(self) -> str:
        """What is not certain so far, in the words of Decoded.note."""
        if not self._bad:
            return self._first_note
        return _replaced("\ufffd" * self._bad, self.encoding, self._first_note).note

    def __iter__(self) -> Iterator[str]:
        for line in self._text:
            yield line if line.isascii() else self._mended(line)

    def _mended(self, line: str) -> str:
        mended = self._bad_characters.sub("\ufffd", line)
        if mended != line or self._text.errors == "replace":
            self._bad += mended.count("\ufffd")
        return mended

    def __enter__(self) -> DecodedLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._text.close()


def open_text(path: Path | str) -> DecodedLines:
    """Open a text file of any size as a stream of lines. Raises OSError, DamagedFileError (no text)."""
    file = Path(path).open("rb")  # noqa: SIM115  # the stream closes it
    try:
        sample = file.read(1 << 20)
        chunk = sample
        while chunk.isascii() and b"\x1b" not in chunk:
            chunk = file.read(1 << 20)
            if not chunk:
                break
            if not chunk.isascii():
                sample = chunk
        found = decode(_whole_characters(sample))
        mark = next((mark for mark, codec, name in _BOMS if sample.startswith(mark)), b"")
        file.seek(len(mark))
        if found.encoding in ("UTF-8", "UTF-16", "UTF-32"):
            codec = next((codec for m, codec, _ in _BOMS if m == mark), "") or unmarked.wide_codec(sample)[0] or "utf-8"
        else:
            named = (c.codec for c in charsets.CANDIDATES if c.name == found.encoding)
            codec = _STREAMED.get(found.encoding) or next(named, found.encoding)
        return DecodedLines(file, found.encoding, codec, "" if "\ufffd" in found.text else found.note)
    except BaseException:
        file.close()
        raise


def _whole_characters(sample: bytes) -> bytes:
    """The sample up to its last line's end, so that no character is cut in two."""
    at = sample.rfind(b"\n", len(sample) // 2)
    return sample if len(sample) < 1 << 20 or at < 0 else sample[: at + 1]

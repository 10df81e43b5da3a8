"""Which of Unicode's own encodings bytes without a mark are in, by how plausible a text each makes of them.

It knows nothing of files, and asks charsets.py how well an encoding older than Unicode would fit.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from functools import lru_cache
from itertools import pairwise

from slm.text.encoding import charsets

_SAMPLE, _SURE = 1 << 13, 25.0  # bytes that are judged; bits ahead of every other encoding that make it certain
_CONTROL_COST = 12.0  # bits a control character costs in text that is not UTF-16
_EVERYDAY, _FREQUENT = 8.5, 10.0  # bits; what characters cost on the average in a few words of everyday Japanese
_FEW = 32  # bytes; a longer text of ASCII is never UTF-16 by chance
_OR_UTF16 = "its encoding is not certain: it may be UTF-16 without a mark"
_WIDE_LETTER = 14.0  # bits; letters that cost more on the average are numbers of a binary file
# Half of a pair of UTF-16, which some programs write into UTF-8 as if it were a character (CESU-8).
SURROGATE, NO_CHARACTER = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]"), "\ufffd".encode()
CONTROL = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]")
_SCRIPT, _OTHER_SCRIPT = 7.0, 14.0  # bits of a character in the same script as the last one, and in another
_SYMBOL, _JOINER, _EMOJI, _ASTRAL, _NEVER = 10.0, 6.0, 16.0, 30.0, 40.0
_ASCII = 4.5
_UNUSUAL = frozenset(("Cc", "Cn", "Co", "Cs"))  # categories of characters that no text has
_PRINTABLE = bytes(32 <= byte < 127 or byte in b"\t\r\n" for byte in range(256))
_BYTES = 0.75  # the share of printable pairs that is text of a byte a character; less than half of ideographs' are
_SCRIPTS = 4  # more of them, in turns, are the numbers of a binary file


def wide_codec(raw: bytes) -> tuple[str, str]:
    """The codec of UTF-16 or UTF-32 without a mark and a note, or ""; told by which way round it is a plausible text.

    Where no zero byte speaks for it, it has to be more plausible than every encoding older than Unicode.
    """
    if found := _utf32(raw):
        return found, ""
    sample = raw[: _SAMPLE & ~1]
    if len(sample) < 2 or (len(raw) % 2 and raw[-1:] not in (b"\n", b"\0")):
        return "", ""
    zeros = b"\0" in sample
    plain = not zeros and CONTROL.search(sample) is None and is_utf8(sample)
    # A word of ASCII and a line end of one byte are no UTF-16, whose line ends are of two.
    if (plain and (len(raw) % 2 or not 2 < len(raw) <= _FEW)) or (not zeros and is_nearly_utf8(sample)):
        return "", ""
    if zeros and _is_of_bytes(sample):
        return "", ""
    texts = [(sample.decode(codec, "replace"), codec) for codec in ("utf-16-le", "utf-16-be")]
    if len(sample) < len(raw) or len(raw) % 2:  # the last character may be cut
        texts = [(text.removesuffix("\ufffd"), codec) for text, codec in texts]
    costs = sorted((_cost(text), codec) for text, codec in texts if _is_plausible(text))
    if not costs or costs[0][0] > _WIDE_LETTER * len(sample) / 2:
        return "", ""
    best, codec = costs[0]
    if zeros:
        return codec, ""
    part = sample[: 1 << 10]
    rival_cost, rival = charsets.ranked(part)[0]
    ahead = rival_cost + _CONTROL_COST * len(CONTROL.findall(part)) - best * len(part) / len(sample)
    each = best / (len(sample) / 2)
    if plain:  # what is UTF-8 is read as UTF-8, but some bytes of ASCII are two or three everyday characters
        return "", _OR_UTF16 if each <= _EVERYDAY and ahead > 0 else ""
    if ahead >= _SURE:
        return codec, ""
    # Every other byte of kana is the same; without them a few Latin letters may look like rare ideographs.
    kana = sample[codec == "utf-16-le" :: 2].count(0x30) >= 0.3 * len(sample) / 2
    if ahead >= _SURE / 3 if kana else each <= _FREQUENT and ahead >= _SURE * 0.4:
        return codec, f"its encoding is not certain: it is read as UTF-16, {rival.name} fits nearly as well"
    return "", _OR_UTF16 if each <= _EVERYDAY and ahead > 0 else ""


def _utf32(raw: bytes) -> str:
    """The codec of UTF-32 without a mark, or "": hardly other bytes are four by four a character's number."""
    sample = raw[: _SAMPLE & ~3]
    if len(sample) < 4 or (len(raw) % 4 and raw[len(raw) & ~3 :].strip(b"\n\0")):
        return ""
    for codec in ("utf-32-le", "utf-32-be"):
        try:
            text = sample.decode(codec)
        except UnicodeDecodeError:
            continue
        if _is_plausible(text) and _cost(text) <= _WIDE_LETTER * len(text):
            return codec
    return ""


def resembles(raw: bytes) -> str:
    """The name of the encoding that bytes which are no plausible text may be damaged text of, or ""."""
    sample = raw[: _SAMPLE & ~3]
    for name, width in (("UTF-32", 4), ("UTF-16", 2)):
        for least in (0, width - 1):  # where the byte stands that tells letters of ASCII apart
            units = [sample[i : i + width] for i in range(0, len(sample) - width + 1, width)]
            plain = sum(u[least : least + 1].isascii() and (u[least] >= 32 or u[least] in b"\t\r\n")
                        and u.count(0) == width - 1 for u in units)  # fmt: skip
            turned = sum(u[least] == 0 for u in units)
            words = sum(u.isascii() and 0 not in u for u in units)  # letters of ASCII side by side, a byte each
            if plain and plain >= len(units) / 10 and turned <= plain / 2 and words <= plain / 2:
                return name
    return ""


def _is_plausible(text: str) -> bool:
    usual = sum(char in "\t\r\n" or unicodedata.category(char) not in _UNUSUAL for char in text) - text.count("\ufffd")
    return (
        bool(text)
        and usual >= 0.9 * len(text)
        and not _leaps(text)
        and CONTROL.search(text.encode("utf-8", "replace")) is None
    )


def _is_of_bytes(sample: bytes) -> bool:
    """Whether nearly all pairs of bytes are two characters of ASCII: text with a stray zero, and no UTF-16."""
    printable = sample.translate(_PRINTABLE)
    return sum(map(int.__and__, printable[::2], printable[1::2])) >= _BYTES * (len(sample) // 2)


def _leaps(text: str) -> bool:
    """Whether the script changes from letter to letter, as where the numbers of a binary file are taken for letters."""
    scripts = [ord(char) >> 7 for char in text if "\x80" <= char < "\u2000"]
    changes = sum(one != other for one, other in pairwise(scripts))
    return len(set(scripts)) > _SCRIPTS and changes > len(text) / 2


def _cost(text: str) -> float:
    """What a text costs in bits whose characters may be of any language."""
    bits, last = 0.0, 0
    for char in text:
        if char < "\x80":
            bits += _ASCII
            continue
        script = ord(char) >> 7
        bits += _bits(char, script == last)
        last = script
    return bits


@lru_cache(maxsize=1 << 15)
def _bits(char: str, same: bool) -> float:
    if unicodedata.category(char) in _UNUSUAL:
        return _NEVER
    if char <= "\u052f":
        return 8.0
    if char < "\u2000":  # Hebrew, Arabic, the scripts of India, Thai and others
        return _SCRIPT if same else _OTHER_SCRIPT
    if "\ufe00" <= char <= "\ufe0f" or char == "\u200d":
        return _JOINER
    if "\u2190" <= char <= "\u27bf":  # arrows, signs, numbers in circles
        return _SYMBOL
    if char > "\uffff":
        return _EMOJI if "\U0001f000" <= char <= "\U0001faff" else _ASTRAL
    return charsets.character_bits(char)


def is_utf8(sample: bytes) -> bool:
    """Whether the bytes are UTF-8, of which the last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return True


def is_nearly_utf8(raw: bytes) -> bool:
    """Whether the bytes are UTF-8 but for a few bad ones: many more whole sequences than broken ones."""
    if SURROGATE.search(raw) and is_utf8(SURROGATE.sub(NO_CHARACTER, raw)):
        return True
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(raw)  # a sequence cut by the end is not bad
    bad = text.count("\ufffd")
    whole = sum(char > "\x7f" for char in text) - bad
    # By chance two bytes of another encoding look like a sequence about once in ten times, three hardly ever.
    long = sum(char > "\u07ff" and char != "\ufffd" for char in text)
    return whole + 3 * long > max(8 * bad, 2)

"""Which of Python's codecs a declared encoding is, by the names that browsers know.

The table is that of the WHATWG (https://encoding.spec.whatwg.org/#names-and-labels), with a few names more that are
met in old pages. It knows nothing of bytes.
"""

from __future__ import annotations

import codecs

# Codecs as charsets.py calls them, each with its names; those that Python knows by itself are not repeated for most.
_NAMES = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf8 x-unicode20utf8 x-unicode",
    "cp866": "866 csibm866 ibm866",
    "iso8859_2": "csisolatin2 iso-ir-101 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso8859_3": "csisolatin3 iso-ir-109 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso8859_4": "csisolatin4 iso-ir-110 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso8859_5": "csisolatincyrillic cyrillic iso-ir-144 iso88595 iso_8859-5 iso_8859-5:1988",
    "iso8859_6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6-e iso-8859-6-i "
    "iso-ir-127 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859_7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-ir-126 iso88597 iso_8859-7 iso_8859-7:1987 "
    "sun_eu_greek",
    "iso8859_8": "csiso88598e csiso88598i csisolatinhebrew hebrew iso-8859-8-e iso-8859-8-i iso-ir-138 iso88598 "
    "iso_8859-8 iso_8859-8:1988 visual logical",
    "iso8859_10": "csisolatin6 iso-ir-157 iso885910 l6 latin6",
    "iso8859_13": "iso885913",
    "iso8859_14": "iso885914",
    "iso8859_15": "csisolatin9 iso885915 iso_8859-15 l9 latin9 latin-9",
    "koi8_r": "cskoi8r koi koi8",
    "koi8_u": "koi8-ru",
    "mac_roman": "csmacintosh mac macintosh x-mac-roman",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "x-cp1250",
    "cp1251": "x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 "
    "iso_8859-1:1987 l1 latin1 latin-1 us-ascii x-cp1252",
    "cp1253": "x-cp1253",
    "cp1254": "csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 x-cp1254",
    "cp1255": "x-cp1255",
    "cp1256": "x-cp1256",
    "cp1257": "x-cp1257",
    "cp1258": "x-cp1258",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk cp936 iso-ir-58 x-gbk",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese x-euc-jp x-euc eucjp eucjp-ms eucjp-win cp51932",
    "iso2022_jp": "csiso2022jp cp50220",
    "cp932": "csshiftjis ms932 ms_kanji ms-kanji shift-jis shift_jis sjis windows-31j x-sjis x-ms-cp932",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ks_c_5601 ksc5601 "
    "ksc_5601 windows-949",
}
_CODECS = {name: codec for codec, names in _NAMES.items() for name in (*names.split(), codec)}
# Not what a page's bytes can be that were searched for this declaration, or no encodings of text.
_NEVER = ("utf-16", "utf-32", "utf-7", "idna", "punycode")


def codec_of(label: str) -> str:
    """The codec of an encoding's name as pages write it; "" for none or one that is not known."""
    label = label.strip().strip("\"'").strip().lower()
    if not label or "\0" in label:
        return ""
    try:
        name = _CODECS.get(label) or _CODECS.get(label.replace("_", "-")) or codecs.lookup(label).name
        b"".decode(name)  # not a codec of bytes to bytes, such as zip
    except (LookupError, ValueError):
        return ""
    if name not in _CODECS.values() and name.replace("-", "_") in _CODECS.values():
        name = name.replace("-", "_")  # Python's own name of the same codec
    return "" if name.startswith(_NEVER) or "escape" in name else name

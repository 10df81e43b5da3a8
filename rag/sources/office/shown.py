"""The value of a spreadsheet's cell as the sheet shows it: number formats, dates, Japanese eras, leading zeros.

Sections, literals and codes as in ECMA-376 part 1, 18.8.31. Where a program would follow the machine's locale
(format 14), the date is written as ISO 8601 does. It knows nothing of workbooks.
"""

from __future__ import annotations

import datetime as dt
import re
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

_PART = re.compile(
    r'"(?P<quoted>[^"]*)"?|\\(?P<escaped>.)|_.|\*.|\[(?P<bracket>[^\]]*)\]|(?P<general>general)'
    r"|(?P<ampm>am/pm|a/p|上午/下午)|(?P<date>ggg?|g|e{1,2}|r{1,2}|aaaa?|y{1,4}|m{1,5}|d{1,4}|h{1,2}|s{1,2}(?:\.0+)?)"
    r"|(?P<digits>[0#?][0#?,]*(?:\.[0#?]*)?(?:e[+-]0+)?|\.[0#?]+)|(?P<other>.)",
    re.IGNORECASE | re.DOTALL,
)
_LOCALE_DATES = ("mm-dd-yy", "m/d/yyyy", "m/d/yy", "[$-f800]dddd\\,\\ mmmm\\ dd\\,\\ yyyy")
_ERAS = ((dt.date(2019, 5, 1), "令和", "R"), (dt.date(1989, 1, 8), "平成", "H"), (dt.date(1926, 12, 25), "昭和", "S"),
         (dt.date(1912, 7, 30), "大正", "T"), (dt.date(1868, 9, 8), "明治", "M"))  # fmt: skip
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def shown(value: object, number_format: str = "General") -> str:
    """A value as text: str, bool, int, float, date, datetime, time or timedelta, under its number format."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, dt.datetime | dt.date | dt.time | dt.timedelta):
        return _shown_date(value, number_format)
    if isinstance(value, int | float | Decimal):
        return _shown_number(value, number_format)
    return str(value)


def _sections(number_format: str) -> list[list[tuple[str, str]]]:
    """The sections of a format (for positive, negative, zero), each as (kind, text) of its parts."""
    sections: list[list[tuple[str, str]]] = [[]]
    for match in _PART.finditer(number_format):
        kind = match.lastgroup or ""
        if (kind, match.group()) == ("other", ";"):
            sections.append([])
        else:
            sections[-1].append((kind, match.group(kind) if kind else ""))
    return sections


# ---------------------------------------------------------------- numbers


def _plain(value: int | float | Decimal) -> str:
    """As "General" shows it, with up to 15 digits, which are all that sheets hold."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def _shown_number(value: int | float | Decimal, number_format: str) -> str:
    sections = _sections(number_format)
    index = 1 if value < 0 and len(sections) > 1 else 2 if value == 0 and len(sections) > 2 else 0
    parts = sections[index]
    if any(kind == "bracket" and re.match(r"[<>=]", text) for kind, text in parts):
        return _plain(value)
    digits = [text for kind, text in parts if kind == "digits"]
    general = any(kind == "general" for kind, _ in parts)
    if not digits and not general:
        literal = "".join(_literal(kind, text) for kind, text in parts).strip()
        return literal if literal and literal != "@" and any(kind == "quoted" for kind, _ in parts) else _plain(value)
    if any(kind == "date" for kind, _ in parts) or ("other", "/") in parts:
        return _plain(value)
    number: int | float | Decimal = -value if index == 1 else value
    if any((kind, text) == ("other", "%") for kind, text in parts):
        number = number * 100
    pieces = iter(_placed(number, digits))
    texts = []
    for kind, text in parts:
        if kind == "digits":
            texts.append(next(pieces))
        elif kind == "general":
            texts.append(_plain(-number if number < 0 else number))  # the sign stands before all of it
        else:
            texts.append(_literal(kind, text))
    sign = "-" if value < 0 and index == 0 else ""
    return sign + "".join(texts).strip()


def _literal(kind: str, text: str) -> str:
    if kind in ("quoted", "escaped"):
        return text
    if kind == "bracket":  # [$¥-411]: a currency; [Red], [DBNum1], [$-409]: nothing that is shown
        return text[1:].partition("-")[0] if text.startswith("$") else ""
    return text if kind == "other" and text != "@" else ""


def _placed(number: int | float | Decimal, digits: list[str]) -> list[str]:
    """The digits of a number over the places of a format, which literals may part (000-0000)."""
    if not digits:
        return []
    last = digits[-1]
    if re.search(r"e[+-]", last, re.IGNORECASE):
        mantissa, exponent = re.split(r"e[+-]", last, flags=re.IGNORECASE)
        decimals = len(mantissa.partition(".")[2])
        base, _, power = f"{abs(number):.{decimals}e}".partition("e")
        return [""] * (len(digits) - 1) + [f"{base}E{power[0]}{power[1:].lstrip('0').rjust(len(exponent), '0')}"]
    thousands = len(last) - len(last.rstrip(","))
    whole_format, point, decimal_format = last.rstrip(",").partition(".")
    try:
        exact = abs(Decimal(repr(number)) if isinstance(number, float) else Decimal(number))
        exact = exact.scaleb(-3 * thousands).quantize(Decimal(1).scaleb(-len(decimal_format)), ROUND_HALF_UP)
    except InvalidOperation:
        return [""] * (len(digits) - 1) + [_plain(number)]
    whole, _, decimals_text = f"{exact:f}".partition(".")
    optional = len(decimal_format) - len(decimal_format.rstrip("#?"))
    kept = decimals_text[: len(decimals_text) - optional] + decimals_text[len(decimals_text) - optional :].rstrip("0")
    if len(digits) > 1 and not any("." in text for text in digits[:-1]):  # literals between the places
        texts: list[str] = []
        for number_of, text in reversed(list(enumerate([*digits[:-1], whole_format]))):
            size = len(whole) if number_of == 0 else min(len(text), len(whole))
            cut = whole[len(whole) - size :]
            texts.append(cut.rjust(text.count("0"), "0"))
            whole = whole[: len(whole) - size]
        texts.reverse()
    else:
        whole = whole.lstrip("0").rjust(whole_format.count("0"), "0")
        if "," in whole_format:
            whole = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", ",", whole)
        texts = [""] * (len(digits) - 1) + [whole]
    texts[-1] += ("." + kept) if point and kept else ""
    return texts


# ---------------------------------------------------------------- dates


def _shown_date(value: dt.datetime | dt.date | dt.time | dt.timedelta, number_format: str) -> str:
    lowered = number_format.lower()
    if isinstance(value, dt.timedelta):
        minutes, seconds = divmod(round(value.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02}" + (f":{seconds:02}" if "s" in lowered or seconds else "")
    parts = _sections(number_format)[0]
    codes = [text for kind, text in parts if kind == "date"]
    if lowered in _LOCALE_DATES or not codes:
        return _iso(value)
    moment = _moment(value)
    twelve = any(kind == "ampm" for kind, _ in parts)
    texts: list[str] = []
    for number, (kind, text) in enumerate(parts):
        if kind == "date":
            low = text.lower()
            if set(low) == {"m"} and len(low) < 3 and _is_minutes(parts, number):
                texts.append(f"{moment.minute:0{len(low)}}")
            else:
                texts.append(_code(low, moment, twelve))
        elif kind == "ampm":
            texts.append("AM" if moment.hour < 12 else "PM")
        else:
            texts.append(_literal(kind, text) if kind != "digits" else "")
    return "".join(texts).strip()


def _iso(value: dt.datetime | dt.date | dt.time) -> str:
    if isinstance(value, dt.datetime):
        return value.date().isoformat() if value.time() == dt.time() else value.isoformat(" ", "minutes")
    return value.isoformat()


def _moment(value: dt.datetime | dt.date | dt.time) -> dt.datetime:
    if isinstance(value, dt.datetime):
        return value
    if isinstance(value, dt.date):
        return dt.datetime.combine(value, dt.time())
    return dt.datetime.combine(dt.date(1900, 1, 1), value)


def _is_minutes(parts: list[tuple[str, str]], number: int) -> bool:
    """Whether an m stands after hours or before seconds, where it means minutes."""
    before = next((text for kind, text in reversed(parts[:number]) if kind in ("date", "bracket")), "")
    after = next((text for kind, text in parts[number + 1 :] if kind == "date"), "")
    return before.lower() in ("h", "hh") or after.lower().startswith("s")


def _code(code: str, moment: dt.datetime, twelve: bool) -> str:
    hour = (moment.hour - 1) % 12 + 1 if twelve else moment.hour
    if code[0] in "ger":
        return _era_code(code, moment.date())
    if code.startswith("s"):
        decimals = len(code.partition(".")[2])
        text = f"{moment.second:0{len(code.partition('.')[0])}}"
        return f"{text}.{moment.microsecond:06}"[: len(text) + 1 + decimals] if decimals else text
    names = {"mmmmm": _MONTHS[moment.month - 1][0], "mmmm": _MONTHS[moment.month - 1],
             "mmm": _MONTHS[moment.month - 1][:3], "mm": f"{moment.month:02}", "m": str(moment.month),
             "dddd": _DAYS[moment.weekday()], "ddd": _DAYS[moment.weekday()][:3], "dd": f"{moment.day:02}",
             "d": str(moment.day), "aaaa": "月火水木金土日"[moment.weekday()] + "曜日",
             "aaa": "月火水木金土日"[moment.weekday()], "hh": f"{hour:02}", "h": str(hour),
             "yy": f"{moment.year % 100:02}", "y": f"{moment.year % 100:02}"}  # fmt: skip
    return names.get(code, f"{moment.year:04}")


def _era_code(code: str, day: dt.date) -> str:
    """Eras and the years in them (ggge: 令和6, r: R06); before Meiji the common era."""
    begin, name, letter = next((era for era in _ERAS if day >= era[0]), (dt.date(1, 1, 1), "", ""))
    year = day.year - begin.year + 1
    if code[0] == "e":
        return f"{year:0{len(code)}}" if name else str(day.year)
    if code[0] == "r":
        return f"{letter if code == 'r' else name}{year:02}"
    return {1: letter, 2: name[:1], 3: name}[len(code)]

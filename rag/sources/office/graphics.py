"""The words and figures of charts and diagrams (SmartArt) as HTML: a chart is a table of its series."""

from __future__ import annotations

from typing import Any

from rag.sources.office.markup import TableCell, escape, html_table
from rag.sources.office.package import Package, attribute, below, child, tag
from slm.errors import DamagedFileError

_MOST_ROWS, _MOST_SERIES = 500, 100


def graphic_html(package: Package, part: str) -> str:
    """A chart's or a diagram's part as HTML; "" for one that is missing or damaged."""
    try:
        tree = package.tree(part)
    except DamagedFileError:
        return ""
    if next(below(tree, "c:plotArea"), None) is not None:
        return _chart(tree)
    points = (
        "".join(text.text or "" for text in below(point, "a:t"))
        for point in below(tree, "dgm:pt") if attribute(point, "type") not in ("pres", "parTrans", "sibTrans")
    )  # fmt: skip
    return "".join(f"<li>{escape(point)}</li>" for point in points if point.strip()).join(("<ul>", "</ul>\n"))


def _chart(tree: Any) -> str:
    title = child(tree, "c:chart", "c:title")
    words = "".join(text.text or "" for text in below(title, "a:t")) if title is not None else ""
    head = f"<p>{escape(words)}</p>\n" if words.strip() else ""
    names: list[str] = []
    values: list[dict[int, str]] = []
    labels: dict[int, str] = {}
    for series in list(below(tree, "c:ser"))[:_MOST_SERIES]:
        name = child(series, "c:tx")
        names.append(" ".join(v.text or "" for v in below(name, "c:v")) if name is not None else "")
        labels = {**_points(series, "c:cat", "c:xVal"), **labels}
        values.append(_points(series, "c:val", "c:yVal"))
    places = sorted({place for series in values for place in series} | set(labels))[:_MOST_ROWS]
    if not places or not names:
        return head
    rows = [[TableCell(escape(text)) for text in ["", *names]]]
    rows += [
        [TableCell(escape(text)) for text in [labels.get(n, ""), *(series.get(n, "") for series in values)]]
        for n in places
    ]
    return head + html_table(rows, 1)


def _points(series: Any, *names: str) -> dict[int, str]:
    """The values of a series by their place, as they are cached in the file."""
    found: dict[int, str] = {}
    for part in series:
        if tag(part) in names:
            for point in below(part, "c:pt"):
                number = attribute(point, "idx")
                value = child(point, "c:v")
                if number.isdigit() and value is not None:
                    found[int(number)] = _number(value.text or "")
    return found


def _number(text: str) -> str:
    try:
        return f"{float(text):.15g}"
    except ValueError:
        return text

"""Front matter of Markdown files: what is between two rules at the top, only where it really is that.

YAML between --- lines (Jekyll, Obsidian, GitHub) and TOML between +++ lines (Hugo). A file that merely begins with a
rule keeps all its text. It knows nothing of what follows.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from slm.text.names import names
from slm.text.visible import one_line

_OPENING = re.compile(r"(?P<mark>---|\+\+\+)[ \t]*\n")
_CLOSING = {
    "---": re.compile(r"^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.MULTILINE),
    "+++": re.compile(r"^\+\+\+[ \t]*(?:\n|\Z)", re.MULTILINE),
}
_LARGEST = 1 << 16
# One of these names tells front matter from a sentence such as "Note: the lift is out of order."


_USUAL = names(
    "title date tags tag categories category author authors layout draft description slug permalink aliases alias "
    "keywords lang language updated created modified summary subtitle owner status version sidebar_position "
    "sidebar_label weight published type id name url image cover excerpt toc menu series"
)
_KEY = re.compile(r"[^\W\d][\w.-]*\Z")
_LINE = re.compile(r"(?:[^\W\d][\w.-]*[ \t]*:(?:[ \t]|$)|[ \t]+\S|-[ \t]|#|[\]}])")
_TITLE = re.compile(r"^title[ \t]*:[ \t]*(.+)$", re.MULTILINE | re.IGNORECASE)


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """(what the front matter says, the text without it); nothing where there is none."""
    opening = _OPENING.match(text)
    closing = _CLOSING[opening["mark"]].search(text, opening.end(), opening.end() + _LARGEST) if opening else None
    if opening is None or closing is None:
        return {}, text
    inner = text[opening.end() : closing.start()]
    values = _toml(inner) if opening["mark"] == "+++" else _yaml(inner)
    if values is None:
        return {}, text
    return values, text[closing.end() :]


def title_of(values: Mapping[str, Any]) -> str:
    """The title that front matter gives, in one line; "" for none."""
    title = next((value for key, value in values.items() if str(key).lower() == "title"), "")
    return one_line(str(title)) if isinstance(title, str | int | float) else ""


def _yaml(inner: str) -> dict[Any, Any] | None:
    """What YAML front matter says; None where the text between the rules is no front matter."""
    if not inner.strip():
        return {} if not inner else None
    if not inner.split("\n", 1)[0].strip():
        return None  # a blank line after the rule: a rule
    import yaml

    try:
        values = yaml.load(inner, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except Exception:  # YAML of any kind of damage, nesting too deep included: judged by its lines
        if not all(_LINE.match(line) for line in inner.split("\n") if line.strip()):
            return None
        titled = _TITLE.search(inner)
        names = {line.partition(":")[0].strip(): "" for line in inner.split("\n") if _KEY.match(line.partition(":")[0])}
        values = {**names, "title": titled.group(1).strip("\"' ")} if titled else names
    if not isinstance(values, dict) or not all(isinstance(key, str) and _KEY.match(key) for key in values):
        return None
    # In a script without capitals a key looks like the first word of a letter (件名: ...): one of the usual is needed.
    plain = all(key.isascii() and key == key.lower() for key in values)
    return values if plain or any(key.lower() in _USUAL for key in values) else None


def _toml(inner: str) -> dict[str, Any] | None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        values: dict[str, Any] = tomllib.loads(inner)
        return values
    except (ValueError, RecursionError):
        return None

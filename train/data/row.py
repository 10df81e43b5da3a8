"""A JSON object whose fields are taken one by one, so that what nobody took can be told. It knows no format."""

from __future__ import annotations

import json
from typing import Any

from slm.errors import DamagedFileError, UnsupportedError

_KINDS = {dict: "an object", list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}


def _says(value: Any) -> bool:
    """Whether a value is more than an empty one of its kind."""
    return value not in (None, "", [], {})


class Row:
    """One object of a file. `where` begins every error: the file and line, and the turn where it is one.

    A field that is null or empty is as good as absent: exports fill absent columns so.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = values, where
        self._taken: set[str] = set()
        self._inner: list[tuple[str, Row]] = []

    def inner(self, name: str, values: dict[str, Any], where: str) -> Row:
        """An object inside the field `name`; what nobody takes of it is told with what nobody took of this one."""
        one = Row(values, f"{self.where}, {where}")
        self._inner.append((name, one))
        return one

    def has(self, name: str) -> bool:
        """Whether the field says anything."""
        return _says(self.values.get(name))

    def first(self, *names: str) -> str | None:
        """The first of the fields that says something, else the first that is not null; None where all are."""
        given = (name for name in names if self.values.get(name) is not None)
        return next((name for name in names if self.has(name)), None) or next(given, None)

    def named(self, *names: str) -> str:
        """The same, else the first that is there at all, for the error that names it; "" where none is."""
        return self.first(*names) or next((name for name in names if name in self.values), "")

    def take(self, *names: str) -> Any:
        """The value of the first of the fields that says something, else None; all of them count as used."""
        self._taken.update(names)
        return next((self.values[name] for name in names if self.has(name)), None)

    def take_json(self, *names: str) -> Any:
        """As `take`, where text is JSON that a table holds ("null" is null); raises DamagedFileError for other text."""
        self._taken.update(names)
        for name in names:
            value = self.values.get(name)
            if isinstance(value, str) and value.strip():
                read = parsed(value)
                if read is None and value.strip() != "null":
                    raise self.fault(f'"{name}" is not JSON', found=value[:40])
                value = read
            if _says(value):
                return value
        return None

    def take_text(self, name: str) -> str:
        """The text of a field; raises DamagedFileError where it is none."""
        self._taken.add(name)
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.fault(f'"{name}" must be text (is {kind(value)})')
        return value

    def take_list(self, name: str) -> list[Any]:
        """The items of a field that is a list, or text that holds one in JSON (tables have no other way)."""
        self._taken.add(name)
        value = self.values.get(name)
        if isinstance(value, str):
            value = parsed(value)
        if isinstance(value, dict) and value and _is_columns(value):
            value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
        if not isinstance(value, list) or not value:
            raise self.fault(f'"{name}" must be a list of turns')
        return value

    def own_unused(self) -> list[str]:
        """The fields of the object itself that say something and were not taken."""
        return [name for name in self.values if name not in self._taken and self.has(name)]

    def unused(self) -> list[str]:
        """The same with those of the objects inside it: "messages[].name"."""
        return self.own_unused() + [f"{name}[].{field}" for name, one in self._inner for field in one.unused()]

    def fault(self, what: str, *, found: str = "", hint: str = "") -> DamagedFileError:
        """An error that names the place."""
        return DamagedFileError(f"{self.where}: {what}", found=found, hint=hint)

    def refusal(self, what: str, *, found: str = "", hint: str = "") -> UnsupportedError:
        """An error for what is sound, but means something that is not done."""
        return UnsupportedError(f"{self.where}: {what}", found=found, hint=hint)


def _is_columns(value: dict[str, Any]) -> bool:
    """Whether an object is a list of objects as the datasets library stores it: one of equal length for each field."""
    columns = list(value.values())
    return all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns)


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def parsed(text: str) -> Any:
    """The JSON value of a text, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

"""What a request may say of the documents it is answered from, and by whom. It knows nothing of the search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from serve.server.api.request.fields import Fields
from slm.joints import Filters
from slm.text.dates import FORM, instant

_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Names = _Name | Annotated[list[_Name], Field(max_length=100)]


class Retrieval(Fields):
    """`rag` of a chat request, written out: which documents count. Of several spaces, labels or languages any.

    as: who asks (user:NAME, group:NAME); the server believes it. reader: who answers, `point` for a reader that points
    at lines, `model` for the model; by default the reader where the server has one.
    """

    space: _Names = Field(default_factory=list)
    label: _Names = Field(default_factory=list)
    lang: _Names = Field(default_factory=list)
    since: str = Field("", max_length=40)
    until: str = Field("", max_length=40)
    viewer: _Names | None = Field(None, alias="as")
    reader: Literal["point", "model"] | None = None

    @field_validator("since", "until")
    @classmethod
    def _dated(cls, text: str) -> str:
        if text and instant(text) is None:
            raise ValueError(f"'{text}' is no date. {FORM}")
        return text

    def filters(self) -> Filters:
        """The same as the index takes it."""
        return Filters(
            _listed(self.space), _listed(self.label), _listed(self.lang), self.since, self.until,
            None if self.viewer is None else _listed(self.viewer),
        )  # fmt: skip


def _listed(names: str | list[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)

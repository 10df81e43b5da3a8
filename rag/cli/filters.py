"""The options that narrow a search down to some of the documents. What they let through is decided in rag/index/."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import click

from slm.joints import Filters

_OPTIONS = (
    click.option("--space", "spaces", multiple=True, metavar="KEY", help="Only pages of this space."),
    click.option("--label", "labels", multiple=True, metavar="NAME", help="Only what has this label, tag or keyword."),
    click.option("--lang", "languages", multiple=True, metavar="CODE", help="Only what is in this language (en, ja)."),
    click.option("--since", default="", metavar="DATE", help="Only what was changed on this day or later."),
    click.option("--until", default="", metavar="DATE", help="Only what was changed on this day or earlier."),
    click.option(
        "--as", "viewer", multiple=True, metavar="NAME",
        help="Only what this user or group may see (user:NAME, group:NAME).",
    ),
)  # fmt: skip


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it gets them as `filters`. Of several spaces, labels or languages any counts."""

    def with_filters(
        *args: Any, spaces: tuple[str, ...], labels: tuple[str, ...], languages: tuple[str, ...], since: str,
        until: str, viewer: tuple[str, ...], **given: Any,
    ) -> Any:  # fmt: skip
        filters = Filters(spaces, labels, languages, since, until, viewer or None)
        return command(*args, filters=filters, **given)

    wrapped: Callable[..., Any] = update_wrapper(with_filters, command)
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped

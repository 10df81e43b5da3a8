"""The comparison with other loaders: nothing of its page is lost here, and its checks notice what is."""

from __future__ import annotations

import re

import pytest

from scripts.compare_loaders import CHECKS, INCLUDED, PARTS, TITLE, ours, site, table
from tests.fake_confluence import TOKEN, serving


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CONFLUENCE_TOKEN", TOKEN)
    with serving(site()) as url:
        texts = ours(url)
    assert set(texts) == {TITLE, INCLUDED}
    return texts[TITLE]


@pytest.mark.parametrize("name", CHECKS)
def test_all_of_the_page_is_read_here(name: str, text: str) -> None:
    assert CHECKS[name](text)


def test_each_check_notices_what_is_lost() -> None:
    # What is left when tags and CDATA are dropped and texts joined by blanks, as simple loaders do it.
    storage = re.sub(r"<!\[CDATA\[.*?\]\]>", "", "".join(stored for stored, _ in PARTS.values()), flags=re.DOTALL)
    flat = " ".join(re.sub(r"<[^>]*>", " ", storage).split())
    kept = {name for name, check in CHECKS.items() if check(flat)}
    assert kept == {
        "tasks", "a status",
        "title and text of a panel", "what an expand hides, and its title", "a Jira key",
    }  # fmt: skip
    assert [name for name, check in CHECKS.items() if check("")] == ["no settings, ids or states of macros in the text"]


def test_the_table_has_a_column_a_loader_and_a_sum() -> None:
    lines = list(table({"a": "APPROVED", "b": ""}))
    assert lines[0] == "| kept | a | b |" and len(lines) == len(CHECKS) + 3
    assert "| a status | ✓ | ✗ |" in lines and lines[-1] == f"| **all** | 2 of {len(CHECKS)} | 1 of {len(CHECKS)} |"

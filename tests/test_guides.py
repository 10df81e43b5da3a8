"""The documents as a whole: links lead somewhere, the index has every page, translations keep step with the English."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from pathlib import Path

import click
import pytest

import slm_cli
from scripts.demo import LANGUAGES
from slm.families import supported
from tests.documented import PAGES, ROOT, SCRIPTS, SOURCES, of_page, words_of

DOCS = ROOT / "docs"
GUIDES = [page for page in PAGES if page.parent.name in ("guides", "ja") or page.name.startswith("README")]
PICTURES = sorted((DOCS / "pictures").iterdir())
TRANSLATED = [
    (ROOT / "README.md", ROOT / "README.ja.md"),
    *((next(DOCS.glob(f"{page.name}")) if (DOCS / page.name).exists() else DOCS / "guides" / page.name, page)
      for page in sorted((DOCS / "ja").glob("*.md"))),
]  # fmt: skip


OF_THE_SYSTEM = re.compile("slm doctor|Address already in use|$")  # a command, the system's own words, nothing


def without_code(text: str) -> str:
    return re.sub(r"^```[^\n]*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


# --- links and the index ----------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The names that headings of a page are linked by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def links(page: Path) -> list[str]:
    text = without_code(page.read_text(encoding="utf-8"))
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One thing\n[a](gone.md) [b](#one-thing) [c](https://example.com/x)\n```\n[d](no.md)\n# no\n```\n"
    )
    assert links(page) == ["gone.md", "#one-thing"] and anchors(page) == {"one-thing"}


def test_the_index_has_every_page_and_every_file_for_production() -> None:
    listed = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "README.md")}
    pages = {page for page in DOCS.rglob("*.md") if page != DOCS / "README.md"}
    assert pages - listed == set()
    guide = DOCS / "guides/production.md"
    used = {(guide.parent / link.partition("#")[0]).resolve() for link in links(guide)}
    assert set((DOCS / "production").iterdir()) <= used


def test_the_index_has_every_decision_once_by_subject() -> None:
    table = (DOCS / "README.md").read_text(encoding="utf-8").split("## Decisions by subject")[1]
    listed = [int(number) for row in re.findall(r"\|([\d, ]+)\|", table) for number in row.split(",")]
    taken = re.findall(r"^## (\d+)\. ", (DOCS / "decisions.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == [int(number) for number in taken] == list(range(1, len(taken) + 1))


def test_the_table_of_the_recipes_has_every_recipe_once() -> None:
    page = DOCS / "adding.md"
    table = page.read_text(encoding="utf-8").split("## ")[0]
    assert sorted(re.findall(r"\]\(#([^)]+)\)", table)) == sorted(anchors(page) - {"adding-something"})


RECIPES = [DOCS / "adding.md", DOCS / "architecture.md", DOCS / "debugging.md", DOCS / "glossary.md",
           ROOT / "CONTRIBUTING.md"]  # fmt: skip
ROOMS = ("slm", "convert", "train", "serve", "rag", "scripts", "tests")
SOURCE_FILES = [
    ROOT / "slm_cli.py", ROOT / "pyproject.toml",
    *(p for room in ROOMS for p in (ROOT / room).rglob("*") if p.suffix in (".py", ".js", ".h", ".cpp", ".cmake")),
]  # fmt: skip


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.name)
def test_what_a_recipe_names_is_in_the_file_that_it_names(page: Path) -> None:
    """`NAME` in or of `path/file.py`; a name alone is somewhere in the sources."""
    text = page.read_text(encoding="utf-8")
    files = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8", errors="ignore") for p in SOURCE_FILES}
    for name, file in re.findall(r"`([A-Za-z_]\w*)(?:\(\))?`[^`.;|]{0,60}?\b(?:in|of)\s+`([\w/]+\.\w+)`", text):
        held = [source for path, source in files.items() if path == file or path.endswith(f"/{file}")]
        assert any(re.search(rf"\b{name}\b", source) for source in held), f"{name} is not in {file}"
    every = "\n".join(files.values())
    names = set(re.findall(r"`([A-Za-z_]\w*)(?:\(\))?`", text))
    assert {name for name in names if not re.search(rf"\b{name}\b", every)} == set()


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_is_small_and_shown(picture: Path) -> None:
    assert picture.stat().st_size < 150_000
    assert any(link.endswith(f"pictures/{picture.name}") for page in PAGES for link in links(page))


def test_the_readmes_first_chat_is_with_what_the_demo_makes() -> None:
    adapters = " ".join(f"--adapter {lang}=exports/demo/{lang}.gguf" for lang in LANGUAGES)
    for page in ("README.md", "README.ja.md"):
        first = next(command for command in commands(ROOT / page) if command.startswith("slm chat"))
        assert first == f"slm chat gemma-3-270m {adapters}"


# --- what is named in passing -----------------------------------------------------------------------------------


def test_page_and_terminal_are_shown_as_the_script_takes_them_in_both_languages() -> None:
    script = ast.parse((ROOT / "scripts/screenshots.py").read_text(encoding="utf-8"))
    (choices,) = (
        ast.literal_eval(word.value)
        for word in ast.walk(script)
        if isinstance(word, ast.keyword) and word.arg == "choices"
    )
    shown = [f"docs/pictures/{name}.png" for name in choices]
    assert shown == ["docs/pictures/page.png", "docs/pictures/terminal.png"]
    for page in ("README.md", "README.ja.md"):
        assert [link for link in links(ROOT / page) if link in shown] == shown


def all_options() -> set[str]:
    """Every option of every command and script."""

    def of(command: click.Command) -> set[str]:
        found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                found |= of(child)
        return found

    scripts = (re.findall(r'"(--[a-z_-]+)"', path.read_text(encoding="utf-8")) for path in SCRIPTS)
    return of(slm_cli.cli) | {name for names in scripts for name in names}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_an_option_that_is_named_alone_is_one_of_ours(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    named = set(re.findall(r"`(--[a-z][a-z_-]*)[^`]*`", text))
    assert named - all_options() == set()


def test_the_messages_that_troubleshooting_goes_by_are_those_of_the_program() -> None:
    text = (DOCS / "guides/troubleshooting.md").read_text(encoding="utf-8")
    seen = re.findall(r"^\|? ?`([^`]+)`", text, re.MULTILINE)
    said = "\n".join(path.read_text(encoding="utf-8") for path in [*SOURCES, ROOT / "Makefile"])
    pieces = [piece.strip(" :'") for message in seen for piece in message.split("...")]
    assert len(seen) >= 5 and [piece for piece in pieces if piece not in said and not OF_THE_SYSTEM.match(piece)] == []


def test_the_guide_for_a_laptop_lists_the_families_that_are_converted() -> None:
    text = (DOCS / "guides/laptop.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"`model_type`.*?\. \[", text, re.DOTALL)
    assert sorted(re.findall(r"`(\w[\w-]*)`", listed)) == sorted(["model_type", *supported().split(", ")])


# --- translations -----------------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """The whole commands of a page, without their comments."""
    return [shlex.join(words_of(command)) for command in of_page(page) if command.whole]


def headings(page: Path) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)]


def figures(page: Path) -> list[list[str]]:
    """The numbers of each row of a table."""
    rows = re.findall(r"^\|.*\|$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return [re.findall(r"\d[\d.,]*", re.sub(r"\([^)]*\)|（[^）]*）", "", row)) for row in rows]


@pytest.mark.parametrize(("english", "japanese"), TRANSLATED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_translation_keeps_step_with_the_english_page(english: Path, japanese: Path) -> None:
    assert commands(japanese) == commands(english)
    assert headings(japanese) == headings(english)
    assert [row for row in figures(japanese) if row] == [row for row in figures(english) if row]
    assert len(figures(japanese)) == len(figures(english))


def targets(page: Path) -> set[str]:
    """The places that a page links to; a translated page and its translation are one place."""
    one = {japanese: english for english, japanese in TRANSLATED}
    found = ((page.parent / link.partition("#")[0]).resolve() for link in links(page))
    return {one.get(path, path).relative_to(ROOT).as_posix() for path in found} - {"README.md"}


@pytest.mark.parametrize(("english", "japanese"), TRANSLATED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_translation_names_the_same_things_and_places(english: Path, japanese: Path) -> None:
    def named(page: Path) -> set[str]:
        return {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_code(page.read_text("utf-8")))}

    assert named(japanese) == named(english)
    assert targets(japanese) == targets(english)


def test_the_tree_of_the_japanese_readme_has_the_same_names() -> None:
    def tree(page: Path) -> list[str]:
        blocks = re.findall(r"^```\n(slm_cli\.py .*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        return [line.split()[0] for line in blocks[0].splitlines() if re.match(r" {0,2}\S", line)]

    assert tree(ROOT / "README.ja.md") == tree(ROOT / "README.md")


@pytest.mark.parametrize("page", [page for _, page in TRANSLATED], ids=lambda page: page.name)
def test_no_line_of_japanese_ends_within_a_sentence(page: Path) -> None:
    """A break in a paragraph is drawn as a blank, which Japanese has none of between words."""
    lines = without_code(page.read_text(encoding="utf-8")).splitlines()
    prose = re.compile(r"[^|#!>\s-]")
    broken = [one for one, two in itertools.pairwise(lines) if prose.match(one) and prose.match(two)]
    assert [line for line in broken if not re.search(r"[。：:）]$", line)] == []


def test_english_and_japanese_pages_name_each_other() -> None:
    assert "README.ja.md" in links(ROOT / "README.md") and "README.md" in links(ROOT / "README.ja.md")
    assert len(TRANSLATED) >= 2 and all(english.exists() for english, _ in TRANSLATED)

"""The rules of the house, proven from the sources: one-way imports, no circle, light doors, names of our own."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("convert", "train", "serve", "rag")
GROUND, ROOF = "slm", "slm_cli"
OURS = (GROUND, *ROOMS, ROOF)
FILES = [*sorted(p for name in (GROUND, *ROOMS) for p in (ROOT / name).rglob("*.py")), ROOT / "slm_cli.py"]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules of ours that a file imports, as dotted names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in OURS}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_from_the_roof_over_the_rooms_to_the_ground(path: Path) -> None:
    here = module_name(path).split(".")[0]
    allowed = {ROOF: set(OURS), GROUND: {GROUND}}.get(here, {here, GROUND})
    assert {name.split(".")[0] for name in imports(path)} <= allowed


def test_no_circle_of_imports() -> None:
    names = {module_name(path) for path in FILES}
    edges = {module_name(p): imports(p, top_level_only=True) & names - {module_name(p)} for p in FILES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(names):
        visit(name, ())
    assert done == names


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = """
import json, sys
import click, slm_cli
def show(command, path):
    context = click.Context(command, info_name=path[-1])
    command.get_help(context)
    seen = [path]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            seen += show(command.get_command(context, name), path + [name])
    return seen
seen = show(slm_cli.cli, ["slm"])
heavy = ["torch", "transformers", "peft", "faiss", "llama_cpp", "numpy", "sentence_transformers", "fastapi", "rich"]
print(json.dumps({"commands": seen, "heavy": [m for m in heavy if m in sys.modules]}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    seen = json.loads(run.stdout)
    assert seen["heavy"] == []
    assert ["slm", "train", "sft"] in seen["commands"]
    assert ["slm", "rag", "ask"] in seen["commands"]


def test_every_command_has_a_help_with_an_example() -> None:
    import click

    import slm_cli

    def walk(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            return [(path, command)]
        context = click.Context(command)
        pairs = []
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            pairs += walk(child, f"{path} {name}")
        return pairs

    for path, command in walk(slm_cli.cli, "slm"):
        assert "-h" in command.get_help_option_names(click.Context(command, **command.context_settings)), path
        assert path in (command.help or ""), f"'{path} --help' shows no example of itself"


def test_top_level_names_belong_to_no_other_distribution() -> None:
    owners = importlib.metadata.packages_distributions()
    for name in OURS:
        assert {o.lower().replace("_", "-") for o in owners.get(name, [])} <= {"slm-cpu"}, (
            f"'{name}' is also in {owners[name]}"
        )


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_says_what_it_does_and_stays_small(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), f"{path} does not say what it does"
    assert source.count("\n") <= 400


def test_readme_shows_every_folder_with_its_purpose() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    tops = {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")}
    for folder in sorted(tops):
        assert f"{folder}/" in readme, f"README does not show {folder}/"


def test_the_package_list_names_every_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for init in sorted(ROOT.glob("*/**/__init__.py")):
        package = module_name(init)
        if package.split(".")[0] in OURS:
            assert f'"{package}"' in text, f"pyproject.toml does not list {package}"


def test_help_opens_in_the_time_of_a_blink() -> None:
    """Not a benchmark: a guard against an import that costs seconds; in CPU time, which a busy machine hardly moves."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "slm_cli", "--help"], capture_output=True, cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_the_command_docs_are_what_the_commands_say() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "from scripts.write_command_docs import command_docs; print(command_docs())"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").strip()

"""Writes docs/modules.md: what each module is for, its bounds by name, and the tests that import it (a test compares).

Run: python scripts/write_module_docs.py
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "modules.md"
_ROOMS = {
    "slm": "The ground: what every room stands on",
    "convert": "Checkpoints to GGUF and back",
    "train": "Adapters and models from scratch",
    "rag": "Documents, indexes, answers from them",
    "serve": "The engine, the server, the chat",
    "scripts": "Scripts",
}
_HEAD = """# Modules

Written by `python scripts/write_module_docs.py` from the first sentence of every module, its bounds (numbers that have
a name there, defaults of fields) and options, and the tests that import it: search this page for the thing that you
want to change. What has no test here is run by those of its neighbours, or by a command's; what each test file proves
stands at the end.
[adding.md](adding.md) has the steps where several places change together.
"""


def module_docs() -> str:
    """The text of docs/modules.md."""
    tests = _tests_by_module()
    pieces = [_HEAD]
    for room, what in _ROOMS.items():
        pieces.append(f"## {room}\n{what}.\n\n| module | what it is for | bounds, options | tests |\n|---|---|---|---|")
        pieces += [_row(path, tests) for path in sorted((ROOT / room).rglob("*.py")) if path.stat().st_size]
        pieces += [_page_row(path) for path in sorted((ROOT / room).rglob("web/*")) if path.suffix in (".js", ".css")]
        pieces.append("")
    pieces.append("## tests\n\n| file | what it proves |\n|---|---|")
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        pieces.append(f"| `tests/{path.name}` | {_first_sentence(said)} |")
    pieces.append("\n| file | what tests stand on |\n|---|---|")
    for path in sorted((ROOT / "tests").glob("*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if said and not path.name.startswith("test_"):
            pieces.append(f"| `tests/{path.name}` | {_first_sentence(said)} |")
    return "\n".join([*pieces, ""])


def _row(path: Path, tests: dict[str, set[str]]) -> str:
    name = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bounds = ", ".join(f"`{bound}`" for bound in (*_bounds(tree), *_options(tree)))
    dotted = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    proofs = ", ".join(sorted(tests.get(dotted, ())))
    return f"| `{name}` | {_first_sentence(ast.get_docstring(tree) or '')} | {bounds} | {proofs} |"


def _page_row(path: Path) -> str:
    """A module of the web page: its first sentence stands in comments at its head."""
    lines = (line.removeprefix("//").strip("/* ") for line in path.read_text(encoding="utf-8").splitlines())
    said = "\n".join(takewhile(bool, lines))
    test = "test_serve_browser_access" if path.suffix == ".css" else "test_page_modules"
    return f"| `{path.relative_to(ROOT).as_posix()}` | {_first_sentence(said)} |  | {test} |"


def _first_sentence(docstring: str) -> str:
    """The first paragraph of a docstring in one line, in which no mark parts a cell and none becomes a link."""
    return " ".join(docstring.split("\n\n")[0].split()).replace("|", "\\|").replace("](", "]\\(")


def _bounds(tree: ast.Module) -> Iterator[str]:
    """`NAME = value` of the numbers that a module names, several of one line each by itself."""
    pairs: list[tuple[ast.expr, ast.expr]]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _defaults(node)
            continue
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
        else:
            continue
        for target, value in pairs:
            if isinstance(target, ast.Name) and target.id.isupper() and _is_number(value):
                yield f"{target.id} = {ast.unparse(value)}"


def _defaults(node: ast.ClassDef) -> Iterator[str]:
    """`Class.field = value` of the numbers that fields begin with, but for those that begin to count."""
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and field.value is not None and _is_number(field.value):
            value = ast.unparse(field.value)
            if value not in ("0", "0.0"):
                yield f"{node.name}.{ast.unparse(field.target)} = {value}"


def _options(tree: ast.Module) -> Iterator[str]:
    """The options of the commands in a module, as they are typed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("click.option", "option") and node.args:
            names = [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
            yield from [name for name in names if name.startswith("--")] or [n for n in names if n.startswith("-")]


def _is_number(value: ast.expr) -> bool:
    parts = [node for node in ast.walk(value) if not isinstance(node, (ast.operator, ast.unaryop))]
    return all(
        isinstance(part, (ast.BinOp, ast.UnaryOp))
        or (isinstance(part, ast.Constant) and type(part.value) in (int, float)) for part in parts
    )  # fmt: skip


def _tests_by_module() -> dict[str, set[str]]:
    """The names of the test files that import each module."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                    found[name].add(path.stem)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    found[alias.name].add(path.stem)
    return found


if __name__ == "__main__":
    PAGE.write_text(module_docs(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))

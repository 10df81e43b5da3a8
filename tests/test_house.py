"""The rules of the house, proven from the sources: one-way imports, no circle, light doors, names of our own."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import pytest

from scripts.write_module_docs import module_docs

_Node = TypeVar("_Node", bound=ast.AST)
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


FOLDERS = sorted({parent for path in FILES for parent in path.parents if parent != ROOT and ROOT in parent.parents})
MOST_THINGS = 12


def things(folder: Path) -> list[Path]:
    """The files and folders that somebody finds who opens a folder."""
    return [
        entry for entry in sorted(folder.iterdir())
        if entry.name not in ("__init__.py", "__pycache__") and (entry.is_dir() or entry.suffix == ".py")
    ]  # fmt: skip


def owner(folder: Path, module: str) -> Path | None:
    """The thing in `folder` that a module of ours is, or is part of."""
    inside = module.removeprefix(module_name(folder / "__init__.py") + ".")
    if inside == module:
        return None
    name = inside.split(".")[0]
    return folder / name if (folder / name).is_dir() else folder / f"{name}.py"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_things_in_a_folder_import_each_other_one_way(folder: Path) -> None:
    names = {module_name(path) for path in FILES}
    inside = things(folder)
    uses: dict[Path, set[Path]] = {}
    for thing in inside:
        files = thing.rglob("*.py") if thing.is_dir() else [thing]
        targets = {name for file in files for name in imports(file) if name in names}
        uses[thing] = {other for name in targets if (other := owner(folder, name)) in inside} - {thing}
    while uses:
        ground = [thing for thing, others in uses.items() if not others & uses.keys()]
        assert ground, {thing.name: [other.name for other in others & uses.keys()] for thing, others in uses.items()}
        for thing in ground:
            del uses[thing]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_a_folder_holds_no_more_than_one_can_see_at_once(folder: Path) -> None:
    assert len(things(folder)) <= MOST_THINGS, [thing.name for thing in things(folder)]


@pytest.mark.parametrize("room", [GROUND, *ROOMS])
def test_no_two_names_of_a_room_differ_by_a_plural_or_a_prefix_alone(room: str) -> None:
    stems = {path.stem for path in (ROOT / room).rglob("*.py")} - {"__init__"}
    alike = {
        (one, two) for one in stems for two in stems
        if one != two and (two == f"{one}s" or two.endswith(f"_{one}"))
    }  # fmt: skip
    assert alike == set()


def test_no_module_is_called_as_the_folder_it_stands_in_but_for_a_plural() -> None:
    def alike(one: str, two: str) -> bool:
        return one != two and one.removesuffix("es").removesuffix("s") == two.removesuffix("es").removesuffix("s")

    twins = [module_name(path) for path in FILES for folder in path.parents if alike(path.stem, folder.name)]
    assert twins == []


def definitions(kind: type[_Node]) -> list[tuple[str, _Node]]:
    """(module, node) of everything of a kind that is defined in our files, at any depth."""
    pairs = [(module_name(path), ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]
    return [(module, node) for module, tree in pairs for node in ast.walk(tree) if isinstance(node, kind)]


def test_no_two_classes_of_the_house_have_one_name() -> None:
    """Names with an underscore are seen by one file alone. What implements a protocol has a name of its own too."""
    found: dict[str, list[str]] = {}
    for module, node in definitions(ast.ClassDef):
        if not node.name.startswith("_"):
            found.setdefault(node.name, []).append(module)
    assert len(found) > 300
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("room", [GROUND, *ROOMS])
def test_a_name_of_a_type_means_one_thing_in_a_room_and_the_ground(room: str) -> None:
    """Classes, and names given to types (`Mask = npt.NDArray[np.bool_]`): what is searched for is one thing."""
    found: dict[str, set[str]] = {}
    for path in FILES:
        if module_name(path).split(".")[0] in (room, GROUND):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, set()).add(module_name(path))
            for node in tree.body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    found.setdefault(node.targets[0].id, set()).add(ast.unparse(node.value))
    types = {name: meanings for name, meanings in found.items() if name[0].isupper() and not name.isupper()}
    assert len(types) > 40
    assert {name: meanings for name, meanings in types.items() if len(meanings) > 1} == {}


# What rooms hand each other, processes say to each other, and readers, stores and runs are known by.
SEAMS = (
    "slm/joints.py", "serve/child/messages.py", "serve/child/spelling/lines.py", "serve/engine/served.py",
    "serve/engine/events.py", "serve/cluster/wire.py", "serve/cluster/answering.py", "rag/document.py",
    "rag/sources/reader.py", "rag/stores/interface.py", "rag/index/retrieve.py", "train/run/loop.py",
)  # fmt: skip


@pytest.mark.parametrize("seam", SEAMS)
def test_a_seam_is_typed(seam: str) -> None:
    """No call whose arguments nobody checks, and nothing asked for by a name in a text."""
    source = (ROOT / seam).read_text(encoding="utf-8")
    assert [word for word in ("Callable[..., ", "type: ignore", "getattr(", "cast(") if word in source] == []


MOST_PARAMETERS = 7
CALLED_BY_OTHERS = {"train.batch.attention._attend"}  # transformers says what it is given


@pytest.mark.parametrize("kind", [ast.FunctionDef, ast.AsyncFunctionDef])
def test_a_function_takes_no_more_than_one_can_keep_in_mind(kind: type[ast.FunctionDef]) -> None:
    """Of commands click makes the call, by the names of the options."""
    crowded = set()
    for module, node in definitions(kind):
        arguments = node.args
        names = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)} - {"self", "cls"}
        is_command = any(
            isinstance(d, ast.Call) and ast.unparse(d.func).endswith("command") for d in node.decorator_list
        )
        if len(names) > MOST_PARAMETERS and not is_command:
            crowded.add(f"{module}.{node.name}")
    assert crowded <= CALLED_BY_OTHERS, crowded - CALLED_BY_OTHERS


MOST_LINES = 60


@pytest.mark.parametrize("kind", [ast.FunctionDef, ast.AsyncFunctionDef])
def test_a_function_is_read_at_a_glance(kind: type[ast.FunctionDef]) -> None:
    """Its signature and its docstring are not counted."""
    long = {}
    for module, node in definitions(kind):
        first = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
        assert first is not None and node.end_lineno is not None
        if node.end_lineno - first > MOST_LINES:
            long[f"{module}.{node.name}"] = node.end_lineno - first
    assert long == {}


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


def test_the_tree_of_the_readme_has_every_folder_of_the_rooms_and_no_other() -> None:
    """What is in `cli` and `bench`, which all rooms have, is said once behind the tree."""
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The house")[1].split("```")[1]
    shown: set[str] = set()
    top = ""
    for line in tree.splitlines():
        if found := re.match(r"(  )?([\w.]+)/ ", line):
            top = top if found[1] else found[2]
            shown |= {f"{top}/{found[2]}"} if found[1] else set()
    there = {f"{p.parent.name}/{p.name}" for room in (GROUND, *ROOMS) for p in things(ROOT / room) if p.is_dir()}
    assert shown == {name for name in there if name.split("/")[1] not in ("cli", "bench")}


def test_the_package_list_names_every_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for init in sorted(ROOT.glob("*/**/__init__.py")):
        package = module_name(init)
        if package.split(".")[0] in OURS:
            assert f'"{package}"' in text, f"pyproject.toml does not list {package}"


def test_every_file_that_is_no_source_is_packaged() -> None:
    """A room's data (a page, texts, readers) is installed with it only where package-data has a pattern for it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.setuptools.package-data]")[1]
    rows = re.findall(r'^"?([\w.]+)"? = \[(.*)\]$', text.split("\n[")[0], re.MULTILINE)
    patterns = [f"{package.replace('.', '/')}/{glob}" for package, row in rows for glob in re.findall(r'"(.*?)"', row)]
    tracked = subprocess.run(
        ["git", "ls-files", GROUND, *ROOMS], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    others = [name for name in tracked if not name.endswith(".py")]
    assert others and [name for name in others if not any(Path(name).match(glob) for glob in patterns)] == []


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


def test_the_module_docs_are_what_the_modules_say() -> None:
    assert (ROOT / "docs" / "modules.md").read_text(encoding="utf-8") == module_docs()

"""Reads a Dockerfile and .dockerignore: what is run and copied in each stage, and what the image starts. Pure.

A small subset of the format (docs.docker.com, "Dockerfile reference"), which is all that ours uses; what is not in it
is refused with its line, never passed over. It knows nothing of how steps are carried out.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from slm.errors import UnsupportedError

WORDS = (
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")
Rules = list[tuple[bool, re.Pattern[str]]]
_HEALTH_OPTIONS = ("--interval=", "--timeout=", "--start-period=", "--retries=")


@dataclass(frozen=True)
class Line:
    """One instruction with its continuation lines joined; `number` is where it begins, from 1."""

    word: str
    value: str
    number: int

    def refused(self, what: str) -> UnsupportedError:
        """The error that names this line."""
        return UnsupportedError(
            f"Dockerfile, line {self.number}: {what}", hint="scripts/packing/dockerfile.py reads it."
        )


@dataclass(frozen=True)
class Run:
    """A shell script, its environment beside PATH, and its folder."""

    script: str
    environment: Mapping[str, str]
    folder: str


@dataclass(frozen=True)
class Copy:
    """Sources of the context, or of the stage that is named; the target is absolute, "/" at its end means a folder."""

    sources: tuple[str, ...]
    target: str
    stage: str = ""


@dataclass
class Stage:
    """A stage's steps in order, and what it would start. A WORKDIR is a Run that makes the folder."""

    name: str
    base: str
    steps: list[Run | Copy] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = ""
    ports: list[int] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def lines_of(text: str) -> list[Line]:
    """The instructions of a Dockerfile. Raises UnsupportedError for one that is not among WORDS."""
    found: list[Line] = []
    pieces: list[str] = []
    begun = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if line.startswith("#") or (not line and not pieces):
            continue
        begun = begun if pieces else number
        pieces.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            word, _, value = " ".join(piece for piece in pieces if piece).partition(" ")
            found.append(Line(word.upper(), value.strip(), begun))
            pieces = []
            if word.upper() not in WORDS:
                raise found[-1].refused(f"'{word}' is not read here, only {', '.join(WORDS)}")
    if pieces:
        raise UnsupportedError(f"Dockerfile, line {begun}: the instruction does not end")
    return found


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`$NAME`, `${NAME}` and `${NAME:-else}` replaced; a variable that nobody set is empty."""
    return _VARIABLE.sub(lambda found: variables.get(found[1] or found[3], "") or found[2] or "", text)


def stages(text: str, build_args: Mapping[str, str]) -> list[Stage]:
    """The stages of a Dockerfile, the last is the image. Raises UnsupportedError, for unknown build arguments too."""
    built: list[Stage] = []
    unused, args = set(build_args), dict[str, str]()
    for line in lines_of(text):
        if line.word == "FROM":
            words = line.value.split()
            if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
                raise line.refused("FROM takes an image, and AS with a name")
            built.append(Stage(words[2] if len(words) == 3 else str(len(built)), words[0]))
            args = {}
        elif not built:
            raise line.refused("an instruction before the first FROM")
        elif line.word == "ARG":
            name, _, value = line.value.partition("=")
            args[name] = build_args.get(name, value)
            unused.discard(name)
        else:
            _read(built, line, args)
    if unused:
        raise UnsupportedError(f"the Dockerfile has no build argument {', '.join(sorted(unused))}")
    return built


def _read(built: list[Stage], line: Line, args: Mapping[str, str]) -> None:
    """Add one instruction to the last stage."""
    stage = built[-1]
    variables = {**args, **stage.environment}
    if line.word == "RUN":
        if line.value.startswith(("--", "[", "<<")):
            raise line.refused("RUN takes a shell command without options")
        stage.steps.append(Run(line.value, variables, stage.folder))
        return
    if line.word in ("CMD", "ENTRYPOINT"):
        setattr(stage, {"CMD": "command", "ENTRYPOINT": "entrypoint"}[line.word], _words(line, line.value))
        return
    value = expanded(line.value, variables)
    if line.word == "COPY":
        stage.steps.append(_copy(built, line, value.split()))
    elif line.word == "ENV":
        for pair in value.split():
            name, equal, given = pair.partition("=")
            if not equal or '"' in given or "'" in given:
                raise line.refused("ENV takes NAME=VALUE without quotes")
            stage.environment[name] = given
    elif line.word == "WORKDIR":
        stage.folder = posixpath.join(stage.folder, value)
        stage.steps.append(Run(f"mkdir -p {stage.folder}", {}, "/"))
    elif line.word == "USER":
        stage.user = value
    elif line.word == "EXPOSE":
        stage.ports += [int(port) for port in value.split()]
    elif line.word == "VOLUME":
        stage.volumes += value.split()
    elif line.word == "HEALTHCHECK":
        options, _, command = line.value.partition("CMD ")
        if not all(option.startswith(_HEALTH_OPTIONS) for option in options.split()):
            raise line.refused(f"HEALTHCHECK takes {', '.join(_HEALTH_OPTIONS)} and CMD")
        stage.health = _words(line, command)


def _words(line: Line, value: str) -> list[str]:
    """The words of the JSON form, the only one that starts without a shell."""
    try:
        words = json.loads(value)
    except ValueError:
        words = None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise line.refused('a command is written as ["program", "argument"]')
    return words


def _copy(built: list[Stage], line: Line, words: list[str]) -> Copy:
    source = ""
    if words and words[0].startswith("--from="):
        source = words.pop(0).partition("=")[2]
        if source not in [stage.name for stage in built[:-1]]:
            raise line.refused(f"there is no earlier stage '{source}'")
    if len(words) < 2 or any(word.startswith("--") or "*" in word or "?" in word for word in words):
        raise line.refused("COPY takes names without wildcards, a target, and --from=STAGE")
    *sources, target = words
    if len(sources) > 1 and not target.endswith("/"):
        raise line.refused("several sources need a folder, written with a slash at its end")
    return Copy(tuple(sources), posixpath.join(built[-1].folder, target), source)


def ignores(text: str) -> Rules:
    """The rules of a .dockerignore in order: whether one takes a path in again, and what it matches."""
    rules = []
    for raw in text.splitlines():
        line = raw.strip()
        if line and not line.startswith("#"):
            again = line.startswith("!")
            pattern = re.escape(line.removeprefix("!").strip("/"))
            pattern = pattern.replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*")
            pattern = pattern.replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            rules.append((again, re.compile(rf"{pattern}(?:/.*)?")))
    return rules


def in_context(path: str, rules: Rules) -> bool:
    """Whether a file, named from the context's folder with slashes, is part of the context. The last rule that fits."""
    taken = True
    for again, pattern in rules:
        if pattern.fullmatch(path):
            taken = again
    return taken

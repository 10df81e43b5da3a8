"""Files read by the machines of a Ray cluster, which see them at the same paths. It knows nothing of their kinds."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from rag.sources.files import read_each
from rag.sources.reader import LeftOut, Read, ReadOptions, Whole
from slm.errors import MissingFileError
from slm.native.ray_data import ActorPlan, mapped

_Given = list[Read | LeftOut | Whole]


class _Reading:
    """What an actor does: a file's pieces, and the error that ended them."""

    def __init__(self, wanted: ReadOptions) -> None:
        self._wanted = wanted

    def __call__(self, path: Path) -> tuple[_Given, Exception | None]:
        given: _Given = []
        if not path.exists():  # found a moment ago, on the machine that asks
            raise MissingFileError(
                f"'{path}' is not on the machine {socket.gethostname()}",
                hint="Give every machine the same folder of documents, or add it without --on.",
            )
        try:
            given.extend(read_each(path, self._wanted))
        except Exception as error:  # for whoever reads here to judge
            return given, error
        return given, None


def read_spread(files: Sequence[Path], wanted: ReadOptions) -> Iterator[tuple[Path, Iterator[Read | LeftOut | Whole]]]:
    """A `rag.sources.files.ReadEach`: the same pieces and errors in the same order as in one process.

    Raises MissingFileError for a file that another machine does not have.
    """
    early: dict[int, tuple[_Given, Exception | None]] = {}
    following = 0
    plan = ActorPlan.of_cluster()
    readers = ActorPlan(plan.actors * plan.cores, 1)
    for number, result in mapped(_Reading, (wanted,), files, readers):
        early[number] = result
        while following in early:
            yield files[following], _again(*early.pop(following))
            following += 1


def _again(given: _Given, error: Exception | None) -> Iterator[Read | LeftOut | Whole]:
    yield from given
    if error is not None:
        raise error

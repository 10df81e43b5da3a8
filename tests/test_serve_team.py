"""Computations on several cores: where they run, and that nothing of them stays."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from serve.child.pool import Team
from slm.native.llama import ContextParams, decode_tokens, open_context, open_model
from tests.tiny_gguf import BOS, write_model
from tests.waiting import eventually


def test_only_what_needs_several_cores_leaves_the_calling_thread() -> None:
    team, here = Team(), threading.get_ident()
    assert team.run(threading.get_ident, cores=1) == here
    there = team.run(threading.get_ident, cores=2)
    assert there != here and team.run(threading.get_ident, cores=2) == there
    assert team.run(threading.get_ident, cores=1) == here
    team.rest()


def test_an_error_reaches_who_asked_and_the_team_goes_on() -> None:
    team = Team()
    for cores in (1, 2):
        with pytest.raises(ZeroDivisionError):
            team.run(lambda: 1 // 0, cores=cores)
    assert team.run(lambda: 3, cores=2) == 3
    team.rest()


@pytest.mark.skipif(sys.platform != "linux", reason="threads of native libraries are counted in /proc")
@pytest.mark.parametrize("end", ["rest", "one core"])
def test_the_librarys_own_threads_end_too(end: str, tmp_path: Path) -> None:
    """Two pools alive at once make every barrier a sleep; see `serve.child.pool`."""

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    with ExitStack() as stack:
        model = open_model(stack, write_model(tmp_path / "tiny.gguf"))
        context = open_context(stack, model, ContextParams(n_ctx=256, n_threads=2))
        team, before = Team(), threads()
        team.run(lambda: decode_tokens(context, [BOS] * 8, 0), cores=2)
        assert threads() == before + 2, "the leader and llama.cpp's second thread"
        team.rest() if end == "rest" else team.run(lambda: None, cores=1)
        assert eventually(lambda: threads() == before)

"""Drafts of what comes next: where they come from, when they are worth their rows, and that no answer changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.child import schedule
from serve.child.cells.store import PrefixStore
from serve.child.choice.lookup import GRAM, Lookup
from serve.child.choice.sampling import Sampler, vocabulary_of
from serve.child.contexts import Gain, LaneContext
from serve.child.messages import Finished
from serve.child.slots import Request
from serve.engine.engine import open_engine
from slm.joints import SamplingOptions
from slm.native.llama import open_model
from tests.tiny_engine import Files, Oracle, ask, files, oracle
from tests.tiny_gguf import letter

__all__ = ["files", "oracle"]

_tokens = st.lists(st.integers(0, 3), max_size=60)


# --- where a draft comes from -----------------------------------------------------------------------------------


def test_a_draft_is_what_followed_the_last_time_and_goes_round_in_circles() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 9, 1, 2])
    assert lookup.draft(3) == [3, 4, 5]
    lookup.append(3)
    assert lookup.draft(2) == [4, 5], "it stays at the place that was right"
    lookup.append(7)
    assert lookup.draft(2) == [], "3, 7 never stood together"
    assert Lookup([5, 6, 5, 6]).draft(5) == [5, 6, 5, 6, 5]
    assert Lookup([1]).draft(4) == Lookup([]).draft(4) == []


@settings(deadline=None)
@given(_tokens, _tokens, st.integers(0, 9))
def test_every_draft_continues_a_place_with_the_same_last_tokens(prompt: list[int], answer: list[int], n: int) -> None:
    lookup, said = Lookup(prompt), list(prompt)
    for token in answer:
        lookup.append(token)
        said.append(token)
        draft = lookup.draft(n)
        ends = [at for at in range(GRAM, len(said)) if said[at - GRAM : at] == said[-GRAM:]]
        assert len(draft) == len(lookup.chances(n)) == (n if ends else 0)
        rounds = [(said[at:] * (n + 1))[:n] for at in ends]
        assert not ends or draft in rounds


def test_how_likely_a_draft_is_right_is_learnt_from_the_sequence() -> None:
    fresh = Lookup([1, 2, 1, 2]).chances(9)
    assert fresh == sorted(fresh, reverse=True) and 0 < fresh[-1] < fresh[0] < 1
    circle = Lookup([1, 2, 1, 2])
    for n in range(60):
        circle.append(1 + n % 2)
    assert circle.chances(1)[0] > 0.95 and circle.chances(7)[-1] > 0.8
    misled = Lookup([1, 2] * 2)
    for n in range(40):  # 1, 2 stands together again and again, and never does the same follow
        for token in (100 + n, 1, 2):
            misled.append(token)
    assert misled.draft(1) and misled.chances(1)[0] < 0.2
    assert schedule.with_drafts([schedule.Work(0, 0, chances=misled.chances(7))]) == {0: 1}, "no more is tried"


# --- when it is worth its rows -----------------------------------------------------------------------------------


def _answering(*chances: Sequence[float]) -> list[schedule.Work]:
    return [schedule.Work(slot, 0, chances=one) for slot, one in enumerate(chances)]


def test_the_likeliest_drafts_are_taken_as_long_as_a_step_gains_by_them() -> None:
    sure, unsure = [0.95**n for n in range(1, 8)], [0.2**n for n in range(1, 8)]
    assert schedule.plan_step(_answering(unsure), chunk=64) == {0: 1}
    assert schedule.plan_step(_answering(sure), chunk=64) == {0: 8}
    plan = schedule.plan_step(_answering(sure, unsure, (), sure), chunk=64)
    assert plan[1] == plan[2] == 1 and min(plan[0], plan[3]) > 1
    assert schedule.plan_step([*_answering(sure), schedule.Work(1, 40)], chunk=64) == {0: 8, 1: 40}


@given(st.lists(st.lists(st.floats(0, 1), max_size=schedule.LONGEST_DRAFT), max_size=16))
def test_no_other_number_of_drafted_tokens_gains_more_for_its_cost(shares: list[list[float]]) -> None:
    chances = [sorted(one, reverse=True) for one in shares]
    plan = schedule.with_drafts(_answering(*chances))
    assert all(1 <= plan[slot] <= 1 + len(one) for slot, one in enumerate(chances))
    drafted = sum(plan.values()) - len(plan)
    likeliest = sorted((chance for one in chances for chance in one), reverse=True)[: schedule.MOST_DRAFTED]
    assert drafted <= len(likeliest)
    if plan:
        gains = [(len(plan) + sum(likeliest[:n])) / schedule.cost_of(len(plan) + n) for n in range(len(likeliest) + 1)]
        taken = sum(chance for slot, one in enumerate(chances) for chance in one[: plan[slot] - 1])
        assert (len(plan) + taken) / schedule.cost_of(len(plan) + drafted) == pytest.approx(max(gains))


# --- that no answer changes --------------------------------------------------------------------------------------


def finished(gain: Gain) -> Finished:
    assert isinstance(gain.end, Finished)
    return gain.end


class _Wanted(Lookup):
    """Drafts what a test wants to see tried, and is sure of it."""

    def __init__(self, draft: Callable[[int], list[int]]) -> None:
        super().__init__([])
        self._wanted = draft

    def draft(self, count: int) -> list[int]:
        return self._wanted(count)

    def chances(self, count: int) -> list[float]:
        return [0.99**n for n in range(1, 1 + len(self._wanted(count)))]


class _Answers:
    """One context of the tiny model, its drafts replaced by whatever a test wants to see tried."""

    def __init__(self, stack: ExitStack, files: Files, draft: Any = None, *, most: int = 7) -> None:
        self._model = open_model(stack, files.model)
        self.vocabulary = vocabulary_of(self._model)
        store = PrefixStore("tiny", budget=0)
        self.context = LaneContext(self._model, self.vocabulary, store, cells=1024, parallel=2, threads=1, draft=most)
        stack.callback(self.context.close)
        self._draft = draft

    def __call__(self, text: str, **options: Any) -> tuple[list[Gain], list[int]]:
        """The pieces of an answer, and the tokens whose cells are kept after it."""
        prompt = [letter(char) for char in text]
        asked = SamplingOptions(**options)
        assert self.context.admit(Request(1, "", prompt, asked, Sampler(asked, prompt, self.vocabulary)))
        slot = self.context.slots.busy[0]
        pieces: list[Gain] = []
        while slot.running:
            if slot.running.lookup and self._draft:
                slot.running.lookup = _Wanted(self._draft(slot.running))
            pieces += self.context.step("", [], threads=1)
        return pieces, slot.tokens


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_right_and_wrong_drafts_give_the_answer_that_none_gives(files: Files, temperature: float) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "temperature": temperature, "seed": 7, "logprobs": 2}
    with ExitStack() as stack:
        plain = _Answers(stack, files, most=0)
        pieces, kept = plain("Tell me more", **options)
        text = "".join(piece.text for piece in pieces)
        tokens = [piece.score.token for piece in pieces if piece.score]

        def known(running: Any) -> Any:
            return lambda count: tokens[running.generated :][:count]

        def half(running: Any) -> Any:
            return lambda count: [token if n % 3 else 5 for n, token in enumerate(known(running)(count), 1)]

        for draft, steps in ((known, (40 + 6) // 8 + 1), (half, 20)):
            context = _Answers(stack, files, draft)
            found, cells = context("Tell me more", **options)
            assert "".join(piece.text for piece in found) == text
            assert [piece.score.token for piece in found if piece.score] == tokens
            for one, other in zip(found, pieces, strict=True):
                assert one.score and other.score and one.score.logprob == pytest.approx(other.score.logprob, abs=0.02)
            assert cells == kept and finished(found[-1]).completion_tokens == 40
            clock = context.context.clock
            assert clock.steps <= steps + 1 and clock.accepted == 40 - clock.steps
            assert clock.drafted > clock.accepted or draft is known


def test_an_answer_that_ends_inside_a_draft_keeps_only_its_own_cells(files: Files, oracle: Oracle) -> None:
    with ExitStack() as stack:
        plain = _Answers(stack, files, most=0)
        text = "".join(piece.text for piece in plain("Hello", max_tokens=24)[0])
        stop = text[9:12]
        until = text[: text.index(stop)]
        tokens = [letter(char) for char in text]
        drafting = _Answers(stack, files, lambda running: lambda count: tokens[running.generated :][:count])
        pieces, kept = drafting("Hello", max_tokens=24, stop=(stop,))
        assert "".join(piece.text for piece in pieces) == until
        finish = finished(pieces[-1])
        assert finish.reason == "stop"
        assert kept == [letter(char) for char in "Hello"] + tokens[: finish.completion_tokens - 1]
        again, _ = drafting("Hello" + text[:4], max_tokens=8)  # the cells that stayed are right
        assert oracle.same(
            None, [letter(char) for char in "Hello" + text[:4]], "".join(piece.text for piece in again), text[4:12]
        )


def test_the_engine_drafts_unless_told_otherwise_and_says_how_often_it_was_right(files: Files) -> None:
    for draft in (7, 0):
        with open_engine(files.model, {"en": files.a}, threads=1, parallel=2, draft=draft) as engine:
            assert ask(engine, "la la la la la la", "en", tokens=120)[1].completion_tokens == 120
            stats = engine.stats()
        assert (stats.drafted > 0) == (draft > 0) and stats.accepted <= stats.drafted

"""What the engine and its process say: every message survives its line, and what is none is an error that shows it."""

from __future__ import annotations

import inspect
import queue
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import slm.errors
from serve.child import messages as say
from serve.child.messages import Answer, Failed, Order
from serve.child.spelling.lines import answer_line, order_line, read_answer, read_order
from serve.engine.process import ChildProcess
from slm.chat.segments import Segment
from slm.errors import EngineError, InputError, SlmError
from slm.joints import SamplingOptions, TokenScore

# Orders are written in ASCII: a prompt may hold half a surrogate pair. What the child says never does.
PROMPTS = st.text(st.characters(), max_size=20) | st.just("\ud83d\n\u2028\x85\0")
WORDS = st.text(max_size=20) | st.just("語\n\u2028\x85\0")
NUMBERS = st.integers(-1, 1 << 40)
FLOATS = st.floats(allow_nan=False)


def tuples(one: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(one, max_size=4).map(tuple)


IDS = tuples(NUMBERS)
SEGMENTS = tuples(st.builds(Segment, PROMPTS, st.booleans()))
PAIRS = tuples(st.tuples(WORDS, FLOATS))
SCORES = st.builds(
    TokenScore, NUMBERS, st.binary(max_size=6), FLOATS, tuples(st.tuples(NUMBERS, st.binary(max_size=6), FLOATS))
)
SAMPLING = st.builds(
    SamplingOptions, max_tokens=NUMBERS, temperature=FLOATS, stop=tuples(PROMPTS), grammar=PROMPTS, stop_tokens=IDS,
    logit_bias=tuples(st.tuples(NUMBERS, FLOATS)), logprobs=st.none() | NUMBERS, ignore_eos=st.booleans(),
)  # fmt: skip
ROWS = st.builds(say.RunningRow, NUMBERS, PAIRS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
ORDERS: dict[str, st.SearchStrategy[Any]] = {
    "Open": st.builds(
        say.Open, PROMPTS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, IDS, WORDS, NUMBERS, cache_folder=PROMPTS
    ),
    "Load": st.builds(say.Load, WORDS, PROMPTS),
    "Unload": st.builds(say.Unload, WORDS),
    "AskStats": st.builds(say.AskStats),
    "Tokenize": st.builds(say.Tokenize, SEGMENTS, st.booleans()),
    "Detokenize": st.builds(say.Detokenize, IDS),
    "Embed": st.builds(say.Embed, tuples(PROMPTS | IDS), NUMBERS),
    "Generate": st.builds(say.Generate, SEGMENTS | IDS, st.booleans(), st.booleans(), PAIRS, SAMPLING),
    "Cancel": st.builds(say.Cancel, NUMBERS),
}
ANSWERS: dict[str, st.SearchStrategy[Any]] = {
    "Done": st.builds(say.Done),
    "Opened": st.builds(say.Opened, NUMBERS, NUMBERS, tuples(WORDS), tuples(WORDS)),
    "Tokens": st.builds(say.Tokens, IDS),
    "Text": st.builds(say.Text, WORDS),
    "Embeddings": st.builds(say.Embeddings, tuples(tuples(FLOATS)), NUMBERS),
    "Stats": st.builds(
        say.Stats, NUMBERS, NUMBERS, NUMBERS, NUMBERS, tuples(WORDS), NUMBERS, FLOATS, FLOATS, rows=tuples(ROWS)
    ),
    "Begun": st.builds(say.Begun),
    "Piece": st.builds(say.Piece, WORDS, st.none() | SCORES),
    "Finished": st.builds(say.Finished, WORDS, NUMBERS, NUMBERS, FLOATS, FLOATS, NUMBERS),
}


def names(base: type) -> set[str]:
    """The messages of one direction that there are."""
    return {name for name, kind in inspect.getmembers(say, inspect.isclass) if issubclass(kind, base)} - {base.__name__}


def test_no_message_is_forgotten_here() -> None:
    assert set(ORDERS) == names(Order) and set(ANSWERS) | {"Failed"} == names(Answer)


@given(NUMBERS, st.one_of(*ORDERS.values()))
def test_every_order_arrives_as_it_was_given(id: int, order: Order[Any]) -> None:
    line = order_line(id, order)
    assert "\n" not in line and line.isascii()
    assert read_order(line) == read_order(line.encode()) == (id, order)


@given(NUMBERS, st.one_of(*ANSWERS.values()))
def test_every_answer_arrives_as_it_was_given(id: int, answer: Answer) -> None:
    line = answer_line(id, answer)
    assert "\n" not in line
    assert read_answer(line) == read_answer(line.encode()) == (id, answer)


def test_a_prompt_arrives_as_the_segments_or_the_token_ids_it_was() -> None:
    for prompt, text in (((Segment("a", True), Segment("b", False)), True), ((1, 2), False), ((), False)):
        _, order = read_order(order_line(1, say.Generate(prompt, False, True, (), SamplingOptions())))
        assert isinstance(order, say.Generate) and say.is_segments(order.prompt) == text
        assert all(isinstance(part, Segment) for part in order.prompt) or not text


@given(
    st.sampled_from(["InputError", "DamagedFileError", "MismatchError", "EngineError", "ContextOverflowError"]), WORDS
)
def test_an_error_arrives_as_what_it_was(name: str, words: str) -> None:
    sent = getattr(slm.errors, name)("it went wrong", found=words, hint="Mend it.")
    id, answer = read_answer(answer_line(3, Failed(sent)))
    assert isinstance(answer, Failed) and id == 3 and answer.last
    got = answer.error
    assert (type(got), got.what, got.found, got.hint) == (type(sent), sent.what, sent.found, sent.hint)


def test_every_error_of_the_family_crosses_as_itself_or_as_what_it_is_a_kind_of() -> None:
    family = [kind for _, kind in inspect.getmembers(slm.errors, inspect.isclass) if issubclass(kind, SlmError)]
    special: dict[type[SlmError], tuple[Any, ...]] = {
        slm.errors.UnknownNameError: ("adapter", "x", ["en"]),
        slm.errors.MissingExtraError: ("torch", "train"),
    }
    for kind in family:
        sent = kind(*special.get(kind, ("it went wrong",)))
        _, answer = read_answer(answer_line(1, Failed(sent)))
        assert isinstance(answer, Failed) and isinstance(sent, type(answer.error))
        assert (answer.error.what, answer.error.hint) == (sent.what, sent.hint)
    _, unknown = read_answer(answer_line(1, Failed(slm.errors.UnknownNameError("adapter", "x", ["en"]))))
    assert isinstance(unknown, Failed) and type(unknown.error) is InputError


def test_an_answer_goes_on_after_its_beginning_and_its_pieces_and_after_nothing_else() -> None:
    last = {name: getattr(say, name).last for name in names(Answer)}
    assert {name for name, is_last in last.items() if not is_last} == {"Begun", "Piece"}
    assert all(getattr(say, name).reply.last for name in names(Order))


@pytest.mark.parametrize(
    "line",
    ["", "Hello", "{}", "7", "[]", '["Sing", 1]', '["Text"]', '["Text", "x", "y"]', '["Text", null, "y"]',
     '["Text", 1]', '["Text", 1, "a", "b"]', '["Load", 1, "a", "b"]', '[["Text"], 1, "a"]', '["Tokens", 1]',
     '["Failed", 1, "KeyboardInterrupt", "a", "", ""]', '["Piece", 1, "a", [1, "語", 0.5, []]]', "[" * 100_000],
)  # fmt: skip
def test_a_line_that_is_no_answer_is_an_error_that_shows_it(line: str) -> None:
    for said in (line, line.encode()):
        with pytest.raises(EngineError, match="is no line that the engine and its process know") as raised:
            read_answer(said)
        assert line[:20] in raised.value.what


def test_a_line_that_is_no_order_is_an_error_that_shows_it() -> None:
    for line in (
        '["Text", 1, "a"]',
        '["Tokenize", 1, [["a"]], true]',
        '["Generate", 1, [], true, true, [], {"heat": 1}]',
    ):
        with pytest.raises(EngineError, match="is no line"):
            read_order(line)
    with pytest.raises(EngineError, match="is no line"):
        read_order(b'["Load", 1, "\xff", "b"]')


def test_a_process_that_says_something_else_is_ended_and_its_words_are_told() -> None:
    ended = threading.Event()
    child = ChildProcess("this", lambda _, line: print(read_answer(line)), lambda _: ended.set())
    assert ended.wait(30)
    assert "'The Zen of Python, by Tim Peters' is no line" in child.epitaph()
    child.close()


def test_the_process_answers_an_order_before_a_model_is_open_and_ends_at_what_is_no_order() -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    child = ChildProcess(
        "serve.child.worker", lambda _, line: answers.put(read_answer(line)), lambda _: answers.put("ended")
    )
    child.send(order_line(5, say.AskStats()))
    id, answer = answers.get(timeout=60)
    assert id == 5 and isinstance(answer, Failed) and "no model was opened" in answer.error.what
    child.send('["Sing", 6]')
    assert answers.get(timeout=60) == "ended"
    assert "exit code 70" in child.epitaph() and '["Sing", 6]' in child.epitaph()
    child.close()

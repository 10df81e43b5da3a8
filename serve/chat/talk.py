"""The conversation at work: questions asked, answers shown, kept and counted. It knows nothing of keys or commands."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import click

from serve.chat.conversation import ALMOST_FULL, Exchange, Sent, fitting, messages_of, room_for, used_by
from serve.chat.editor import silent_keys
from serve.chat.opening import Desk, Opening
from serve.chat.sessions import Keeper, SavedSession
from serve.engine.router import Route
from slm.errors import InputError, SlmError
from slm.joints import Finish, Grounded, Message, Reader, Retriever, SamplingOptions
from slm.terminal.answer import (
    AnswerScreen,
    ShownAnswer,
    ShownSource,
    pointed_sources,
    show_pointed,
    show_sources,
    sources_of,
)
from slm.terminal.console import note
from slm.terminal.streams import says
from slm.text.visible import without_controls


@dataclass
class Chat:
    """One conversation.

    wanted: which adapter is to answer (a name, auto, base). system: what the model is told before. points: whether a
    reader answers from documents where there is one. interactive: a person sits there, so that an error or Ctrl-C ends
    a turn and not the chat. drawn: answers are drawn as Markdown, not printed as they are written. first: the first
    exchange that is still sent.
    """

    opening: Opening
    keeper: Keeper
    wanted: str
    sampling: SamplingOptions
    system: str = ""
    interactive: bool = False
    drawn: bool = False
    points: bool = True
    exchanges: list[Exchange] = field(default_factory=list)
    first: int = 0
    used: int = 0
    prefill: str = ""
    replacing: Exchange | None = None
    _warned: bool = False
    _told_alone: bool = False
    _told_full: bool = False

    # --- the conversation -----------------------------------------------------------------------------------------

    def ask(self, text: str) -> None:
        """Ask a question, in place of the one that is being edited if there is one."""
        old, self.replacing = self.replacing, None
        exchange = Exchange(text)
        self.keeper.asked(exchange, self.opening.setup.label, self.system, instead_of=old.id if old else None)
        if old in self.exchanges:
            self.exchanges.remove(old)
        self.exchanges.append(exchange)
        self._answer(exchange)

    def retry(self) -> None:
        """Answer the last question again; the old answer stays until there is another."""
        exchange = self._last()
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        if exchange.id is None:
            self.keeper.asked(exchange, self.opening.setup.label, self.system)
        self._answer(exchange)

    def undo(self) -> Exchange:
        """Take back the last question and its answer."""
        exchange = self._last()
        self.keeper.taken_back(exchange)
        self.exchanges.pop()
        self.first, self.used = min(self.first, len(self.exchanges)), used_by(self.exchanges)
        return exchange

    def clear(self) -> None:
        """Begin a new conversation."""
        self.exchanges, self.replacing, self.prefill = [], None, ""
        self.first, self.used = 0, 0
        self._warned = self._told_alone = self._told_full = False
        self.keeper.begin_anew()

    def load(self, saved: SavedSession) -> None:
        """Go on with a session."""
        if self.keeper.archive is None:
            raise InputError("sessions are not kept here", hint="Start without --no-save.")
        exchanges = self.keeper.archive.exchanges(saved.id)
        self.clear()
        self.exchanges, self.system, self.used = exchanges, saved.system, used_by(exchanges)
        self.keeper.go_on(saved)

    def tell(self, system: str) -> None:
        """Change what the model is told before the conversation."""
        self.system = system
        self.keeper.settle(self.opening.setup.label, system)

    def show(self, exchange: Exchange) -> None:
        """An answer that was given before, as it is shown."""
        if exchange.answer:
            ShownAnswer().show(iter([exchange.answer]), screen=self._screen())

    def beside(self, text: str) -> None:
        """A note beside the conversation."""
        for row in self.rows(text):
            note(row)

    def rows(self, text: str) -> list[str]:
        """A text as it is printed: broken between words where answers are drawn, and in one piece else."""
        if not self.drawn:
            return [text]
        from serve.chat.screen.painter import terminal_columns
        from serve.chat.screen.wrapping import text_rows

        return text_rows(without_controls(text), max(20, terminal_columns() - 1))

    def _last(self) -> Exchange:
        if not self.exchanges:
            raise InputError("nothing was asked yet")
        return self.exchanges[-1]

    # --- answers --------------------------------------------------------------------------------------------------

    def _answer(self, exchange: Exchange) -> None:
        desk = self.opening.desk()
        earlier = self.exchanges[: self.exchanges.index(exchange)]
        if desk.retriever and desk.reader and self.points:
            self._tell_alone(earlier)
            self._point(exchange, desk.retriever, desk.reader)
            return
        asked = [Message(role="user", content=exchange.question)]
        way = desk.talker.route(self.wanted, messages_of("", earlier, asked))
        # Routed by the question; the passages may be in another language.
        grounded = desk.retriever.grounded(exchange.question) if desk.retriever else None
        sent = self._fit(earlier, grounded.messages if grounded else asked, way, desk)
        shown, counted = ShownAnswer(), dict[str, int]()
        with self._stoppable() as stop:
            try:
                with closing(desk.talker.chat(sent.messages, way.adapter, self.sampling)) as pieces:
                    shown.show(pieces, grounded, screen=self._screen())
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                counted = self._counted(shown, sent, way, desk)
            finally:
                stop.over()
                self._keep(exchange, shown, way, counted)
            self._close_turn(exchange, shown, grounded, desk)

    def _counted(self, shown: ShownAnswer, sent: Sent, way: Route, desk: Desk) -> dict[str, int]:
        """Tokens of a stopped answer and of what it answers, which nobody has told of."""
        if not shown.text:
            return {}
        try:
            asked = desk.talker.count(sent.messages, way.adapter)
            said = Message(role="assistant", content=shown.text)
            return {
                "prompt_tokens": asked,
                "completion_tokens": max(0, desk.talker.count([*sent.messages, said], way.adapter) - asked),
            }
        except SlmError:  # a server that is gone
            return {}

    def _keep(self, exchange: Exchange, shown: ShownAnswer, way: Route, counted: dict[str, int]) -> None:
        """What was said, whole or not; nothing said leaves an older answer as it was."""
        finish = shown.finish
        if not (shown.text or finish):
            return
        exchange.answer = shown.text
        exchange.facts = {"adapter": finish.adapter if finish else way.adapter, "reason": way.reason}
        if finish is None:
            exchange.facts |= {"stopped": True, **counted}
        else:
            exchange.facts |= {
                # An engine of ours is asked by the name that was chosen here; a server chooses itself.
                "reason": way.reason or finish.route_reason, "finish_reason": finish.reason,
                "prompt_tokens": finish.prompt_tokens, "completion_tokens": finish.completion_tokens,
                "decode_tokens_per_s": finish.timings()["decode_tokens_per_s"], "ttft_s": round(shown.first_s, 3),
            }  # fmt: skip
        self.keeper.answered(exchange)

    def _close_turn(self, exchange: Exchange, shown: ShownAnswer, grounded: Grounded | None, desk: Desk) -> None:
        """What stands under an answer: its sources, its figures, how full the context is."""
        if grounded:
            sources = sources_of(grounded)
            show_sources(sources, self.beside)
            if shown.text or shown.finish:
                exchange.facts["sources"] = [_source(source) for source in sources]
                self.keeper.answered(exchange)
        reason = exchange.facts.get("reason", "") if self.wanted == "auto" else ""
        dim(figures(exchange.facts.get("adapter"), reason, shown, exchange.facts.get("completion_tokens", 0)))
        if desk.talker.context and "prompt_tokens" in exchange.facts:
            self.used = used_by([exchange])
            self._warn(desk)

    def _warn(self, desk: Desk) -> None:
        share = self.used / room_for(desk.talker.context, self.sampling.max_tokens)
        if share >= ALMOST_FULL and not self._warned:
            self._warned = True
            note("the context is nearly full; soon the oldest questions are left out of what the model is sent")

    def _fit(self, earlier: Sequence[Exchange], asked: Sequence[Message], way: Route, desk: Desk) -> Sent:
        """What is sent; of what is left out the user is told before."""
        talker = desk.talker
        sent = fitting(
            self.system, earlier, asked, self.first, lambda messages: talker.count(messages, way.adapter),
            room_for(talker.context, self.sampling.max_tokens),
        )  # fmt: skip
        if sent.first > self.first and not self._told_full:
            self._told_full = True  # once: from then on each question leaves out an older one
            note(
                f"the context of {talker.context:,} tokens is full: {_questions(sent.first)} from the beginning "
                "and what was answered are not sent any more, and so on from now on; /clear begins anew"
            )
        self.first = sent.first
        return sent

    def _tell_alone(self, earlier: Sequence[Exchange]) -> None:
        """Say once what a reader does not take, where there is some of it."""
        if not self._told_alone and (self.system or earlier):
            self._told_alone = True
            left_out = ["no system text"] * bool(self.system) + ["no earlier turns"] * bool(earlier)
            dim(f"[the reader takes {' and '.join(left_out)}; /reader model does]")

    def _point(self, exchange: Exchange, retriever: Retriever, reader: Reader) -> None:
        """The reader's answer to the question, with its lines."""
        began = time.perf_counter()
        with self._stoppable() as stop:
            try:
                pointed = retriever.pointed(exchange.question, reader)
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                dim(f"[{reader.name} · stopped]")
                return
            stop.over()
            sources = pointed_sources(pointed)
            exchange.answer = pointed.text
            exchange.facts = {
                "adapter": reader.name, "reader": reader.name, "sources": [_source(source) for source in sources],
            }  # fmt: skip
            self.keeper.answered(exchange)
            for row in self.rows(pointed.text):
                click.echo(row)
            show_pointed(pointed, self.beside)
        dim(f"[{reader.name} · {pointed.tokens} tokens read · {time.perf_counter() - began:.2f} s]")

    def _screen(self) -> AnswerScreen | None:
        if not self.drawn:
            return None
        from serve.chat.screen.painter import Painter

        def write(codes: str) -> None:
            sys.stdout.write(codes)
            sys.stdout.flush()

        return Painter(write, ascii_only=not says("•│─☐"))

    @contextmanager
    def _stoppable(self) -> Iterator[_Stop]:
        """Here the first Ctrl-C stops the answer; further ones do nothing, so that what was said is kept."""
        stop = _Stop()
        if not self.interactive or threading.current_thread() is not threading.main_thread():
            yield stop
            return
        before = signal.signal(signal.SIGINT, stop.interrupt)
        try:
            with silent_keys() if sys.stdin.isatty() else nullcontext():
                yield stop
        finally:
            signal.signal(signal.SIGINT, before)


class _Stop:
    """Whether Ctrl-C still has something to stop."""

    def __init__(self) -> None:
        self._armed = True

    def over(self) -> None:
        self._armed = False

    def interrupt(self, *_: Any) -> None:
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt


def figures(adapter: str | None, reason: str, shown: ShownAnswer, stopped_after: int = 0) -> str:
    """One line about an answer: who, tokens a second, tokens (of a stopped one as counted), seconds to the first."""
    who = adapter or "base"
    why = f" ({reason})" if reason else ""
    finish: Finish | None = shown.finish
    if finish is None:
        return f"[{who}{why}{f' · {stopped_after} tokens' if stopped_after else ''} · stopped]"
    speed = finish.timings()["decode_tokens_per_s"]
    rate = f" · {speed} tok/s" if speed else ""
    cut = " · cut at the length limit" if finish.reason == "length" else ""
    tokens = "1 token" if finish.completion_tokens == 1 else f"{finish.completion_tokens} tokens"
    return f"[{who}{why}{rate} · {tokens} · first after {shown.first_s:.2f} s{cut}]"


def _source(source: ShownSource) -> dict[str, Any]:
    passage = source.passage
    return {
        "number": source.number, "cited": source.cited, "place": passage.place, "source": passage.source,
        "quote": source.quote, "text": passage.text,
    }  # fmt: skip


def _questions(count: int) -> str:
    return "1 question" if count == 1 else f"{count} questions"


def dim(text: str) -> None:
    """A line beside the conversation."""
    from slm.terminal.console import err

    err().print(text, style="dim", markup=False)

"""The interactive chat in a terminal. It knows nothing of how a model is loaded or an index searched.

With a terminal: a prompt with editing and history, answers as they come, Ctrl-C stops the answer only.
With a pipe: one line is one turn, and only answers go to stdout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import click

from serve.engine.engine import Engine
from slm.errors import InputError, SlmError
from slm.joints import Message, PieceScores, Reader, Retriever, SamplingOptions
from slm.terminal.answer import ShownAnswer, show_pointed, show_sources, sources_of
from slm.terminal.console import complain, note
from slm.terminal.piped import is_terminal, stdin_lines

HELP = """\
/adapter NAME    answer with an adapter, with `auto` (by language) or with `base`; alone: show them
/reader WHO      with --rag: let the reader point at lines (point) or the model answer (model); alone: show who does
/reset           begin a new conversation
/help            this text
/exit            leave (also Ctrl-D)
Ctrl-C stops an answer; \\ at the end of a line goes on on the next one."""


class _Leave(Exception):
    """The user wants to go."""


@dataclass
class Chat:
    """One session: the conversation so far and which adapter is to answer.

    reader: who answers from the retriever's documents, and points: whether it does now. None: the model always does.
    """

    engine: Engine
    wanted: str | None
    sampling: SamplingOptions
    retriever: Retriever | None = None
    system: str = ""
    reader: Reader | None = None
    points: bool = True
    messages: list[Message] = field(default_factory=list)

    def run(self) -> None:
        """Talk until the input ends, /exit, Ctrl-D, or Ctrl-C twice at an empty line."""
        self._reset()
        read = _terminal_reader(self._prompt) if is_terminal() else _pipe_reader()
        interrupted = False
        while True:
            try:
                line = read()
                interrupted = False
            except EOFError:
                return
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                note("Ctrl-C again, or Ctrl-D, leaves the chat")
                continue
            try:
                self.turn(line)
            except _Leave:
                return

    def turn(self, line: str) -> None:
        """One line from the user: a command or a question. Errors are shown; the session goes on."""
        text = line.strip()
        if not text:
            return
        try:
            if text.startswith("/"):
                self._command(text)
            else:
                self._ask(text)
        except SlmError as error:
            if not is_terminal():
                raise  # a script has to notice
            complain(str(error))

    def _command(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        argument = argument.strip()
        if name in ("/exit", "/quit"):
            raise _Leave
        if name == "/reset":
            self._reset()
            note("a new conversation begins")
        elif name == "/adapter" and argument:
            self.engine.route(argument, [])  # an unknown name is an error here, not at the next question
            self.wanted = argument
        elif name == "/adapter":
            names = [a for a in self.engine.adapters() if self.reader is None or a.name != self.reader.name]
            known = ", ".join(f"{a.name} ({a.language or 'no language'})" for a in names) or "none"
            note(f"now: {self.wanted or 'base'}; adapters: {known}; also: auto, base")
        elif name == "/reader":
            self._choose_reader(argument)
        else:
            note(HELP if name == "/help" else f"unknown command {name}\n{HELP}")

    def _choose_reader(self, who: str) -> None:
        if self.retriever is None:
            raise InputError("there are no documents to read", hint="Start with: slm chat MODEL --rag INDEX")
        if who == "point" and self.reader is None:
            raise InputError("there is no reader that points at lines", hint="Start with --reader FOLDER.")
        if who not in ("", "point", "model"):
            raise InputError(f"'{who}' answers nothing", hint="Say /reader point or /reader model.")
        if who:
            self.points = who == "point"
        names = [f"point ({self.reader.name})", "model"] if self.reader else ["model"]
        now = names[0] if self.points else "model"
        others = "".join(f"; also: {name}" for name in names if name != now)
        note(f"documents are answered by: {now}{others}")

    def _reset(self) -> None:
        self.messages = [Message(role="system", content=self.system)] if self.system else []

    def _prompt(self) -> str:
        return f"{self.wanted or 'base'}> "

    def _ask(self, text: str) -> None:
        asked = [*self.messages, Message(role="user", content=text)]
        if self.retriever and self.reader and self.points:
            self._point(self.retriever, self.reader, asked)
            return
        way = self.engine.route(self.wanted, asked)
        # Routed by the question; the passages may be in another language.
        grounded = self.retriever.grounded(text) if self.retriever else None
        sent = grounded.messages if grounded else asked
        shown = ShownAnswer()
        try:
            with closing(self.engine.chat(sent, adapter=way.adapter, sampling=self.sampling, fit=True)) as pieces:
                shown.show(pieces, grounded)
        except KeyboardInterrupt:
            if not is_terminal():
                raise
        if grounded:
            show_sources(sources_of(grounded), note)
        if shown.text or shown.finish:
            self.messages = [*asked, Message(role="assistant", content=shown.text)]
        _dim(_figures(way.adapter, way.reason if self.wanted == "auto" else "", shown))

    def _point(self, retriever: Retriever, reader: Reader, asked: list[Message]) -> None:
        """The reader's answer to the last question, with its lines."""
        read: list[PieceScores] = []

        def judge(prompts: Sequence[Sequence[str]]) -> list[list[float]]:
            read.append(self.engine.scores(prompts, reader.contrast, adapter=reader.name))
            return read[-1].scores

        began = time.perf_counter()
        try:
            pointed = retriever.pointed(asked[-1]["content"], reader, judge)
        except KeyboardInterrupt:
            if not is_terminal():
                raise
            _dim(f"[{reader.name} · stopped]")
            return
        click.echo(pointed.text)
        show_pointed(pointed, note)
        self.messages = [*asked, Message(role="assistant", content=pointed.text)]
        tokens = sum(one.prompt_tokens for one in read)
        _dim(f"[{reader.name} · {tokens} tokens read · {time.perf_counter() - began:.2f} s]")


def _figures(adapter: str | None, reason: str, shown: ShownAnswer) -> str:
    who = adapter or "base"
    why = f" ({reason})" if reason else ""
    finish = shown.finish
    if finish is None:
        return f"[{who}{why} · stopped]"
    speed = finish.timings()["decode_tokens_per_s"]
    rate = f" · {speed} tok/s" if speed else ""
    cut = " · cut at the length limit" if finish.reason == "length" else ""
    return f"[{who}{why}{rate} · {finish.completion_tokens} tokens · first after {shown.first_s:.2f} s{cut}]"


def _dim(text: str) -> None:
    from slm.terminal.console import err

    err().print(text, style="dim", markup=False)


def _pipe_reader() -> Callable[[], str]:
    lines = stdin_lines()

    def read() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    return read


def _terminal_reader(prompt: Callable[[], str]) -> Callable[[], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import InMemoryHistory

    commands = WordCompleter(["/adapter", "/reader", "/reset", "/help", "/exit"], sentence=True)
    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory(),
        auto_suggest=AutoSuggestFromHistory(),
        completer=commands,
        complete_while_typing=False,
    )

    def read() -> str:
        lines = [session.prompt(prompt())]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(session.prompt("... "))
        return "\n".join(lines)

    return read

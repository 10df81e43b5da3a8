"""Opens what a chat needs, in the background while the prompt is there already, and opens others on the way.

It knows nothing of what is said. What is new is opened before the old is closed: where it fails, the chat goes on as
it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from serve.chat.talker import LocalTalker, Talker
from slm.errors import InputError, MismatchError
from slm.joints import Joints, Reader, Retriever
from slm.terminal.asking import reader_for
from slm.terminal.console import note

_AT_SERVER = " at http"  # between a model's name and the rest of its server's address


@dataclass(frozen=True)
class Setup:
    """What a chat is opened with. url: a server in place of a model of ours (then `model` is its name there)."""

    model: str
    adapters: Mapping[str, Path] = field(default_factory=dict)
    index: str | None = None
    reader: str = "auto"
    refuse_at: float | None = None
    threads: int = 0
    context: int = 4096
    url: str = ""
    key: str = field(default="", repr=False)

    @property
    def label(self) -> str:
        """The model as a session remembers it: a path from anywhere, a server with its address."""
        if self.url:
            return f"{self.model or 'model'}{_AT_SERVER}{self.url.removeprefix('http')}"
        return str(Path(self.model).absolute()) if Path(self.model).exists() else self.model


def server_of(label: str) -> tuple[str, str] | None:
    """The model's name there and the address, of the label of a chat with a server; None for a model of ours."""
    name, there, rest = label.partition(_AT_SERVER)
    return (name, f"http{rest}") if there else None


@dataclass(frozen=True)
class Desk:
    """What is open: who talks, the documents, who reads them."""

    setup: Setup
    talker: Talker
    retriever: Retriever | None = None
    reader: Reader | None = None


class Opening:
    """The desk of a chat, from its start to its end. Close it.

    open_desk(setup, stack): opens everything; what has to be closed goes on the stack.
    """

    def __init__(self, setup: Setup, open_desk: Callable[[Setup, ExitStack], Desk]) -> None:
        self.setup = setup
        self._open = open_desk
        self._desk: Desk | None = None
        self._stack = ExitStack()
        self._fault: BaseException | None = None
        self._thread: threading.Thread | None = None

    def begin(self, told: Callable[[BaseException | None], None]) -> None:
        """Open it in the background. told: is called there with what went wrong, or None."""

        def work() -> None:
            try:
                self._open_first()
            except BaseException as error:  # raised again where the desk is asked for
                self._fault = error
            told(self._fault)

        self._thread = threading.Thread(target=work, name="opening", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether there is nothing to talk to."""
        return self._fault is not None

    @property
    def is_open(self) -> bool:
        """Whether `desk` gives it without waiting."""
        return self._desk is not None

    def desk(self) -> Desk:
        """What is open; waits for it. Raises what opening it did."""
        if self._thread is not None:
            self._thread.join()
        if self._fault is not None:
            raise self._fault
        return self._desk or self._open_first()

    def _open_first(self) -> Desk:
        desk = self._open(self.setup, self._stack)
        self.setup, self._desk = desk.setup, desk  # a server has told its model's name
        return desk

    def change(self, setup: Setup) -> Desk:
        """Open another desk; the old one stays where that fails."""
        old, stack = self._stack, ExitStack()
        self.desk()
        try:
            desk = self._open(setup, stack)
        except BaseException:
            stack.close()
            raise
        self.setup, self._desk, self._stack = desk.setup, desk, stack
        old.close()
        return desk

    def close(self) -> None:
        """Close everything; what is being opened is waited for."""
        if self._thread is not None:
            self._thread.join()
        self._stack.close()


def local_desk(joints: Joints) -> Callable[[Setup, ExitStack], Desk]:
    """Opens models of ours."""

    def opened(setup: Setup, stack: ExitStack) -> Desk:
        from serve.engine.engine import open_engine
        from serve.engine.options import tell_of_context

        path = joints.gguf_of(setup.model)
        reader = reader_for(joints, setup.reader, setup.refuse_at) if setup.index else None
        retriever = stack.enter_context(joints.open_retriever(setup.index)) if setup.index else None

        engine = stack.enter_context(
            open_engine(path, setup.adapters, context=setup.context, threads=setup.threads, parallel=1)
        )
        tell_of_context(engine.context, setup.context)
        return Desk(setup, LocalTalker(engine), retriever, reader)

    return opened


def remote_desk(joints: Joints) -> Callable[[Setup, ExitStack], Desk]:
    """Opens servers, with documents of ours where there is an index."""

    def opened(setup: Setup, stack: ExitStack) -> Desk:
        from serve.chat.remote import RemoteTalker

        talker = RemoteTalker(setup.url, setup.key, setup.model)
        stack.callback(talker.close)
        reader = reader_for(joints, setup.reader, setup.refuse_at) if setup.index else None
        retriever = stack.enter_context(joints.open_retriever(setup.index)) if setup.index else None
        return Desk(replace(setup, model=talker.name, url=talker.url), talker, retriever, reader)

    return opened


def another_model(opening: Opening, model: str) -> Desk:
    """The same with another model. Adapters of the old one that do not belong to it are left out, which is noted."""
    setup = replace(opening.setup, model=model)
    try:
        return opening.change(setup)
    except MismatchError as error:
        if not setup.adapters:
            raise
        desk = opening.change(replace(setup, adapters={}))
        note(f"without {', '.join(setup.adapters)}: {error.what}")
        return desk


def another_index(opening: Opening, index: str | None) -> Desk:
    """The same with another index, or without one."""
    if opening.setup.index is None and index is None:
        raise InputError("there are no documents to leave", hint="Answer from an index with /rag INDEX.")
    return opening.change(replace(opening.setup, index=index))

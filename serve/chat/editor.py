"""Where a line of the chat comes from: a prompt with editing (its keys, its completion), a plain terminal, or a pipe.

It knows nothing of commands' meaning, or of models.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import click

from serve.chat.commands import COMMANDS
from slm.terminal.piped import stdin_lines
from slm.terminal.streams import coloured

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

Complete = Callable[[str, str], Sequence[str]]
"""(command, the beginning of its argument) -> the arguments there are."""


class LineReader(Protocol):
    """Reads what the user types."""

    def read(self, prompt: str, default: str = "") -> str:
        """The next line, or several in one; "" where what was typed is dropped.

        default: what stands there to be edited. Raises EOFError at the end, KeyboardInterrupt at an empty prompt.
        """
        ...


class PipedLines:
    """Lines of stdin, of any encoding."""

    def __init__(self) -> None:
        self._lines: Iterator[str] = stdin_lines()

    def read(self, prompt: str, default: str = "") -> str:
        for line in self._lines:
            return line.rstrip("\r\n")
        raise EOFError


class PlainLines:
    """A terminal that can only print, or a person who wants no more: its own line editing; the prompt on stderr."""

    def read(self, prompt: str, default: str = "") -> str:
        lines: list[str] = []
        while True:
            click.echo("... " if lines else prompt, nl=False, err=True)
            raw = sys.stdin.buffer.readline()
            if not raw:
                click.echo(err=True)
                raise EOFError
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])


class Editor:
    """prompt_toolkit's prompt: history and its search, several lines, completion, a toolbar.

    earlier(): what was asked before, latest first. toolbar(): its text. complete: arguments of commands.
    """

    def __init__(
        self, earlier: Callable[[], list[str]], toolbar: Callable[[], str], complete: Complete = lambda *_: ()
    ) -> None:
        self._session = _session_of(earlier, toolbar, complete)

    def read(self, prompt: str, default: str = "") -> str:
        try:
            return self._session.prompt(prompt, default=default)
        except KeyboardInterrupt:
            if not self._session.default_buffer.text:
                raise
            return ""

    def leave(self, error: BaseException) -> None:
        """From another thread: end a prompt that is open with an error."""
        app = self._session.app
        if app.loop is not None:
            app.loop.call_soon_threadsafe(lambda: app.exit(exception=error) if app.is_running else None)

    def refresh(self) -> None:
        """From another thread: draw the toolbar anew."""
        self._session.app.invalidate()


def _session_of(earlier: Callable[[], list[str]], toolbar: Callable[[], str], complete: Complete) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import History
    from prompt_toolkit.layout.processors import TabsProcessor
    from prompt_toolkit.output import ColorDepth
    from prompt_toolkit.styles import Style

    class AskedBefore(History):
        """Questions are kept with their sessions, so nothing is stored here."""

        def load_history_strings(self) -> Iterable[str]:
            yield from earlier()

        def store_string(self, string: str) -> None:
            return

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: Any) -> Iterable[Completion]:
            for word, typed, help in completions(document.text, complete):
                yield Completion(word, -len(typed), display_meta=help)

    session: PromptSession[str] = PromptSession(
        history=AskedBefore(),
        auto_suggest=AutoSuggestFromHistory(),
        completer=Commands(),
        complete_while_typing=Condition(lambda: get_app().current_buffer.text.startswith("/")),
        multiline=True,
        prompt_continuation="... ",
        key_bindings=_keys(),
        input_processors=[TabsProcessor(char1=" ", char2=" ")],  # of pasted code; ^I else
        enable_suspend=True,
        bottom_toolbar=toolbar,
        reserve_space_for_menu=6,
        style=Style.from_dict({"bottom-toolbar": "noreverse", "bottom-toolbar.text": ""}),
        color_depth=ColorDepth.DEPTH_1_BIT if coloured() is False else None,
    )
    return session


def completions(text: str, complete: Complete) -> Iterator[tuple[str, str, str]]:
    """How a line that begins a command may go on: (word, what of it is typed, what it does); nothing for a question."""
    if not text.startswith("/") or "\n" in text:
        return
    name, space, argument = text.partition(" ")
    if not space:
        for command in COMMANDS:
            if command.name.startswith(name[1:]):
                yield f"/{command.name}", name, command.help
        return
    for word in complete(name[1:], argument.lstrip()):
        if word.startswith(argument.lstrip()):
            yield word, argument.lstrip(), ""


def _keys() -> KeyBindings:
    """Enter sends, Alt-Enter and a backslash before Enter go on in a new line."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # in a search Enter takes what was found, as prompt_toolkit does it

    @keys.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


@contextmanager
def silent_keys(*, kept: bool = False) -> Iterator[None]:
    """While an answer runs, what is typed is not shown between its words; it stands at the next prompt.

    kept: key by key, for the editor. A terminal that gathers lines takes Ctrl-D for the end of one, and the prompt that
    comes reads a NUL in its place (Linux, n_tty).
    """
    try:
        import termios
    except ImportError:
        yield
        return
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (termios.error, OSError, ValueError):  # no terminal
        yield
        return
    keys = before[0] & ~termios.ICRNL if kept else before[0]
    off = termios.ECHO | termios.ICANON if kept else termios.ECHO
    # Ctrl-C would take away what has been typed ahead (NOFLSH: it does not).
    silent = [keys, *before[1:3], before[3] & ~off | termios.NOFLSH, *before[4:]]
    termios.tcsetattr(descriptor, termios.TCSANOW, silent)
    continued = None
    if threading.current_thread() is threading.main_thread():  # a shell gives a job its terminal back as it likes

        def again(*_: Any) -> None:
            with suppress(termios.error):
                termios.tcsetattr(descriptor, termios.TCSANOW, silent)

        continued = signal.signal(signal.SIGCONT, again)
    try:
        yield
    finally:
        if continued is not None:
            signal.signal(signal.SIGCONT, continued)
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSANOW, before)

"""The options of `slm serve` that say who may ask, and how much. They become a `serve.server.guard.Policy`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from serve.server.guard import LOOPBACK_NAMES, MAX_ANSWERS, Keys, Limits, Policy, host_name, keys_of_text
from slm.errors import DamagedFileError, InputError, MissingFileError
from slm.terminal.arguments import FiniteRange
from slm.terminal.console import note
from slm.text.address import bracketed
from slm.text.encoding.decode import decode

_F = TypeVar("_F", bound=Callable[..., Any])
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_DEFAULT = Limits()


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of bytes, like 10MB, 512kB or 1MiB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)\s*([a-z]*)", str(value).strip(), re.IGNORECASE)
        if not match or match[2].lower() not in _UNITS:
            self.fail(f"'{value}' is no size, like 10MB or 512kB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].lower()])


class Origin(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A web origin: scheme and host, and the port where it is not the scheme's own."""

    name = "ORIGIN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        origin = str(value).strip().lower().removesuffix("/")
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:]+\]|[^\s/:@*?#\[\]]+)(?::\d{1,5})?", origin):
            self.fail(f"'{value}' is no origin, like https://chat.example.com", param, ctx)
        return origin


_OPTIONS = (
    click.option("--api-key-env", metavar="VAR", help="Environment variable with the API key that clients must send."),
    click.option(
        "--api-key-file", type=click.Path(path_type=Path), metavar="FILE", help="File with an API key a line."
    ),
    click.option("--no-key-ok", is_flag=True, help="Allow other hosts than loopback without an API key."),
    click.option(
        "--allow-host", "hosts", multiple=True, metavar="NAME",
        help="Another name this server is asked by (a proxy's, say); on loopback only its own names are answered.",
    ),
    click.option("--cors-origin", "origins", multiple=True, type=Origin(), help="Web pages of this origin may ask."),
    click.option("--max-body", type=Size(), default="10MB", show_default=True, help="Largest request."),
    click.option(
        "--max-prompt", type=click.IntRange(0), default=0, metavar="CHARS",
        help="Longest prompt in characters. [default: 32 for each token of the context]",
    ),
    click.option(
        "--max-n", type=click.IntRange(1, MAX_ANSWERS), default=_DEFAULT.choices, show_default=True,
        help="Answers to one request.",
    ),
    click.option(
        "--max-queue", type=click.IntRange(1, 100_000), default=_DEFAULT.queue, show_default=True,
        help="Answers running and waiting; more are told when to come again.",
    ),
    click.option(
        "--request-timeout", type=FiniteRange(0), default=_DEFAULT.request_s, show_default=True,
        help="Seconds for an answer, waiting included; 0: no limit.",
    ),
    click.option(
        "--keep-alive", type=click.IntRange(1), default=int(_DEFAULT.idle_s), show_default=True,
        help="Seconds that an idle connection stays open.",
    ),
    click.option("--access-log", is_flag=True, help="A line on stderr for each request, without query or content."),
)  # fmt: skip
_CONNECTION_OPTIONS = (
    click.option(
        "--max-connections", type=click.IntRange(1, 100_000), default=_DEFAULT.connections, show_default=True,
        help="Connections open at once; idle ones give way.",
    ),
    click.option(
        "--read-timeout", type=FiniteRange(0, min_open=True), default=_DEFAULT.read_s, show_default=True,
        help="Seconds for a client to send its request's head, and its body.",
    ),
)  # fmt: skip


def guard_options(function: _F) -> _F:
    """Add the options; the command passes them to `GuardOptions` as they come."""
    for option in reversed((*_OPTIONS, *_CONNECTION_OPTIONS)):
        function = option(function)
    return function


def door_options(function: _F) -> _F:
    """`guard_options` without those about connections, for a server behind another program's proxy."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True)
class GuardOptions:
    """What the options say, by the names of `guard_options`. Sizes in bytes and characters, times in seconds."""

    api_key_env: str | None = None
    api_key_file: Path | None = None
    no_key_ok: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body: int = _DEFAULT.body_bytes
    max_prompt: int = _DEFAULT.prompt_characters
    max_n: int = _DEFAULT.choices
    max_queue: int = _DEFAULT.queue
    max_connections: int = _DEFAULT.connections
    request_timeout: float = _DEFAULT.request_s
    read_timeout: float = _DEFAULT.read_s
    keep_alive: int = int(_DEFAULT.idle_s)
    access_log: bool = False


def policy_of(host: str, options: GuardOptions) -> Policy:
    """What the options say, for a server on `host`. Raises InputError: no key found, or none and not on loopback."""
    keys: tuple[str, ...] = (key_of_env(options.api_key_env),) if options.api_key_env else ()
    keys += _keys_of_file(options.api_key_file) if options.api_key_file else ()
    loopback = is_loopback(host)
    if not loopback and not keys and not options.no_key_ok:
        raise InputError(
            f"'{host}' can be reached from other machines and no API key is set",
            hint="Name a variable with --api-key-env VAR, a file with --api-key-file FILE, or say --no-key-ok.",
        )
    named = {host_name(name) for name in options.hosts} | {host_name(bracketed(host))}
    return Policy(
        keys=Keys(keys),
        limits=Limits(
            body_bytes=options.max_body, prompt_characters=options.max_prompt, choices=options.max_n,
            queue=options.max_queue, request_s=options.request_timeout, read_s=options.read_timeout,
            idle_s=options.keep_alive, connections=options.max_connections,
        ),
        hosts=frozenset(named | LOOPBACK_NAMES) if loopback or options.hosts else None,
        origins=options.origins,
        access_log=options.access_log,
    )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_of_env(name: str) -> str:
    """The API key in an environment variable, which is taken out of it. Raises InputError where there is none."""
    key = os.environ.pop(name, "").strip()  # no child process needs it
    if not key:
        raise InputError(f"the environment variable '{name}' holds no API key")
    return key


def _keys_of_file(path: Path) -> tuple[str, ...]:
    try:
        found = decode(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no key file '{path}'") from error
    except (OSError, DamagedFileError) as error:
        reason = error.what if isinstance(error, DamagedFileError) else error.strerror or type(error).__name__
        raise InputError(f"the key file '{path}' cannot be read", found=reason) from error
    if found.note:  # a key that is guessed at is none
        raise InputError(f"the key file '{path}' cannot be read", found=found.note)
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        note(f"warning: other users may read the keys in '{path}'; close it with: chmod 600 {path}")
    return keys_of_text(found.text, str(path))

"""Taking the port that `slm serve` listens on. It knows nothing of HTTP or of the engine."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

from slm.errors import ResourceError
from slm.terminal.console import note
from slm.text.address import with_port

# `localhost` is either, and which one a program tries first is its own affair (RFC 6761, section 6.3).
_BOTH_LOOPBACKS = ("127.0.0.1", "localhost")
_TRIES = 8


def bind(stack: ExitStack, host: str, port: int) -> list[socket.socket]:
    """Listening sockets, the first of which is the host's; the stack closes them. Raises ResourceError.

    A server on 127.0.0.1 or localhost also listens on ::1 at the same port, where the machine has IPv6: both reach
    this machine only. A port that is taken there is told of, and is an error for `localhost`, which names both.
    """
    if host not in _BOTH_LOOPBACKS:
        return [stack.enter_context(_listener(host, port))]
    for left in reversed(range(_TRIES)):
        first = stack.enter_context(_listener("127.0.0.1", port, said=host))
        chosen = first.getsockname()[1]
        try:
            return [first, stack.enter_context(_listener("::1", chosen))]
        except ResourceError as error:
            cause = error.__cause__
            if not (isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE):
                return [first]  # there is no IPv6 here
            if port == 0 and left:
                first.close()
                continue
            if host == "localhost":
                raise
            note(f"warning: another program listens on [::1]:{chosen}, and may answer in place of this one: {error}")
            return [first]
    raise AssertionError("unreachable")


def url_of(listener: socket.socket) -> str:
    """Where a client finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://{with_port(host, port)}"


def _listener(host: str, port: int, *, said: str = "") -> socket.socket:
    """said: what the user calls this host."""
    shown = said or host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ResourceError(f"cannot listen on '{shown}': {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::1":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise ResourceError(
            f"cannot listen on {with_port(shown, port)}: {error.strerror}",
            hint="Choose another port with --port (0: any free one).",
        ) from error
    return listener

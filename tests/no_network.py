"""Lets the tests' process reach itself and nothing else: no connection, datagram or name look-up leaves the machine.

It is an audit hook, so that no library has a way round it; it cannot be taken away again.
"""

from __future__ import annotations

import errno
import ipaddress
import sys
from typing import Any

_LOCAL_NAMES = ("", "localhost", "localhost.localdomain", "ip6-localhost", "0.0.0.0", "::")
# What a socket was asked for: the argument that is the address, or the host's name.
_EVENTS = {
    "socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0,
}  # fmt: skip

refused: list[str] = []
"""The hosts that were refused so far."""


def block() -> None:
    """From now on a connection to another machine fails as on a machine without a network."""
    sys.addaudithook(_look)


def is_local(host: Any) -> bool:
    """Whether a host's name or number is of this machine; what is no text is of another family (netlink, say)."""
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if not isinstance(name, str) or name in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS:
        return
    asked = arguments[_EVENTS[event]]
    if not event.startswith("socket.get"):
        asked = asked[0] if isinstance(asked, tuple) else None  # a Unix socket is a path
    if not is_local(asked):
        refused.append(str(asked))
        raise OSError(errno.ENETUNREACH, f"the tests reach no other machine, but asked for {refused[-1]}")

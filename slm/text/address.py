"""Addresses as people may see and type them: HOST:PORT, databases without their passwords. It connects to nothing."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from slm.errors import without_passwords

__all__ = ["bracketed", "is_postgres", "passwords_of", "shown_address", "with_port", "without_passwords"]

_SCHEMES = ("postgresql://", "postgres://")
_SECRET = ("password", "sslpassword")


def with_port(host: str, port: int) -> str:
    """HOST:PORT, an address of IPv6 in brackets."""
    return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def is_postgres(name: str) -> bool:
    """Whether a name is an address of PostgreSQL."""
    return name.lower().startswith(_SCHEMES)


def passwords_of(address: str) -> list[str]:
    """The passwords that an address holds, as they are written in it and as they are meant; longest first."""
    found: list[str] = []
    try:
        parts = urlsplit(address)
        found += [parts.password or ""]
        found += [value for key, value in parse_qsl(parts.query) if key.lower() in _SECRET]
    except ValueError:
        pass
    inside = re.match(r"(?i)postgres(?:ql)?://[^:/?#@]*:(.*)@", address)
    found += [inside[1]] if inside else []
    words = {word for one in found for word in (one, unquote(one)) if word}
    return sorted(words, key=lambda word: (-len(word), word))


def shown_address(address: str) -> str:
    """An address as it can be shown and given to a command again: without its password. Other names stay."""
    if not is_postgres(address):
        return address
    try:
        parts = urlsplit(address)
        user, at, host = parts.netloc.rpartition("@")
        query = [(key, value) for key, value in parse_qsl(parts.query) if key.lower() not in _SECRET]
    except ValueError:
        return without_passwords(address)
    if "@" in parts.path:  # of a password with a / in it
        return without_passwords(address)
    netloc = user.partition(":")[0] + at + host
    rest = f"?{urlencode(query, safe='/:,')}" if query else ""
    return without_passwords(f"{parts.scheme}://{netloc}{parts.path}{rest}")

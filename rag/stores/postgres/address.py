"""postgresql://user@host/db?index=NAME: which database, and which index in it. It connects to nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from slm.errors import InputError
from slm.text.address import passwords_of, shown_address, without_passwords

DEFAULT_INDEX = "default"
_NAME = re.compile(r"\w[\w.-]*")
_INDEX = "index"


@dataclass(frozen=True)
class Address:
    """conninfo: what libpq takes, with a password if the address has one. index: a name in the database. shown: the
    address without a password. What is printed of it is `shown` alone."""

    conninfo: str = field(repr=False)
    index: str
    shown: str

    def hidden(self, text: str) -> str:
        """A message of the driver or the server, without the passwords of this address."""
        for password in passwords_of(self.conninfo):
            text = text.replace(password, "***")
        return without_passwords(text)


def address_of(url: str) -> Address:
    """Read an address. Raises InputError for the name of an index that is none."""
    base, _, query = url.partition("?")
    # As they were written: libpq reads percent signs by itself, and a plus is a plus for it.
    rest = [part for part in query.split("&") if part and part.partition("=")[0] != _INDEX]
    named = [part.partition("=")[2] for part in query.split("&") if part.partition("=")[0] == _INDEX]
    index = named[-1] if named else DEFAULT_INDEX
    shown = shown_address(url)
    if not _NAME.fullmatch(index):
        raise InputError(
            f"'{index}' is no name for an index, in {shown}",
            hint="Use letters, digits, '-', '_' and '.', as in postgresql://user@host/db?index=NAME.",
        )
    return Address(base + ("?" + "&".join(rest) if rest else ""), index, shown)

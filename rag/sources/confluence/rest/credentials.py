"""Who asks a Confluence site: a token from the environment or a file, never from a command line.

A token is in no message and in no log: `Credentials` does not show it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slm.artifacts import require_file
from slm.errors import InputError

TOKEN, EMAIL = "CONFLUENCE_TOKEN", "CONFLUENCE_EMAIL"
_HOW = f"Set {TOKEN} (and {EMAIL} for a Cloud site), or name a file that holds the token with --token-file."


@dataclass(frozen=True)
class Credentials:
    """A token, the account it belongs to ("" for a Data Center's personal access token), and where it came from."""

    token: str = field(repr=False)
    email: str = ""
    origin: str = TOKEN

    @property
    def authorization(self) -> str:
        """The value of the Authorization header: Basic for an account with its token, else Bearer."""
        if not self.email:
            return f"Bearer {self.token}"
        return "Basic " + base64.b64encode(f"{self.email}:{self.token}".encode()).decode("ascii")


def find_credentials(token_file: Path | None = None, environment: Mapping[str, str] | None = None) -> Credentials:
    """The token of a file, else of the environment. Raises InputError (none, empty, no token) or MissingFileError."""
    environment = os.environ if environment is None else environment
    origin = TOKEN
    token = environment.get(TOKEN, "")
    if token_file is not None:
        origin = f"the file '{token_file}'"
        token = require_file(token_file, hint=_HOW).read_bytes().decode("utf-8-sig", "replace")
    token = token.strip()
    if not token:
        raise InputError("there is no token to ask Confluence with", found=f"{origin} is empty or not set", hint=_HOW)
    if not (token.isascii() and token.isprintable()) or len(token.split()) != 1:
        raise InputError(f"what {origin} holds is no token", found="blanks, line ends or letters beyond ASCII")
    return Credentials(token, environment.get(EMAIL, "").strip(), origin)

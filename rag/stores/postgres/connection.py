"""Connections to the database, and its errors in our words. It knows nothing of tables.

The driver (psycopg, LGPL) is imported when a connection is asked for. Statements are not prepared on the server, so
that a pooler between us and it (PgBouncer) may hand each transaction to another connection.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rag.stores.postgres.address import Address
from rag.stores.postgres.binary import register_types
from slm.errors import InputError, MissingExtraError, ResourceError, SlmError, UnsupportedError

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[Any]

EXTENSION = "vector"
OLDEST = (0, 8)
"""pgvector goes on searching where a filter leaves too little (hnsw.iterative_scan) from this version on."""
_TIMEOUT_S = 10
_MOST_IDLE = 8
_ENCODED = "A password in an address has its special characters as %40 and so on; PGPASSWORD takes it as it is."


def driver() -> Any:
    """The module psycopg. Raises MissingExtraError."""
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError("psycopg", "postgres") from error
    return psycopg


def connect(address: Address) -> Connection:
    """A new connection; types of pgvector are known to it where the extension is. Raises SlmError."""
    psycopg = driver()
    with told(address):
        try:
            given = psycopg.conninfo.conninfo_to_dict(address.conninfo)
        except UnicodeError:
            raise InputError(f"the address {address.shown} cannot be read", hint=_ENCODED) from None
        timeout = 0 if "connect_timeout" in given or os.environ.get("PGCONNECT_TIMEOUT") else _TIMEOUT_S
        options = {"connect_timeout": timeout} if timeout else {}
        connection: Connection = psycopg.connect(
            address.conninfo, autocommit=True, prepare_threshold=None, fallback_application_name="slm", **options
        )
        try:
            learn_types(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def learn_types(connection: Connection) -> bool:
    """Tell a connection of pgvector's types, wherever the extension was put; whether the database has it.

    Raises UnsupportedError for a version that is too old.
    """
    row = connection.execute(
        "SELECT e.extversion, t.oid, "
        "set_config('search_path', current_setting('search_path') || ', ' || quote_ident(n.nspname), false) "
        "FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "JOIN pg_type t ON t.typnamespace = n.oid AND t.typname = 'vector' WHERE e.extname = %s",
        [EXTENSION],
    ).fetchone()
    if row is None:
        return False
    version = tuple(int(part) for part in str(row[0]).split(".")[:2])
    if version < OLDEST:
        raise UnsupportedError(
            f"the database's pgvector is too old: {row[0]}, needed is {OLDEST[0]}.{OLDEST[1]} or newer",
            hint="Update it on the server, and then in the database: ALTER EXTENSION vector UPDATE;",
        )
    register_types(connection, int(row[1]))
    return True


@contextmanager
def told(address: Address) -> Iterator[None]:
    """Whatever the driver or the server complains of becomes an error of ours, without a password in it."""
    psycopg = driver()
    try:
        yield
    except psycopg.Error as error:
        raise _ours(psycopg, error, address) from None


def _ours(psycopg: Any, error: Any, address: Address) -> SlmError:
    said = address.hidden(" ".join(str(error).split()))
    low = said.lower()
    if isinstance(error, psycopg.errors.InsufficientPrivilege) or "permission denied" in low:
        return InputError(
            f"the account may not do that in {address.shown}", found=said,
            hint="docs/postgres.md has the rights that a writer and a reader need.",
        )  # fmt: skip
    if isinstance(error, psycopg.errors.DiskFull):
        return ResourceError(
            "the database has no disk space left; documents that were written before are in it", found=said,
            hint="Free some space there and run this again.",
        )  # fmt: skip
    if isinstance(error, psycopg.errors.UndefinedTable):
        return ResourceError(
            f"the index in {address.shown} was removed or made anew meanwhile", found=said, hint="Run this again."
        )
    if "password authentication failed" in low or "no password supplied" in low or "authentication failed" in low:
        return InputError(
            f"{address.shown} does not take this user and password", found=said,
            hint=f"Set PGPASSWORD, or a line in ~/.pgpass. {_ENCODED}",
        )  # fmt: skip
    if "does not exist" in low and isinstance(error, psycopg.OperationalError):
        return InputError(
            f"there is no such database or user: {address.shown}", found=said, hint="Make it with: createdb NAME"
        )
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return InputError(f"the address {address.shown} cannot be read", found=said, hint=_ENCODED)
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return ResourceError(
            f"the database {address.shown} cannot be reached", found=said, hint="Check host, port and that it runs."
        )
    return ResourceError(f"the database {address.shown} failed", found=said, hint="See the server's log.")


class Pool:
    """Connections to read by, kept open for the next one who asks; each is used by one thread at a time."""

    def __init__(self, address: Address, begin: str) -> None:
        self._address, self._begin = address, begin
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection inside a transaction that sees one moment of the database. Raises SlmError."""
        connection = self._begun()
        try:
            with told(self._address):
                yield connection
        finally:
            self._give_back(connection)

    def _begun(self) -> Connection:
        psycopg = driver()
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            try:
                connection.execute(self._begin)
                return connection
            except psycopg.Error:  # the server was started anew: none of the others is of use either
                connection.close()
        connection = connect(self._address)
        with told(self._address):
            connection.execute(self._begin)
        return connection

    def _give_back(self, connection: Connection) -> None:
        with suppress(driver().Error):
            connection.execute("ROLLBACK")
            with self._lock:
                if not connection.closed and len(self._idle) < _MOST_IDLE:
                    self._idle.append(connection)
                    return
        connection.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()

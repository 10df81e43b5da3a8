"""The tables, and the steps from each version of them to the next. It knows nothing of what is in them.

All are in the schema `slm`. An index has a row in slm.indexes and a table of its own for its chunks (slm.chunks_ID):
its vectors have one dimension, and one graph over all of them. A step that has been released is never changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag.stores.postgres import connection as connections
from rag.stores.postgres.address import Address
from rag.stores.postgres.connection import driver, learn_types
from slm.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from rag.stores.postgres.connection import Connection

STEPS = (
    """
    CREATE TABLE slm.indexes (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL,
        ready boolean NOT NULL,            -- false while it is being made, unseen by readers
        embedder text NOT NULL,            -- JSON: the embedder's identity
        chunk_tokens integer NOT NULL,
        version bigint NOT NULL DEFAULT 0  -- one more with each transaction that changes what readers see
    );
    CREATE UNIQUE INDEX indexes_name ON slm.indexes (name) WHERE ready;
    CREATE TABLE slm.sources (
        index_id bigint NOT NULL REFERENCES slm.indexes ON DELETE CASCADE,
        root text NOT NULL,
        told text NOT NULL,                -- JSON: kind of source and what a sync knows of it
        PRIMARY KEY (index_id, root)
    );
    CREATE TABLE slm.documents (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        index_id bigint NOT NULL REFERENCES slm.indexes ON DELETE CASCADE,
        key bytea NOT NULL,                -- SHA-256 of the source
        source text NOT NULL,
        version bigint NOT NULL,           -- of the index, when this row was written
        chunks integer NOT NULL,
        lang text NOT NULL,
        space text NOT NULL,
        labels text[] NOT NULL,
        changed timestamptz,
        rules jsonb,                       -- of each list one name has to be the viewer's
        entry text NOT NULL                -- JSON: title, hashes, roots, everything else that is known
    );
    CREATE UNIQUE INDEX documents_key ON slm.documents (index_id, key);
    CREATE TABLE slm.words (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        index_id bigint NOT NULL REFERENCES slm.indexes ON DELETE CASCADE,
        texts integer NOT NULL,
        rows bytea NOT NULL,               -- (texts,) int64, low byte first: document * 2^20 + number of the chunk
        postings bytea NOT NULL
    );
    ALTER TABLE slm.words ALTER COLUMN rows SET STORAGE EXTERNAL, ALTER COLUMN postings SET STORAGE EXTERNAL;
    CREATE INDEX words_index ON slm.words (index_id, id);
    CREATE TABLE slm.centres (
        index_id bigint NOT NULL REFERENCES slm.indexes ON DELETE CASCADE,
        lang text NOT NULL,
        chunks bigint NOT NULL,
        total bytea NOT NULL,              -- the sum of its vectors, (dimension,) float64, low byte first
        PRIMARY KEY (index_id, lang)
    );
    """,
    # What changed since a reader looked last is found without reading all documents.
    "CREATE INDEX documents_version ON slm.documents (index_id, version);",
    # JSON: how its terms are made (rag.index.lexical.terms); of an index that is older it is null.
    "ALTER TABLE slm.indexes ADD COLUMN words text;",
)
_LOCK = 0x736C6D5F6D696772  # "slm_migr"


def version_of(connection: Connection) -> int:
    """How many of the steps the database has; 0: none of our tables. Raises UnsupportedError for more than we know."""
    row = connection.execute("SELECT to_regclass('slm.migrations') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return 0
    found = connection.execute("SELECT coalesce(max(version), 0) FROM slm.migrations").fetchone()
    version = int(found[0]) if found else 0
    if version > len(STEPS):
        raise UnsupportedError(
            "the tables of the database were made by a newer version of this program",
            found=f"version {version}, known up to {len(STEPS)}", hint="Update this program on this machine.",
        )  # fmt: skip
    return version


def migrate(connection: Connection, address: Address) -> None:
    """Bring the tables to this version, in one transaction; several who do so wait for each other.

    Raises InputError (no rights), UnsupportedError (no pgvector on the server, newer tables).
    """
    if version_of(connection) == len(STEPS) and learn_types(connection):
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        if not learn_types(connection):
            _make_extension(connection, address)
            learn_types(connection)
        version = version_of(connection)
        if not version:
            connection.execute("CREATE SCHEMA IF NOT EXISTS slm")
            connection.execute(
                "CREATE TABLE slm.migrations (version integer PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now())"
            )
        for number, step in enumerate(STEPS[version:], start=version + 1):
            connection.execute(step)
            connection.execute("INSERT INTO slm.migrations (version) VALUES (%s)", [number])


def _make_extension(connection: Connection, address: Address) -> None:
    errors = driver().errors
    try:
        connection.execute(f"CREATE EXTENSION IF NOT EXISTS {connections.EXTENSION}")
    except errors.InsufficientPrivilege:
        raise InputError(
            f"the database has no extension pgvector, and this account may not create it: {address.shown}",
            hint="Let its owner run, in that database: CREATE EXTENSION vector;",
        ) from None
    except (errors.FeatureNotSupported, errors.UndefinedFile) as error:
        raise UnsupportedError(
            f"the PostgreSQL server has no pgvector: {address.shown}", found=address.hidden(str(error).split("\n")[0]),
            hint="Install it there (Debian: apt install postgresql-17-pgvector), then run this again.",
        ) from None  # fmt: skip

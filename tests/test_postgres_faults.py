"""An index in PostgreSQL where something is wrong or missing, and by its commands. A real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from click.testing import CliRunner

from rag.answer.retriever import open_retriever
from rag.stores.postgres import connection
from rag.stores.postgres.database import Database
from rag.stores.postgres.schema import STEPS
from slm.errors import InputError, MismatchError, ResourceError, SlmError, UnknownNameError, UnsupportedError
from slm_cli import cli
from tests.own_postgres import as_user, database, in_database, postgres, with_index
from tests.tiny_rag import PairEmbedder, handbook, own_home, page

ROOT = Path(__file__).parent.parent
__all__ = ["database", "handbook", "own_home", "postgres"]


# What takes each step after the first back.
_BACK = ("DROP INDEX slm.documents_version", "ALTER TABLE slm.indexes DROP COLUMN words")


@pytest.mark.parametrize("steps", range(1, len(STEPS)))
def test_tables_of_an_earlier_version_are_brought_to_this_one(database: str, steps: int) -> None:
    store = Database(with_index(database, "i"))
    store.add([page("a.md", "apples are red")], PairEmbedder())
    with psycopg.connect(database) as direct:
        for step in _BACK[steps - 1 :]:
            direct.execute(step)
        direct.execute("DELETE FROM slm.migrations WHERE version > %s", [steps])
    with psycopg.connect(database) as direct:
        assert direct.execute("SELECT max(version) FROM slm.migrations").fetchone() == (steps,)
    with store.opening() as opened, opened.now() as index:  # a reader needs no right to change tables
        assert [chunk.text for chunk in index.chunks] == ["apples are red"]
    store.add([page("b.md", "plums are blue")], PairEmbedder())
    with psycopg.connect(database) as direct:
        assert direct.execute("SELECT max(version) FROM slm.migrations").fetchone() == (len(STEPS),)
        assert direct.execute("SELECT to_regclass('slm.documents_version') IS NOT NULL").fetchone() == (True,)
        direct.execute("INSERT INTO slm.migrations (version) VALUES (99)")
    for act in (store.held, lambda: store.add([page("c.md", "c")], PairEmbedder())):
        with pytest.raises(UnsupportedError, match="newer version"):
            act()


def test_an_index_of_another_embedder_is_refused_and_nothing_written(database: str) -> None:
    store = Database(with_index(database, "i"))
    store.add([page("a.md", "apples")], PairEmbedder())
    with pytest.raises(MismatchError, match="another embedder"):
        store.add([page("b.md", "plums")], PairEmbedder("other"))
    assert list(store.held().documents) == ["a.md"]


def test_what_is_wrong_with_the_database_is_said(postgres: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(url: str) -> SlmError:
        with pytest.raises(SlmError) as raised:
            Database(url).add([page("a.md", "apples")], PairEmbedder())
        return raised.value

    gone = fails("postgresql://slm:s3cret@127.0.0.1:9/none?connect_timeout=2")
    assert isinstance(gone, ResourceError) and "cannot be reached" in gone.what
    assert "no such database" in fails(in_database(postgres, "not_there")).what
    with monkeypatch.context() as patched:
        patched.setattr(connection, "EXTENSION", "vector_that_is_not_there")
        without = fails(database)
    assert isinstance(without, UnsupportedError) and "has no pgvector" in without.what
    with pytest.raises(InputError, match="no name for an index"):
        Database(with_index(database, "a%20b"))
    unread = fails("postgresql://slm:s3cret@host/db?nonsense=1")
    assert isinstance(unread, InputError) and "cannot be read" in unread.what
    for error in (gone, without, unread):
        assert "s3cret" not in str(error)
    with pytest.raises(UnknownNameError, match="unknown index 'i'; known: none"):
        Database(with_index(database, "i")).held()
    with psycopg.connect(database) as direct:
        assert direct.execute("SELECT to_regclass('slm.indexes')").fetchone() == (None,)
        assert direct.execute("SELECT count(*) FROM pg_extension WHERE extname = 'vector'").fetchone() == (0,)


def test_who_may_only_read_reads_and_who_may_not_is_told(database: str) -> None:
    url = with_index(database, "i")
    user = "slm_reader_" + database.split("slm_test_")[1].split("?")[0]
    with psycopg.connect(database, autocommit=True) as direct:
        direct.execute(f"CREATE ROLE {user} LOGIN")
        try:
            with pytest.raises(InputError, match=r"may not create it|may not do that"):
                Database(as_user(url, user)).add([page("a.md", "apples")], PairEmbedder())
            assert direct.execute("SELECT to_regnamespace('slm')").fetchone() == (None,)
            Database(url).add([page("a.md", "apples are red")], PairEmbedder())
            with pytest.raises(InputError, match="may not do that"):
                Database(as_user(url, user)).held()
            direct.execute(f"GRANT USAGE ON SCHEMA slm TO {user}")
            direct.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA slm TO {user}")
            with Database(as_user(url, user)).opening() as opened, opened.now() as index:
                assert [chunk.text for chunk in index.chunks] == ["apples are red"]
            with pytest.raises(InputError, match="may not do that"):
                Database(as_user(url, user)).add([page("b.md", "plums")], PairEmbedder())
            assert list(Database(url).held().documents) == ["a.md"]
        finally:
            direct.execute(f"DROP OWNED BY {user}")
            direct.execute(f"DROP ROLE {user}")


def test_a_reader_goes_on_after_the_server_has_closed_its_connections(database: str) -> None:
    store = Database(with_index(database, "i"))
    store.add([page("a.md", "apples are red")], PairEmbedder())
    with store.opening() as opened:
        with psycopg.connect(database, autocommit=True) as direct:
            direct.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        with opened.now() as index:
            assert [chunk.text for chunk in index.chunks] == ["apples are red"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=True)


def test_the_commands_take_an_address_and_never_show_its_password(
    database: str, handbook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.index.embed.open_embedder", lambda name="pairs": PairEmbedder())
    monkeypatch.setattr("rag.answer.retriever.open_embedder", lambda name="pairs": PairEmbedder())
    parts = urlsplit(database)
    secret = unquote(parts.password or "") or "s3cret/pass"  # a server that trusts everybody takes any
    url = as_user(with_index(database, "handbook"), parts.username or "postgres", secret)
    shown = []
    for arguments in (
        ("rag", "add", url, str(handbook)), ("rag", "add", url, str(handbook), "--json"), ("rag", "status", url),
        ("rag", "status", url, "--json"), ("rag", "search", url, "twenty days"), ("rag", "sync", url),
        ("rag", "sync", url, "--json"), ("rag", "questions", url), ("rag", "remove", url, "en/visitors.md", "--json"),
        ("rag", "copy", url, "there", "--json"), ("rag", "copy", "there", url + "2"), ("rag", "remove", url, "none.md"),
    ):  # fmt: skip
        result = run(*arguments)
        shown.append(result.output + str(result.exception or ""))
        expected = UnknownNameError if arguments[-1] == "none.md" else None
        assert result.exit_code == 0 or isinstance(result.exception, expected or ()), (arguments[:2], result.output)
    assert (
        json.loads(run("rag", "status", url, "--json").stdout)["chunks"]
        == json.loads(run("rag", "status", "there", "--json").stdout)["chunks"]
    )
    assert secret not in "".join(shown) and "s3cret" not in "".join(shown) and "index=handbook" in shown[0]
    assert "5 unchanged" in run("rag", "add", url + "2", str(handbook)).output


def test_a_chat_and_a_server_open_an_index_by_its_address(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = with_index(database, "i")
    store = Database(url)
    store.add([page("leave.md", "twenty days of leave", "Paid leave")], PairEmbedder())
    monkeypatch.setattr("rag.answer.retriever.open_embedder", lambda name: PairEmbedder())
    with open_retriever(url) as retriever:
        assert retriever.search("leave")[0].text == "twenty days of leave"
        store.add([page("leave.md", "thirty days of leave", "Paid leave")], PairEmbedder())
        assert [one.text for one in retriever.grounded("leave").passages] == ["thirty days of leave"]


def test_without_the_driver_the_extra_is_named_and_nothing_else_needs_it(slm: Callable[..., Any]) -> None:
    code = (
        "import sys\nsys.modules['psycopg'] = None\nfrom slm_cli import main\n"
        "sys.argv = ['slm', 'rag', 'search', sys.argv[1], 'x']\nmain()"
    )
    for index, expected in (("postgresql://u:s3cret@h/d", "'.[postgres]'"), ("none", "unknown index 'none'")):
        result = subprocess.run([sys.executable, "-c", code, index], capture_output=True, text=True)
        assert result.returncode == 1 and expected in result.stderr and "s3cret" not in result.stderr

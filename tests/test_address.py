"""Addresses of databases: what names which index, and that no password is ever shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rag.stores.postgres.address import DEFAULT_INDEX, address_of
from slm.errors import InputError
from slm.text.address import is_postgres, shown_address, without_passwords
from slm_cli import cli

SECRETS = [
    ("postgresql://u:s3cret@h/d?index=a", "postgresql://u@h/d?index=a"),
    ("postgres://u:s3%40cret@h:5/d", "postgres://u@h:5/d"),
    ("postgresql://u:s3@cr/et@h/d", None),
    ("postgresql://h/d?user=u&password=s3cret&index=a", "postgresql://h/d?user=u&index=a"),
    ("postgresql:///d?host=/run/postgresql&sslpassword=s3cret", "postgresql:///d?host=/run/postgresql"),
]


@pytest.mark.parametrize(("address", "shown"), SECRETS)
def test_an_address_is_shown_without_its_password_and_names_the_same_index(address: str, shown: str | None) -> None:
    assert is_postgres(address)
    for text in (shown_address(address), without_passwords(f"in '{address}' failed"), str(InputError(f"at {address}")),
                 repr(address_of(address)), address_of(address).hidden(f"said {address}")):  # fmt: skip
        assert "s3cret" not in text and "s3%40cret" not in text and "cr/et" not in text, text
    if shown is not None:
        assert shown_address(address) == shown
        assert address_of(shown_address(address)).index == address_of(address).index


def test_the_index_is_ours_and_the_rest_is_the_drivers() -> None:
    address = address_of("postgresql://u@h/d?sslmode=require&index=wiki-2&application_name=a+b%20c")
    assert (address.conninfo, address.index) == (
        "postgresql://u@h/d?sslmode=require&application_name=a+b%20c",
        "wiki-2",
    )
    assert address_of("postgresql://u@h/d").index == DEFAULT_INDEX
    for name in ("", "a b", "../x", "%2e"):
        with pytest.raises(InputError, match="no name for an index"):
            address_of(f"postgresql://u@h/d?index={name}")


@pytest.mark.parametrize("name", ["handbook", "./path/to?x=1", "C:\\dir", "https://u:p@wiki.example.com"])
def test_other_names_are_shown_as_they_are(name: str) -> None:
    assert not is_postgres(name) and shown_address(name) == name


def test_a_password_in_the_configuration_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[serve]\nrag = "postgresql://u:s3cret@h/d?index=a"\n', encoding="utf-8")
    monkeypatch.setenv("SLM_CONFIG", str(file))
    monkeypatch.setenv("SLM_CHAT_RAG", "postgresql://u:s3cret@h/e")
    plain, listed = CliRunner().invoke(cli, ["config"]), CliRunner().invoke(cli, ["config", "--json"])
    assert plain.exit_code == listed.exit_code == 0
    assert "s3cret" not in plain.output + listed.output
    rows = {row["command"]: row["value"] for row in json.loads(listed.stdout)["settings"]}
    assert rows == {"serve": "postgresql://u:***@h/d?index=a", "chat": "postgresql://u:***@h/e"}

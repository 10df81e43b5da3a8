"""The licence of an export is that of what it was made from, however many steps back, and binding terms stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convert.publish.licence import licence_texts, terms_of
from slm.errors import LicenceError

GEMMA = "gemma-3-270m"


def folder(path: Path, manifest: dict[str, Any] | None = None, card: str = "") -> Path:
    path.mkdir(parents=True)
    if manifest is not None:
        (path / "manifest.json").write_text(json.dumps(manifest))
    if card:
        (path / "README.md").write_text(f"---\n{card}\n---\n")
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with Gemma pulled, terms and notice beside it."""
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    pulled = folder(tmp_path / "home/models" / GEMMA, {"kind": "model", "name": GEMMA})
    for name in ("GEMMA_TERMS.html", "NOTICE.md", "gemma-3-270m-q4_k_m.gguf"):
        (pulled / name).write_text(name)
    return pulled


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A merge of a restored file, as `slm merge` leaves it."""
    restored = folder(tmp_path / "restored", {"kind": "checkpoint", "source": {"file": "gemma-3-270m-q4_k_m.gguf"}})
    return folder(tmp_path / "merged", {"kind": "checkpoint", "base": {"path": str(restored)}})


def test_the_terms_of_the_base_are_found_over_merge_and_restoration(merged: Path, home: Path) -> None:
    terms = terms_of(merged, str(merged), None)
    assert (terms.licence, terms.base, terms.name) == ("gemma", "google/gemma-3-270m", "Gemma Terms of Use")
    assert terms.url == "https://ai.google.dev/gemma/terms"
    assert terms.texts == (home / "GEMMA_TERMS.html", home / "NOTICE.md")


def test_binding_terms_cannot_be_replaced_and_may_be_repeated(merged: Path) -> None:
    with pytest.raises(LicenceError, match="whose terms stay"):
        terms_of(merged, None, "mit")
    assert terms_of(merged, None, "gemma").licence == "gemma"
    assert len(terms_of(merged, None, "Gemma").texts) == 2


def test_a_catalog_name_has_the_catalogs_licence(tmp_path: Path) -> None:
    terms = terms_of(tmp_path, "smollm2-135m-instruct", None)
    assert (terms.licence, terms.base) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert terms.texts == ()
    with pytest.raises(LicenceError, match="not known here"):
        terms_of(tmp_path, "somebody/model", None)


def test_a_card_of_its_own_goes_before_what_it_was_made_from(merged: Path) -> None:
    (merged / "README.md").write_text("---\nlicense: other\nlicense_name: house\nlicense_link: LICENSE\n---\n")
    (merged / "LICENSE").write_text("x")
    terms = terms_of(merged, None, None)
    assert (terms.licence, terms.name, terms.url, terms.texts) == ("other", "house", "LICENSE", (merged / "LICENSE",))


def test_a_model_from_scratch_has_the_licence_that_is_given(tmp_path: Path) -> None:
    made = folder(tmp_path / "5m", {"kind": "checkpoint", "base": {"path": str(tmp_path / "tokenizer")}})
    with pytest.raises(LicenceError, match="does not say under which licence"):
        terms_of(made, str(made), None)
    assert terms_of(made, str(made), "CC0-1.0").licence == "cc0-1.0"
    assert terms_of(made, GEMMA, None).licence == "gemma"


def test_a_chain_that_leads_in_a_circle_ends(tmp_path: Path) -> None:
    made = folder(tmp_path / "a", {"kind": "checkpoint", "base": {"path": str(tmp_path / "a")}})
    with pytest.raises(LicenceError):
        terms_of(made, None, None)


def test_texts_of_terms_are_told_by_their_names(tmp_path: Path) -> None:
    names = ("LICENSE", "LICENCE.md", "NOTICE.txt", "USE_POLICY.md", "GEMMA_TERMS.html", "COPYING")
    for name in (*names, "config.json", "README.md", "license.py", "merges.txt"):
        (tmp_path / name).write_text("x")
    assert {path.name for path in licence_texts(tmp_path)} == set(names)
    assert licence_texts(tmp_path / "gone") == ()

"""Which indexes of the data folder are whole and fit the embedder that is here. It changes nothing.

Embedders that open in no time are opened; a checkpoint folder is known by its files alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from rag.index.embed import embedder_revision
from rag.index.lexical.terms import installed, kept_wording
from rag.index.names import command_anew, index_path, known_indexes
from rag.index.store import open_inventory
from slm.errors import MissingExtraError, MissingFileError, SlmError
from slm.joints import IndexState


def index_states() -> list[IndexState]:
    """Every index that has a name, in the order of the names; a broken one does not hide the others."""
    revision = lru_cache(embedder_revision)
    states = []
    for name in known_indexes():
        try:
            inventory = open_inventory(index_path(name))
        except SlmError as error:
            states.append(IndexState(name, "", 0, 0, error.what, _command(error.hint)))
            continue
        made_with: dict[str, Any] = inventory.manifest["embedder"]
        embedder = str(made_with["name"])
        problem = mend = ""
        try:
            here = revision(embedder)
            if here != made_with["revision"]:
                problem = f"it was made with {embedder} [{made_with['revision']}], and [{here}] is here"
                mend = command_anew(name, inventory.sources)
            words = kept_wording(inventory.words)
            if not problem and installed(words.kind, needed_by=f"--words {words.kind}") != words:
                problem = f"its words were found by {words.made_by}, and {installed(words.kind).made_by} is here"
                mend = command_anew(name, inventory.sources, words.kind)
        except MissingExtraError as error:
            problem, mend = error.what, _command(error.hint)
        except MissingFileError as error:
            problem = f"its embedder is not here: {error.what}"
            mend = _command(error.hint) if "slm pull" in error.hint else command_anew(name, inventory.sources)
        except SlmError as error:
            problem, mend = f"its embedder cannot be used: {error.what}", _command(error.hint)
        states.append(IndexState(name, embedder, len(inventory.documents), inventory.count, problem, mend))
    return states


def _command(hint: str) -> str:
    """The command of a hint ("Make it anew with: slm ...")."""
    return hint.rpartition(": ")[2] if ": slm " in hint else hint

"""Files that are attached to pages, as documents under their page: by the readers of files, by their suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from rag.document import Document, Meta
from rag.sources.confluence.page import file_address, page_id
from rag.sources.files import is_document, read_bytes
from rag.sources.reader import LeftOut, Read, failure_of, language_of
from slm.errors import InputError, SlmError

LARGEST_FILE = 200_000_000
NO_TEXT = "it holds no visible text"

Stored = Callable[[str], bytes | None]
"""The bytes of a file of an export by its path there; None where the export does not hold it.

Raises InputError for what is not read.
"""


@dataclass(frozen=True)
class AttachedFile:
    """A file of a page of an export: what an attachment's id says after "att", its name, and where its bytes are
    ("" where that is not known).

    meta: what is known of it alone; its page says the rest.
    """

    number: str
    name: str
    path: str
    meta: Meta


def read_attached(raw: bytes, title: str, source: str, meta: Meta) -> Read | None:
    """The document that a file holds; None for no text. Raises what its reader raises."""
    if not raw.strip():
        return None
    read = read_bytes(raw, title)
    if not read.document.sections:
        return None
    document = replace(read.document, title=title, source=source, meta=meta)
    return replace(read, document=replace(document, lang=language_of(document)))


def files_of(
    page: Document, files: Iterable[AttachedFile], stored: Stored, base: str, absent: list[str]
) -> Iterator[Read | LeftOut]:
    """The documents that an exported page's files hold, under the page and for whoever may see it.

    Files of other kinds are only named by their page. The names of those that the export does not hold go to `absent`.
    """
    above = page.meta
    for file in files:
        if not file.path or not is_document(file.name):
            continue
        source = f"att{file.number}"
        number = above.id.partition(":")[2]
        meta = replace(
            file.meta, id=page_id(source), space=above.space, ancestors=(*above.ancestors, page.title),
            url=file_address(base, number, file.name) if base else "", restrictions=above.restrictions,
        )  # fmt: skip
        try:
            raw = stored(file.path)
            if raw is None:
                absent.append(file.name)
                continue
            read = read_attached(raw, file.name, source, meta)
        except InputError as error:
            yield LeftOut(source, f"{file.name}: {error.what}", meta.id)
        except (SlmError, ImportError):
            raise  # a missing package is not the file's fault
        except Exception as error:  # one file that a reader fails at must not end the reading of all others
            yield LeftOut(source, f"{file.name}: {failure_of(error)}"[:300], meta.id)
        else:
            yield LeftOut(source, NO_TEXT) if read is None else read

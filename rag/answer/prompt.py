"""Questions to prompts with numbered passages. It knows nothing of models or engines.

Passages are data: they cannot start another numbered passage or another question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rag.answer.candidates import candidates, passages_of
from rag.answer.cite import NOT_FOUND, Citations
from rag.answer.point import Judged, point
from rag.answer.quote import quotes_of
from rag.answer.reading import pieces_of
from rag.index.embed import Embedder, open_embedder
from rag.index.names import index_path
from rag.index.retrieve import search
from rag.index.store import Generation, current_folder, open_generation
from rag.index.update import check_embedder
from slm.errors import InputError, SlmError
from slm.joints import EVERYTHING, Filters, Grounded, Judge, Message, Passage, PointedAnswer, Reader
from slm.terminal.console import note
from slm.text.language import detect
from slm.text.visible import one_line, visible

_INSTRUCTION = {
    "en": (
        "Answer the question using only the passages below. Cite the number of the passage you used in brackets,"
        f" like [1]. If the passages do not contain the answer, say: {NOT_FOUND['en']}."
    ),
    "ja": (
        "次の資料だけを使って質問に答えてください。使った資料の番号を [1] のように示してください。"
        f"資料に答えがない場合は「{NOT_FOUND['ja']}。」と答えてください。"
    ),
}
_QUESTION = {"en": "Question: ", "ja": "質問: "}
# Three passages of about 230 tokens: a Latin letter is about a quarter of a token, a Japanese character two thirds.
PASSAGE_BUDGET = 2800
DEFAULT_PASSAGES = 3
_CJK_COST = 2.6
_CJK = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uf900-\uffef]")
_SENTENCE_END = re.compile(r"[。！？\n]|[.!?](?=\s)")


def _cost(text: str) -> float:
    """The length of a text in Latin letters that make about as many tokens."""
    wide = len(_CJK.findall(text))
    return len(text) - wide + _CJK_COST * wide


def _language(text: str) -> str:
    return detect(text, ("en", "ja")).language or "en"


def defused(text: str) -> str:
    """A passage's text that cannot pose as the prompt's own structure: no blank lines, no numbered start of a line,
    no line that begins with the question's label."""
    lines = [line.rstrip() for line in visible(text).split("\n") if line.strip()]
    lines = [re.sub(r"^(\s*)[\[［【]\s*([0-9０-９]+)\s*[\]］】]", r"\1(\2)", line) for line in lines]
    return "\n".join(re.sub(r"^(\s*)((?:Question|質問)\s*[:：])", r"\1> \2", line) for line in lines)


def passage_head(passage: Passage) -> str:
    """Page title > heading, in one line."""
    return one_line(passage.place)


def fit_passages(passages: Sequence[Passage], budget: float = PASSAGE_BUDGET) -> list[Passage]:
    """The first passages that fit into the budget (in Latin letters); the last one may be cut at a sentence end."""
    fitting: list[Passage] = []
    for passage in passages:
        room = budget - _cost(passage_head(passage)) - 8
        if _cost(passage.text) <= room:
            fitting.append(passage)
            budget = room - _cost(passage.text)
            continue
        ends = [m.end() for m in _SENTENCE_END.finditer(passage.text) if _cost(passage.text[: m.end()]) <= room]
        if ends and (not fitting or ends[-1] * 2 > len(passage.text)):
            cut = passage.text[: ends[-1]].rstrip()
        elif not fitting:
            cut = passage.text[: max(1, int(room / _CJK_COST))]
        else:
            break
        fitting.append(replace(passage, text=cut))
        break
    return fitting


def grounded_messages(question: str, passages: Sequence[Passage]) -> list[Message]:
    """The conversation that asks for an answer from the passages, in the language of the question.

    Raises InputError without a question or without passages.
    """
    if not question.strip():
        raise InputError("the question is empty")
    if not passages:
        raise InputError("there are no passages to answer from")
    language = _language(question)
    blocks = [_INSTRUCTION[language]]
    blocks += [f"[{n}] {passage_head(p)}\n{defused(p.text)}" for n, p in enumerate(passages, start=1)]
    blocks.append(_QUESTION[language] + one_line(question))
    return [{"role": "user", "content": "\n\n".join(blocks)}]


class IndexRetriever:
    """An open index with its embedder (implements slm.joints.Retriever)."""

    def __init__(self, generation: Generation, embedder: Embedder) -> None:
        check_embedder(generation, embedder)
        self.generation, self.embedder = generation, embedder
        self._looked_at = generation.folder

    def _newest(self) -> Generation:
        """The generation that is in use now; the one in memory while a newer one cannot be read, which is noted."""
        path = self.generation.folder.parent
        try:
            folder = current_folder(path)
            if folder is not None and folder != self._looked_at:
                self._looked_at = folder
                newer = open_generation(path, self.generation)
                check_embedder(newer, self.embedder)
                self.generation = newer
        except SlmError as error:
            note(f"the index '{path}' is answered from as it was: {error}")
        return self.generation

    def search(self, query: str, k: int = 5, filters: Filters = EVERYTHING) -> list[Passage]:
        """The best k passages for a query, best first. Raises InputError, as `rag.index.retrieve.search`."""
        generation = self._newest()
        return passages_of(generation, search(generation, self.embedder, query, k, filters=filters))

    def grounded(self, question: str, k: int = DEFAULT_PASSAGES, filters: Filters = EVERYTHING) -> Grounded:
        """The prompt of a question with the best passages; those beyond the budget are left out (`fit_passages`)."""
        passages = fit_passages(self.search(question, k, filters))
        messages = grounded_messages(question, passages)
        return Grounded(messages, passages, Citations(passages), lambda: quotes_of(question, passages, self.embedder))

    def pointed(self, question: str, reader: Reader, judge: Judge, filters: Filters = EVERYTHING) -> PointedAnswer:
        """The lines of the best passages that answer a question, or a refusal (`rag.answer.point`)."""
        passages = candidates(self._newest(), self.embedder, question, filters=filters)
        read = [pieces_of(question, passage) for passage in passages]
        scores = judge([pieces for pieces, _ in read])
        # The first score is that of the place, which is no line.
        judged = [
            Judged(passage, lines, row[1:]) for passage, (_, lines), row in zip(passages, read, scores, strict=True)
        ]
        return point(question, judged, reader.refuse_at)


@contextmanager
def open_retriever(index: str) -> Iterator[IndexRetriever]:
    """Open an index by name or path with the embedder it was made with.

    Raises UnknownNameError, DamagedFileError, MismatchError, MissingFileError (embedder not pulled).
    """
    generation = open_generation(index_path(index))
    yield IndexRetriever(generation, open_embedder(str(generation.manifest["embedder"]["name"])))

"""How a question and a passage are put before a reader: a model that says of each line whether it answers.

Training and answering use the same pieces, each of which is tokenized by itself. It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

from rag.answer.length import about_tokens
from rag.answer.lines import Line, lines_of
from slm.errors import InputError
from slm.joints import Passage
from slm.text.visible import one_line

# Raised whenever the pieces change: a reader that was trained on others does not fit.
FORM = 1
# Longer questions are no questions; a line is judged by its beginning.
MAX_QUESTION, _MAX_PLACE, _MAX_LINE = 2000, 300, 600


def question_piece(question: str) -> str:
    """What comes before every passage. Raises InputError for a question that is empty or far too long."""
    asked = one_line(question)
    if not asked:
        raise InputError("the question is empty")
    if len(asked) > MAX_QUESTION:
        raise InputError(
            f"the question has {len(asked):,} characters, at most {MAX_QUESTION:,} are read",
            hint="Ask in a few sentences.",
        )
    return f"Question: {asked}\nWhich line answers it?\n\n"


def pieces_of(question: str, passage: Passage) -> tuple[list[str], list[Line]]:
    """(the pieces: question, place, one for each line; the lines). The reader's judgement stands at a piece's end."""
    lines = lines_of(passage.text)
    pieces = [question_piece(question), _piece(passage.place, _MAX_PLACE)]
    return pieces + [_piece(line.text, _MAX_LINE) for line in lines], lines


def _piece(text: str, limit: int) -> str:
    return one_line(text)[:limit] + "\n"


def cost(pieces: Sequence[str]) -> int:
    """About how many tokens the pieces after the question make, each beginning anew."""
    return len(pieces) + round(about_tokens("".join(pieces[1:])))

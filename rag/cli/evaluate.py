"""The command `slm rag evaluate`. What is measured, and how, is in rag/evaluate/."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from slm.joints import Finish, Joints, SamplingOptions, pass_joints
from slm.terminal.arguments import NAMED_FILE, one_of_each
from slm.terminal.asking import nobody_answers, ranking_reader, reader_for, with_reader
from slm.text.address import shown_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag.answer.retriever import IndexRetriever
    from rag.questions import Question
    from slm.joints import Message, Reader

HELP = {"help_option_names": ["-h", "--help"]}
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
_ANSWER_TOKENS = 160
_RANKED = 10  # as far as figures go


@click.command(context_settings=HELP)
@click.argument("index")
@click.option("--questions", required=True, type=click.Path(path_type=Path), help="JSON Lines file.")
@click.option(
    "--leg", type=click.Choice(["dense", "lexical", "fused"]), help="Only this one [default: all, fused first]."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw recall by k, language and leg: FILE.png or .svg.")
@click.option("--misses", default=10, show_default=True, type=click.IntRange(0), help="List so many missed questions.")
@click.option("--rerank", metavar="point|FOLDER", help="Measure beside the legs what a reader puts first.")
@click.option("--model", help="Answer the questions too: GGUF file, catalog name or checkpoint folder.")
@click.option("--adapter", "adapters", type=NAMED_FILE, multiple=True, help="Adapter GGUF; routed by language.")
@click.option("-k", default=3, show_default=True, type=click.IntRange(1, 20), help="How many passages to answer from.")
@with_reader
@click.option("--threads", default=0, help="CPU threads [default: the physical cores].")
@JSON
@pass_joints
def evaluate(
    joints: Joints,
    index: str,
    questions: Path,
    leg: Any,
    plot: Path | None,
    misses: int,
    rerank: str | None,
    model: str | None,
    adapters: tuple[tuple[str, Path], ...],
    k: int,
    reader: str,
    refuse_at: float | None,
    threads: int,
    as_json: bool,
) -> None:
    """Measure retrieval on questions with known right documents, by language; with --model or --reader the answers too.

    A question is missed when no right document is among the first five.

    \b
    Example:
      slm rag evaluate handbook --questions data/handbook/questions.jsonl
      slm rag evaluate handbook --questions data/handbook/questions.jsonl --plot recall.png
      slm rag evaluate handbook --questions data/handbook/questions.jsonl --rerank point --reader point
      slm rag evaluate handbook --questions data/handbook/questions.jsonl --model gemma-3-270m --adapter ja=ja.gguf
    """
    from rag.answer.retriever import open_retriever
    from rag.cli.figures import miss_rows, retrieval_rows
    from rag.evaluate.answers import AskOne, by_model, by_reader, evaluate_answers
    from rag.evaluate.picture import draw_recall, require_picture
    from rag.evaluate.retrieval import evaluate as evaluate_retrieval
    from rag.index.retrieve import LEGS
    from rag.questions import read_questions
    from slm.artifacts import require_file
    from slm.terminal.console import emit_json, progress

    asked = read_questions(questions)
    if plot is not None:
        require_picture(plot)
    files = {name: require_file(file) for name, file in one_of_each(adapters).items()}
    source = click.get_current_context().get_parameter_source
    asks = model is not None or refuse_at is not None or source("reader") is not ParameterSource.DEFAULT
    who = reader_for(joints, reader, refuse_at) if asks else None
    if asks and not (who or model):
        raise nobody_answers()
    ranks = ranking_reader(joints, rerank)
    gguf = joints.gguf_of(model) if model and not who else None
    with open_retriever(index) as retriever:
        with progress("searching", total=len(asked), unit="questions") as done, retriever.opened.now() as held:
            result = evaluate_retrieval(
                held, retriever.embedder, asked, leg or "fused", on_question=done, beside=() if leg else LEGS
            )
        if ranks:
            result["legs"]["read"] = _read(retriever, ranks, asked)
        with ExitStack() as stack:
            answer: AskOne | None = None
            if who:
                answer = by_reader(retriever, who)
            elif gguf:
                engine = stack.enter_context(joints.open_engine(gguf, files, threads=threads, context=4096))

                def ask(messages: list[Message]) -> str:
                    sampling = SamplingOptions(max_tokens=_ANSWER_TOKENS)
                    pieces = engine.chat(messages, adapter="auto" if files else None, sampling=sampling)
                    return "".join(piece for piece in pieces if not isinstance(piece, Finish))

                answer = by_model(retriever, ask, k)
            if answer:
                done = stack.enter_context(progress("answering", total=len(asked), unit="questions"))
                result["answering"] = evaluate_answers(answer, asked, on_question=done) | {"reader": who and who.name}
    if plot is not None:
        draw_recall(result, plot, f"{Path(shown_address(index)).name}, {questions.name}")
    if as_json:
        emit_json(result)
        return
    for row in (*retrieval_rows(result), *miss_rows(result, misses)):
        click.echo(row)
    if "answering" in result:
        click.echo()
        _table(result["answering"], "shown", "cited", "right", "wrong", "unsaid")
        overall = result["answering"]["overall"]
        click.echo(
            "shown: a right page among the passages; cited: a right page cited; right: a fact of the questions file "
            f"said ({overall['keyed']} questions name one); wrong: something else said; unsaid: refused though the "
            f"documents answer. {overall['refused']} of {overall['unanswerable']} unanswerable questions were refused."
        )


def _read(retriever: IndexRetriever, reader: Reader, asked: Sequence[Question]) -> dict[str, Any]:
    """The figures of what a reader puts first."""
    from rag.evaluate.retrieval import evaluate_reading
    from slm.terminal.console import progress

    with progress("reading", total=len(asked), unit="questions") as done:
        return evaluate_reading(lambda question: retriever.ranked(question, reader, _RANKED), asked, done)


def _table(result: dict[str, Any], *columns: str) -> None:
    """Counts of answers, by language and overall."""
    click.echo(f"{'':10}{'n':>5}" + "".join(f"{column:>10}" for column in columns))
    for name, row in [*result["by_language"].items(), ("overall", result["overall"])]:
        click.echo(f"{name:10}{row['n']:>5}" + "".join(f"{row[column]:>10}" for column in columns))

"""The command export: a folder for a hub, and its upload. How it is asked and shown, not how it is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slm.errors import InputError
from slm.joints import Joints, pass_joints
from slm.terminal.arguments import LANG_FILE, NAMED_FOLDER, one_of_each
from slm.terminal.console import emit_json, note

if TYPE_CHECKING:
    from convert.publish.exported import ExportOptions


@click.command("export", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--model", help="What is exported: a checkpoint folder, a catalog name or a GGUF file.")
@click.option(
    "--adapter", "adapters", type=NAMED_FOLDER, multiple=True, help="A PEFT folder that goes along. Repeatable."
)
@click.option("-t", "--type", "types", multiple=True, help="Of a GGUF file; repeatable.  [default: q8_0, q4_k_m, q4_0]")
@click.option("--name", help="Of the files.  [default: the name of DIR]")
@click.option("--text", "texts", type=LANG_FILE, multiple=True, help="Text to measure on. Default: English, Japanese.")
@click.option("--max-tokens", type=click.IntRange(0), default=1024, show_default=True, help="Of each text; 0: all.")
@click.option("--answers", type=click.Path(path_type=Path), help="JSON of `slm evaluate --chat`, for the card.")
@click.option("--base", help="What the model was made from, for its licence: a catalog name or a folder.")
@click.option("--licence", "--license", "licence", metavar="ID", help="As the hub names it, like apache-2.0.")
@click.option("--lang", "languages", multiple=True, help="A language of the model, for the card. Repeatable.")
@click.option("--upload", metavar="OWNER/NAME", help="Send DIR to the hub; needs HF_TOKEN. Without --model: as it is.")
@click.option("--private/--public", default=True, help="Of a repository that --upload makes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_joints
def export(
    joints: Joints, /, target: Path, model: str | None, upload: str | None, private: bool, as_json: bool, **asked: Any
) -> None:
    """Make DIR, a folder ready for a hub: safetensors, GGUF files, adapters, model card, Modelfile, terms, checksums.

    The card tells what was measured: loss by language, what each quantized type costs, the data and losses of adapters.
    Look at it, then send it with --upload.

    \b
    Example:
      slm export exports/office --model exports/ja-merged --adapter ja=adapters/ja
      slm export exports/office --upload me/office
    """
    from convert.publish.upload import check_upload, upload_export

    if upload is not None:
        check_upload(upload)
    result: dict[str, Any] = {"folder": str(target)}
    if model is not None:
        from convert.publish.exported import export_folder

        result |= export_folder(target, _options(joints, target, model, asked))
    else:
        _refuse_alone(target, upload)
    if upload is not None:
        result |= upload_export(target, upload, private=private)
    if as_json:
        emit_json(result)
        return
    for name in result.get("files", {}):
        click.echo(target / name)
    if model is not None:
        note(f"licence: {result['licence']}; the card is {target / 'README.md'}")
    if upload is not None:
        click.echo(f"{result['url']}  commit {result['commit']}")


def _refuse_alone(target: Path, upload: str | None) -> None:
    """Without --model nothing is made, so there has to be something to send, and options of the making mean nothing."""
    context = click.get_current_context()
    given = [
        parameter for parameter in context.command.params
        if isinstance(parameter, click.Option) and parameter.name not in ("model", "upload", "private", "as_json")
        and parameter.expose_value
        and context.get_parameter_source(str(parameter.name)) == click.core.ParameterSource.COMMANDLINE
    ]  # fmt: skip
    if upload is None or given:
        from slm.models.model_argument import is_model_folder

        said = ["Missing option '--model'."]
        said += [f"{given[0].opts[0]} goes with it."] if given else []
        said += [f"DIR is what is written: slm export OUT --model {target}"] if is_model_folder(target) else []
        raise click.UsageError(" ".join(said), context)


def _options(joints: Joints, target: Path, model: str, asked: dict[str, Any]) -> ExportOptions:
    from convert.publish.exported import TYPES, ExportOptions, check_name
    from convert.publish.licence import terms_of
    from convert.quality.cost import MeasureOptions
    from convert.quality.sample_text import read_texts
    from convert.quantize.quantize import type_name

    adapters, files = one_of_each(asked["adapters"]), one_of_each(asked["texts"])
    for name in adapters:
        check_name(name)
    types = list(dict.fromkeys(type_name(one) for one in asked["types"] or TYPES))
    checkpoint = joints.checkpoint_of(model)
    if target.resolve() == checkpoint.resolve():
        raise InputError(f"'{target}' is the model itself", hint=f"Name another folder: slm export OUT --model {model}")
    return ExportOptions(
        name=check_name(asked["name"] or target.resolve().name),
        checkpoint=checkpoint,
        terms=terms_of(checkpoint, asked["base"] or model, asked["licence"]),
        on=MeasureOptions(read_texts(files), asked["max_tokens"]),
        types=types,
        adapters=adapters,
        text=", ".join(path.name for path in files.values()) or "the package's own sample",
        answers=asked["answers"],
        languages=asked["languages"],
    )

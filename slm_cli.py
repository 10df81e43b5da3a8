"""The roof: the `slm` command, and the only place that joins rooms together.

It knows which room owns which command and hands one room's object to another (`slm.joints`).
A room's `cli` module is imported only when one of its commands is named or listed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slm import __version__
from slm.errors import MismatchError, MissingFileError
from slm.terminal.console import note, run, set_verbosity
from slm.terminal.flags import complain_later, json_before, with_flags

if TYPE_CHECKING:
    from slm.joints import ChatEngine, IndexState, Joints, Reader, Retriever

# Command -> module of its room; the command object there has the command's name, or the one after the colon.
COMMANDS = {
    "doctor": "slm.doctor.report",
    "pull": "slm.models.commands", "models": "slm.models.commands", "rm": "slm.models.commands",
    "convert": "convert.cli.convert", "restore": "convert.cli.convert", "quantize": "convert.cli.quantize",
    "imatrix": "convert.cli.quantize",
    "verify": "convert.cli.verify", "inspect": "convert.cli.convert",
    "export": "convert.cli.export",
    "train": "train.cli.train", "merge": "train.cli.train", "evaluate": "train.cli.evaluate",
    "generate": "serve.cli.serve", "chat": "serve.cli.chat", "serve": "serve.cli.serve", "route": "serve.cli.serve",
    "rag": "rag.cli.rag", "bench": "slm_cli:bench",
    "cluster": "serve.cli.cluster", "config": "slm.terminal.settings",
}  # fmt: skip


# The same for `slm bench ...`.
BENCHES = {
    "cluster": "serve.cli.fleet:bench_cluster",
    "convert": "convert.cli.bench:bench_convert", "quant": "convert.cli.bench:bench_quant",
    "rag": "rag.cli.bench:bench_rag", "engine": "serve.cli.bench:bench_engine",
    "serve": "serve.cli.bench:bench_serve", "batch": "serve.cli.bench:bench_batch",
    "start": "serve.cli.bench:bench_start", "train": "train.cli.bench:bench_train",
}  # fmt: skip


class LazyGroup(click.Group):
    """A group that imports a room's cli module when a command of it is asked for."""

    def __init__(self, *args: Any, modules: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return None
        module, function = self._function_of(cmd_name)
        command = getattr(importlib.import_module(module), function)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.modules[cmd_name]} is no click command")
        return with_flags(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does it; what a command does is read from the source, since importing every room takes longer."""
        limit = formatter.width - 6 - max(map(len, self.modules))
        rows = [(name, self._short_help(ctx, name, limit)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _short_help(self, ctx: click.Context, name: str, limit: int) -> str:
        text = first_paragraph(*self._function_of(name))
        command = click.Command(name, help=text) if text else self.get_command(ctx, name)
        return command.get_short_help_str(limit) if command else ""

    def _function_of(self, name: str) -> tuple[str, str]:
        """(module, function) of a command."""
        module, _, function = self.modules[name].partition(":")
        return module, function or name

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.modules and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.modules, n=1)
            ask = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"no command '{args[0]}'.{ask} Commands: {', '.join(self.modules)}", ctx=ctx)
        return super().resolve_command(ctx, args)


def first_paragraph(module: str, function: str) -> str:
    """The first paragraph of a function's docstring, without importing its module; "" where it cannot be told so."""
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    try:
        source = path.read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(
        rf'^def {function}\((?:(?!^def |^class ).)*?^    """(?P<text>[^"\\]+?)(?:"""|\n\n)',
        source,
        re.DOTALL | re.MULTILINE,
    )
    return " ".join(found["text"].split()) if found else ""


class Roof:
    """The rooms as they find each other: `slm.joints.Joints`, which a help or a list of models need not load.

    What is made on the way is kept in the caches, under its content's hash.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process it is the roof there, also from a process that was started as `python -m slm_cli`."""
        return importlib.import_module("slm_cli").Roof, ()

    def open_engine(
        self, model: Path, adapters: Mapping[str, Path], *, threads: int = 0, context: int = 4096
    ) -> AbstractContextManager[ChatEngine]:
        from serve.engine.engine import open_engine

        return open_engine(model, adapters, threads=threads, context=context)

    def open_retriever(self, index: str) -> AbstractContextManager[Retriever]:
        from rag.answer.retriever import open_retriever

        return open_retriever(index)

    def reader_of(self, wanted: str) -> Reader | None:
        if wanted == "model":
            return None
        from rag.answer.reader.card import RELEASED, SECOND
        from rag.answer.reader.judge import open_reader

        if wanted not in ("auto", "point"):
            return open_reader(Path(wanted), self.causal_reader)
        try:
            return open_reader(SECOND, self.causal_reader)
        except MissingFileError as error:
            missing = error
        try:
            reader = open_reader(RELEASED)
        except MissingFileError as error:
            if wanted == "point":
                raise
            note(f"the model answers from the documents, no reader: {error}")
            return None
        note(f"one reader reads instead of two: {missing}")
        return reader

    def causal_reader(self, folder: Path) -> tuple[Path, Path]:
        """The GGUF files of the base that a reader's adapter folder names, and of the adapter."""
        from slm.artifacts import read_manifest

        base = str(read_manifest(folder)["base"]["path"])
        return self.gguf_of(base), self.adapter_gguf_of(folder, base)

    def checkpoint_of(self, model: str) -> Path:
        """A checkpoint folder for a folder, a catalog name or a GGUF; a GGUF is restored once and kept."""
        from slm.models.model_argument import model_argument

        path = model_argument(model)
        if path.is_dir():
            return path
        from convert.output.version import converter_version
        from convert.restore import restore_checkpoint
        from slm.artifacts import sha256_file
        from slm.models import caches

        folder = caches.checkpoint_folder(path.stem, sha256_file(path))
        if not caches.is_made_by(folder, converter_version()):
            note(f"restoring {path.name} to a checkpoint once; it is kept in {folder}")
            restore_checkpoint(path, folder)
        return folder

    def adapter_of(self, adapter: Path, base: Path) -> Path:
        """The PEFT folder of an adapter; what is given as GGUF is restored once for all that shapes it, and kept."""
        from slm.weights.checkpoint_files import converted_adapter

        file = converted_adapter(adapter)
        if file is None:
            return adapter
        from convert.lora.restore import restore_adapter
        from convert.output.version import converter_version
        from slm.artifacts import sha256_file
        from slm.models import caches

        name = adapter.resolve().name.removesuffix(".gguf")
        source = caches.key_of(sha256_file(file), str(base.resolve()), _content_of(base))
        folder = caches.checkpoint_folder(f"{name}-adapter", source)
        if not caches.is_made_by(folder, converter_version()):
            note(f"restoring {adapter} to a PEFT folder once; it is kept in {folder}")
            restore_adapter(file, folder, base)
        return folder

    def gguf_of(self, model: str) -> Path:
        """A GGUF file for a file, a catalog name or a checkpoint folder; a checkpoint is converted once and kept."""
        from slm.models.model_argument import model_argument

        path = model_argument(model)
        if path.is_file():
            return path
        from convert.model import convert_checkpoint
        from convert.output.version import converter_version
        from slm.models import caches

        source, converter = _content_of(path), converter_version()
        file = caches.export_file(path.resolve().name, source, converter, ".q8_0.gguf")
        if not file.exists():
            note(f"converting {path} to GGUF (q8_0) once; it is kept as {file}")
            convert_checkpoint(path, file, "q8_0")
            caches.drop_of_other_converters(file, converter)
        return file

    def adapter_gguf_of(self, folder: Path, model: str) -> Path:
        """The adapter GGUF of a PEFT folder for that model; converted once for all that shapes it, and kept. A folder
        that comes converted has it.

        Where the base that the folder names cannot be read, or holds other weights by now, the model is taken for it.
        """
        from convert.lora.adapter import convert_adapter
        from convert.output.version import converter_version
        from slm.models import caches
        from slm.weights.adapter_origin import named_base, taken_as_base
        from slm.weights.checkpoint_files import ADAPTER_WEIGHTS, converted_adapter, shaping_files
        from slm.weights.gguf_reader import read_gguf
        from slm.weights.identity import gguf_fingerprint

        if ready := converted_adapter(folder):
            return ready
        served, converter = gguf_fingerprint(read_gguf(self.gguf_of(model))), converter_version()
        files = [*(path for path in (folder / ADAPTER_WEIGHTS,) if path.exists()), *shaping_files(folder)]
        named = named_base(folder)
        shaping = [served, *_contents(folder, files), *(_state_of(named.folder) if named.folder else ())]

        def kept(base: str) -> Path:
            source = caches.key_of(base, *shaping)
            return caches.export_file(folder.resolve().name, source, converter, ".adapter.gguf")

        own, assumed = kept("its own"), kept("the model")
        made = own if named.folder else assumed
        if not own.exists() and not assumed.exists():
            try:
                convert_adapter(folder, made, None if named.folder else self.checkpoint_of(model))
            except MismatchError:
                if made == assumed:
                    raise
                made = assumed
                convert_adapter(folder, made, self.checkpoint_of(model))
            caches.drop_of_other_converters(made, converter)
        if own.exists():
            return own
        note(taken_as_base(folder, model, named.fault or f"'{named.name}' holds other weights by now"))
        return assumed

    def converter(self) -> str:
        from convert.output.version import converter_version

        return converter_version()

    def index_states(self) -> list[IndexState]:
        from rag.health import index_states

        return index_states()


def cluster_application(args: dict[str, Any]) -> Any:
    """What Ray's `serve deploy` builds from the file that `slm cluster config` writes (its `import_path`)."""
    from serve.cluster.application import application

    return application(args, Roof())


if TYPE_CHECKING:
    _fits: type[Joints] = Roof


def _content_of(checkpoint: Path) -> str:
    """A hash of all files of a checkpoint folder that shape what is made of it."""
    from slm.models.caches import key_of
    from slm.weights.checkpoint_files import check_checkpoint, shaping_files
    from slm.weights.identity import identity_of

    check_checkpoint(checkpoint)
    return key_of(identity_of(checkpoint).weights, *_contents(checkpoint, shaping_files(checkpoint)))


def _contents(folder: Path, files: Iterable[Path]) -> list[str]:
    """Each file of a folder with the hash of what is in it."""
    from slm.artifacts import sha256_file

    return [f"{file.relative_to(folder)} {sha256_file(file)}" for file in files]


def _state_of(base: Path) -> list[str]:
    """What tells that a named base is the one it was when an adapter was converted with it.

    Its weights count by their place, size and times, as gigabytes would be read at every start of a server.
    """
    from slm.weights.checkpoint_files import shaping_files, weight_files

    states = [(path.resolve(), path.stat()) for path in weight_files(base).files]
    weights = [f"{path} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}" for path, state in states]
    return weights + _contents(base, shaping_files(base))


def _config_defaults(ctx: click.Context) -> dict[str, Any]:
    """The user's own defaults. They are checked as a whole, so that a slip is told before the command it is for."""
    from slm.paths import config_file
    from slm.terminal.config import checked, defaults_of, settle_environment, tables_of_user

    complain_later(ctx, settle_environment(cli))
    if ctx.invoked_subcommand in ("config", "doctor"):  # they show what is wrong with the file beside what is right
        with suppress(click.UsageError):
            return checked(tables_of_user(), cli).defaults
        return {}
    return defaults_of(tables_of_user(), cli, config_file())


@click.group(cls=LazyGroup, modules=BENCHES, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Our figures beside a peer's, taken in one run.

    \b
    Example:
      slm bench convert --peer ~/llama.cpp
    """


@click.group(
    cls=LazyGroup,
    modules=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "SLM"},
    no_args_is_help=True,
)
@click.option("-q", "--quiet", is_flag=True, help="No notes and no progress on stderr.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--json", is_flag=True, help="Results as one JSON object.")
@click.version_option(__version__, prog_name="slm")
@click.pass_context
def cli(ctx: click.Context, quiet: bool, debug: bool, json: bool) -> None:
    """Small language models on ordinary CPUs: train, convert, serve, retrieve.

    \b
    Example, the whole road:
      slm pull smollm2-135m-instruct
      slm train sft --base smollm2-135m-instruct --data data/instruct.jsonl --lang en -o adapters/en
      slm convert adapters/en -o exports/en.gguf
      slm chat smollm2-135m-instruct --adapter en=exports/en.gguf

    -q, --debug and --json may stand behind the command as well. Results go to stdout, everything else to stderr.

    \b
    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration,
    130 interrupted (Ctrl-C), 141 whoever reads stdout has gone.
    """
    set_verbosity(quiet=quiet, debug=debug)
    asked = ctx.get_parameter_source("json") is click.core.ParameterSource.COMMANDLINE
    if ctx.default_map is None:
        ctx.default_map = _config_defaults(ctx)
        own = ctx.default_map
        set_verbosity(quiet=quiet or own.get("quiet", False), debug=debug or own.get("debug", False))
        json = json or own.get("json", False)
    if json:
        json_before(ctx, asked=asked)
    if ctx.obj is None:
        ctx.obj = Roof()


def main() -> None:
    """Entry point of the `slm` command."""
    run(cli)


if __name__ == "__main__":
    main()

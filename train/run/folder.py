"""The folder of a run beside its output: what it was asked, its history and its checkpoints, locked while it runs.

`adapters/ja.run` belongs to `adapters/ja`. When the run has ended well, what is worth keeping moves into the
adapter's own folder `run/` and the rest goes. It knows nothing of models.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slm import __version__
from slm.artifacts import MANIFEST, new_file, read_json, read_manifest, remove_leftovers, sha256_file
from slm.errors import InputError, MismatchError, MissingFileError, ResourceError
from slm.native.locks import take_lock
from slm.native.process import cpu_name
from slm.terminal.console import note
from slm.weights.checkpoint_files import ADAPTER_WEIGHTS
from slm.weights.identity import identity_of
from train import ranks
from train.adapter.opened import check_adapter
from train.config import TrainOptions
from train.run.history import CURVE, EVENTS, HISTORY
from train.run.saved_states import SavedState, remove_all_but, whole_checkpoints

CONFIG = "config.json"
KEPT = "run"
_KIND = "training-run"
_LOCK = "lock"
# What may change when a run goes on: the first three touch no result, the last one is how a diverging run is saved.
_FREE = ("save_every_s", "tensorboard", "threads", "learning_rate")


@dataclass(frozen=True)
class RunFolder:
    """An opened run folder; `checkpoint` is where the run goes on, None when it begins."""

    path: Path
    checkpoint: SavedState | None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def keep(self, adapter: Path) -> None:
        """Copy what is worth keeping into an adapter folder that is being written."""
        target = adapter / KEPT
        target.mkdir()
        for name in (CONFIG, HISTORY, CURVE):
            if (self.path / name).exists():
                shutil.copyfile(self.path / name, target / name)
        if (self.path / EVENTS).exists():
            shutil.copytree(self.path / EVENTS, target / EVENTS)


def folder_of(output: Path) -> Path:
    """The run folder of an output folder."""
    return output.with_name(f"{output.name}.run")


def environment(threads: int) -> dict[str, Any]:
    """What the figures of a run depend on beside its options: versions, CPU, threads."""
    versions = {}
    for name in ("torch", "transformers", "peft", "accelerate", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "?"
    return {
        "slm": __version__, "python": platform.python_version(), **versions, "system": platform.platform(),
        "cpu": cpu_name(), "threads": threads, "processes": ranks.world(),
    }  # fmt: skip


def asked_of(
    options: TrainOptions, method: str, template: str | None, data: Iterable[tuple[Path, int]], threads: int
) -> dict[str, Any]:
    """What a run is asked and with what: enough to tell whether another run is the same.

    data: each file with the number of its examples.
    """
    base = identity_of(options.base)
    return {
        "method": method,
        "base": {
            "path": str(options.base.resolve()),
            "fingerprint": base.fingerprint,
            "weights": base.weights,
            "architecture": read_json(options.base / "config.json")["model_type"],
        },
        "template": template,
        "from_adapter": options.from_adapter and _known_adapter(options.from_adapter, options.base),
        "data": [{"file": str(file), "sha256": sha256_file(file), "examples": count} for file, count in data],
        "options": options.as_json(),
        "processes": ranks.world(),
        "environment": environment(threads),
    }


def _known_adapter(adapter: Path, base: Path) -> str:
    """The hash of an adapter's weights, once it is known to be one for the base."""
    check_adapter(adapter, base)
    return sha256_file(adapter / ADAPTER_WEIGHTS)


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What keeps a run with the inputs `now` from going on from one with `was`, in words."""
    found = [
        f"{key} was {json.dumps(was.get(key))}, is {json.dumps(now.get(key))}"
        for key in ("method", "processes", "template", "from_adapter")
        if was.get(key) != now.get(key)
    ]
    if _weights(was["base"]) != _weights(now["base"]):
        found.append(f"the base was {was['base']['path']} with other weights")
    if [entry["sha256"] for entry in was["data"]] != [entry["sha256"] for entry in now["data"]]:
        found.append("the data was " + ", ".join(entry["file"] for entry in was["data"]) + " with other content")
    old, new = was["options"], now["options"]
    for name in sorted(old.keys() | new.keys()):
        if name not in _FREE and old.get(name) != new.get(name):
            found.append(f"{name} was {json.dumps(old.get(name))}, is {json.dumps(new.get(name))}")
    return found


def _weights(base: dict[str, Any]) -> Any:
    """The exact weights: two restorations of one model, from two types of file, have the same fingerprint."""
    return base.get("weights", base["fingerprint"])


def read_config_of(folder: Path) -> dict[str, Any] | None:
    """What a run was asked, from its folder or an adapter's `run/`; None when there is none."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and config.get("kind") == _KIND else None


def ended_figures(output: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The figures of the run that `output` is the result of; None when there is none, or one to go on with.

    Raises MismatchError when it was asked otherwise, InputError when the output keeps no run.
    """
    if folder_of(output).exists() or not (output / MANIFEST).exists():
        return None
    was = read_config_of(output / KEPT)
    figures = read_manifest(output).get("figures")
    if was is None or not isinstance(figures, dict):
        raise InputError(
            f"there is no broken-off run of '{output}' to go on with", hint="Leave out --resume to train anew."
        )
    differing = differences(was, json.loads(json.dumps(asked)))
    if differing:
        raise MismatchError(
            f"'{output}' is the result of a run that was asked otherwise: {'; '.join(differing)}",
            hint="Leave out --resume to train anew.",
        )
    note(f"the run of '{output}' had already ended")
    return figures


@contextmanager
def open_run(output: Path, asked: dict[str, Any], *, resume: bool, fresh: bool) -> Iterator[RunFolder]:
    """Open the run folder of `output` to begin a run, or to go on with one that was broken off.

    asked: method, options, base, data, template, processes, environment. The folder is removed when the block ends
    well, or badly without a checkpoint. Raises InputError when there is a broken-off run and neither `resume` nor
    `fresh` is asked, MismatchError when it was asked otherwise, ResourceError when it is still running.
    """
    path = folder_of(output)
    asked = {"kind": _KIND, **json.loads(json.dumps(asked))}
    if ranks.rank() == 0:
        with _locked(path):
            run = _opened(path, output, asked, resume=resume, fresh=fresh)
            ranks.gathered(run.checkpoint.step if run.checkpoint else 0)
            try:
                yield run
            except BaseException:
                if whole_checkpoints(run.checkpoints):
                    note(f"the checkpoints stay in '{path}': the same command with --resume goes on from there")
                else:
                    shutil.rmtree(path, ignore_errors=True)
                raise
            shutil.rmtree(path, ignore_errors=True)
        return
    step = ranks.gathered(0)[0]
    run = RunFolder(path, None)
    if step:
        found = [one for one in whole_checkpoints(run.checkpoints) if one.step == step]
        if not found:
            raise MissingFileError(
                f"process {ranks.rank()} has no checkpoint of step {step} in '{run.checkpoints}'",
                hint="Use a folder that all machines share, or copy the run folder to each of them.",
            )
        run = RunFolder(path, found[0])
    yield run


def _opened(path: Path, output: Path, asked: dict[str, Any], *, resume: bool, fresh: bool) -> RunFolder:
    run = RunFolder(path, None)
    was = read_config_of(path)
    if was is None and {entry.name for entry in path.iterdir()} - {_LOCK}:
        raise InputError(
            f"'{path}' is where the checkpoints of '{output}' belong, but it holds something else",
            hint="Choose another output with -o, or remove that folder yourself.",
        )
    found = whole_checkpoints(run.checkpoints) if was and not fresh else []
    if found and was:
        newest = found[0].counters
        differing = differences(was, asked)
        where = f"step {newest['step']}, after {newest['elapsed_s']:,.0f} s of training"
        again = "Start anew with --fresh (its checkpoints are removed)"
        if not resume:
            more = f" of other inputs ({'; '.join(differing)})" if differing else ""
            raise InputError(
                f"a run of '{output}'{more} was broken off; its checkpoints are in '{path}'",
                found=where, hint=again + ("." if differing else ", or go on with --resume."),
            )  # fmt: skip
        if differing:
            raise MismatchError(
                f"the run in '{path}' was asked otherwise: {'; '.join(differing)}",
                hint=f"Give the same options and data. {again}.",
            )
        best = newest.get("best_step")
        if best and all(one.step != best for one in found):
            note(f"the best adapter so far, of step {best}, is lost; it is looked for anew")
            newest.update(best={}, best_step=0, waited=0)
        run = RunFolder(path, found[0])
        note(f"going on from {where}")
        rates = [entry["options"].get("learning_rate") for entry in (was, asked)]
        if rates[0] != rates[1]:
            note(f"the peak learning rate was {rates[0]:g}, is {rates[1]:g} from here on")
        asked["resumed_at_steps"] = [*was.get("resumed_at_steps", []), found[0].step]
    else:
        for entry in path.iterdir():
            if entry.name != _LOCK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if resume:
            note("nothing to go on from: starting at the beginning")
    remove_leftovers(output)
    remove_all_but(run.checkpoints, found)
    run.checkpoints.mkdir(exist_ok=True)
    with new_file(path / CONFIG) as new:
        new.write_text(json.dumps(asked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return run


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock; the system gives it back when the process ends, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / _LOCK).open("w")
    except OSError as error:
        raise ResourceError(
            f"cannot write '{path}': {error.strerror}", hint="Choose another output with -o."
        ) from error
    with file:
        take_lock(
            file,
            ResourceError(
                f"another process is training into '{path}'", hint="Wait for it, or choose another output with -o."
            ),
        )
        yield

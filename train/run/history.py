"""What a run did, step by step: a JSONL file, TensorBoard's event files, and the picture of the losses.

It knows nothing of models. A line is either a step (loss of its batch, learning rate, rates) or a measurement
(held-out loss by language); losses are in nats per supervised token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from slm.artifacts import is_disk_full, new_file
from slm.errors import MissingExtraError, ResourceError, require_extra
from train.run.pictures import require_matplotlib, save_figure

HISTORY = "history.jsonl"
CURVE = "loss.png"
EVENTS = "tensorboard"
# Weight of the past in the smoothed training loss: about the last 20 steps.
_SMOOTHING = 0.95


def read_history(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a history file, in order; a last one that a kill cut off is left out."""
    if not file.exists():
        return []
    records = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        records.append(record)
    return records


def require_tensorboard() -> None:
    """Raise MissingExtraError unless the package is installed; asked before a run begins."""
    require_extra("tensorboard", "tensorboard")


class History:
    """Appends to the history of a run folder. Lines after `last_step`, the step a run goes on from, are dropped."""

    def __init__(self, folder: Path, last_step: int, *, tensorboard: bool) -> None:
        self.file = folder / HISTORY
        kept = [record for record in read_history(self.file) if record["step"] <= last_step]
        with new_file(self.file) as new:
            new.write_text("".join(map(_line, kept)), encoding="utf-8")
        self._out: IO[str] = self.file.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / EVENTS), purge_step=last_step + 1)

    def add(self, record: dict[str, Any]) -> None:
        """Write one record with its "step"; it reaches the file at once. Raises ResourceError on a full disk."""
        try:
            self._out.write(_line(record))
            self._out.flush()
        except OSError as error:
            if is_disk_full(error):
                raise ResourceError(
                    f"no disk space left while writing '{self.file}'", hint="Free some space and go on with --resume."
                ) from error
            raise
        if self._board is not None:
            for name, value in _scalars(record):
                self._board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Close the files; TensorBoard's are flushed."""
        self._out.close()
        if self._board is not None:
            self._board.close()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", part) for key, part in value.items())
        elif name != "step":
            yield ("held_out/all" if name == "held_out_loss" else f"train/{name}"), value


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential moving average, corrected for its start as Adam's moments are (Kingma & Ba 2015)."""
    result, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + 1 - _SMOOTHING
        result.append(total / weight)
    return result


def draw_curve(records: Sequence[dict[str, Any]], best_step: int = 0) -> Any:
    """A matplotlib figure: training loss of each step, smoothed, and the held-out loss of each language.

    best_step: marked when it is not 0.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [record for record in records if "loss" in record]
    measured = [record for record in records if "held_out" in record]
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    at = [record["step"] for record in steps]
    losses = [record["loss"] for record in steps]
    axes.plot(at, losses, color="0.8", linewidth=0.8, label="training, each step")
    axes.plot(at, smoothed(losses), color="0.35", linewidth=1.6, label="training, smoothed")
    for lang in sorted({lang for record in measured for lang in record["held_out"]}):
        points = [(record["step"], record["held_out"][lang]) for record in measured if lang in record["held_out"]]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.6, label=f"held out, {lang}")
    if best_step:
        axes.axvline(best_step, color="0.5", linestyle=":", linewidth=1.2, label=f"best: step {best_step}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.25)
    axes.legend(frameon=False)
    return figure


def save_curve(folder: Path, best_step: int = 0) -> str | None:
    """Draw the history of a run folder into its loss.png; returns why not, where matplotlib is missing."""
    try:
        require_matplotlib()
    except MissingExtraError as error:
        return f"no {CURVE}: {error}"
    save_figure(draw_curve(read_history(folder / HISTORY), best_step), folder / CURVE)
    return None

"""The states below the lowest adapted layer, computed once and kept on disk: `--top-layers`.

What the frozen lower layers make of a sequence never changes during a run, so every epoch after it costs only the
layers above. It knows nothing of adapters or optimizers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm import paths
from slm.artifacts import MANIFEST, new_folder, read_manifest, require_space
from slm.terminal.console import note, progress
from train.batch.layers import causal_model, decoder_layers
from train.batch.loss import forward_states
from train.batch.packing import seen_length
from train.batch.precision import precision
from train.batch.tensors import Batch, packed
from train.data.masks import Encoded

_KIND = "frozen-states"
# Rows of one forward pass; larger ones gain no speed on a CPU.
_BATCH_TOKENS = 2048
# Older caches than these are removed: another cut, another model or other data made them stale.
_KEPT = 2


class FrozenStates:
    """What the lowest adapted layer is given of each sequence: a row of float32 a token, in a file read as needed."""

    def __init__(self, folder: Path) -> None:
        self._starts = {
            digest.tobytes(): int(start)
            for digest, start in zip(np.load(folder / "digests.npy"), np.load(folder / "starts.npy"), strict=True)
        }
        size = int(read_manifest(folder)["size"])
        self._rows = np.memmap(folder / "states.f32", np.float32, "r").reshape(-1, size)

    def of_batch(self, items: Sequence[Encoded], batch: Batch) -> torch.Tensor:
        """The states of the packed batch of some of the sequences: (1, tokens, size)."""
        starts = np.array([self._starts[_digest(item)] for item in items])
        rows = starts[batch["owners"].numpy()] + batch["position_ids"][0].numpy()
        return torch.from_numpy(self._rows[rows])[None]


def frozen_states(
    model: Any, cut: int, sides: Sequence[Sequence[Encoded]], *, fingerprint: str, dtype: torch.dtype
) -> FrozenStates:
    """The states of the sequences in front of layer `cut`: read back where this model, data and cut made them before.

    Every layer below `cut` must be frozen; it runs without dropout. fingerprint: of the base's exact
    weights and configuration, not of what they came from: a dequantized model has other states than its original.
    Raises ResourceError when the disk is too small for them.
    """
    firsts: dict[bytes, tuple[int, int]] = {}
    for side, items in enumerate(sides):
        for number, item in enumerate(items):
            firsts.setdefault(_digest(item), (side, number))
    digests = sorted(firsts)
    made_by = " ".join(version(name) for name in ("torch", "transformers"))
    key = hashlib.sha256(f"{fingerprint} {cut} {dtype} {made_by}\0".encode() + b"".join(digests)).hexdigest()
    home = paths.home() / "states"
    folder = home / key[:32]
    if (folder / MANIFEST).exists():
        os.utime(folder / MANIFEST)  # the caches used last are kept
        note(f"the states of the {cut} frozen layers are there from an earlier run")
        return FrozenStates(folder)
    _drop_older(home)
    with new_folder(folder, _KIND) as (temporary, manifest):
        size = int(causal_model(model).get_input_embeddings().weight.shape[1])
        manifest.update({"size": size, "cut": cut, "base_fingerprint": fingerprint, "sequences": len(digests)})
        _write(model, cut, _Chosen(sides, [firsts[digest] for digest in digests]), size, dtype, temporary)
        np.save(temporary / "digests.npy", np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1))
    return FrozenStates(folder)


class _Chosen(Sequence[Encoded]):
    """Sequences by (side, number), fetched when they are asked for."""

    def __init__(self, sides: Sequence[Sequence[Encoded]], places: list[tuple[int, int]]) -> None:
        self._sides, self._places = sides, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        side, number = self._places[index]
        return self._sides[side][number]


def _write(model: Any, cut: int, items: Sequence[Encoded], size: int, dtype: torch.dtype, folder: Path) -> None:
    """states.f32 and starts.npy: the states of the sequences, one after the other."""
    lengths = np.array([seen_length(item) for item in items])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = int(starts[-1])
    require_space(folder, tokens * size * 4)
    np.save(folder / "starts.npy", starts[:-1])
    rows = np.memmap(folder / "states.f32", np.float32, "w+", shape=(tokens, size))
    caught: list[torch.Tensor] = []

    def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _EnoughError

    training = model.training
    model.eval()
    hook = decoder_layers(model)[cut].register_forward_pre_hook(stop, with_kwargs=True)
    done = 0
    try:
        with progress(f"states of {cut} frozen layers", total=tokens, unit="tokens") as show, torch.no_grad():
            for places in _groups(lengths):
                batch = packed([items[place] for place in places], share=False)
                try:
                    with precision(dtype):
                        forward_states(model, batch)
                except _EnoughError:
                    states = caught.pop()[0].float().numpy()
                for place, piece in zip(places, batch["pieces"], strict=True):
                    rows[starts[place] : starts[place] + lengths[place]] = states[piece.start : piece.end]
                done += len(states)
                show(done)
    finally:
        hook.remove()
        model.train(training)
    rows.flush()


def _groups(lengths: Any) -> Iterator[list[int]]:
    """Neighbours of some 2,048 tokens together."""
    group: list[int] = []
    for place, length in enumerate(lengths):
        if group and lengths[group].sum() + length > _BATCH_TOKENS:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


class _EnoughError(Exception):
    """Ends a forward pass in front of the first layer that is not frozen."""


def _digest(item: Encoded) -> bytes:
    return hashlib.sha256(np.asarray(item.ids[: seen_length(item)], np.int64).tobytes()).digest()


def _drop_older(home: Path) -> None:
    """Keep only the newest caches, so that the disk does not fill with stale ones."""
    caches = sorted(home.glob("*/" + MANIFEST), key=lambda path: path.stat().st_mtime, reverse=True)
    for manifest in caches[_KEPT - 1 :]:
        shutil.rmtree(manifest.parent, ignore_errors=True)

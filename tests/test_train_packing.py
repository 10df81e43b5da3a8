"""Packed training: the losses and gradients of separate sequences, in every family, whatever they have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import InputError
from slm.families.targets import decoder_families
from tests.tiny_packs import a_batch, encoded, gradient, tiny, with_adapter
from train.batch.attention import packed_attention
from train.batch.feed import use_gradient_checkpointing
from train.batch.frozen import frozen_states
from train.batch.layers import decoder_layers, lowest_layer, without_lower_layers
from train.batch.loss import supervised_loss
from train.batch.packing import pack
from train.batch.tensors import packed, pad
from train.data.masks import Encoded


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("share", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("model_type", sorted(decoder_families()))
def test_a_pack_has_the_losses_and_gradients_of_its_sequences(model_type: str, share: bool, tmp_path: Path) -> None:
    model = with_adapter(tiny(model_type), tmp_path)
    items = a_batch()
    alone = [
        model(input_ids=torch.tensor([item.ids]), labels=torch.tensor([item.labels])).loss * item.supervised
        for item in items
    ]
    total = sum(alone)
    wanted = gradient(model, total)
    computed: list[int] = []
    last: Any = decoder_layers(model)[-1]
    projection = next(m for m in last.mlp.modules() if not list(m.children()))
    projection.register_forward_hook(lambda module, args, out: computed.append(out.shape[-2]))
    with packed_attention(model):
        batch = packed(items, share=share)
        loss, count = supervised_loss(model, batch)
    assert computed == [len(batch["rows"].unique())]
    assert count == sum(item.supervised for item in items)
    assert float(loss) == pytest.approx(float(total), rel=1e-5)
    assert torch.allclose(gradient(model, loss), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    again = model(input_ids=torch.tensor([items[0].ids]), labels=torch.tensor([items[0].labels])).loss
    assert float(again * items[0].supervised) == pytest.approx(float(alone[0]))  # the model is as it was


@pytest.mark.parametrize("model_type", sorted(decoder_families()))
def test_kept_states_of_the_lower_layers_change_neither_loss_nor_gradient(
    model_type: str, tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    model = with_adapter(tiny(model_type), tmp_path, top_layers=1)
    stack.enter_context(packed_attention(model))
    items = a_batch()
    whole, _ = supervised_loss(model, packed(items))
    wanted = gradient(model, whole)
    states = frozen_states(model, lowest_layer(model, 1), (items[:2], items[2:]), fingerprint="f", dtype=torch.float32)
    lower = list(decoder_layers(model))
    with without_lower_layers(model, 2):
        for layer in lower[:2]:  # proof that they are not computed
            layer.forward = None  # type: ignore[assignment]
        for part in (items[:3], items[3:], items):
            batch = packed(part)
            batch["states"] = states.of_batch(part, batch)
            loss, _ = supervised_loss(model, batch)
    assert float(loss) == pytest.approx(float(whole), rel=1e-5)
    assert torch.allclose(gradient(model, loss), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    assert list(decoder_layers(model)) == lower


@pytest.mark.parametrize("model_type", sorted(decoder_families()))
def test_gradient_checkpointing_keeps_less_of_the_same(model_type: str, tmp_path: Path, stack: ExitStack) -> None:
    model = with_adapter(tiny(model_type), tmp_path)
    stack.enter_context(packed_attention(model))
    kept: list[int] = []

    def both() -> tuple[float, torch.Tensor, int]:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            loss, _ = supervised_loss(model, packed(a_batch()))
        return float(loss), gradient(model, loss), sum(kept)

    loss, wanted, most = both()
    use_gradient_checkpointing(model)
    again, found, least = both()
    assert again == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))
    assert least < most / 2


def test_kept_states_are_found_again_and_only_for_the_same_model_data_and_cut(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    model = with_adapter(tiny("llama"), tmp_path, top_layers=1)
    stack.enter_context(packed_attention(model))
    items = a_batch()

    def made(*, fingerprint: str = "f", cut: int = 2, data: list[Encoded] = items) -> bool:
        capsys.readouterr()
        frozen_states(model, cut, (data,), fingerprint=fingerprint, dtype=torch.float32)
        return "earlier run" not in capsys.readouterr().err

    assert made()
    assert not made()
    assert not made(data=items[::-1])  # the order of the data does not matter
    assert made(fingerprint="g")
    assert made(cut=1)
    assert made(data=items[:2])
    assert len(list((tmp_path / "states").iterdir())) == 2  # stale ones do not pile up
    assert made()


def test_too_many_top_layers_are_refused_with_the_number_there_is() -> None:
    with pytest.raises(InputError, match="3 layers"):
        lowest_layer(tiny("llama"), 3)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.lists(st.integers(3, 5), min_size=2, max_size=12)),
        min_size=1,
        max_size=7,
    ),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_every_row_of_a_pack_sees_just_its_sequences_beginning(
    shapes: list[tuple[int, int, list[int]]], share: bool
) -> None:
    shared = [[4] * 10, [5] * 9, [6] * 8, []]
    items = [encoded(shared[a] + shared[b] + rest, range(1, 99)) for a, b, rest in shapes]
    made = pack(items, share=share)
    assert made.pieces[-1].end == len(made.ids) == len(made.positions) == len(made.owners)
    seen: dict[int, list[int]] = {}
    for piece in made.pieces:
        before = [row for start, end in piece.before for row in range(start, end)]
        for row in range(piece.start, piece.end):
            seen[row] = [made.ids[n] for n in (*before, *range(piece.start, row + 1))]
            assert made.positions[row] == len(seen[row]) - 1
            assert list(items[made.owners[row]].ids[: len(seen[row])]) == seen[row]
    found = sorted((seen[row], label) for row, label in zip(made.rows, made.labels, strict=True))
    assert found == sorted((list(i.ids[:at]), i.ids[at]) for i in items for at in range(1, len(i.ids)))
    if not share:
        assert len(made.ids) == made.tokens


def test_a_common_beginning_stands_once() -> None:
    items = a_batch()
    made = pack(items)
    system, question, answer, longer, other, third, fourth = 12, 9, 6, 12, 3, 11, 10
    assert len(made.ids) == system + question + answer + longer + other + third + fourth
    assert made.tokens == sum(len(pack([item]).ids) for item in items)


def test_a_padded_batch_counts_what_a_packed_one_does() -> None:
    items = a_batch()
    assert pad(items, 0)["tokens"] == packed(items)["tokens"] + len(items)  # the last label stands in a padded one

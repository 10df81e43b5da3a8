"""Importance matrices: equal to the sums of squares that torch sees, balanced by language, whole or absent."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert.cli.quantize import imatrix as imatrix_command
from convert.model import convert_checkpoint
from convert.quantize import imatrix as collecting
from convert.quantize.ggml_nodes import GgmlNode, matrix_products
from convert.quantize.imatrix import Collector, balanced, collect_imatrix, shares_of
from convert.quantize.imatrix_file import ImportanceMatrix, read_imatrix, write_imatrix
from convert.quantize.quantize import QuantizeOptions, quantize_file
from slm.errors import EngineError, InputError, MissingFileError, UnknownNameError
from slm.weights.gguf_reader import read_gguf
from tests import tiny_checkpoints as tiny

CONTEXT = 48
_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
          "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
          "mlp.down_proj": "ffn_down"}  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """English twice as long as Japanese."""
    root = tmp_path_factory.mktemp("texts")
    for lang, lines in (("en", tiny.CORPUS[:4] * 3), ("ja", tiny.CORPUS[4:8])):
        (root / f"{lang}.txt").write_text("\n".join(lines), encoding="utf-8")
    return {lang: root / f"{lang}.txt" for lang in ("en", "ja")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {}
    for name, make in (("llama", tiny.llama), ("gemma3", tiny.gemma3)):
        make(root / name)
        convert_checkpoint(root / name, root / f"{name}.gguf", "f32", verify=False)
        made[name] = root / f"{name}.gguf"
    return made


def sums_by_torch(folder: Path, text: str) -> tuple[dict[str, np.ndarray[Any, Any]], int]:
    """Sum of squares of every Linear's input by channel, over whole chunks, BOS first where the file says so."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    add_bos = read_gguf(folder.with_suffix(".gguf")).metadata["tokenizer.ggml.add_bos_token"]
    ids = tokenizer.encode(text, add_special_tokens=True)
    chunks = [ids[at : at + CONTEXT] for at in range(0, len(ids) - CONTEXT + 1, CONTEXT)]
    sums: dict[str, Any] = {}

    def hook(name: str) -> Any:
        def add(_module: Any, inputs: Any, _output: Any) -> None:
            squares = (inputs[0].double() ** 2).sum(dim=(0, 1)).numpy()
            sums[name] = sums.get(name, 0) + squares

        return add

    for name, module in model.named_modules():
        parts = name.split(".", 3)
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
            module.register_forward_hook(hook(f"blk.{parts[2]}.{_NAMES[parts[3]]}.weight"))
    with torch.no_grad():
        for chunk in chunks:
            model(torch.tensor([[tokenizer.bos_token_id, *chunk[1:]] if add_bos else chunk]))
    return sums, len(chunks)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_sums_are_those_of_torch_forward_hooks(family: str, models: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tiny.CORPUS * (4 if family == "gemma3" else 1)), encoding="utf-8")
    result = collect_imatrix(models[family], {"en": [text]}, tmp_path / "m.gguf", context=CONTEXT)
    expected, chunks = sums_by_torch(models[family].with_suffix(""), text.read_text("utf-8"))
    found = read_imatrix(tmp_path / "m.gguf")
    assert chunks > 2
    assert (found.chunks, found.chunk_size) == (chunks, CONTEXT) == (result["chunks"], CONTEXT)
    assert set(found.sums) == set(expected)
    for name, squares in expected.items():
        assert found.counts[name].tolist() == [chunks * CONTEXT]
        # The runtime keeps keys and values in float16, so what follows attention is rounded.
        np.testing.assert_allclose(found.sums[name][0], squares, rtol=5e-3, atol=1e-5 * squares.max())


def test_a_language_weighs_its_share_whatever_its_length(
    models: dict[str, Path], texts: dict[str, Path], tmp_path: Path
) -> None:
    def means(out: str, langs: dict[str, list[Path]], **options: Any) -> dict[str, np.ndarray[Any, Any]]:
        collect_imatrix(models["llama"], langs, tmp_path / out, context=CONTEXT, **options)
        matrix = read_imatrix(tmp_path / out)
        return {name: matrix.mean_squares(name)[0] for name in matrix.sums}

    en, ja = means("en", {"en": [texts["en"]]}), means("ja", {"ja": [texts["ja"]]})
    both = {lang: [path] for lang, path in texts.items()}
    equal, mostly = means("equal", both), means("mostly", both, shares={"ja": 0.8})
    for name in en:
        np.testing.assert_allclose(equal[name], 0.5 * en[name] + 0.5 * ja[name], rtol=1e-5)
        np.testing.assert_allclose(mostly[name], 0.2 * en[name] + 0.8 * ja[name], rtol=1e-5)
    # Twice the same text changes nothing but the counts.
    double = means("double", {"en": [texts["en"]], "ja": [texts["ja"], texts["ja"]]})
    np.testing.assert_allclose(double["blk.0.attn_q.weight"], equal["blk.0.attn_q.weight"], rtol=1e-5)


@given(
    st.dictionaries(st.sampled_from(["en", "ja", "de", "fr"]), st.floats(0.01, 0.24), max_size=3),
    st.dictionaries(st.sampled_from(["en", "ja", "de", "fr"]), st.integers(1, 10_000), min_size=4),
)
@settings(max_examples=40, deadline=None)
def test_shares_make_one_and_balance_the_means(asked: dict[str, float], tokens: dict[str, int]) -> None:
    shares = shares_of(list(tokens), asked)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(shares[lang] == part for lang, part in asked.items())
    assert len({round(shares[lang], 12) for lang in tokens if lang not in asked}) == 1
    level = {"en": 1.0, "ja": 2.0, "de": 3.0, "fr": 4.0}
    collected = {lang: Collector({"w": np.full((1, 3), level[lang] * n)}, {"w": np.array([float(n)])})
                 for lang, n in tokens.items()}  # fmt: skip
    sums, counts = balanced(collected, tokens, shares)
    assert sums["w"][0, 0] / counts["w"][0] == pytest.approx(sum(shares[k] * level[k] for k in tokens), rel=1e-5)
    assert counts["w"][0] == pytest.approx(sum(tokens.values()), rel=1e-5)


@pytest.mark.parametrize(
    "asked", [{"en": 0.0}, {"en": 1.0}, {"en": -0.5}, {"en": 0.7, "ja": 0.7}, {"en": float("nan")}]
)
def test_shares_that_cannot_be_are_refused(asked: dict[str, float]) -> None:
    with pytest.raises(InputError, match="make 1 together"):
        shares_of(["en", "ja"], asked)


def test_a_share_of_a_language_without_text_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"fr.*en, ja"):
        shares_of(["en", "ja"], {"fr": 0.5})


def test_a_file_survives_writing_and_reading_in_llama_cpps_form(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sums = {
        "blk.0.a.weight": random.random((1, 8), np.float32),
        "blk.0.b_exps.weight": random.random((3, 4), np.float32),
    }
    counts = {"blk.0.a.weight": np.array([64], np.float32), "blk.0.b_exps.weight": np.array([40, 0, 24], np.float32)}
    write_imatrix(tmp_path / "m.gguf", ImportanceMatrix(sums, counts, ("en=x",), 1, 64))
    file = read_gguf(tmp_path / "m.gguf")
    assert {n: t.shape for n, t in file.tensors.items()} == {
        "blk.0.a.weight.in_sum2": (8,),
        "blk.0.a.weight.counts": (1,),
        "blk.0.b_exps.weight.in_sum2": (3, 4),
        "blk.0.b_exps.weight.counts": (3, 1),
    }
    assert file.metadata["general.type"] == "imatrix"
    back = read_imatrix(tmp_path / "m.gguf")
    assert (back.datasets, back.chunks, back.chunk_size) == (("en=x",), 1, 64)
    for name in sums:
        assert (back.sums[name] == sums[name]).all()
        assert (back.counts[name] == counts[name]).all()
    assert (back.mean_squares("blk.0.b_exps.weight")[1] == 1).all()  # no token came to this expert


def test_products_by_expert_are_summed_by_expert() -> None:
    random = np.random.default_rng(0)
    experts, width, tokens, used = 5, 6, 9, 2
    inputs = random.standard_normal((tokens, used, width)).astype(np.float32)
    ids = random.integers(0, experts, (tokens, used)).astype(np.int32)

    def node(name: bytes, array: np.ndarray[Any, Any] | None, ne: tuple[int, ...]) -> GgmlNode:
        made = GgmlNode(name=name, ne=(*ne, *[1] * (4 - len(ne))))
        if array is not None:
            made.data = array.ctypes.data
            strides = [*reversed(array.strides)]
            made.nb = (*strides, *[array.nbytes] * (4 - len(strides)))
        return made

    weight = node(b"blk.0.ffn_up_exps.weight", None, (width, 7, experts))
    product = GgmlNode(op=matrix_products()[1])
    sources = [weight, node(b"x", inputs, (width, used, tokens)), node(b"ids", ids, (used, tokens))]
    for index, source in enumerate(sources):
        product.src[index] = ctypes.pointer(source)
    collector = Collector()
    address = ctypes.addressof(product)
    assert collector.on_node(address, True) and collector.on_node(address, False)
    expected, counts = np.zeros((experts, width)), np.zeros(experts)
    for token in range(tokens):
        for slot in range(used):
            expected[ids[token, slot]] += inputs[token, slot].astype(np.float64) ** 2
            counts[ids[token, slot]] += 1
    np.testing.assert_allclose(collector.sums["blk.0.ffn_up_exps.weight"], expected, rtol=1e-6)
    assert (collector.counts["blk.0.ffn_up_exps.weight"] == counts).all()


def test_the_command_collects_what_quantization_takes(
    models: dict[str, Path], texts: dict[str, Path], tmp_path: Path
) -> None:
    arguments = [str(models["llama"]), "-o", str(tmp_path / "m.gguf"), "--context", str(CONTEXT), "--chunks", "2"]
    arguments += [part for lang, path in texts.items() for part in ("--text", f"{lang}={path}")]
    run = CliRunner().invoke(imatrix_command, [*arguments, "--share", "ja=0.6", "--json"])
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout)
    assert told["by_language"]["ja"] == {"tokens": 2 * CONTEXT, "chunks": 2, "share": 0.6}
    assert told["weights"] == 14
    result = quantize_file(models["llama"], tmp_path / "q.gguf", "q4_0", QuantizeOptions(imatrix=tmp_path / "m.gguf"))
    assert result["imatrix_entries"] == 14
    for wrong in (["--share", "ja"], ["--share", "ja=x"], ["--text", "en"]):
        assert CliRunner().invoke(imatrix_command, [*arguments, *wrong]).exit_code == 2


def test_an_interrupt_inside_the_callback_ends_the_collection_and_leaves_nothing(
    models: dict[str, Path], texts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect_imatrix(models["llama"], {"en": [texts["en"]]}, tmp_path / "m.gguf", context=CONTEXT)
    assert not list(tmp_path.iterdir())


def test_texts_and_models_that_cannot_serve_are_refused(
    models: dict[str, Path], texts: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    with pytest.raises(InputError, match=r"'ja' is too short.*tokens.*512"):
        collect_imatrix(models["llama"], {"ja": [texts["ja"]]}, out, context=512)
    with pytest.raises(MissingFileError):
        collect_imatrix(models["llama"], {"ja": [tmp_path / "absent.txt"]}, out)
    (tmp_path / "binary.txt").write_bytes(bytes(range(16)) * 40)
    with pytest.raises(InputError, match=r"binary\.txt.*binary, not text"):
        collect_imatrix(models["llama"], {"ja": [tmp_path / "binary.txt"]}, out)
    with pytest.raises(InputError, match="too short"):
        collect_imatrix(models["llama"], {"ja": [texts["ja"]]}, out, context=4)
    write_imatrix(tmp_path / "not-a-model.gguf", ImportanceMatrix(
        {"w": np.ones((1, 4), np.float32)}, {"w": np.ones(1, np.float32)}, (), 1, 4))  # fmt: skip
    with pytest.raises(InputError, match="not a model"):
        collect_imatrix(tmp_path / "not-a-model.gguf", {"ja": [texts["ja"]]}, out)
    assert not out.exists()


def test_the_bench_compares_no_matrix_each_language_and_the_balance(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer here is a script that hands over our own matrix: only the call and the table are proven with it."""
    from convert.bench import quantization as module
    from convert.cli.bench import bench_quant

    data = {lang: Path(__file__).parent.parent / "data" / f"{lang}.txt" for lang in ("en", "ja")}
    arguments = [str(models["llama"]), *(f"--text={lang}={path}" for lang, path in data.items())]
    ready = tmp_path / "ready.gguf"
    collecting.collect_imatrix(models["llama"], {"en": [data["en"]]}, ready, chunks=1)
    peer = tmp_path / module.PEER
    peer.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; cp "{ready}" "$2"\n')
    peer.chmod(0o755)
    options = ["--chunks=1", "--max-tokens=64", "--type=q8_0", "--type=iq4_nl"]
    run = CliRunner().invoke(bench_quant, [*arguments, *options, f"--peer={peer}", "--json"])
    assert run.exit_code == 0, run.output
    rows = json.loads(run.stdout)["rows"]
    matrices = ["none", "en", "ja", "balanced", module.PEER]
    assert [(row["matrix"], row["type"]) for row in rows] == [(m, t) for m in matrices for t in ("q8_0", "iq4_nl")]
    kl = {(row["matrix"], row["type"]): row["by_language"]["en"]["mean_kl_divergence"] for row in rows}
    assert all(kl[matrix, "q8_0"] < kl[matrix, "iq4_nl"] for matrix in matrices)
    assert kl["en", "iq4_nl"] == kl[module.PEER, "iq4_nl"] != kl["none", "iq4_nl"]
    assert not list(models["llama"].parent.glob("slm-bench-*"))
    peer.write_text("#!/bin/sh\necho no such model >&2; exit 3\n")
    with pytest.raises(EngineError, match="no such model"):
        module.bench_quantization(models["llama"], {k: [v] for k, v in data.items()}, {}, [], chunks=1, peer=peer)
    with pytest.raises(InputError, match="two languages"):
        module.bench_quantization(models["llama"], {"en": [data["en"]]}, {}, [])

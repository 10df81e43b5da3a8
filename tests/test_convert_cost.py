"""What quantization costs: figures equal torch's, bounds pick the right file, reports say what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import convert.quality.plot as plot
from convert.cli import convert as cli
from convert.cli import verify as cli_verify
from convert.model import convert_checkpoint
from convert.publish.inspect import inspect_gguf, list_tensors
from convert.quality.bounds import Bound, parse_bound
from convert.quality.cost import MeasureOptions, convert_measured
from convert.quality.fit import choose, excesses, fit_checkpoint, nearest
from convert.quality.kld import NO_TARGET, Tally, pooled
from convert.quality.report import markdown, report_of, report_paths, write_report
from convert.quality.sample_text import LANGUAGES, read_texts, sample_texts
from convert.quality.speed import machine, measure_speed
from convert.quality.verify import gguf_runner, measure, verify_model, windows
from slm.errors import (
    DamagedFileError,
    InputError,
    MismatchError,
    MissingExtraError,
    UnknownNameError,
    VerificationError,
)
from tests import tiny_checkpoints as tiny

ROOT = Path(__file__).parent.parent


# --- the figures


def tally_of(reference: Any, candidate: Any, targets: list[int], split: int = 1000) -> Tally:
    tally = Tally(utf8_bytes=3 * len(targets))
    for at in range(0, len(targets), split):
        tally.add(reference[at : at + split], candidate[at : at + split], targets[at : at + split])
    return tally


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(2, 60), st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_the_figures_are_torchs_however_the_rows_are_split(seed: int, rows: int, width: int, split: int) -> None:
    random = np.random.default_rng(seed)
    reference = (random.standard_normal((rows, width)) * 5).astype(np.float32)
    candidate = (reference + random.standard_normal((rows, width))).astype(np.float32)
    targets = random.integers(0, width, rows).tolist()
    figures = tally_of(reference, candidate, targets, split).figures()
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (reference, candidate))
    divergence = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert figures.mean_kl_divergence == pytest.approx(float(divergence.mean()), abs=1e-12)
    assert figures.p99_kl_divergence == pytest.approx(float(divergence.quantile(0.99)), abs=1e-12)
    assert figures.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    loss = torch.nn.functional.nll_loss(q, torch.tensor(targets))
    assert figures.perplexity == pytest.approx(float(loss.exp()))
    assert figures.bits_per_byte == pytest.approx(float(loss) * rows / np.log(2) / (3 * rows))
    assert figures.max_relative_difference == pytest.approx(
        np.abs(reference - candidate).max() / np.abs(reference).max()
    )


def test_a_model_compared_with_itself_loses_nothing() -> None:
    logits = np.random.default_rng(0).standard_normal((9, 50)).astype(np.float32)
    figures = tally_of(logits, logits, [1] * 9).figures()
    assert (figures.mean_kl_divergence, figures.top1_agreement, figures.max_relative_difference) == (0.0, 1.0, 0.0)
    assert figures.perplexity == figures.reference_perplexity


def test_languages_pooled_are_the_tokens_of_all() -> None:
    random = np.random.default_rng(1)
    left, right = (random.standard_normal((30, 20)).astype(np.float32) for _ in range(2))
    targets = random.integers(0, 20, 30).tolist()
    parts = [tally_of(left[:10], right[:10], targets[:10]), tally_of(left[10:], right[10:], targets[10:])]
    assert pooled(parts).figures() == tally_of(left, right, targets).figures()


def test_what_cannot_be_compared_is_refused() -> None:
    logits = np.zeros((2, 50), np.float32)
    with pytest.raises(MismatchError, match="different vocabularies"):
        Tally().add(logits, np.zeros((2, 5000), np.float32), [0, 0])
    with pytest.raises(MismatchError):
        Tally().add(logits, logits, [0])
    with pytest.raises(MismatchError):
        Tally().add(logits, logits, [0, 50])
    broken = logits.copy()
    broken[1, 3] = np.nan
    with pytest.raises(VerificationError, match="candidate computes logits that are NaN"):
        Tally().add(logits, broken, [0, 0])
    padded = Tally()
    padded.add(logits, np.zeros((2, 64), np.float32), [0, 49])
    assert padded.figures().mean_kl_divergence == 0.0


@given(st.lists(st.integers(0, 99), min_size=1, max_size=50), st.integers(3, 12), st.booleans())
def test_every_token_of_a_text_is_predicted_exactly_once(ids: list[int], size: int, bos: bool) -> None:
    start = [100] if bos else []
    predicted, fed = [], []
    for window, targets in windows(ids, start, size):
        assert len(window) == len(targets) <= size
        assert window[: len(start)] == start
        fed += window[len(start) :]
        predicted += [target for target in targets if target != NO_TARGET]
    assert fed == ids
    assert predicted == (ids if bos else ids[1:])


def test_perplexity_and_bits_per_byte_are_those_of_transformers(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    convert_checkpoint(folder, tmp_path / "m.gguf", "f32")
    text = tmp_path / "x.txt"
    text.write_text(tiny.TEXT, encoding="utf-8")
    found = verify_model(tmp_path / "m.gguf", folder, texts={"x": text})["by_language"]["x"]
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(tiny.TEXT, add_special_tokens=False).ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        loss = float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    assert found["tokens"] == len(ids)
    assert found["perplexity"] == pytest.approx(np.exp(loss), rel=1e-3)
    first = len(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids[:1]).encode())
    size = len(tiny.TEXT.encode()) - first
    assert found["bits_per_byte"] == pytest.approx(loss * (len(ids) - 1) / np.log(2) / size, rel=1e-3)


def test_the_packages_text_is_there_in_each_language_and_is_not_what_the_quick_start_trains_on() -> None:
    texts = sample_texts()
    assert tuple(texts) == LANGUAGES
    for lang, text in texts.items():
        trained = set((ROOT / "data" / f"{lang}.txt").read_text(encoding="utf-8").splitlines())
        assert len(text) > 1000
        assert not {line for line in text.splitlines() if line} & trained
    assert read_texts(None) == texts


def test_a_text_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\x00\x01\x02" * 40)
    with pytest.raises(DamagedFileError, match="binary"):
        read_texts({"en": path})
    path.write_text(" \n")
    with pytest.raises(InputError, match="no text"):
        read_texts({"en": path})


# --- bounds


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("kld=0.05,ja", Bound("kld", 0.05, "ja")),
        ("KLD=5e-2", Bound("kld", 0.05)),
        ("size=100MB", Bound("size", 1e8)),
        ("size=1.5GiB", Bound("size", 1.5 * 2**30)),
        ("decode=60tok/s", Bound("decode", 60.0)),
        ("top1=0.9,en", Bound("top1", 0.9, "en")),
    ],
)
def test_a_bound_is_read_and_written(text: str, bound: Bound) -> None:
    assert parse_bound(text) == bound
    again = parse_bound(str(bound))
    assert (again.measure, again.lang) == (bound.measure, bound.lang)
    assert again.limit == pytest.approx(bound.limit, rel=1e-3)


@pytest.mark.parametrize(
    "text", ["", "kld", "kld=", "kld=x", "kld=1.2.3", "kld=-1", "kld=0", "size=5MB,ja", "kld=5MB", "size=5m"]
)
def test_what_is_no_bound_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_bound(text)


def test_an_unknown_measure_or_language_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="bpb, kld, p99, ppl, top1"):
        parse_bound("speed=1", ("kld", "p99", "top1", "ppl", "bpb"))
    folder = tiny.llama(tmp_path / "tiny")
    with pytest.raises(UnknownNameError, match=r"unknown language 'de'; known: en, ja.*--text"):
        fit_checkpoint(folder, tmp_path / "m.gguf", [parse_bound("kld=1,de")], MeasureOptions(sample_texts()))
    assert not list(tmp_path.glob("*.gguf*"))


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_a_bound_is_met_exactly_when_its_excess_is_at_most_one(limit: float, value: float) -> None:
    assert (Bound("kld", limit).excess(value) <= 1.0) == (value <= limit)
    assert (Bound("decode", limit).excess(value) <= 1.0) == (value >= limit)
    assert (Bound("kld", limit).broken_by(value) is None) == (value <= limit)
    assert Bound("kld", limit).excess(None) == float("inf")


def record(type_: str, size: int, en: float, ja: float, decode: float | None = None) -> dict[str, Any]:
    figures = {lang: {"mean_kl_divergence": value} for lang, value in (("en", en), ("ja", ja))}
    one = {"type": type_, "size_bytes": size, "by_language": figures, "overall": {"mean_kl_divergence": (en + ja) / 2}}
    return one if decode is None else {**one, "decode_tok_s": decode}


LADDER = [record("q2", 10, 0.5, 0.9, 90.0), record("q4", 20, 0.04, 0.06, 70.0), record("q5", 24, 0.05, 0.08, 50.0),
          record("q6", 30, 0.01, 0.02, 60.0), record("q8", 40, 0.001, 0.002, 40.0)]  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [(["kld=0.05,ja"], "q6"), (["kld=0.05,en"], "q4"), (["kld=0.05"], "q6"), (["size=25B"], "q4"),
     (["decode=55"], "q6"), (["decode=65"], "q4"), (["kld=0.1,ja", "decode=65"], "q4"), (["kld=0.001,ja"], None),
     (["kld=0.05,ja", "size=25B"], None)],
)  # fmt: skip
def test_quality_bounds_take_the_smallest_file_and_others_the_best(bounds: list[str], expected: str | None) -> None:
    chosen = choose(LADDER, [parse_bound(text) for text in bounds])
    assert (chosen and chosen["type"]) == expected


def test_the_nearest_file_is_the_one_that_misses_by_the_least_factor() -> None:
    assert nearest(LADDER, [parse_bound("kld=0.0001,ja")])["type"] == "q8"
    assert nearest(LADDER, [parse_bound("size=1B")])["type"] == "q2"
    unmeasured = {"type": "q3", "size_bytes": 12}
    assert excesses(unmeasured, [parse_bound("kld=1,ja")]) == [None]
    assert nearest([unmeasured, *LADDER], [parse_bound("kld=0.0001,ja")])["type"] == "q8"


# --- real files of a tiny model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("cost") / "tiny", width=256)


TEXTS = {"en": tiny.CORPUS[0] * 3, "ja": tiny.CORPUS[5] * 3}


def test_a_ladder_is_measured_against_the_checkpoints_own_precision(folder: Path, tmp_path: Path) -> None:
    files, reference = convert_measured(
        folder, tmp_path / "out", ["q4_0", "q8_0", "f16"], MeasureOptions(TEXTS, speed=True)
    )
    assert reference["type"] == "f32"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["tiny-f16.gguf", "tiny-q4_0.gguf", "tiny-q8_0.gguf"]
    losses = {one["type"]: [one["by_language"][lang]["mean_kl_divergence"] for lang in TEXTS] for one in files}
    for lang in range(2):
        assert 0 <= losses["f16"][lang] < losses["q8_0"][lang] < losses["q4_0"][lang]
    for one in files:
        assert Path(one["file"]).stat().st_size == one["size_bytes"]
        assert one["prefill_tok_s"] > 0 and one["decode_tok_s"] > 0
        for lang, figures in one["by_language"].items():
            assert figures["reference_perplexity"] == reference["by_language"][lang]["perplexity"]
    assert files[0]["bits_per_weight"] < files[1]["bits_per_weight"] < files[2]["bits_per_weight"] < 16.5
    direct = convert_checkpoint(folder, tmp_path / "direct.gguf", "q4_0")[0]
    assert Path(direct["file"]).read_bytes() == (tmp_path / "out/tiny-q4_0.gguf").read_bytes()


def test_fit_keeps_the_smallest_file_within_the_bound_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    types = ["q4_0", "q5_0", "q8_0"]
    figures, _ = convert_measured(folder, tmp_path / "all", types, MeasureOptions(TEXTS))
    losses = {one["type"]: one["by_language"]["ja"]["mean_kl_divergence"] for one in figures}
    between = (losses["q5_0"] + losses["q4_0"]) / 2
    target = tmp_path / "fit" / "m.gguf"
    result = fit_checkpoint(folder, target, [Bound("kld", between, "ja")], MeasureOptions(TEXTS), types=types)
    assert result["chosen"]["type"] == "q5_0"
    assert [p.name for p in target.parent.iterdir()] == ["m.gguf"]
    assert target.read_bytes() == Path(figures[1]["file"]).read_bytes()
    measured = [one["type"] for one in result["tried"] if "by_language" in one]
    assert measured == ["q4_0", "q5_0"]  # the larger one need not be measured
    size = Bound("size", result["chosen"]["size_bytes"] + 1)
    assert fit_checkpoint(folder, target, [size], MeasureOptions(TEXTS), types=types)["chosen"]["type"] == "q5_0"


def test_a_bound_that_nothing_meets_names_the_nearest_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"no type meets kld=1e-09,ja; the nearest is q8_0 .*ja .* > 1e-09"):
        fit_checkpoint(
            folder, tmp_path / "new/m.gguf", [parse_bound("kld=1e-9,ja")], MeasureOptions(TEXTS), types=["q4_0", "q8_0"]
        )
    with pytest.raises(VerificationError, match=r"no type meets decode=1e\+12tok/s"):
        fit_checkpoint(
            folder, tmp_path / "new/m.gguf", [parse_bound("decode=1e12")], MeasureOptions(TEXTS), types=["q8_0"]
        )
    assert list(tmp_path.iterdir()) == []


def test_the_reference_is_the_checkpoints_own_precision(tmp_path: Path) -> None:
    from convert.source.checkpoint import read_checkpoint

    for dtype, name in ((torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")):
        assert read_checkpoint(tiny.llama(tmp_path / name, dtype=dtype)).own_type == name


def test_speed_fits_into_a_short_context(tmp_path: Path) -> None:
    convert_checkpoint(tiny.gpt2(tmp_path / "tiny"), tmp_path / "m.gguf", "f16")  # 128 positions
    speed = measure_speed(tmp_path / "m.gguf", prompt_tokens=500, answer_tokens=500, repeats=1)
    assert speed.prefill_tok_s > 0 and speed.decode_tok_s > 0
    assert set(machine()) == {"cpu", "threads", "system"}


def test_a_runner_gives_one_row_a_token_whatever_the_block(folder: Path, tmp_path: Path) -> None:
    from contextlib import ExitStack

    convert_checkpoint(folder, tmp_path / "m.gguf", "f32")
    with ExitStack() as stack:
        runner = gguf_runner(stack, tmp_path / "m.gguf")
        ids = runner.encode(tiny.TEXT * 10)[:150]  # more than two blocks
        whole = list(runner.rows(ids))
        start = list(runner.rows(ids[:5]))
        assert len(whole) == 150
        assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(whole, start, strict=False))
        same = measure(runner, gguf_runner(stack, tmp_path / "m.gguf"), {"x": tiny.TEXT}, 0)["x"].figures()
        assert same.mean_kl_divergence == 0.0


# --- the report


def test_the_report_says_what_was_measured_and_can_be_passed_on(folder: Path, tmp_path: Path) -> None:
    files, reference = convert_measured(folder, tmp_path / "m.gguf", ["q8_0"], MeasureOptions(TEXTS, speed=True))
    report = report_of("tiny", files, reference, machine(), text="a sample")
    written = write_report(report_paths(tmp_path / "m.gguf"), report)
    assert [p.name for p in written] == ["m.report.md", "m.report.json", "m.report.png"]
    assert json.loads(written[1].read_text("utf-8")) == report
    assert str(tmp_path) not in written[1].read_text("utf-8")
    text = written[0].read_text("utf-8")
    assert f"{files[0]['by_language']['ja']['mean_kl_divergence']:.4f}" in text
    assert f"| f32 (reference) | {reference['size_bytes'] / 1e6:,.1f} |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert written[2].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    curves = plot.series(report)
    assert set(curves) == {"KL en", "KL ja", "prefill", "decode"}
    assert [name for _, _, name in curves["decode"]] == ["q8_0", "f32"]
    assert markdown(report) == markdown(json.loads(json.dumps(report)))


def test_a_report_without_matplotlib_says_what_to_install_before_any_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*\[plot\]"):
        CliRunner().invoke(
            cli.convert, [str(folder), "-o", str(tmp_path / "m.gguf"), "--report"], catch_exceptions=False
        )
    assert list(tmp_path.iterdir()) == []


def test_convert_with_fit_report_and_json_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "ja.txt"
    text.write_text(TEXTS["ja"], encoding="utf-8")
    arguments = [str(folder), "-o", str(tmp_path / "m.gguf"), "--fit", "kld=5,ja", "--type", "q4_0", "--type", "q8_0"]
    arguments += ["--text", f"ja={text}", "--report", "--no-plot", "--json"]
    done = CliRunner().invoke(cli.convert, arguments, catch_exceptions=False)
    result = json.loads(done.stdout)
    assert [one["type"] for one in result["files"]] == ["q4_0"]
    assert [one["type"] for one in result["tried"]] == ["q4_0", "q8_0"]
    assert {p.name for p in tmp_path.iterdir()} == {"ja.txt", "m.gguf", "m.report.md", "m.report.json"}
    shown = CliRunner().invoke(cli.convert, [*arguments[:-1], "--no-report"], catch_exceptions=False)
    assert "q4_0 *" in shown.stdout and "f32 ref." in shown.stdout


def test_a_broken_language_bound_ends_verify_with_1(folder: Path, tmp_path: Path) -> None:
    convert_checkpoint(folder, tmp_path / "a", ["f32", "q4_0"])
    arguments = [str(tmp_path / "a/tiny-q4_0.gguf"), "--against", str(tmp_path / "a/tiny-f32.gguf"), "--json"]
    arguments += ["--max-tokens", "64", "--max-relative", "9"]
    good = CliRunner().invoke(cli_verify.verify, [*arguments, "--bound", "kld=50", "--bound", "top1=0.01"])
    assert good.exit_code == 0, good.output
    bad = CliRunner().invoke(cli_verify.verify, [*arguments, "--bound", "kld=0.0000001,ja", "--bound", "top1=0.01"])
    assert bad.exit_code == 1
    [broken] = json.loads(bad.stdout)["broken"]
    assert broken.startswith("mean KL divergence in ja ") and broken.endswith(" > 1e-07")


# --- inspect


def test_inspect_says_everything_that_is_in_a_file(folder: Path, tmp_path: Path) -> None:
    [made] = convert_checkpoint(folder, tmp_path / "m.gguf", "q8_0")
    described = inspect_gguf(tmp_path / "m.gguf")
    tensors = list_tensors(tmp_path / "m.gguf")
    assert described["tensor_types"] == made["tensor_types"]
    assert described["tensors"] == len(tensors) == sum(made["tensor_types"].values())
    assert sum(one["size_bytes"] for one in tensors) == sum(described["tensor_type_bytes"].values())
    assert described["header_bytes"] < described["size_bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert described["parameters"] == sum(int(np.prod(one["shape"])) for one in tensors)
    assert described["context_length"] == 256
    assert sum(described["vocabulary"]["token_types"].values()) == described["vocabulary"]["tokens"]
    assert described["vocabulary"]["token_types"]["control"] == 3
    shown = CliRunner().invoke(cli.inspect, [str(tmp_path / "m.gguf"), "--tensors"], catch_exceptions=False)
    assert "blk.1.ffn_down.weight" in shown.stdout
    assert json.loads(CliRunner().invoke(cli.inspect, [str(tmp_path / "m.gguf"), "--json"]).stdout) == described

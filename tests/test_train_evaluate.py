"""Evaluation: every token is predicted once, long files come in pieces, and both forms of a model agree."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from convert.lora.adapter import convert_adapter
from convert.model import convert_checkpoint
from slm.errors import DamagedFileError, InputError, MismatchError
from tests import tiny_checkpoints
from tests.path_joints import PathJoints
from train.adapter.opened import load_with_adapter
from train.base import has_columns_first, load_tokenizer, target_modules
from train.measure.evaluate import evaluate_texts
from train.measure.strides import pieces, windows

ROOT = Path(__file__).parent.parent
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "gpt2": tiny_checkpoints.gpt2,
    "gpt2 unigram": lambda folder: tiny_checkpoints.gpt2(folder, unigram=True),
    "llama": tiny_checkpoints.llama,
    "gemma3": tiny_checkpoints.gemma3,
}
ENGLISH = (
    "\n\n".join(tiny_checkpoints.CORPUS[:3]) + "\nMarkers as text: <|im_end|>, <end_of_turn>.\n\n\tNew words here.\n"
) * 4
JAPANESE = "\n".join(tiny_checkpoints.CORPUS[4:8]) * 6


@given(
    st.lists(st.lists(st.integers(10, 99), max_size=30), max_size=6),
    st.booleans(),
    st.integers(2, 12),
    st.integers(0, 12),
)
def test_every_token_is_predicted_once_after_the_tokens_that_stand_before_it(
    parts: list[list[int]], has_bos: bool, context: int, stride: int
) -> None:
    bos = [1] if has_bos else []
    ids = [token for part in parts for token in part]
    if stride > context - 1:
        with pytest.raises(InputError, match="stride"):
            list(windows(parts, bos, context, stride))
        return
    predicted: list[int] = [] if has_bos else ids[:1]
    for window in windows(parts, bos, context, stride):
        assert len(window.ids) <= context and 0 < window.first < len(window.ids)
        seen = window.ids[len(bos) : window.first]
        new = window.ids[window.first :]
        assert window.ids[: len(bos)] == bos
        assert seen == predicted[len(predicted) - len(seen) :]
        assert len(new) <= (stride or context)
        predicted += new
    assert predicted == ids


@given(st.text(alphabet="aあ \n\t猫", max_size=200), st.integers(1, 40))
def test_the_pieces_of_a_file_are_its_text_without_white_space_around_it(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "t.txt"
    path.write_text(text, encoding="utf-8")
    if not text.strip():
        with pytest.raises(InputError, match="is empty"):
            list(pieces(path, size))
        return
    found = list(pieces(path, size))
    assert "".join(found) == text.strip()
    assert all(piece and piece == piece.rstrip() for piece in found)


def test_a_long_file_is_never_in_memory_as_a_whole_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"line {n} of a long file\n" for n in range(20_000)), encoding="utf-8")
    sizes = [len(piece) for piece in pieces(path, 4096)]
    assert max(sizes) <= 2 * 4096 and len(sizes) > 50
    path.write_bytes(bytes(range(16)) * 4096)
    with pytest.raises(DamagedFileError, match=r"long\.txt.*binary, not text"):
        list(pieces(path, 4096))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: make(folder / name.replace(" ", "-")) for name, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def ggufs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ggufs")
    files = {name: folder / f"{base.name}.gguf" for name, base in bases.items()}
    for name, file in files.items():
        convert_checkpoint(bases[name], file, "f32", verify=False)
    return files


def adapter(base: Path, folder: Path, *, size: float = 0.4) -> Path:
    """A random LoRA adapter that changes a model visibly."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=target_modules(model.config, "qv"),
                        fan_in_fan_out=has_columns_first(model.config), task_type="CAUSAL_LM")  # fmt: skip
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (p for p in wrapped.parameters() if p.requires_grad):
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    saved = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(saved | {"base_model_name_or_path": str(base)}))
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, list[Path]]:
    files = {"en": tmp_path / "en.txt", "ja": tmp_path / "ja.txt"}
    files["en"].write_text(ENGLISH, encoding="utf-8")
    files["ja"].write_text(JAPANESE, encoding="utf-8")
    return {lang: [file] for lang, file in files.items()}


@pytest.mark.parametrize("stride", [0, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoints_figures_are_those_of_transformers_own_logits(
    family: str, stride: int, bases: dict[str, Path], texts: dict[str, list[Path]], tmp_path: Path
) -> None:
    base = bases[family]
    folder = adapter(base, tmp_path / "a")
    figures = evaluate_texts(base, texts, folder, context=64, stride=stride)
    tokenizer, model = load_tokenizer(base), load_with_adapter(base, folder)
    bos = [tokenizer.bos_token_id] if family == "gemma3" else []
    for lang, (path,) in texts.items():
        text = path.read_text(encoding="utf-8").strip()
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        nats, count = 0.0, 0
        for window in windows([ids], bos, 64, stride):
            with torch.no_grad():
                logits = model(torch.tensor([window.ids])).logits[0].double()
            wanted = torch.tensor(window.ids[window.first :])
            nats += float(F.cross_entropy(logits[window.first - 1 : -1], wanted, reduction="sum"))
            count += len(wanted)
        assert figures[lang].tokens == count == len(ids) - (not bos)
        assert figures[lang].loss == pytest.approx(nats / count, rel=1e-5)
        assert figures[lang].perplexity == pytest.approx(math.exp(nats / count), rel=1e-4)
        assert figures[lang].bits_per_byte == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_and_its_gguf_have_the_same_figures(
    family: str,
    adapted: bool,
    bases: dict[str, Path],
    ggufs: dict[str, Path],
    texts: dict[str, list[Path]],
    tmp_path: Path,
) -> None:
    base, gguf = bases[family], ggufs[family]
    folder, file = None, None
    if adapted:
        folder, file = adapter(base, tmp_path / "a"), tmp_path / "a.gguf"
        convert_adapter(folder, file)
    one = evaluate_texts(base, texts, folder, context=64, stride=48)
    two = evaluate_texts(gguf, texts, file, context=64, stride=48)
    for lang, figures in one.items():
        assert figures.tokens == two[lang].tokens > 40
        assert figures.loss == pytest.approx(two[lang].loss, rel=5e-4)
        assert figures.bits_per_byte == pytest.approx(two[lang].bits_per_byte, rel=5e-4)
    plain = evaluate_texts(base, texts, context=64, stride=48)
    moved = abs(plain["en"].loss - one["en"].loss)
    assert moved > 2 * 5e-4 * plain["en"].loss if adapted else moved == 0


def test_a_window_is_no_longer_than_the_model_holds_in_either_form(
    bases: dict[str, Path], ggufs: dict[str, Path], texts: dict[str, list[Path]]
) -> None:
    one, two = evaluate_texts(bases["gpt2"], texts), evaluate_texts(ggufs["gpt2"], texts)  # it holds 128 tokens
    assert one["ja"].tokens == two["ja"].tokens > 256
    assert one["ja"].loss == pytest.approx(two["ja"].loss, rel=5e-4)


def test_what_cannot_be_measured_is_said(bases: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("a", encoding="utf-8")
    with pytest.raises(InputError, match="nothing to predict"):
        evaluate_texts(bases["gpt2"], {"en": [text]})
    folder = adapter(bases["gpt2"], tmp_path / "a")
    convert_adapter(folder, tmp_path / "a.gguf")
    other = tiny_checkpoints.gpt2(tmp_path / "other", seed=1)
    convert_checkpoint(other, tmp_path / "other.gguf", "f32", verify=False)
    with pytest.raises(MismatchError, match="other weights"):
        evaluate_texts(tmp_path / "other.gguf", {"en": [text]}, tmp_path / "a.gguf")


def test_the_command_takes_a_peft_folder_for_a_gguf_too(
    bases: dict[str, Path], ggufs: dict[str, Path], texts: dict[str, list[Path]], tmp_path: Path
) -> None:
    from train.cli.evaluate import evaluate as command

    base, gguf = bases["gemma3"], ggufs["gemma3"]
    folder = adapter(base, tmp_path / "a")

    class Converting(PathJoints):
        def adapter_gguf_of(self, folder: Path, model: str) -> Path:
            convert_adapter(folder, tmp_path / "made.gguf", Path(base))
            return tmp_path / "made.gguf"

    joints = Converting()
    found = []
    for model in (base, gguf):
        named = [item for lang, (file,) in texts.items() for item in ("--text", f"{lang}={file}")]
        arguments = [str(model), "--adapter", str(folder), *named, "--context", "64", "--stride", "32"]
        said = CliRunner().invoke(command, [*arguments, "--json"], obj=joints)
        assert said.exit_code == 0, said.output
        found.append(json.loads(said.stdout)["by_language"])
    assert set(found[0]["ja"]) == {"loss", "perplexity", "bits_per_byte", "tokens"}
    assert found[0]["ja"]["loss"] == pytest.approx(found[1]["ja"]["loss"], rel=5e-4)
    shown = CliRunner().invoke(command, arguments, obj=joints)
    assert "bits per byte" in shown.stdout and "ja" in shown.stdout


@pytest.mark.real
def test_a_real_model_with_an_adapter_agrees_between_its_forms_to_half_a_percent(
    pulled_model: Callable[[str], Path], tmp_path: Path
) -> None:
    import slm_cli

    base = slm_cli.Roof().checkpoint_of(str(pulled_model("smollm2-135m-instruct")))
    convert_checkpoint(base, tmp_path / "model.gguf", "f16", verify=False)
    folder = adapter(base, tmp_path / "a", size=0.02)
    convert_adapter(folder, tmp_path / "a.gguf")
    texts = {}
    for lang in ("en", "ja"):
        lines = (ROOT / f"data/{lang}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{lang}.txt").write_text("".join(lines[:12]), encoding="utf-8")
        texts[lang] = [tmp_path / f"{lang}.txt"]
    one = evaluate_texts(base, texts, folder)
    two = evaluate_texts(tmp_path / "model.gguf", texts, tmp_path / "a.gguf")
    for lang, figures in one.items():
        assert figures.tokens == two[lang].tokens
        assert figures.loss == pytest.approx(two[lang].loss, rel=0.005)
        assert figures.bits_per_byte == pytest.approx(two[lang].bits_per_byte, rel=0.005)

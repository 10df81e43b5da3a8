"""Opens checkpoint folders: the model with every weight in place, and a tokenizer that splits as the model learned.

It knows nothing of data, adapters' training or what the model is used for.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.artifacts import read_json, require_folder
from slm.errors import DamagedFileError, InputError, MissingFileError, UnsupportedError
from slm.families import Family
from slm.families.targets import PRESETS, decoder_families, encoder_families, keeps_columns_first, linear_layers
from slm.weights.checkpoint_files import ADAPTER_CONFIG, check_checkpoint, refuse_pointers, weight_files

if TYPE_CHECKING:
    import torch

# Where the output vectors of tokens are, most telling first: an own head, else the embedding it is tied to.
_OUTPUT_VECTORS = (
    *("lm_head.weight", "embed_out.weight"),
    *("model.embed_tokens.weight", "transformer.wte.weight", "wte.weight", "gpt_neox.embed_in.weight"),
)
_LOOKALIKE = 0.97
_WEIGHTS_HINT = "Give a checkpoint folder: config.json, *.safetensors and tokenizer files."


def hush() -> None:
    """Silence the libraries' own bars and warnings; what matters is checked and said by us."""
    import transformers
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate)\b.*")


def read_config(folder: Path, *, encoder: bool = False) -> dict[str, Any]:
    """config.json of a decoder's checkpoint folder, or of an encoder's.

    Raises MissingFileError, DamagedFileError, UnsupportedError or InputError.
    """
    require_folder(folder, hint=_WEIGHTS_HINT)
    if (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists():
        raise InputError(
            f"'{folder}' is an adapter where a base checkpoint is needed",
            hint="Name its base here and give the adapter with --adapter.",
        )
    path = folder / "config.json"
    if not path.exists():
        raise MissingFileError(
            f"'{folder}' is not a checkpoint folder: it has no config.json",
            found=", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "an empty folder",
            hint=_WEIGHTS_HINT,
        )
    check_checkpoint(folder)
    config = read_json(path)
    if "model_type" not in config:
        raise DamagedFileError(f"'{path}' names no model_type")
    _family(config["model_type"], encoder_families() if encoder else decoder_families())
    return config


def _family(model_type: object, known: dict[str, Family]) -> Family:
    if not isinstance(model_type, str) or model_type not in known:
        raise UnsupportedError(
            f"training does not support the architecture '{model_type}'",
            hint=f"Supported: {', '.join(sorted(known))}.",
        )
    return known[model_type]


def target_modules(config: Any, targets: str) -> list[str]:
    """Module names for a preset (qv, attention, all) or for a comma-separated list of names.

    config: transformers' configuration of the model. Raises UnsupportedError for a family that is not known.
    """
    if targets in PRESETS:
        return linear_layers(_any_family(config.model_type), config.to_dict(), targets)
    return [name.strip() for name in targets.split(",") if name.strip()]


def has_columns_first(config: Any) -> bool:
    """PEFT's fan_in_fan_out: whether the model keeps the weights of its linear layers as (in, out)."""
    return keeps_columns_first(_any_family(config.model_type), config.to_dict())


def _any_family(model_type: object) -> Family:
    return _family(model_type, decoder_families() | encoder_families())


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor in which a number is NaN or infinite; None where all are sound."""
    return next((name for name, tensor in tensors if tensor.is_floating_point() and not tensor.isfinite().all()), None)


def load_model(folder: Path) -> Any:
    """The causal language model in float32, on the CPU, with no weight missing or left over."""
    from transformers import AutoModelForCausalLM

    read_config(folder)
    return _loaded(AutoModelForCausalLM, folder)


def is_encoder(folder: Path) -> bool:
    """Whether a checkpoint folder holds an encoder, by what its config.json names."""
    path = folder / "config.json"
    return path.exists() and read_json(path).get("model_type") in encoder_families()


def load_encoder(folder: Path) -> Any:
    """The encoder in float32, on the CPU, without its pooling layer, with no weight missing."""
    from transformers import AutoModel

    read_config(folder, encoder=True)
    # Heads of 32 numbers: the plain products are quicker than fused attention, by a quarter of a step.
    return _loaded(AutoModel, folder, add_pooling_layer=False, attn_implementation="eager")


def _loaded(kind: Any, folder: Path, **options: Any) -> Any:
    import torch
    from safetensors import SafetensorError

    hush()
    weight_files(folder)
    try:
        model, info = kind.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, **options
        )
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise DamagedFileError(f"the weights in '{folder}' cannot be read: {_first_line(error)}") from error
    for fault in ("missing_keys", "mismatched_keys"):
        if info.get(fault):
            names = ", ".join(sorted(str(key) for key in info[fault])[:4])
            raise DamagedFileError(
                f"the weights in '{folder}' do not match its config.json ({fault.replace('_', ' ')}: {names})"
            )
    return model


def lookalikes(folder: Path, token: int) -> int:
    """How many other tokens have an output vector almost equal (cosine above 0.97) to that of `token`.

    A token that never occurred in training keeps the vector of all such tokens: no adapter can make the
    model tell it from them. The turn markers of a base that was not instruction-tuned are of this kind
    (Gemma 3 270M: <end_of_turn> has thousands of lookalikes, <eos> has none).
    """
    import torch
    from safetensors import safe_open

    for name in _OUTPUT_VECTORS:
        for file in weight_files(folder).files:
            with safe_open(file, "pt") as weights:
                if name in weights.keys():  # noqa: SIM118  (not a dict)
                    rows = weights.get_tensor(name)
                    own = rows[token][None].float()
                    # A part at a time: the copies of all of Gemma's vocabulary would take more than training does.
                    parts = (torch.nn.functional.cosine_similarity(part.float(), own) for part in rows.split(8192))
                    return sum(int((cosines > _LOOKALIKE).sum()) for cosines in parts) - 1
    return 0


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint or adapter folder, with a padding token (EOS where it has none)."""
    from transformers import AutoTokenizer

    hush()
    refuse_pointers(folder)
    if (folder / "spiece.model").exists() and not (folder / "tokenizer.json").exists():
        tokenizer = _sentencepiece_tokenizer(folder)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise MissingFileError(
                f"no tokenizer can be loaded from '{folder}': {_first_line(error)}", hint=_WEIGHTS_HINT
            ) from error
    if not tokenizer.is_fast:
        raise UnsupportedError(f"the tokenizer in '{folder}' has no fast form ({type(tokenizer).__name__})")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _sentencepiece_tokenizer(folder: Path) -> Any:
    """A tokenizer that splits as SentencePiece does, for folders with a `spiece.model` of kind unigram.

    Needed because transformers 5 opens such folders as T5, which fixes the unknown token's id at 2 (that of
    "</s>" in rinna's models), leaves out `do_lower_case` and appends "</s>" to every text.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString((folder / "spiece.model").read_bytes())
    except DecodeError as error:
        raise DamagedFileError(f"'{folder / 'spiece.model'}' is not a SentencePiece model") from error
    if proto.trainer_spec.model_type != 1:
        raise UnsupportedError(f"'{folder / 'spiece.model'}' is not a unigram model", hint="Supported: unigram.")
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    spec = proto.normalizer_spec
    tokenizer = Tokenizer(
        Unigram(
            [(piece.piece, piece.score) for piece in proto.pieces],
            unk_id=proto.trainer_spec.unk_id,
            byte_fallback=proto.trainer_spec.byte_fallback,
        )
    )
    steps: list[Any] = [normalizers.Lowercase()] if config.get("do_lower_case") else []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if spec.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme=scheme, split=proto.trainer_spec.split_by_whitespace
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    pieces = {piece.piece for piece in proto.pieces}
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special = {name: config.get(name, defaults.get(name)) for name in names}
    special = {name: token["content"] if isinstance(token, dict) else token for name, token in special.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        do_lower_case=bool(config.get("do_lower_case")),
        **{name: token for name, token in special.items() if token in pieces},
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

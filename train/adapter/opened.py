"""Puts a trained adapter folder onto its base, after checking that the two belong together.

It knows nothing of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm.artifacts import MANIFEST, read_json, read_manifest, require_folder
from slm.errors import DamagedFileError, MismatchError, MissingFileError, UnsupportedError
from slm.weights.adapter_kinds import unmergeable
from slm.weights.checkpoint_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    converted_adapter,
    refuse_adapted,
    refuse_pointer,
)
from slm.weights.empty_tensors import refuse_empty
from slm.weights.identity import check_named_base, check_same_base, identity_of
from train.base import load_model, load_tokenizer

_TOKENIZER, _TEMPLATE = ("tokenizer.json", "tokenizer_config.json"), "chat_template.jinja"
_WRAPPINGS = {"default", "base_layer", "modules_to_save", "original_module", "token_adapter"}
# What gives the same weights another meaning, and the option that it comes from.
_MEANING = {
    "r": "--rank", "lora_alpha": "--alpha", "target_modules": "--targets", "layers_to_transform": "--top-layers",
    "use_rslora": "--rslora", "use_dora": "--dora",
}  # fmt: skip
# What no run has: with it the factors of an adapter are something else.
_NO_RUN_HAS = {
    "rank_pattern": "some modules have a rank of their own",
    "alpha_pattern": "some modules have a scale of their own",
    "alora_invocation_tokens": "it acts only from its invocation tokens on",
}
_MOST_GROWTH = 4  # times the rows of the base


def check_adapter(adapter: Path, base: Path) -> dict[str, Any]:
    """The adapter's manifest (empty if it is not one of ours), once it is known to be trained on `base`.

    Raises MissingFileError, DamagedFileError, UnsupportedError, or MismatchError when its manifest names other weights.
    The base of an adapter without one is asked once the shapes are known to fit, which tell more (`_require_named`).
    """
    restored = f"slm restore {adapter} --base BASE -o FOLDER"
    require_folder(adapter, hint=f"Give an adapter folder as `slm train` writes it; one of a GGUF file: {restored}")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (adapter / name).exists():
            raise MissingFileError(
                f"'{adapter}' is not an adapter folder: it has no {name}",
                found=", ".join(sorted(p.name for p in adapter.iterdir())[:6]) or "an empty folder",
                hint=f"Restore it first: {restored}" if converted_adapter(adapter) else "",
            )
        refuse_pointer(adapter / name)
    refuse_adapted(adapter)
    if refused := unmergeable(_settings(adapter)):
        raise UnsupportedError(f"the adapter '{adapter}' {refused.what}", found=refused.why, hint=refused.hint)
    refuse_empty(adapter / ADAPTER_WEIGHTS, _shapes(adapter))
    manifest = read_manifest(adapter) if (adapter / MANIFEST).exists() else {}
    check_same_base(adapter, manifest, base)
    return manifest


def _settings(adapter: Path) -> dict[str, Any]:
    return read_json(adapter / ADAPTER_CONFIG)


def load_with_adapter(base: Path, adapter: Path | None) -> Any:
    """The float32 model of `base`, wrapped by PEFT with the adapter if there is one, ready for inference.

    An adapter with tokens of its own keeps the whole embedding or the rows of these tokens, so the base is given as
    many rows; one that nobody trained is the mean of the others, as transformers begins it.
    Raises MismatchError when the adapter's tensors do not fit the base.
    """
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError

    if adapter is None:
        return load_model(base).eval()
    check_adapter(adapter, base)
    model = load_model(base)
    try:
        rows, old = _embedding_rows(adapter, model), model.get_input_embeddings().weight.shape[0]
        if rows > old:
            model.resize_token_embeddings(rows, mean_resizing=False)
            with torch.no_grad():
                for table in {
                    id(m): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())
                }.values():
                    table[old:] = table[:old].mean(dim=0)
        wrapped = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    except SafetensorError as error:
        raise DamagedFileError(f"'{adapter / ADAPTER_WEIGHTS}' cannot be read: {error}") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise MismatchError(
            f"the adapter '{adapter}' does not fit the base '{base}'",
            found=str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__,
            hint="Give the base it was trained on.",
        ) from error
    _require_all(adapter, wrapped)
    _require_named(adapter, base)
    return wrapped.eval()


def tokenizer_with(base: Path, adapter: Path) -> Any:
    """The tokenizer that an adapter folder holds, else its base's, with the chat template that the folder may hold."""
    if any((adapter / name).exists() for name in _TOKENIZER):
        return load_tokenizer(adapter)
    tokenizer, template = load_tokenizer(base), adapter / _TEMPLATE
    if template.exists():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def has_words(adapter: Path) -> bool:
    """Whether an adapter folder holds a tokenizer, or a chat template for its base's."""
    return any((adapter / name).exists() for name in (*_TOKENIZER, _TEMPLATE))


def folded(wrapped: Any, adapter: Path) -> Any:
    """The model with its adapter in its own weights. Raises UnsupportedError where they have no place for it."""
    try:
        return wrapped.merge_and_unload()
    except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
        raise UnsupportedError(
            f"the adapter '{adapter}' cannot be folded into its base",
            found=str(error).strip().splitlines()[-1].strip().rstrip(".") if str(error).strip() else "PEFT refuses it",
            hint="Use it with PEFT, or train it again without what is named.",
        ) from error


def begin_with(adapted: Any, adapter: Path, base: Path) -> Any:
    """The model with a fresh adapter, its weights those of an adapter folder of the same form.

    The folder is one that `check_adapter` took for this base: a run asks that before the base is loaded. Raises
    MismatchError where the two differ in rank, scale, layers or anything else that gives the same weights another
    meaning, UnsupportedError for what no run has.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    kept, asked = _settings(adapter), adapted.peft_config["default"].to_dict()
    for name, why in _NO_RUN_HAS.items():
        if kept.get(name):
            raise UnsupportedError(
                f"no run goes on with the adapter '{adapter}', which has '{name}': {why}",
                hint="Begin a new one, without --from-adapter.",
            )
    for name, flag in _MEANING.items():
        was, now = _sorted(kept.get(name)), _sorted(asked.get(name))
        if (was or None) != (now or None):  # what an older PEFT did not write is off
            raise MismatchError(
                f"the adapter '{adapter}' has another form than the run that should go on with it",
                found=f"{name} is {was} in the adapter and {now} in this run",
                hint=f"Give the adapter's own with {flag}.",
            )
    _require_all(adapter, adapted)
    _require_named(adapter, base)
    set_peft_model_state_dict(adapted, load_peft_weights(str(adapter), device="cpu"))
    return adapted


def _sorted(value: Any) -> Any:
    """A setting with its names in order: PEFT keeps them as a set."""
    return sorted(value) if isinstance(value, (list, set)) else value


def _require_all(adapter: Path, wrapped: Any) -> None:
    """Raise MismatchError where the file and the model have not the same adapter; PEFT leaves out what does not fit."""
    saved = {_plain(name) for name in _shapes(adapter)}
    there = {_plain(name) for name in wrapped.state_dict()}
    strays = sorted(saved - there)
    own = {_plain(name) for name, _ in wrapped.named_parameters()}  # a weight that two modules share is named once
    prefix = str(getattr(wrapped.base_model, "prefix", "lora_"))  # of the adapter's parameters, in each kind another
    missing = sorted(name for name in own - saved if f".{prefix}" in name or "trainable_tokens" in name)
    if not strays and not missing:
        return
    found = f"{len(strays)} of its {len(saved)} tensors have no place there, such as {strays[0]}" if strays else ""
    if missing:
        found += f"{'; ' if found else ''}none for {len(missing)} of the model's, such as {missing[0]}"
    hint = "Give the base it was trained on."
    if any("._orig_mod." in name for name in strays):
        hint = "It was saved from a model under torch.compile: save it again from the model inside (model._orig_mod)."
    elif any(".language_model." in name for name in strays):
        hint = "It was trained on the language part of a model with images, which is named otherwise there."
    raise MismatchError(f"the adapter '{adapter}' does not fit the base", found=found, hint=hint)


def _require_named(adapter: Path, base: Path) -> None:
    """Raise MismatchError where the adapter folder names a base that is here and holds other weights."""
    manifest = read_manifest(adapter) if (adapter / MANIFEST).exists() else {}
    check_named_base(adapter, manifest, base, identity_of(base))


def _plain(name: str) -> str:
    """A tensor's name without what PEFT adds to it in the model, or saves only sometimes."""
    parts = [part for part in name.split(".") if part not in _WRAPPINGS]
    return ".".join(parts[:-1] if parts[-1] == "weight" else parts)


def _embedding_rows(adapter: Path, model: Any) -> int:
    """How many rows of the token embedding the adapter needs: those it keeps whole, or the last token it trains.

    Raises MismatchError for a token far beyond the base's, which is another model's.
    """
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    shapes = _shapes(adapter)
    whole = max((shape[0] for key, shape in shapes.items() if f".{key}".endswith(f".{name}.weight")), default=0)
    trained = _settings(adapter).get("trainable_token_indices") or []
    lists = trained.values() if isinstance(trained, dict) else [trained]
    last = max((int(token) for tokens in lists for token in tokens), default=-1)
    old = int(embedding.weight.shape[0])
    if last >= old:
        if last >= _MOST_GROWTH * old:
            raise MismatchError(
                f"the adapter '{adapter}' trains token {last:,}, and its base has {old:,}",
                hint="Give the base it was trained on.",
            )
        if (adapter / "tokenizer_config.json").exists():
            last = max(last, len(load_tokenizer(adapter)) - 1)
    return max(whole, last + 1)


def _shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of an adapter folder. Raises DamagedFileError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise DamagedFileError(f"'{adapter / ADAPTER_WEIGHTS}' cannot be read: {error}") from error

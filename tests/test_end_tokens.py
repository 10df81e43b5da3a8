"""The tokens that end an answer reach GGUF and come back, whoever names them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from convert.model import convert_checkpoint
from convert.restore import restore_checkpoint
from serve.adapters.registry import vet_base
from serve.child.choice.sampling import vocabulary_of
from slm.chat.turn_end import turn_end
from slm.native.llama import open_model
from tests import tiny_checkpoints as tiny

NAMES = ["<|reply_end|>", "<|stop_a|>", "<|stop_b|>", "<|stop_c|>"]


def with_ends(folder: Path, template: str | None, listed: object) -> dict[str, int]:
    """A tiny llama whose four end tokens have names that no runtime knows; returns their ids."""
    tiny.llama(folder)
    fast = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = fast["model"]["vocab"]
    merges = {"".join(pair) for pair in fast["model"]["merges"][-4:]}
    ids = dict(zip(NAMES, sorted(vocabulary[merged] for merged in merges), strict=True))
    for merged in merges:
        del vocabulary[merged]
    del fast["model"]["merges"][-4:]
    for name, id_ in ids.items():
        token = {"id": id_, "content": name, "special": True}
        fast["added_tokens"].append(token | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False))
    (folder / "tokenizer.json").write_text(json.dumps(fast))
    Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | ({"chat_template": template} if template else {}))
    )
    named = [ids.get(str(one), one) for one in listed] if isinstance(listed, list) else listed
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    return ids


TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + ' <|reply_end|>\n' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "listed", "wanted"),
    [
        (TEMPLATE, 0, NAMES[:1]),
        (None, [0, *NAMES[:1]], NAMES[:1]),
        (None, [0, *NAMES[:2]], NAMES[:2]),
        (TEMPLATE, [0, *NAMES[1:]], NAMES),
    ],
)
def test_every_end_token_ends_an_answer_and_is_restored(
    template: str | None, listed: object, wanted: list[str], tmp_path: Path
) -> None:
    ids = with_ends(tmp_path / "model", template, listed)
    convert_checkpoint(tmp_path / "model", tmp_path / "m.gguf", "f16")
    expected = {ids[name] for name in wanted}
    with ExitStack() as stack:
        model = open_model(stack, tmp_path / "m.gguf")
        assert expected <= vocabulary_of(model, vet_base(tmp_path / "m.gguf").ends).eog
        assert len(expected & vocabulary_of(model).eog) == min(2, len(expected)), "llama.cpp itself has two keys"
    restore_checkpoint(tmp_path / "m.gguf", tmp_path / "back", chat_template=None)
    back = json.loads((tmp_path / "back/generation_config.json").read_text())["eos_token_id"]
    assert expected | {0} <= set(back)


def test_the_end_of_a_turn_is_what_the_template_puts_behind_the_answer() -> None:
    markers = ["<|end|>", "<|end|>x", "<|user|>", "\n"]
    assert turn_end("{% for m in messages %}<|user|>{{ m.content }}\n<|end|>\n{% endfor %}", markers) == "<|end|>"
    assert (
        turn_end(
            "{% for m in messages %}<|user|>{{ m.content }}{{ eos_token }}{% endfor %}", ["</s>"], eos_token="</s>"
        )
        == "</s>"
    )
    assert turn_end("{% for m in messages %}### {{ m.content }}\n{% endfor %}", markers) is None
    assert turn_end("{{ raise_exception('no') }}", markers) is None

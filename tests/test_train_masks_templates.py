"""Which template a base is trained with, which are refused, and masks as they are shown."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from slm.chat.prompt import TEMPLATES
from slm.errors import InputError
from tests.tiny_masks import STOCK, TAGGED_TEMPLATES, example, learned
from tests.tiny_runs import base, options
from tests.tiny_templates import FAMILIES, HIDING, tokenizer_of
from tests.tiny_training import (
    byte_level_tokenizer,
    conversations,
    write_jsonl,
    write_sentencepiece_checkpoint,
)
from train.base import load_tokenizer, lookalikes
from train.data.masks import IGNORE, ExampleEncoder, choose_template, end_of_turn_id
from train.data.prepare import prepare_conversations
from train.data.show import show_masks

__all__ = ["base"]  # a fixture


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "i.jsonl", conversations(20) + conversations(20, "ja"))


tokenizer_for = cache(lambda name: tokenizer_of(FAMILIES[name]))


@pytest.mark.parametrize("name", HIDING)
def test_a_template_that_hides_the_border_is_refused_with_the_line(name: str) -> None:
    tokenizer = tokenizer_of(FAMILIES["deepseek-v3"])
    with pytest.raises(InputError, match=r"'x\.jsonl', line 7.*--template"):
        ExampleEncoder(tokenizer, HIDING[name]).conversation(example("Where?", "Here."))


def test_a_template_that_refuses_a_conversation_names_the_line() -> None:
    for name, roles in (("gemma2", ("system", "user", "assistant")), ("gemma3", ("user", "user", "assistant"))):
        encoder = ExampleEncoder(tokenizer_for(name), FAMILIES[name].template)
        with pytest.raises(InputError, match=r"'x\.jsonl', line 7: .*refuses"):
            encoder.conversation(example("Be short.", "Where?", "Here.", roles=roles))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_marker_of_a_template_is_found(name: str) -> None:
    tokenizer = tokenizer_for(name)
    token = end_of_turn_id(tokenizer, FAMILIES[name].template)
    assert token == tokenizer.convert_tokens_to_ids(FAMILIES[name].end.strip())


def test_a_template_that_forgets_earlier_turns_gives_one_sequence_for_each_answer() -> None:
    tokenizer = byte_level_tokenizer()
    last_only = (
        "{% if add_generation_prompt %}{{ messages[-1]['content'] + '<|im_start|>' }}"
        "{% else %}{{ messages[-2]['content'] + '<|im_start|>' + messages[-1]['content'] + '<|im_end|>' }}{% endif %}"
    )
    encoded = ExampleEncoder(tokenizer, last_only).conversation(example("A?", "a.", "B?", "b."))
    assert [tokenizer.decode(item.ids) for item in encoded] == [
        "A?<|im_start|>a.<|im_end|>",
        "B?<|im_start|>b.<|im_end|>",
    ]
    assert [learned(tokenizer, item) for item in encoded] == [["a.<|im_end|>"], ["b.<|im_end|>"]]


def test_an_example_with_nothing_to_learn_is_an_error_with_its_line() -> None:
    silent = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(InputError, match=r"line 7: no token of the answer"):
        ExampleEncoder(byte_level_tokenizer(), silent).conversation(example("Where?", "Here."))


def test_there_is_one_bos_whether_the_template_or_the_tokenizer_adds_it() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_level_tokenizer(bos="<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    for name in ("gemma", "chatml"):
        (encoded,) = ExampleEncoder(tokenizer, TEMPLATES[name]).conversation(example("Where?", "Here."))
        assert encoded.ids[0] == tokenizer.bos_token_id
        assert encoded.ids.count(tokenizer.bos_token_id) == 1


def test_the_template_is_the_named_one_else_the_bases_own_else_what_the_vocabulary_suggests() -> None:
    tokenizer = byte_level_tokenizer()
    assert choose_template(tokenizer, "alpaca")[1] == "alpaca"
    assert choose_template(tokenizer, None)[1] == "gemma"
    tokenizer.chat_template = STOCK
    assert choose_template(tokenizer, None) == (STOCK, None)


def test_a_base_that_never_learned_its_end_marker_is_taught_with_one_it_knows(
    base: Path, instruct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank = shutil.copytree(base, tmp_path / "base")
    weights = load_file(blank / "model.safetensors")
    marker = load_tokenizer(blank).convert_tokens_to_ids("<end_of_turn>")
    assert lookalikes(blank, marker) == 0
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][300:320] = weights[name][marker]
    save_file(weights, blank / "model.safetensors", metadata={"format": "pt"})
    assert lookalikes(blank, marker) == 20
    assert prepare_conversations(options(blank, instruct)).template_name == "alpaca"
    assert "never trained" in capsys.readouterr().err
    chosen = prepare_conversations(options(blank, instruct, template="gemma"))
    assert chosen.template_name == "gemma" and "warning" in capsys.readouterr().err
    assert prepare_conversations(options(base, instruct)).template_name == "gemma"
    assert "trained" not in capsys.readouterr().err


def test_a_template_whose_answers_have_no_end_in_this_vocabulary_is_warned_about(
    tmp_path: Path, instruct: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rinna = write_sentencepiece_checkpoint(tmp_path / "rinna")
    prepare_conversations(options(rinna, instruct, template="chatml"))
    assert "no special token behind" in capsys.readouterr().err
    prepare_conversations(options(rinna, instruct))
    assert "no special token behind" not in capsys.readouterr().err


def test_a_tokenizer_without_bos_and_eos_can_be_trained_on() -> None:
    tokenizer = byte_level_tokenizer(eos=None)
    (encoded,) = ExampleEncoder(tokenizer, TEMPLATES["chatml"]).conversation(example("Where?", "Here."))
    assert learned(tokenizer, encoded) == ["Here.<|im_end|>"]


def test_masks_can_be_looked_at_before_training(base: Path, instruct: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("One line [bold].\nAnother.\n")
    shown = show_masks(options(base, instruct, text, template="chatml", lang="en"), 21)
    assert len(shown) == 21
    assert "is here.<|im_end|>⟧[/]" in shown[0] and "[bold green]⟦Desk" in shown[0]
    assert f"'{instruct}', line 1 (en): " in shown[0] and "template: chatml" in shown[0]
    assert shown[20].endswith("[dim]O[/][bold green]⟦ne line \\[bold].\nAnother.\n<|endoftext|>⟧[/]")


def test_what_is_shown_is_the_text_the_model_reads(base: Path, instruct: Path) -> None:
    from rich.text import Text

    (shown,) = show_masks(options(base, instruct, template="chatml"), 1)
    body = Text.from_markup(shown).plain.split("\n", 1)[1]
    asked = "<|im_start|>user\nWhere is desk 0?<|im_end|>\n<|im_start|>assistant\n"
    assert body == f"{asked}⟦Desk 0 is here.<|im_end|>⟧"


@pytest.mark.parametrize("name", ["with the end", "without the end", "in two pieces", "the last answer only"])
def test_what_a_templates_tag_holds_is_what_transformers_learns(name: str) -> None:
    tokenizer = byte_level_tokenizer()
    template, _ = TAGGED_TEMPLATES[name]
    for turns in (("Hi", "Hello"), ("Hi", "Hello", "?", "Yes."), ("Hi", "<|im_end|>", "?", "日本語です。")):
        talk = example(*turns)
        theirs = tokenizer.apply_chat_template(
            [dict(message) for message in talk.messages], chat_template=template, tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        (ours,) = ExampleEncoder(tokenizer, template).conversation(talk)
        labelled = [int(label != IGNORE) for label in ours.labels]
        if "<|im_end|>" not in turns:  # which they read as the marker, and we as text
            assert list(ours.ids) == theirs["input_ids"][: len(ours.ids)]
            assert labelled == theirs["assistant_masks"][: len(ours.ids)] and not any(
                theirs["assistant_masks"][len(ours.ids) :]
            )
        else:
            pieces = [tokenizer.decode([i for i, is_on in zip(ours.ids, labelled, strict=True) if is_on])]
            assert "|x|" not in pieces[0] and pieces[0].endswith(
                "日本語です。" + "<|im_end|>" * ("without" not in name)
            )

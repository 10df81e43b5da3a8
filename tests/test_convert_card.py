"""Modelfiles render what the model's own chat template renders; cards name what is there and replace nobody's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from convert.cli import convert as cli
from convert.model import convert_checkpoint
from convert.publish.card import check_replaceable, source_facts, write_card
from convert.publish.modelfile import go_template, modelfile, stop_texts, turns_of_template
from convert.publish.turns import Turns, turns_of
from slm.chat.prompt import TEMPLATES, render
from slm.errors import InputError, MissingFileError, UnsupportedError
from slm.joints import Message
from slm.weights.gguf_reader import read_gguf
from tests import tiny_checkpoints as tiny
from tests.go_template import execute, modelfile_commands
from tests.tiny_gguf import write_adapter, write_model

EOS = "</s>"
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m.content | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set s = messages[0].content %}{% else %}"
    "{% set rest = messages %}{% set s = false %}{% endif %}{% for m in rest %}"
    "{% if loop.index0 == 0 and s %}{% set c = '<<SYS>>\n' + s + '\n<</SYS>>\n\n' + m.content %}"
    "{% else %}{% set c = m.content %}{% endif %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + c + ' [/INST]' }}"
    "{% else %}{{ ' ' + c + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
    "{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}"
    + TEMPLATES["chatml"]
)
JAPANESE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '\n\n### 指示:\n' + m.content }}{% elif m.role == 'system' %}"
    "{{ '以下は指示です。' + m.content }}{% else %}{{ '\n\n### 応答:\n' + m.content + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\n### 応答:\n' }}{% endif %}"
)
BRACES = TEMPLATES["chatml"].replace("'\n' + message", "'{{\n' + message").replace("<|im_end|>", "}}<{")
KNOWN = {**TEMPLATES, "llama3": LLAMA3, "llama2": LLAMA2, "no system": NO_SYSTEM, "default system": DEFAULT_SYSTEM,
         "japanese": JAPANESE, "braces": BRACES}  # fmt: skip

QUESTIONS: list[Message] = [
    {"role": "user", "content": "元気？ {{ .System }} \"quoted\""}, {"role": "assistant", "content": "はい。\n\n- a"},
    {"role": "user", "content": "more\nlines"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "?"},
]  # fmt: skip


def ollama(template: str, messages: list[Message], default_system: str = "") -> str:
    """What Ollama makes of a conversation: template/template.go, `Execute` and `collate`."""
    if default_system and all(m["role"] != "system" for m in messages):
        messages = [{"role": "system", "content": default_system}, *messages]
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return execute(
        template, {"System": system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    )


@pytest.mark.parametrize("name", KNOWN)
def test_a_go_template_renders_what_the_jinja_template_renders(name: str) -> None:
    turns = turns_of_template(KNOWN[name], EOS)
    template = go_template(turns)
    systems = [None] if turns.system is None else [None, "短く。", "two\nlines"]
    for count in (1, 3, 5):
        for system in systems:
            given: list[Message] = [] if system is None else [{"role": "system", "content": system}]
            messages = [*given, *QUESTIONS[:count]]
            expected = render(KNOWN[name], messages, bos_token="", eos_token=EOS)
            assert ollama(template, messages, turns.default_system) == expected
            assert turns.render(messages) == expected


def test_what_is_particular_about_a_template_is_found() -> None:
    assert turns_of_template(DEFAULT_SYSTEM, EOS).default_system == "You are kind."
    assert turns_of_template(TEMPLATES["gemma"], EOS).folded
    assert turns_of_template(NO_SYSTEM, EOS).system is None
    chatml = turns_of_template(TEMPLATES["chatml"], EOS)
    assert (chatml.user, chatml.prompt) == (("<|im_start|>user\n", "<|im_end|>\n"), "<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "template",
    ["{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}", "{{ messages | length }}",
     "{% for m in messages %}{{ loop.index ~ m.content }}|{% endfor %}", "{{ undefined.attribute.deep }}", "{% if %}",
     "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
     "{% for m in messages %}\u3000{{ m.content }}{% endfor %}"],
)  # fmt: skip
def test_a_template_that_a_modelfile_cannot_say_is_refused(template: str) -> None:
    with pytest.raises(UnsupportedError):
        go_template(turns_of_template(template, EOS))


def test_turns_are_proven_on_more_than_they_were_found_on() -> None:
    def grows(messages: Any) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "!" * (len(messages) > 3)

    with pytest.raises(UnsupportedError, match="not made of fixed texts"):
        turns_of(grows)
    assert isinstance(turns_of(lambda messages: "".join(f"<{m['role']}>{m['content']}" for m in messages)), Turns)


def test_a_modelfile_reads_back_as_ollama_reads_it() -> None:
    metadata = {"tokenizer.chat_template": DEFAULT_SYSTEM, "tokenizer.ggml.eos_token_id": 1,
                "tokenizer.ggml.tokens": ["a", EOS, "<|im_start|>", "<|im_end|>"]}  # fmt: skip
    text, why = modelfile("m-q4_0.gguf", metadata, adapter="en.gguf")
    assert why is None
    commands = modelfile_commands(text)
    assert commands[0] == ("FROM", "./m-q4_0.gguf")
    assert commands[1] == ("ADAPTER", "./en.gguf")
    named = dict(commands)
    assert named["SYSTEM"] == "You are kind."
    expected = render(DEFAULT_SYSTEM, QUESTIONS[:3], bos_token="", eos_token=EOS)
    assert ollama(named["TEMPLATE"], QUESTIONS[:3], named["SYSTEM"]) == expected
    stops = [value for name, value in commands if name == "PARAMETER"]
    assert stops == [f'stop "{stop}"' for stop in (EOS, "<|im_end|>", "<|im_start|>user")]
    without, why = modelfile("m.gguf", {"tokenizer.ggml.tokens": []})
    assert why == "the model has no chat template"
    assert modelfile_commands(without) == [("FROM", "./m.gguf")]
    assert stop_texts({}, None) == []


def test_an_export_gets_a_card_and_a_modelfile_that_name_its_files(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, ja]\nother: x\n---\n# Source\n")
    assert source_facts(folder) == {"license": "apache-2.0", "language": "[en, ja]"}
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--type", "f16", "--type", "q8_0", "--card", "--no-verify"]
    CliRunner().invoke(cli.convert, arguments, catch_exceptions=False)
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: apache-2.0\nlanguage: [en, ja]\nlibrary_name: gguf\n")
    for name in ("tiny-f16.gguf", "tiny-q8_0.gguf"):
        assert f"`{name}` | {name[5:-5]} | {(tmp_path / 'out' / name).stat().st_size / 1e6:,.1f} |" in card
    assert read_gguf(tmp_path / "out/tiny-f16.gguf").metadata["slm.fingerprint"] in card
    commands = modelfile_commands((tmp_path / "out/Modelfile").read_text("utf-8"))
    assert commands[0] == ("FROM", "./tiny-q8_0.gguf")
    again = CliRunner().invoke(cli.convert, arguments)  # its own files may be replaced
    assert again.exit_code == 0, again.output


def test_a_card_with_measurements_holds_the_report(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    arguments = [
        str(folder),
        "-o",
        str(tmp_path / "o/m.gguf"),
        "-t",
        "q8_0",
        "--card",
        "--report",
        "--no-plot",
        "--json",
    ]
    done = CliRunner().invoke(cli.convert, [*arguments, "--max-tokens", "40"], catch_exceptions=False)
    names = [Path(path).name for path in json.loads(done.stdout)["written"]]
    assert names == ["m.report.md", "m.report.json", "README.md", "Modelfile"]
    assert "## What quantization costs: tiny" in (tmp_path / "o/README.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["README.md", "Modelfile"])
def test_somebody_elses_card_is_never_replaced_and_nothing_is_converted(name: str, tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="left untouched"):
        check_replaceable(tmp_path)
    failed = CliRunner().invoke(cli.convert, [str(folder), "-o", str(tmp_path / "m.gguf"), "--card"])
    assert isinstance(failed.exception, InputError)
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "m.gguf").exists()


def test_an_adapters_modelfile_names_the_base_beside_it(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "en.gguf", base_fingerprint="f1", template=TEMPLATES["alpaca"])
    result = {"file": str(adapter), "size_bytes": adapter.stat().st_size}
    write_model(tmp_path / "another.gguf", fingerprint="f2")
    with pytest.raises(MissingFileError, match=r"slm convert BASE -o"):
        write_card([result], tmp_path)
    write_model(tmp_path / "base.gguf", fingerprint="f1", template=TEMPLATES["chatml"])
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    write_card([result], tmp_path)
    commands = modelfile_commands((tmp_path / "Modelfile").read_text("utf-8"))
    assert commands[:2] == [("FROM", "./base.gguf"), ("ADAPTER", "./en.gguf")]
    assert "### Instruction:" in dict(commands)["TEMPLATE"]  # the adapter's own template goes before the base's
    assert "LoRA adapter" in (tmp_path / "README.md").read_text("utf-8")


def test_a_converted_model_without_a_template_says_so_in_its_modelfile(tmp_path: Path) -> None:
    results = convert_checkpoint(tiny.gpt2(tmp_path / "tiny"), tmp_path / "o/m.gguf", "f16")
    write_card(results, tmp_path / "tiny")
    text = (tmp_path / "o/Modelfile").read_text("utf-8")
    assert "# No TEMPLATE: the model has no chat template." in text
    assert "TEMPLATE" not in dict(modelfile_commands(text))

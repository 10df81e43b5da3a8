"""The README.md of an export: what the model is made of, what was measured, how it is used, under which terms.

Pure: facts in, Markdown out. Only what was measured is told; a part without figures is not written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convert.publish.licence import LicenceTerms
from convert.quality.report import markdown

PAGE_MARK = "<!-- Written by slm export. -->"


@dataclass(frozen=True)
class ExportFacts:
    """What is told of an export.

    described: `inspect_gguf` of one of its files. made: what the checkpoint's manifest says of its making,
    without paths. adapters: {name, file, size_bytes, lang, rank, figures, data} each. report: `report_of` the files,
    None without figures. answers: the `chat` of `slm evaluate --chat --json`.
    """

    name: str
    terms: LicenceTerms
    described: Mapping[str, Any]
    files: Sequence[Mapping[str, Any]]
    modelfile_of: str
    made: Mapping[str, Any] = field(default_factory=dict)
    adapters: Sequence[Mapping[str, Any]] = ()
    report: Mapping[str, Any] | None = None
    answers: Mapping[str, Any] | None = None
    languages: Sequence[str] = ()
    licence_files: Sequence[str] = ()


def model_page(facts: ExportFacts) -> str:
    """The page, front matter included (https://huggingface.co/docs/hub/model-cards)."""
    described = facts.described
    parts = [
        _front(facts),
        [PAGE_MARK, "", f"# {facts.name}", "", _what(facts)],
        _use(facts),
        _made(facts),
        _losses(facts.report),
        _quantized(facts.report, facts.files),
        _adapters(facts.adapters),
        _answers(facts.answers),
        _terms(facts),
        ["## Checksums", "", "`sha256sum -c SHA256SUMS` checks every file but this one. Fingerprint of the weights: "
         f"`{described['fingerprint']}`."],
    ]  # fmt: skip
    return "\n".join("\n".join(part) + "\n" for part in parts if part)


def _front(facts: ExportFacts) -> list[str]:
    terms = facts.terms
    lines = ["---", f"license: {terms.licence}"]
    if terms.licence == "other":  # of which the hub shows the name and the address
        told = (("license_name", terms.name), ("license_link", terms.url or next(iter(facts.licence_files), "")))
        lines += [f"{key}: {value}" for key, value in told if value]
    if terms.base:
        lines.append(f"base_model: {terms.base}")
    if facts.languages:
        lines.append(f"language: [{', '.join(facts.languages)}]")
    tags = ["gguf", "llama.cpp", *(["lora"] if facts.adapters else [])]
    return [*lines, "library_name: transformers", "pipeline_tag: text-generation", f"tags: [{', '.join(tags)}]", "---"]


def _what(facts: ExportFacts) -> str:
    millions = facts.described["parameters"] / 1e6
    text = f"A {facts.described['architecture']} model of {millions:,.1f} million parameters"
    text += f", made from [{facts.terms.base}](https://huggingface.co/{facts.terms.base})." if facts.terms.base else "."
    form = facts.made.get("restored_from")
    if form:
        text += f" Its safetensors were restored from `{form}`: they hold what that quantized file holds, no more."
    return text


def _use(facts: ExportFacts) -> list[str]:
    tag = facts.name.lower()
    chosen = facts.modelfile_of
    lines = ["## Use", "", "```sh", f"slm chat {chosen}", f"llama-cli -m {chosen}"]
    lines += [f"ollama create {tag} -f Modelfile && ollama run {tag}"]
    if facts.adapters:
        options = " ".join(f"--adapter {one['name']}={one['file']}" for one in facts.adapters)
        lines.append(f"slm chat {chosen} {options}")
    lines += ["```", "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines += ['model = AutoModelForCausalLM.from_pretrained(".")', 'tokenizer = AutoTokenizer.from_pretrained(".")']
    template = "" if facts.described["template"] else "It has no chat template: it goes on with a text.\n"
    return [*lines, "```", *(["", template.strip()] if template else [])]


def _made(facts: ExportFacts) -> list[str]:
    made = facts.made
    data = made.get("data") or []
    figures = made.get("figures") or {}
    if not data and not figures and not made.get("adapters"):
        return []
    lines = ["## How it was made", "", f"By `{made.get('by', '?')}`, slm-cpu {made.get('version', '?')}."]
    if made.get("adapters"):
        merged = ", ".join(f"`{one['name']}` (weight {one['weight']:g})" for one in made["adapters"])
        lines += ["", f"Merged adapters: {merged}."]
        for one in made["adapters"]:
            told = [*_data_table(one.get("data") or []), *_by_language(one.get("figures") or {})]
            lines += ["", f"### {one['name']}", *told] if told else []
    lines += _data_table(data)
    after, before = figures.get("bits_per_byte"), figures.get("bits_per_byte_before")
    if isinstance(after, dict) and isinstance(before, dict):
        lines += ["", "| held out | bits/byte before | after |", "|---|---|---|"]
        lines += [f"| {lang} | {_number(before.get(lang))} | {_number(after[lang])} |" for lang in after]
    lines += _by_language(figures)
    return lines


def _data_table(data: Sequence[Mapping[str, Any]]) -> list[str]:
    if not data:
        return []
    rows = [f"| `{one['file']}` | {one.get('examples', '-')} | `{str(one.get('sha256', '-'))[:16]}` |" for one in data]
    return ["", "| data | examples | SHA-256 |", "|---|---|---|", *rows]


def _by_language(figures: Mapping[str, Any]) -> list[str]:
    rows = figures.get("by_language") or {}
    if not rows:
        return []
    lines = ["", "| held out | loss before | after | tokens |", "|---|---|---|---|"]
    for lang, one in rows.items():
        losses = f"{_number(one.get('held_out_loss_before'))} | {_number(one.get('held_out_loss_after'))}"
        lines.append(f"| {lang} | {losses} | {one.get('held_out_tokens', '-')} |")
    return lines


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) and math.isfinite(value) else "-"


def _losses(report: Mapping[str, Any] | None) -> list[str]:
    if report is None:
        return []
    on = f"Of the unquantized weights ({report['reference']['type']}) on {report['text']}."
    lines = ["## Loss by language", "", on, "",
             "| language | tokens | loss (nats/token) | perplexity | bits/byte |", "|---|---|---|---|---|"]  # fmt: skip
    for lang, one in report["reference"]["by_language"].items():
        loss = math.log(one["perplexity"]) if one["perplexity"] > 0 else math.nan
        figures = f"{_number(loss)} | {one['perplexity']:.2f} | {_number(one['bits_per_byte'])}"
        lines.append(f"| {lang} | {one['tokens']:,} | {figures} |")
    return lines


def _quantized(report: Mapping[str, Any] | None, files: Sequence[Mapping[str, Any]]) -> list[str]:
    if report is not None:
        return ["#" + line if line.startswith("#") else line for line in markdown(report).splitlines()]
    lines = ["## GGUF files", "", "| file | type | size (MB) |", "|---|---|---|"]
    return lines + [f"| `{one['file']}` | {one['type']} | {one['size_bytes'] / 1e6:,.1f} |" for one in files]


def _adapters(adapters: Sequence[Mapping[str, Any]]) -> list[str]:
    if not adapters:
        return []
    lines = ["## Adapters", "", "Each as a PEFT folder and as a GGUF file for this model.", "",
             "| adapter | language | rank | size (MB) |", "|---|---|---|---|"]  # fmt: skip
    for one in adapters:
        lines.append(f"| `{one['file']}` | {one['lang'] or '-'} | {one['rank']} | {one['size_bytes'] / 1e6:,.1f} |")
    for one in adapters:
        told = [*_data_table(one.get("data") or []), *_by_language(one.get("figures") or {})]
        lines += ["", f"### {one['name']}", *told] if told else []
    return lines


def _answers(answers: Mapping[str, Any] | None) -> list[str]:
    if answers is None:
        return []
    langs = list(answers["models"][0]["by_language"])
    lines = ["## Answers judged by rules", "",
             f"Right answers of {answers['items']} items (`{answers['file']}`), with the 95 % range of the share.", "",
             "| model | " + " | ".join(langs) + " | all | range |", "|---" * (len(langs) + 3) + "|"]  # fmt: skip
    for one in answers["models"]:
        counts = [f"{part['right']}/{part['items']}" for part in (*one["by_language"].values(), one["overall"])]
        low, high = (100 * one["overall"][key] for key in ("share_low", "share_high"))
        lines.append(f"| {one['name']} (`{one['file']}`) | {' | '.join(counts)} | {low:.0f}-{high:.0f} % |")
    return lines


def _terms(facts: ExportFacts) -> list[str]:
    terms = facts.terms
    name = terms.name or terms.licence
    text = f"[{name}]({terms.url})" if terms.url else name
    lines = ["## Licence", "", f"{text}."]
    if terms.base:
        lines[-1] += f" It comes with {terms.base}, from which these files were made; they are modified."
    if facts.licence_files:
        lines += ["", "Terms that go along: " + ", ".join(f"[{name}]({name})" for name in facts.licence_files) + "."]
    return lines

"""Training data that was read wrongly once."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from scripts.cases.doing import CHAT, check, has, lacks, said, slm


def masks(folder: Path, name: str, *more: str, ok: bool | None = True) -> str:
    return said(slm("train", "sft", "--base", CHAT, "--data", folder / name, "--show-masks", "1", *more, "-o",
                    Path(tempfile.gettempdir()) / "no-such-adapter", ok=ok))  # fmt: skip


@check("training", "t4 turns with weight 0 or train false are not learned")
def _(folder: Path, _work: Path) -> None:
    for name in ("t4_weight0.jsonl", "t4b_train_false.jsonl"):
        learned = "".join(re.findall("⟦(.*?)⟧", masks(folder, name), re.DOTALL))
        has(learned, "Gladly")
        lacks(learned, "BADWORD")


@check("training", "every other file: read, or named for what it is")
def _(folder: Path, _work: Path) -> None:
    for file in sorted(folder.iterdir()):
        text = masks(folder, file.name, ok=None)
        print(f"      {file.name:32} {' / '.join(text.strip().splitlines()[:2])[:160]}")


@check("training", "t26 all system text in the prompt with gemma's template")
def _(folder: Path, _work: Path) -> None:
    has(masks(folder, "t26_two_systems.jsonl", "--template", "gemma"), "RULE-A", "RULE-B", "RULE-C")

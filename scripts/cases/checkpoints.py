"""Checkpoints and adapters that were converted, merged or served wrongly once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.cases.doing import check, has, said, serving, slm


def built(folder: Path) -> Path:
    """The checkpoints and adapters that the folder's two scripts make; made once a day."""
    out = Path(tempfile.gettempdir()) / f"cases-{time.strftime('%Y%m%d')}"
    if not (out / "done").exists():
        for name in ("checkpoints", "adapters"):
            subprocess.run([sys.executable, str(folder / f"{name}.py"), str(out)], check=True, capture_output=True)
        (out / "done").touch()
    return out


@check("checkpoints", "c2_generation_tag converts, chats and trains")
def _(folder: Path, work: Path) -> None:
    source = built(folder) / "c2_generation_tag"
    slm("convert", source, "-o", work / "m.gguf")
    slm("generate", work / "m.gguf", "-p", "Hi", "--max-tokens", "4")
    (work / "d.jsonl").write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": f"q{i}"},
        {"role": "assistant", "content": f"a{i}"}]}) for i in range(8)))  # fmt: skip
    slm("train", "sft", "--base", source, "--data", work / "d.jsonl", "-o", work / "a", "--max-steps", "2")


@check("checkpoints", "c5 end-of-turn tokens that only generation_config names")
def _(folder: Path, work: Path) -> None:
    for name in ("c5_gen_eos", "c5b_gen_eos_custom"):
        slm("convert", built(folder) / name, "-o", work / f"{name}.gguf")
        answer = json.loads(slm("generate", work / f"{name}.gguf", "-p", "Hi", "--max-tokens", "20", "--json").stdout)
        assert answer["finish_reason"] == "stop" and answer["completion_tokens"] <= 1, (name, answer)


@check("checkpoints", "c6 a stale index: what transformers reads, or both are named")
def _(folder: Path, work: Path) -> None:
    done = slm("convert", built(folder) / "c6_stale_index", "-o", work / "m.gguf", ok=None)
    slm("convert", built(folder) / "base", "-o", work / "b.gguf")
    if done.returncode:
        has(said(done), "model.safetensors.index.json", "model.safetensors")
    else:
        one, two = (json.loads(slm("inspect", work / f"{n}.gguf", "--json").stdout) for n in "mb")
        assert one["fingerprint"] == two["fingerprint"], (one["fingerprint"], two["fingerprint"])


@check("checkpoints", "c7, c8 pointers and quantized weights are named before anything loads")
def _(folder: Path, work: Path) -> None:
    (work / "d.jsonl").write_text('{"text": "abc"}\n' * 4)
    for name, word in (("c7_lfs_pointer", "LFS"), ("c7_lfs_tokenizer", "LFS"), ("c8_bnb4", "bitsandbytes"),
                       ("c8_gptq", "gptq"), ("c8_fp8", "fp8")):  # fmt: skip
        source = built(folder) / name
        for command in (
            ("convert", source, "-o", work / "m.gguf"),
            ("train", "lora", "--base", source, "--data", work / "d.jsonl", "-o", work / "a", "--max-steps", "1"),
            ("merge", "--base", source, "--adapter", built(folder) / "a_all_linear", "-o", work / "merged"),
        ):  # fmt: skip
            text = said(slm(*command, ok=False))
            assert word.lower() in text.lower(), (name, command[0], text[-300:])


@check("checkpoints", "a_newtok_trainable merges to 395 rows, a_zero3_empty is explained")
def _(folder: Path, work: Path) -> None:
    tree = built(folder)
    slm("merge", "--base", tree / "base_tied", "--adapter", tree / "a_newtok_trainable", "-o", work / "m")
    assert json.loads((work / "m/config.json").read_text())["vocab_size"] == 395
    for command in (("merge", "--base", tree / "base", "--adapter", tree / "a_zero3_empty", "-o", work / "z"),
                    ("convert", tree / "a_zero3_empty", "--base", tree / "base", "-o", work / "z.gguf")):  # fmt: skip
        has(said(slm(*command, ok=False)), "empty")


@check("checkpoints", "a_unsloth in a watched folder: refused on _other, then loaded on base")
def _(folder: Path, work: Path) -> None:
    tree = built(folder)
    (work / "adapters").mkdir()
    shutil.copytree(tree / "a_unsloth", work / "adapters/u")
    for name in ("_other", "base"):
        slm("convert", tree / name, "-o", work / f"{name}.gguf")
        with serving(work / f"{name}.gguf", "--adapters-dir", work / "adapters") as post:
            time.sleep(6)
            status, answer = post("/v1/chat/completions", {"model": "u", "max_tokens": 2,
                                  "messages": [{"role": "user", "content": "Hi"}]})  # fmt: skip
        print(f"      on {name}: {status} {json.dumps(answer)[:160]}")
        assert name == "_other" or status == 200, answer


@check("checkpoints", "convert -> train on the file -> convert the adapter -> serve, for every type")
def _(folder: Path, work: Path) -> None:
    (work / "d.jsonl").write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": f"q{i}"},
        {"role": "assistant", "content": f"a{i}"}]}) for i in range(8)))  # fmt: skip
    for kind in ("f32", "f16", "q8_0", "q4_k_m"):
        file, adapter = work / f"{kind}.gguf", work / f"a_{kind}"
        slm("convert", built(folder) / "base", "-o", file, "--type", kind)
        slm("train", "sft", "--base", file, "--data", work / "d.jsonl", "-o", adapter, "--max-steps", "2")
        slm("convert", adapter, "-o", work / f"a_{kind}.gguf")
        for other in {file, work / "f32.gguf"}:
            slm(
                "generate",
                other,
                "--adapter",
                f"x={work / f'a_{kind}.gguf'}",
                "-m",
                "x",
                "-p",
                "Hi",
                "--max-tokens",
                "2",
            )

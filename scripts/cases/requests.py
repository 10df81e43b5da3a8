"""Bodies of requests that were answered wrongly once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.cases.doing import CHAT, GEMMA, check, has, lacks, serving


def body(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((folder / f"{name}.json").read_text()), **changes}


@check("serving", "bodies for SmolLM2")
def _(folder: Path, _work: Path) -> None:
    with serving(CHAT) as post:
        for file in sorted(folder.glob("*.json")):
            path = (
                "/v1/embeddings"
                if file.stem.startswith("emb")
                else ("/v1/responses" if file.stem == "responses" else "/v1/chat/completions")
            )
            status, answer = post(path, json.loads(file.read_text()))
            shown = json.dumps(answer, ensure_ascii=False)
            print(f"      {file.stem:32} {status} {shown[:230]}")
            if file.stem.startswith(("embeddings", "tool_format", "tool_if", "responses", "tool_params")):
                assert status == 200, (file.stem, shown[:300])
            else:
                assert status in (200, 400), (file.stem, shown[:300])
            if file.stem == "tool_params_without_type":
                call = answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
                cut = answer["choices"][0]["finish_reason"] == "length"
                assert call.startswith("{") if cut else isinstance(json.loads(call), dict), call
            if file.stem == "image_part":
                has(shown, "text", "messages[0]")
                assert status == 400
            lacks(shown, "lark", "Grammar", "messages.0.content.str")


@check("serving", "all system text and tools reach Gemma's template")
def _(folder: Path, _work: Path) -> None:
    with serving(GEMMA) as post:
        for name in ("two_systems_tools_gemma", "system_last_gemma"):
            whole = body(folder, name)
            bare = {**whole, "messages": [m for m in whole["messages"] if m["role"] != "system"]}
            bare.pop("tools", None)
            few, many = (post("/v1/chat/completions", b) for b in (bare, whole))
            assert many[0] == 400 or many[1]["usage"]["prompt_tokens"] > few[1]["usage"]["prompt_tokens"] + 8, (
                few,
                many,
            )
            print("     ", name, [x[1].get("usage", x[1]) for x in (few, many)])

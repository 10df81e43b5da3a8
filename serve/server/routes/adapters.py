"""Adapters at run time: llama-server's and vLLM's paths to list, load, replace and unload them.

It knows nothing of text generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from serve.adapters.allowed import allowed_file
from serve.engine.served import ServedEngine
from serve.server.api.answer.models import LoadAdapter, VllmLoad, VllmUnload
from serve.server.routes.parsed import ParsedRoute
from slm.errors import InputError


def adapter_routes(engine: ServedEngine, folders: Sequence[Path]) -> APIRouter:
    """The paths. folders: where adapters may be loaded from."""
    router = APIRouter(route_class=ParsedRoute)

    def load(name: str, path: str, scale: float = 1.0) -> dict[str, Any]:
        adapter = engine.load_adapter(name, allowed_file(path, folders), scale=scale)
        return {"name": adapter.name, "scale": adapter.scale, "language": adapter.language}

    @router.get("/lora-adapters")
    def list_adapters() -> list[dict[str, Any]]:
        return [
            {"id": n, "name": a.name, "path": str(a.path), "scale": a.scale, "language": a.language}
            for n, a in enumerate(engine.adapters())
        ]

    @router.post("/lora-adapters")
    def load_adapter(body: LoadAdapter) -> dict[str, Any]:
        return load(body.name, body.path, body.scale)

    @router.delete("/lora-adapters/{name}")
    def unload_adapter(name: str) -> dict[str, Any]:
        engine.unload_adapter(name)
        return {"name": name, "unloaded": True}

    @router.post("/v1/load_lora_adapter")
    def vllm_load(body: VllmLoad) -> dict[str, Any]:
        if not body.load_inplace and any(a.name == body.lora_name for a in engine.adapters()):
            raise InputError(
                f"the adapter '{body.lora_name}' is loaded already", hint="Set load_inplace to replace it."
            )
        return load(body.lora_name, body.lora_path)

    @router.post("/v1/unload_lora_adapter")
    def vllm_unload(body: VllmUnload) -> dict[str, Any]:
        return unload_adapter(body.lora_name)

    return router

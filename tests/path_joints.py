"""Joints for tests of commands without the roof: a model is named by its path, and nothing is made of it."""

from __future__ import annotations

from pathlib import Path

from slm.joints import Joints, Reader


class PathJoints(Joints):
    """Takes every model for what is asked for; opens nothing."""

    def checkpoint_of(self, model: str) -> Path:
        return Path(model)

    def adapter_of(self, adapter: Path, base: Path) -> Path:
        return adapter

    def gguf_of(self, model: str) -> Path:
        return Path(model)

    def reader_of(self, wanted: str) -> Reader | None:
        return None

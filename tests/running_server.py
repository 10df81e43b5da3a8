"""The HTTP server on a real port in a thread, on a tiny model."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from serve.engine.engine import Engine, open_engine
from tests.tiny_gguf import write_adapter, write_model


@contextmanager
def serving(config: uvicorn.Config) -> Iterator[str]:
    """The URL of a server that runs until the end of the block, and must have ended then."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def tiny_engine(folder: Path) -> Iterator[Engine]:
    """An engine on a tiny model with the adapter `en`, whose files are in the folder."""
    model = write_model(folder / "tiny.gguf")
    with open_engine(model, {"en": write_adapter(folder / "en.gguf", seed=1)}, threads=1, parallel=4) as opened:
        yield opened

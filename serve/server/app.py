"""The HTTP server around an engine: OpenAI's API, adapters at run time, and the page at `/`.

It knows nothing of the child process or of how an index is searched: it is handed an engine and a retriever.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI

from serve.engine.engine import Engine
from serve.engine.pointing import Pointing
from serve.server.api.errors import install_errors
from serve.server.api_docs import add_api_docs
from serve.server.guard import Policy
from serve.server.metrics import Metrics, install_metrics
from serve.server.middleware import install_guard
from serve.server.page import PAGE_PATHS, add_page
from serve.server.routes.adapters import adapter_routes
from serve.server.routes.generation import generation_routes
from serve.server.routes.models import model_routes
from serve.server.routes.responses import responses_routes
from serve.server.routes.seen import SeenBy
from slm import __version__
from slm.joints import Reader, Retriever


def create_app(
    engine: Engine,
    *,
    allowed_folders: Sequence[Path] = (),
    policy: Policy = Policy(),  # noqa: B008 - frozen
    retriever: Retriever | None = None,
    viewer: Sequence[str] = (),
    reader: Reader | None = None,
) -> FastAPI:
    """The application.

    allowed_folders: where adapters may be loaded from. policy: who may ask, and how much. viewer: who asks the
    retriever where a request does not say (user:NAME, group:NAME). reader: who answers from the retriever's documents.
    None: the model.
    """
    retriever = None if retriever is None else SeenBy(retriever, tuple(viewer))
    pointing = Pointing(engine, retriever, reader) if retriever and reader else None
    app = FastAPI(title="slm-cpu", version=__version__, docs_url=None, redoc_url=None)
    install_errors(app)
    name = pointing.reader.name if pointing else None
    metrics = Metrics(engine, name)
    install_guard(app, policy, context=engine.context, metrics=metrics, open_paths=PAGE_PATHS)
    install_metrics(app, metrics)
    app.include_router(model_routes(engine, retrieval=retriever is not None, reader=name))
    app.include_router(generation_routes(engine, retriever, metrics, pointing))
    app.include_router(responses_routes(engine, metrics))
    app.include_router(adapter_routes(engine, [folder.resolve() for folder in allowed_folders]))
    add_page(app)
    add_api_docs(app)
    return app

"""The file by which Ray's own `serve deploy` starts the server. It knows nothing of how Ray carries it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve.cluster.settings import ClusterSettings, ListeningPlace
from slm.artifacts import new_file
from slm.errors import MissingExtraError

NAME = "slm"
IMPORT_PATH = "slm_cli:cluster_application"
QUIET = {"log_level": "WARNING", "enable_access_log": False}
_HEAD = """# The server for Ray: serve deploy FILE, on a machine of the cluster. Changed and deployed again, it is
# carried over replica by replica. Sizes are under args.size. keys are SHA-256 of the API keys, not the keys.
"""


def deploy_config(settings: ClusterSettings, place: ListeningPlace) -> dict[str, Any]:
    """As Ray's ServeDeploySchema has it (https://docs.ray.io/en/latest/serve/production-guide/config.html)."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": place.host, "port": place.port, "keep_alive_timeout_s": place.keep_alive_s},
        "logging_config": QUIET,
        "applications": [
            {"name": NAME, "route_prefix": "/", "import_path": IMPORT_PATH, "args": settings.plain()},
        ],
    }


def write_deploy_file(path: Path, settings: ClusterSettings, place: ListeningPlace) -> None:
    """Write it as YAML, whole or not at all. Raises MissingExtraError."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("PyYAML", "cluster") from error
    text = yaml.safe_dump(deploy_config(settings, place), sort_keys=False, allow_unicode=True)
    with new_file(path) as part:
        part.write_text(_HEAD + text, encoding="utf-8")

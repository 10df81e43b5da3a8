"""A Ray of two nodes on this machine, in a process of its own: run it, read its address, close its stdin to end it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_PORTS = ("metrics_agent_port", "runtime_env_agent_port", "dashboard_agent_listen_port", "metrics_export_port")
# A slow machine is none of Ray's faults.
_PATIENT = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_raylet_start_wait_time_s": "300", "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "40",
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
}  # fmt: skip


@contextmanager
def two_nodes(folder: Path, *, client_port: int) -> Iterator[dict[str, str]]:
    """The environment by which a process finds it (RAY_ADDRESS). folder: for Ray's files; its path has to be short."""
    environment = {**os.environ, **_PATIENT, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_nodes", str(client_port)], cwd=ROOT, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    try:
        lines = iter(process.stdout.readline, "")
        address = next((line.split()[1] for line in lines if line.startswith("address ")), "")
        assert address, "Ray did not start"
        yield {**environment, "RAY_ADDRESS": address}
    finally:
        process.stdin.close()
        process.wait(60)


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens on now, each another."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in listeners]


def main() -> None:
    from ray.cluster_utils import Cluster

    free = iter(free_ports(2 * len(_PORTS)))

    def node() -> dict[str, Any]:
        """One core. Its ports are chosen here: otherwise Ray waits only half a minute for the processes that do."""
        return {"num_cpus": 1, "object_store_memory": 100 << 20, **{name: next(free) for name in _PORTS}}

    head = {**node(), "include_dashboard": False, "ray_client_server_port": int(sys.argv[1])}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**node())
    print("address", cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()

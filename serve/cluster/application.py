"""The deployments of a server on Ray, and how they are started, watched until they answer, and ended."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray import serve as ray_serve

from serve.cluster.deploy_file import NAME, QUIET
from serve.cluster.entrance import BoardKeeper, EntranceDeployment
from serve.cluster.replica import EngineReplica
from serve.cluster.settings import ClusterSettings, ListeningPlace
from slm.errors import EngineError, MismatchError, ResourceError
from slm.joints import Joints

# Seconds. A replica that ends lets answers under way come to their end for so long.
_LAST_ANSWERS_S = 120.0

# A process that ended is replaced at the next look; one that does not answer after so long.
_LOOK_EVERY_S, _DEAD_AFTER_S = 1.0, 30.0
_LIVELY = {
    "health_check_period_s": _LOOK_EVERY_S, "health_check_timeout_s": _DEAD_AFTER_S, "logging_config": QUIET,
}  # fmt: skip


def application(plain: Mapping[str, Any], joints: Joints) -> Any:
    """What Ray Serve runs. plain: as `ClusterSettings.plain`. Raises as `ClusterSettings.of`."""
    settings = ClusterSettings.of(plain)
    size, model = settings.size, settings.model
    board = ray_serve.deployment(
        BoardKeeper, name="board", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0}, **_LIVELY
    ).bind()
    # What waits, waits at the entrance, from where it can go to any replica; an engine has enough to fill its batches.
    busy = model.parallel * min(model.hot, 2)
    scale: dict[str, Any] = {"num_replicas": size.replicas}
    if size.most_replicas > size.replicas:
        limits = {"min_replicas": size.replicas, "max_replicas": size.most_replicas, "initial_replicas": size.replicas}
        scale = {"autoscaling_config": {**limits, "target_ongoing_requests": model.parallel, "upscale_delay_s": 5.0}}
    engines = ray_serve.deployment(
        EngineReplica, name="engine", max_ongoing_requests=busy, ray_actor_options={"num_cpus": size.cores},
        graceful_shutdown_timeout_s=_LAST_ANSWERS_S, graceful_shutdown_wait_loop_s=0.5, **scale, **_LIVELY,
    ).bind(dict(plain), joints, board)  # fmt: skip
    return ray_serve.deployment(
        EntranceDeployment, name="entrance", num_replicas=size.ingresses,
        max_ongoing_requests=10 * math.ceil(settings.door.queue / size.ingresses),
        ray_actor_options={"num_cpus": 0}, graceful_shutdown_timeout_s=_LAST_ANSWERS_S,
        graceful_shutdown_wait_loop_s=0.5, **_LIVELY,
    ).bind(dict(plain), joints, engines, board)  # fmt: skip


def start(settings: ClusterSettings, joints: Joints, place: ListeningPlace) -> None:
    """Run the application on the Ray that this process is connected to, in place of one that is there; no request is
    refused meanwhile. Returns when it answers.

    Raises ResourceError when the cluster is too small, MismatchError when Serve listens elsewhere already, EngineError
    when a replica cannot start.
    """
    size = settings.size
    there, wanted = ray.cluster_resources().get("CPU", 0), size.replicas * size.cores
    if wanted > there:
        raise ResourceError(
            f"{size.replicas} replicas of {size.cores} cores each need {wanted}", found=f"the cluster has {there:g}",
            hint="Give fewer with --replicas or --cores. On a cluster that grows by itself: slm cluster config",
        )  # fmt: skip
    _listen(place)
    new = not is_there()
    try:
        ray_serve.run(application(settings.plain(), joints), name=NAME, route_prefix="/", logging_config=QUIET)
    except RuntimeError as error:
        if new:
            end()
        raise EngineError(
            "a replica cannot be started", found=_cause_of(str(error)),
            hint="The model and the program have to be on every machine: slm doctor",
        ) from error  # fmt: skip


def is_there() -> bool:
    """Whether the application runs on the Ray that this process is connected to."""
    return NAME in ray_serve.status().applications


def end() -> None:
    """Take the application away; what it is answering comes to its end. Nobody listens any more where it was alone."""
    ray_serve.delete(NAME)
    if not ray_serve.status().applications:
        ray_serve.shutdown()


def _listen(place: ListeningPlace) -> None:
    """Start Ray Serve where it does not run. Raises MismatchError when it runs and listens elsewhere."""
    from ray.serve.context import _get_global_client

    options = {"host": place.host, "port": place.port, "keep_alive_timeout_s": place.keep_alive_s}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what a user has to know, the command says
    with suppress(TimeoutError):  # after a minute Ray gives up waiting for its proxies; they come all the same
        ray_serve.start(proxy_location="EveryNode", http_options=options, logging_config=QUIET)
    there = _get_global_client().http_config
    if (there.host, there.port) != (place.host, place.port):
        raise MismatchError(
            f"Ray Serve on this cluster listens on {there.host}:{there.port} already, not on {place.host}:{place.port}",
            hint=f"Give --host {there.host} --port {there.port}, or end it first: serve shutdown -y",
        )


def _cause_of(message: str) -> str:
    """Our own error in what Ray tells of a replica's start, or the last line of it."""
    ours = re.findall(r"^(?:slm\.errors\.)?\w*Error: (.+)$", message, re.MULTILINE)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return str((ours or lines or [message])[-1])[:400]

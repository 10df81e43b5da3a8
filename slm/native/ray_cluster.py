"""A connection to Ray: the one that runs on this machine, one for the time of a command, or another machine's.

It knows nothing of what is computed there.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

from slm.errors import InputError, MismatchError, MissingExtraError, ResourceError, SlmError

_R = TypeVar("_R")

CLIENT_PORT = 10001  # Ray's own (`ray start --ray-client-server-port`)
_ANSWER_S = 5.0
# The cluster starts a process for every client. One that did not come up says nothing of the next one.
_CLIENT_TRIES = 3
# Of a Ray that is started for a command; Ray would take a third of the memory.
_OBJECTS_BYTES = 256 << 20


@contextmanager
def connected(address: str, *, cores: int | None = None) -> Iterator[bool]:
    """This process is connected to Ray until the end of the block. Yields whether that Ray was started for it.

    address: "ray" (the one that runs here or that RAY_ADDRESS names, else one with so many cores for the block), or
    "ray://HOST[:PORT]". Raises MissingExtraError, InputError for another address, ResourceError when nobody answers,
    MismatchError when Ray or Python there has another version.
    """
    url = _url_of(address)
    ray = _ray()
    if ray.is_initialized():  # by whoever called, who also ends it
        yield False
        return
    own = False
    _keep_stdout_clean()
    try:
        if url:
            _refuse_silence(url)
            _init_client(ray, url)
        else:
            own = not _init_here(ray, cores)
        yield own
    finally:
        ray.shutdown()


def is_client() -> bool:
    """Whether this process is connected from outside (ray://): streams and Serve then work on the cluster alone."""
    from ray.util.client import ray as client

    return bool(client.is_connected())


def on_cluster(function: Callable[..., _R], *arguments: Any) -> _R:
    """Call a function here, or on the cluster when this process is only a client of it. Raises SlmError as it does."""
    if not is_client():
        return function(*arguments)
    import ray

    done = ray.get(ray.remote(num_cpus=0, max_retries=0)(_outcome).remote(function, *arguments))
    if isinstance(done, SlmError):
        raise done
    return cast(_R, done)


def _outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, or our error that it raises."""
    try:
        return function(*arguments)
    except SlmError as error:
        return error


def check_address(address: str) -> None:
    """Raise InputError for what is no address of Ray, MissingExtraError without Ray."""
    _url_of(address)
    _ray()


def _url_of(address: str) -> str:
    """ray://HOST:PORT, or "" for the Ray of this machine."""
    if address == "ray":
        return ""
    kind, slashes, where = address.partition("://")
    host, colon, port = where.rpartition(":") if ":" in where.rpartition("]")[2] else (where, "", "")
    sound = kind == "ray" and slashes and host and "/" not in where and (port.isdigit() if colon else True)
    if not sound or (colon and not 0 < int(port) < 65536):
        raise InputError(f"'{address}' is no address of Ray", hint="Give ray, or ray://HOST[:PORT].")
    return f"ray://{host}:{port or CLIENT_PORT}"


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray starts its workers at niceness 15. The threads of a model wait for each other at every layer, so that one that
    # is held up holds up all: at 0 a single answer is written half as fast again on two cores.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "cluster") from error
    return ray


def _keep_stdout_clean() -> None:
    """Ray prints what its processes complain of (one that was killed, say) to this one's stdout, where results go."""
    from ray._private import worker

    def complain(data: Any, ignore_prefix: bool) -> None:
        logging.getLogger(__name__).info("%s", " ".join(data["lines"]))

    worker.print_to_stdstream = complain


def _init_here(ray: Any, cores: int | None) -> bool:
    """Whether a Ray was there already."""
    with suppress(ConnectionError):
        _init(ray, address="auto")
        return True
    _init(
        ray, num_cpus=cores, object_store_memory=_OBJECTS_BYTES, include_dashboard=False,
        _node_ip_address="127.0.0.1", logging_level=logging.ERROR,
    )  # fmt: skip
    return False


def _init_client(ray: Any, url: str) -> None:
    for left in reversed(range(_CLIENT_TRIES)):
        try:
            _init(ray, address=url)
            return
        except _NoProcessError as error:
            if not left:
                raise
            logging.getLogger(__name__).info("%s; trying again", error)


class _NoProcessError(ResourceError):
    """Somebody answers, but the process for this client did not start."""


def _init(ray: Any, **options: Any) -> None:
    """Raises ConnectionError where none is found by `auto`."""
    try:
        ray.init(log_to_driver=False, configure_logging=False, **options)
    except (RuntimeError, ValueError) as error:
        if "version mismatch" in str(error).lower():
            raise MismatchError(
                "Ray on the cluster has another version, or runs on another Python", found=" ".join(str(error).split()),
                hint=f"Install ray=={ray.__version__} on every machine, as constraints.txt says.",
            ) from error  # fmt: skip
        raise ResourceError("Ray cannot be reached", found=" ".join(str(error).split())[:400]) from error
    except ConnectionError as error:
        if options.get("address") == "auto":
            if os.environ.get("RAY_ADDRESS"):
                raise _silent(os.environ["RAY_ADDRESS"], str(error)) from error
            raise
        if "Initialization failure" in str(error):
            last = str(error).strip().splitlines()[-1].strip()
            raise _NoProcessError(
                f"Ray at {options.get('address')} takes no further client", found=last[:300],
                hint="Try again later; where it stays so, the logs of ray_client_server on that machine say why.",
            ) from error  # fmt: skip
        raise _silent(str(options.get("address")), str(error)) from error


def _refuse_silence(url: str) -> None:
    """Raise ResourceError, within seconds, where nobody listens."""
    host, _, port = url.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except OSError as error:
        raise _silent(url, error.strerror or str(error)) from error


def _silent(address: str, found: str) -> ResourceError:
    return ResourceError(
        f"no Ray answers at {address}", found=" ".join(found.split())[:300],
        hint="Start it on that machine: ray start --head --ray-client-server-port 10001",
    )  # fmt: skip

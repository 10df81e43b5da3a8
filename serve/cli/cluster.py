"""The commands `slm cluster`: the server on several machines, by Ray. It knows the options, not how replicas work."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from serve.cli.guard import GuardOptions, door_options, policy_of
from serve.cli.options import (
    HELP,
    check_viewer,
    group_of,
    model_everywhere,
    with_adapters,
    with_context,
    with_documents,
    with_drafts,
)
from serve.cluster.settings import (
    ClusterSettings,
    DocumentSettings,
    DoorSettings,
    ListeningPlace,
    ModelSettings,
    SizeSettings,
)
from slm.errors import InputError
from slm.joints import Joints, pass_joints
from slm.paths import at_home, resolved
from slm.terminal.arguments import one_of_each
from slm.terminal.asking import check_reading
from slm.terminal.console import emit_json, note
from slm.text.address import is_postgres, passwords_of, shown_address


class ReplicaCount(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of replicas, or the fewest and the most: 3 or 1:8."""

    name = "N|MIN:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        low, colon, high = str(value).partition(":")
        numbers = low.isdecimal() and (high.isdecimal() if colon else True)
        if not numbers or not 1 <= int(low) <= int(high or low) <= 1000:
            self.fail(f"'{value}' is no number of replicas, like 3 or 1:8", param, ctx)
        return int(low), int(high or low)


_OPTIONS = (
    click.option("--adapters-dir", type=click.Path(path_type=Path), metavar="DIR",
                 help="Folder that every machine has; what is put there is loaded everywhere, what is removed goes."),
    with_documents,
    click.option("--replicas", type=ReplicaCount(), default="1", show_default=True,
                 help="Engines, or the fewest and the most of them: more are started while requests wait."),
    click.option("--cores", type=click.IntRange(0, 512), default=0, help="Of each engine. 0: this machine's."),
    click.option("--ingresses", type=click.IntRange(1, 100), default=1, show_default=True,
                 help="Processes that take requests; --max-queue is shared out among them."),
    click.option("--host", default="127.0.0.1", show_default=True, help="Address that every machine listens on."),
    click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True),
    click.option("--parallel", type=click.IntRange(1, 64), default=8, show_default=True,
                 help="Requests at once, each adapter of each engine."),
    click.option("--hot", type=click.IntRange(1, 64), default=3, show_default=True,
                 help="Adapters with a context kept open, each engine."),
    with_context,
    with_drafts,
    click.option("--cache-ram", type=click.IntRange(0), default=256, show_default=True, metavar="MB",
                 help="Memory of each engine for conversations that had to leave their context."),
    click.option("--cache-dir", type=click.Path(file_okay=False, path_type=Path),
                 help="Folder on each machine for what does not fit into that memory."),
)  # fmt: skip


# The options that `serve` and `config` share. Ray's own proxy holds the connections.
_all_options = group_of(with_adapters, *_OPTIONS, door_options)


def _settings(model: str, given: dict[str, Any]) -> ClusterSettings:
    """What the options say. Raises InputError, click.UsageError."""
    guarding = {name: given.pop(name) for name in list(given) if name in GuardOptions.__dataclass_fields__}
    check_viewer(given["index"], given["viewer"])
    check_reading(given["index"], given["reader"], given["refuse_at"])
    policy = policy_of(given["host"], GuardOptions(**guarding))
    limits = policy.limits
    low, high = given["replicas"]
    if given["ingresses"] > limits.queue:
        raise click.UsageError("--max-queue leaves some of the --ingresses nothing.")
    folder = given["adapters_dir"]
    adapters = {name: str(path.resolve()) for name, path in one_of_each(given["adapters"]).items()}
    return ClusterSettings(
        ModelSettings(
            model_everywhere(model), adapters,
            str(folder.resolve()) if folder else "", given["default_adapter"], given["context"], given["parallel"],
            given["hot"], given["draft_max"], given["cache_ram"] << 20,
            str(given["cache_dir"].resolve()) if given["cache_dir"] else "",
        ),
        SizeSettings(low, high, given["cores"] or _cores_here(), given["ingresses"]),
        DoorSettings(
            policy.keys.digests, None if policy.hosts is None else tuple(sorted(policy.hosts)), policy.origins,
            policy.access_log, limits.body_bytes, limits.prompt_characters, limits.choices, limits.queue,
            limits.request_s,
        ),
        DocumentSettings(
            _path_everywhere(given["index"] or ""), _path_everywhere(given["reader"]), given["refuse_at"],
            tuple(given["viewer"]),
        ),
    )  # fmt: skip


def _path_everywhere(name: str) -> str:
    """The whole path of what is spelled as one; a name, or an address, as it is."""
    if is_postgres(name) or not {os.sep, "/"} & set(name):
        return name
    return str(resolved(at_home(name)))


def _cores_here() -> int:
    from slm.native.llama import physical_cores

    return physical_cores()


@click.group(context_settings=HELP)
def cluster() -> None:
    """The server on several machines, by Ray.

    \b
    Example:
      slm cluster serve gemma-3-270m --adapter ja=exports/ja.gguf --replicas 2 --cores 4
    """


@cluster.command("serve", context_settings=HELP)
@click.argument("model")
@_all_options
@click.option("--on", "address", default="ray", show_default=True, metavar="ray[://HOST[:PORT]]",
              help="The Ray of this machine (one is started where none runs), or another machine's.")  # fmt: skip
@click.option("--detach", is_flag=True, help="End this command once the server answers; it stays, on a Ray that stays.")
@pass_joints
def cluster_serve(joints: Joints, /, model: str, address: str, detach: bool, **given: Any) -> None:
    """Serve a model and its adapters on the machines of a Ray cluster, as `slm serve` does on one.

    With --detach it stays; the same command with other settings then changes it replica by replica, and no request is
    refused. Paths are those of every machine.

    \b
    Example:
      slm cluster serve gemma-3-270m --adapters-dir /srv/adapters --replicas 1:8 --cores 4 --on ray://node1 --detach
    """
    from slm.native.ray_cluster import connected, on_cluster

    place = ListeningPlace(given["host"], given["port"], given["keep_alive"])
    settings = _settings(model, given)
    size = settings.size
    with connected(address, cores=max(size.replicas * size.cores, os.cpu_count() or 1)) as own:
        if detach and own:
            raise InputError("no Ray runs here that the server could stay on", hint="Start one first: ray start --head")
        from serve.cluster import application

        if not detach and on_cluster(application.is_there):
            raise InputError(
                "a server runs on this cluster already", hint="Change it with --detach, or end it: serve shutdown -y"
            )
        note(f"starting {size.replicas} x {size.cores} cores on Ray ...")
        on_cluster(application.start, settings, joints, place)
        note(f"listening on {place.url} of every machine (page: {place.url}/, API: {place.url}/v1)")
        if detach:
            note("it stays; change it by the same command, end it by: serve shutdown -y")
            return
        note("Ctrl-C stops")
        try:
            while True:
                time.sleep(3600)
        finally:
            on_cluster(application.end)


@cluster.command("config", context_settings=HELP)
@click.argument("model")
@_all_options
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file.")
@click.option("--json", "as_json", is_flag=True, help="Print the settings in it as JSON.")
def cluster_config(model: str, output: Path, as_json: bool, **given: Any) -> None:
    """Write the file by which Ray's own `serve deploy` starts the server, and changes one that runs.

    It holds no API key, only their SHA-256, and no password of a database. KubeRay takes what it says as
    `serveConfigV2`.

    \b
    Example:
      slm cluster config gemma-3-270m --adapters-dir /srv/adapters --replicas 2:8 --cores 4 -o serve.yaml
      serve deploy serve.yaml
    """
    from serve.cluster.deploy_file import write_deploy_file

    place = ListeningPlace(given["host"], given["port"], given["keep_alive"])
    settings = _settings(model, given)
    if passwords_of(settings.documents.index):
        raise InputError(
            f"the file would hold the password in {shown_address(settings.documents.index)}, and Ray would show it",
            hint="Leave it out, and set PGPASSWORD or a line in ~/.pgpass on every machine.",
        )
    write_deploy_file(output, settings, place)
    if as_json:
        emit_json({"file": str(output), **settings.plain()})
    note(f"{output} is written; on a machine of the cluster: serve deploy {output}")

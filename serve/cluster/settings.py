"""What a server on several machines is started with, as plain values that stand in a file: no key, no open object.

Paths are those of every machine. It knows nothing of Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from serve.engine.options import EngineOptions
from serve.server.guard import Keys, Limits, Policy
from slm import __version__
from slm.errors import InputError, MismatchError
from slm.text.address import with_port

_S = TypeVar("_S")


@dataclass(frozen=True)
class ModelSettings:
    """The model and its adapters, as `slm serve` takes them. adapters: name -> file; cache_bytes: of each replica."""

    model: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    adapters_dir: str = ""
    default_adapter: str | None = None
    context: int = 4096
    parallel: int = 8
    hot: int = 3
    draft: int = 0
    cache_bytes: int = 256 << 20
    cache_folder: str = ""


@dataclass(frozen=True)
class SizeSettings:
    """How many engines, and how large. cores: of an engine. ingresses: processes that speak HTTP.

    most_replicas: up to so many are started while requests wait.
    """

    replicas: int = 1
    most_replicas: int = 1
    cores: int = 1
    ingresses: int = 1


@dataclass(frozen=True)
class DoorSettings:
    """Who may ask, and how much: the fields of `serve.server.guard.Policy` and `Limits`. keys: their SHA-256."""

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    origins: tuple[str, ...] = ()
    access_log: bool = False
    body_bytes: int = Limits.body_bytes
    prompt_characters: int = Limits.prompt_characters
    choices: int = Limits.choices
    queue: int = Limits.queue
    request_s: float = Limits.request_s

    def policy(self, ingresses: int) -> Policy:
        """What one of so many entrances lets in: each has its share of the queue. Raises InputError."""
        limits = Limits(
            body_bytes=self.body_bytes, prompt_characters=self.prompt_characters, choices=self.choices,
            queue=max(1, self.queue // ingresses), request_s=self.request_s,
        )  # fmt: skip
        hosts = None if self.hosts is None else frozenset(self.hosts)
        for key in self.keys:
            if not re.fullmatch("[0-9a-f]{64}", str(key)):
                raise InputError(
                    "'keys' of the cluster's settings has something that is no SHA-256 in hexadecimal digits",
                    hint="It takes no keys: write the file with slm cluster config MODEL --api-key-file FILE -o FILE",
                )
        return Policy(Keys(digests=self.keys), limits, hosts, tuple(self.origins), access_log=self.access_log)


@dataclass(frozen=True)
class DocumentSettings:
    """The index that is answered from, as `slm serve --rag` takes it. index: "" for none."""

    index: str = ""
    reader: str = "auto"
    refuse_at: float | None = None
    viewer: tuple[str, ...] = ()


@dataclass(frozen=True)
class ListeningPlace:
    """Where every machine listens. keep_alive_s: seconds that an idle connection stays open."""

    host: str
    port: int
    keep_alive_s: int

    @property
    def url(self) -> str:
        """As a client on one of the machines writes it."""
        return f"http://{with_port(self.host, self.port)}"


@dataclass(frozen=True)
class ClusterSettings:
    """All of it. version: of the program that every machine must have."""

    model: ModelSettings
    size: SizeSettings = SizeSettings()
    door: DoorSettings = DoorSettings()
    documents: DocumentSettings = DocumentSettings()
    version: str = __version__

    def plain(self) -> dict[str, Any]:
        """The settings as JSON's values."""
        return {name: _listed(value) for name, value in asdict(self).items()}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> ClusterSettings:
        """The settings of `plain`'s values. Raises InputError for a field that nothing has, MismatchError for another
        version of the program."""
        _known(cls, plain, "args")
        version = plain.get("version", __version__)
        if version != __version__:
            raise MismatchError(
                f"this machine has slm-cpu {__version__}, the cluster is set up for {version}",
                hint="Install the same version on every machine, then write the file anew with: slm cluster config",
            )
        return cls(
            _part(ModelSettings, plain, "model"), _part(SizeSettings, plain, "size"),
            _part(DoorSettings, plain, "door"), _part(DocumentSettings, plain, "documents"),
        )  # fmt: skip

    def engine_options(self) -> EngineOptions:
        """How each replica runs the model."""
        model = self.model
        folder = Path(model.cache_folder) if model.cache_folder else None
        return EngineOptions(
            self.size.cores, model.context, model.parallel, model.hot, model.draft, model.cache_bytes, folder
        )


def _part(kind: type[_S], plain: Mapping[str, Any], name: str) -> _S:
    values = plain.get(name, {})
    _known(kind, values, name)
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except TypeError as error:
        raise InputError(f"the cluster's settings lack something in '{name}'", found=str(error)) from error


def _known(kind: type[Any], values: Any, name: str) -> None:
    names = [one.name for one in fields(kind)]
    if not isinstance(values, Mapping):
        raise InputError(f"'{name}' of the cluster's settings is no table", found=str(values)[:80])
    for key in values:
        if key not in names:
            raise InputError(f"'{name}' of the cluster's settings has no '{key}'; known: {', '.join(names)}")


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(one) for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value

"""The server's parts for a cluster, without Ray: what crosses, who is asked again, which adapters are held."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.child.messages import Stats
from serve.cluster.board import Board, ReplicaReport, state_of, summed
from serve.cluster.deploy_file import deploy_config, write_deploy_file
from serve.cluster.settings import ClusterSettings, DoorSettings, ListeningPlace, ModelSettings, SizeSettings
from serve.cluster.warm import WarmAdapters
from serve.cluster.wire import NeededAdapter
from serve.engine.events import Event, Ticket, iterated
from serve.server.guard import Keys
from slm.errors import (
    EngineDiedError,
    EngineError,
    InputError,
    MismatchError,
    MissingExtraError,
    ResourceError,
    SlmError,
    UnknownNameError,
    UnsupportedError,
)
from slm.joints import Finish, Message, SamplingOptions
from slm.native.ray_cluster import check_address, connected
from tests.remote_engine import Fleet, fleet
from tests.tiny_gguf import write_adapter, write_model

ROOT = Path(__file__).parent.parent
HELLO = [Message(role="user", content="Hello")]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    adapters = {name: write_adapter(folder / f"{name}.gguf", seed=n) for n, name in enumerate(("en", "ja"), 1)}
    with fleet(write_model(folder / "tiny.gguf"), adapters) as opened:
        yield opened


def answer(fleet: Fleet, adapter: str | None, tokens: int = 12) -> tuple[str, Finish]:
    sampling = SamplingOptions(max_tokens=tokens, ignore_eos=True)
    events = list(iterated(lambda sink: fleet.remote.begin_chat(HELLO, sink, adapter=adapter, sampling=sampling)))
    assert isinstance(events[-1], Finish)
    return "".join(event for event in events if isinstance(event, str)), events[-1]


# --- errors and keys --------------------------------------------------------------------------------------------


def test_every_kind_of_error_crosses_as_what_it_is() -> None:
    for error in (
        UnknownNameError("model", "fr", ["en"], hint="h"), MissingExtraError("ray", "cluster"),
        EngineDiedError("gone", found="f", hint="h"),
    ):  # fmt: skip
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)
        assert (again.what, again.found, again.hint) == (error.what, error.found, error.hint)


def test_digests_of_keys_admit_whom_the_keys_admit() -> None:
    keys = Keys(["sesame", "open"])
    again = Keys(digests=keys.digests)
    assert again and again.admit(b"Bearer sesame") and again.admit(b"Bearer open") and not again.admit(b"Bearer x")
    assert not any("sesame" in digest for digest in keys.digests)


# --- an engine whose replicas are elsewhere ---------------------------------------------------------------------


def test_replicas_say_what_one_engine_says(here: Fleet) -> None:
    engine = here.engines[0]
    for name in ("en", "ja"):
        engine.load_adapter(name, next(a.path for a in here.remote.adapters() if a.name == name))
        sampling = SamplingOptions(max_tokens=12, ignore_eos=True)
        events = list(engine.chat(HELLO, adapter=name, sampling=sampling))
        text, finish = answer(here, name)
        assert text == "".join(event for event in events if isinstance(event, str))
        assert finish.adapter == name and finish.route_reason == "named in the request"
        engine.unload_adapter(name)
    assert answer(here, "en")[0] != answer(here, "ja")[0]
    assert here.remote.tokenize("Hi") == engine.tokenize("Hi")
    assert here.remote.detokenize(engine.tokenize("Hi")) == "Hi"
    with pytest.raises(InputError):
        here.remote.detokenize([10**6])


def test_an_answer_that_had_not_begun_is_asked_for_again(here: Fleet) -> None:
    expected, _ = answer(here, "en")
    before = len(here.asked)
    here.lose[:] = [0, 0]
    assert answer(here, "en")[0] == expected
    assert len(here.asked) == before + 3
    here.lose[:] = [0, 0, 0]
    with pytest.raises(EngineDiedError, match="the machine that computed this answer is gone"):
        answer(here, "en")


def test_an_answer_that_had_begun_ends_with_an_error_and_is_not_said_twice(here: Fleet) -> None:
    before = len(here.asked)
    here.lose[:] = [1]
    heard: list[Event] = []
    with pytest.raises(EngineDiedError):
        sampling = SamplingOptions(max_tokens=200, ignore_eos=True)
        for event in iterated(lambda sink: here.remote.begin_chat(HELLO, sink, adapter="en", sampling=sampling)):
            heard.append(event)
    assert heard and len(here.asked) == before + 1


def test_a_run_that_is_cancelled_computes_no_more(here: Fleet) -> None:
    heard: list[Event] = []
    sampling = SamplingOptions(max_tokens=1500, ignore_eos=True)
    ticket: Ticket = here.remote.begin_chat(HELLO, heard.append, adapter="en", sampling=sampling)
    end = time.monotonic() + 60
    while not heard and time.monotonic() < end:
        time.sleep(0.01)
    ticket.cancel()
    while here.remote.stats().running and time.monotonic() < end:
        time.sleep(0.01)
    assert heard and here.remote.stats().running == 0
    assert not any(isinstance(event, Finish | SlmError) for event in heard)


def test_a_file_that_has_changed_is_read_again_before_the_next_answer(here: Fleet, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "fr.gguf", seed=5)
    here.known.load_adapter("fr", path)
    try:
        first, _ = answer(here, "fr")
        other = write_adapter(tmp_path / "other.gguf", seed=6)
        old = here.known.needed("fr").content
        other.replace(path)  # the watcher has not seen it, and no replica of the second round has the old content
        for engine in here.engines:
            while old in {adapter.name for adapter in engine.adapters()}:
                engine.unload_adapter(old)
        assert answer(here, "fr")[0] != first and here.known.needed("fr").content != old
        path.unlink()
        with pytest.raises(EngineError):
            for _ in range(3):
                answer(here, "fr")
    finally:
        here.known.unload_adapter("fr")


def test_a_machine_with_another_file_is_an_error_of_the_server_and_not_of_whoever_asks(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    files = {name: write_adapter(tmp_path / f"{name}.gguf", seed=n) for n, name in enumerate(("en", "ja"), 1)}
    with fleet(model, {"en": files["en"]}, replicas=1, file_of=lambda source: files["ja"]) as apart:
        with pytest.raises(EngineError, match="another file on another machine"):
            answer(apart, "en")
        assert answer(apart, None)[1].reason == "length"


def test_a_full_disk_at_one_replica_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    with fleet(model, {"en": write_adapter(tmp_path / "en.gguf", seed=1)}) as two:
        full, copied = two.engines[1]._vault._folder, shutil.copyfileobj

        def copy(source: Any, out: Any, size: int) -> None:
            if Path(out.name).parent == full:
                out.write(source.read(100))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            copied(source, out, size)

        with monkeypatch.context() as patched:
            patched.setattr(shutil, "copyfileobj", copy)
            expected, _ = answer(two, "en")
            with pytest.raises(EngineError, match=r"a machine cannot load the adapter.*No space left on device"):
                answer(two, "en")  # its turn
            assert answer(two, "en")[0] == expected
            assert answer(two, None)[1].reason == "length"  # the one with the full disk still has the base
        assert list(full.iterdir()) == []
        answer(two, "en")
        assert answer(two, "en")[0] == expected  # there is room again


def test_adapters_of_a_cluster_come_by_its_folder_alone(here: Fleet, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="come and go with its folder"):
        here.remote.load_adapter("x", tmp_path / "x.gguf")
    with pytest.raises(UnsupportedError):
        here.remote.unload_adapter("en")
    with pytest.raises(UnknownNameError, match="known: auto, base, en, ja, tiny"):
        here.remote.route("fr", HELLO)


# --- adapters that a replica holds ------------------------------------------------------------------------------


def test_an_adapter_is_unloaded_when_nobody_keeps_or_needs_it() -> None:
    done: list[str] = []
    warm = WarmAdapters(lambda one: done.append(f"+{one.content}"), lambda content: done.append(f"-{content}"))
    a, b = NeededAdapter("a", ""), NeededAdapter("b", "")
    warm.keep(a)
    with warm.using(a):
        warm.drop("a")
        assert done == ["+a"]  # it is being computed with
        warm.keep(a)
    assert done == ["+a"]
    warm.drop("a")
    with warm.using(b), warm.using(b):
        pass
    assert done == ["+a", "-a", "+b", "-b"]


def test_an_adapter_that_cannot_be_loaded_is_tried_again_for_the_next_request() -> None:
    tries: list[str] = []

    def load(adapter: NeededAdapter) -> None:
        tries.append(adapter.content)
        if len(tries) == 1:
            raise EngineError("no")

    warm = WarmAdapters(load, tries.remove)
    with pytest.raises(EngineError):
        warm.keep(NeededAdapter("a", ""))
    with warm.using(NeededAdapter("a", "")):
        assert tries == ["a", "a"]
    assert tries == ["a"]


# --- what replicas say of themselves ----------------------------------------------------------------------------


def test_the_board_sums_those_who_were_heard_of_lately() -> None:
    now = [0.0]
    board = Board(lambda: now[0])
    assert state_of(board.rows()) == "starting"
    board.report(ReplicaReport("a", "m", "ready", 1, Stats(4, 2, 1, 1, ("x",))))
    now[0] = 8.0
    board.report(ReplicaReport("b", "m", "starting", 0, Stats(4, 1, 0, 2, ("x", "y"))))
    both = summed(board.rows())
    assert (both.parallel, both.running, both.waiting, both.contexts, both.adapters) == (8, 3, 1, 3, ("x", "y"))
    assert state_of(board.rows()) == "ready"
    now[0] = 12.0
    assert [row.replica for row in board.rows()] == ["b"] and state_of(board.rows()) == "starting"


# --- settings and the file of `serve deploy` --------------------------------------------------------------------

SETTINGS = ClusterSettings(
    ModelSettings("gemma-3-270m", {"ja": "/srv/ja.gguf"}, "/srv/adapters"), SizeSettings(2, 8, 4, 3),
    DoorSettings(Keys(["sesame"]).digests, ("localhost",), queue=90),
)  # fmt: skip


def test_settings_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    write_deploy_file(tmp_path / "serve.yaml", SETTINGS, ListeningPlace("127.0.0.1", 8080, 75))
    text = (tmp_path / "serve.yaml").read_text(encoding="utf-8")
    read: Any = yaml.safe_load(text)
    assert read == json.loads(json.dumps(deploy_config(SETTINGS, ListeningPlace("127.0.0.1", 8080, 75))))
    assert ClusterSettings.of(read["applications"][0]["args"]) == SETTINGS
    assert "sesame" not in text
    policy = SETTINGS.door.policy(SETTINGS.size.ingresses)
    assert (
        policy.limits.queue == 30 and policy.keys.admit(b"Bearer sesame") and policy.hosts == frozenset({"localhost"})
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sizes": {}}, "'args' of the cluster's settings has no 'sizes'; known: model, size, door"),
        ({"size": {"replica": 2}}, "'size' of the cluster's settings has no 'replica'; known: replicas"),
        ({"model": {}}, "lack something in 'model'"),
        ({"door": 5}, "'door' of the cluster's settings is no table"),
    ],
)
def test_a_slip_in_the_file_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ClusterSettings.of({**SETTINGS.plain(), **change})


def test_a_key_in_the_file_is_refused_and_not_shown() -> None:
    with pytest.raises(InputError, match="no SHA-256") as caught:
        DoorSettings(keys=("sesame",)).policy(1)
    assert "sesame" not in str(caught.value)


def test_the_file_for_kuberay_is_one_that_this_version_takes() -> None:
    service: Any = yaml.safe_load((ROOT / "docs/production/kuberay.yaml").read_text(encoding="utf-8"))
    deployed: Any = yaml.safe_load(service["spec"]["serveConfigV2"])
    settings = ClusterSettings.of(deployed["applications"][0]["args"])
    ours = deploy_config(settings, ListeningPlace("0.0.0.0", 8000, 75))
    assert {**deployed, "applications": []} == {**ours, "applications": []}
    assert {**deployed["applications"][0], "args": {}} == {**ours["applications"][0], "args": {}}
    assert not settings.door.policy(settings.size.ingresses).keys.admit(b"Bearer ")
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert workers["minReplicas"] == settings.size.replicas and workers["maxReplicas"] == settings.size.most_replicas
    container = workers["template"]["spec"]["containers"][0]
    assert container["resources"]["requests"]["cpu"] == str(settings.size.cores)
    version = service["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"\nray=={version}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_values_for_kuberays_chart_make_the_cluster_of_the_other_file() -> None:
    values: Any = yaml.safe_load((ROOT / "docs/production/kuberay-values.yaml").read_text(encoding="utf-8"))
    service: Any = yaml.safe_load((ROOT / "docs/production/kuberay.yaml").read_text(encoding="utf-8"))
    cluster = service["spec"]["rayClusterConfig"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]
    assert values["head"]["rayVersion"] == cluster["rayVersion"]
    assert values["head"]["enableInTreeAutoscaling"] == cluster["enableInTreeAutoscaling"]
    assert values["head"]["rayStartParams"] == head["rayStartParams"]
    for name in ("groupName", "replicas", "minReplicas", "maxReplicas"):
        assert values["worker"][name] == workers[name]
    for ours, group in ((values["head"], head), (values["worker"], workers)):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == f"{values['image']['repository']}:{values['image']['tag']}"
        assert container["env"] == values["common"]["containerEnv"]
        assert ours["volumes"] == pod["volumes"] and ours["volumeMounts"] == container["volumeMounts"]
        assert ours["resources"]["requests"] == container["resources"]["requests"]
        # Helm lays them over the chart's own: what is left out stays, and its limit is one core.
        assert ours["resources"]["limits"]["cpu"] == ours["resources"]["requests"]["cpu"]


def test_another_version_of_the_program_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"the cluster is set up for 0\.0\.1"):
        ClusterSettings.of({**SETTINGS.plain(), "version": "0.0.1"})


# --- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["", "rai", "ray:", "ray://", "http://x", "ray://x:0", "ray://x:99999", "ray://x/y"]
)
def test_what_is_no_address_of_ray_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is no address of Ray"):
        check_address(address)


def test_an_address_that_nobody_answers_is_an_error_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(ResourceError, match=r"no Ray answers at ray://127\.0\.0\.1:9"), connected("ray://127.0.0.1:9"):
        raise AssertionError
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("refused", [2, 3])
def test_a_client_whose_process_did_not_start_tries_again_and_is_told_why(
    monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    import ray

    said = (
        "Initialization failure from server:\nTraceback (most recent call last):\n  File x\nRuntimeError: it is full\n"
    )
    tries: list[str] = []

    def init(**options: Any) -> None:
        tries.append(options["address"])
        if len(tries) <= refused:
            raise ConnectionError(said)

    monkeypatch.setattr(ray, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"ray://127.0.0.1:{listener.getsockname()[1]}"
        if refused < 3:
            with connected(address) as own:
                assert not own
        else:
            with pytest.raises(ResourceError, match="takes no further client") as told, connected(address):
                raise AssertionError
            assert told.value.found == "RuntimeError: it is full"
    assert tries == [address] * 3


def test_what_rays_processes_complain_of_is_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It went to stdout, into the JSON of a command."""
    from ray._private import worker

    from slm.native import ray_cluster

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # what it is afterwards
    ray_cluster._keep_stdout_clean()
    complaint = {"lines": ["A worker died"], "pid": "raylet", "is_err": False}
    worker.print_to_stdstream(complaint, ignore_prefix=False)
    assert capsys.readouterr().out == ""


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"\.\[cluster\]"):
        check_address("ray")

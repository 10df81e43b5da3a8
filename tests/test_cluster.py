"""The server and indexing on a Ray of two nodes, which all tests here share: as on one machine, whatever dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from rag.index.store import open_inventory
from serve.bench.process import free_port
from serve.bench.simulated.machines import ray_processes
from serve.engine.engine import open_engine
from slm.joints import Finish, Message, SamplingOptions
from tests.ray_nodes import ROOT, two_nodes
from tests.tiny_gguf import write_adapter, write_model

KEY = "sesame"
# By Python, as `serve shutdown` speaks to a dashboard, which is not there; actors end some time after it.
_GIVE_CORES_BACK = """
import time, ray
from ray import serve
ray.init()
serve.shutdown()
while ray.available_resources().get("CPU", 0) < 2:
    time.sleep(0.5)
"""
# What the dashboard does with the file that `serve deploy` sends it.
_DEPLOY = """
import sys, yaml, ray
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
ray.init()
with open(sys.argv[1]) as file:
    _get_global_client().deploy_apps(ServeDeploySchema(**yaml.safe_load(file)))
"""
# How many of the replicas computed anything while an adapter was asked for six times, one request after the other.
_COUNT_WORKING = """
import sys, time, httpx, ray
from ray import serve
ray.init()
board = serve.get_deployment_handle("board", "slm")
def steps():
    time.sleep(2.5)  # replicas report every second
    return {row.replica: row.stats.steps for row in board.rows.remote().result() if row.stats}
url, key, name = sys.argv[1:]
before = steps()
for _ in range(6):
    body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    httpx.post(url + "/v1/chat/completions", json=body, headers={"authorization": "Bearer " + key}).raise_for_status()
after = steps()
print(len(after), sum(after[one] > before.get(one, 0) for one in after))
"""
HELLO: Any = [{"role": "user", "content": "Hello"}]
LONG = {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}


@dataclass
class OnRay:
    """A cluster with the server on it, and the files that it was made from."""

    environment: dict[str, str]
    folder: Path
    port: int
    client_port: int
    headers: dict[str, str] = field(default_factory=lambda: {"authorization": f"Bearer {KEY}"})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client_address(self) -> str:
        """Of the cluster, for a machine that is none of it."""
        return f"ray://127.0.0.1:{self.client_port}"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def slm(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "slm_cli", *args], cwd=ROOT, env=self.environment, capture_output=True, text=True,
            timeout=600,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def serve(self, model: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.slm("cluster", "serve", *self.words(model), "--detach", *options, check=check)

    def words(self, model: str) -> list[str]:
        """What `cluster serve` and `cluster config` are told."""
        return [
            str(self.folder / model), "--adapters-dir", str(self.folder / "adapters"), "--cores", "1", "--parallel",
            "4", "--port", str(self.port), "--api-key-file", str(self.folder / "keys"),
        ]  # fmt: skip

    def python(self, *words: str) -> str:
        """What a program prints that finds this Ray."""
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, headers=self.headers, **options)

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, timeout=60, headers=self.headers).json()

    def busy(self) -> int:
        """Requests that are computed, on all replicas."""
        return sum(slot["is_processing"] for slot in self.get("/slots"))

    def names(self) -> set[str]:
        return {row["id"] for row in self.get("/v1/models")["data"]}


def until(true: Callable[[], bool], seconds: float = 60.0) -> float:
    """Wait until something is so; how long it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, "it never came to be"
        time.sleep(0.1)
    return time.monotonic() - began


def replicas(kind: bytes = b"ServeReplica:slm:engine") -> list[int]:
    """Process ids of the engines."""
    return ray_processes(kind)


def both(kind: bytes = b"ServeReplica:slm:engine") -> list[int]:
    """The process ids of two, when they are there."""
    found: list[list[int]] = []
    until(lambda: not found.append(replicas(kind)) and len(found[-1]) == 2)
    return found[-1]


@pytest.fixture(scope="module")
def on_ray() -> Iterator[OnRay]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as place:
        folder = Path(place)
        adapters = folder / "adapters"
        adapters.mkdir()
        write_model(folder / "tiny.gguf")
        write_model(folder / "other.gguf", seed=7)
        for seed, name in enumerate(("en", "ja"), start=1):
            write_adapter(adapters / f"{name}.gguf", seed=seed)
        (folder / "keys").write_text(KEY)
        (folder / "keys").chmod(0o600)
        client_port = free_port()
        with two_nodes(folder, client_port=client_port) as environment:
            running = OnRay(environment, folder, free_port(), client_port)
            running.serve("tiny.gguf", "--replicas", "2")
            until(lambda: httpx.get(f"{running.url}/health").status_code == 200)
            yield running


@pytest.fixture(scope="module")
def idle(on_ray: OnRay) -> OnRay:
    """The cluster, once the server has given its cores back."""
    on_ray.python("-c", _GIVE_CORES_BACK)
    return on_ray


def test_two_adapters_answer_as_they_do_on_one_machine(on_ray: OnRay) -> None:
    """The same tokens, whole and streamed, asked of whichever replica."""
    files = {name: on_ray.folder / "adapters" / f"{name}.gguf" for name in ("en", "ja")}
    with open_engine(on_ray.folder / "tiny.gguf", files, threads=1, parallel=4) as alone:
        for name in ("en", "ja", None):
            events = alone.chat(
                [Message(role="user", content="Hello")], adapter=name, sampling=SamplingOptions(max_tokens=12)
            )
            expected = "".join(event for event in events if not isinstance(event, Finish))
            for _ in range(3):
                asked: dict[str, Any] = {"model": name or "base", "messages": HELLO, "max_tokens": 12, "temperature": 0}
                done = on_ray.client.chat.completions.create(**asked)
                assert done.choices[0].message.content == expected
                assert done.model == (name or "tiny")
                pieces = on_ray.client.chat.completions.create(**asked, stream=True)
                assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    assert on_ray.names() == {"tiny", "en", "ja"}


def test_openais_api_is_that_of_one_machine(on_ray: OnRay) -> None:
    client = on_ray.client
    scored = client.chat.completions.create(
        model="en", messages=HELLO, max_tokens=5, temperature=0, n=2, logprobs=True, top_logprobs=2
    )
    for choice in scored.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert "".join(row.token for row in choice.logprobs.content) == choice.message.content
    assert scored.usage is not None and scored.usage.completion_tokens == 10
    assert len(client.embeddings.create(model="tiny", input=["cat", "dog"]).data) == 2
    tokens = on_ray.post("/tokenize", {"content": "Hi"}).json()["tokens"]
    assert on_ray.post("/detokenize", {"tokens": tokens}).json() == {"content": "Hi"}
    blended = {"messages": HELLO, "max_tokens": 4, "lora": [{"id": 0, "scale": 0.5}, {"id": 1, "scale": 0.5}]}
    assert on_ray.post("/v1/chat/completions", blended).status_code == 200
    with pytest.raises(openai.NotFoundError, match="known: auto, base, en, ja, tiny"):
        client.chat.completions.create(model="fr", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="context holds"):
        client.chat.completions.create(model="en", messages=HELLO, max_tokens=100_000)
    assert httpx.get(f"{on_ray.url}/v1/models").status_code == 401
    refused = on_ray.post("/lora-adapters", {"name": "x", "path": str(on_ray.folder / "adapters/en.gguf")})
    assert refused.status_code == 400 and "--adapters-dir" in refused.text
    metrics = httpx.get(f"{on_ray.url}/metrics", headers=on_ray.headers).text
    assert 'slm_requests_total{adapter="en",outcome="ok"}' in metrics and "slm_engine_up 1.0" in metrics


def test_a_client_that_leaves_ends_what_is_computed_for_it(on_ray: OnRay) -> None:
    body = {"model": "en", "messages": HELLO, "stream": True, **LONG}
    with httpx.stream("POST", f"{on_ray.url}/v1/chat/completions", json=body, headers=on_ray.headers) as reply:
        next(line for line in reply.iter_lines() if line.startswith("data: "))
    cancelled = 'slm_requests_total{adapter="en",outcome="cancelled"} 1.0'
    until(lambda: cancelled in httpx.get(f"{on_ray.url}/metrics", headers=on_ray.headers).text, 30)
    until(lambda: on_ray.busy() == 0, 30)


@dataclass
class Load:
    """Clients that ask until they are told to stop, and what each request came to."""

    on_ray: OnRay
    outcomes: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(4)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self._threads)

    def _run(self, number: int) -> None:
        while not self.stop.is_set():
            self.outcomes.append(self._asked(stream=number % 2 == 0, adapter=("en", "ja")[number // 2]))

    def _asked(self, *, stream: bool, adapter: str) -> str:
        body = {"model": adapter, "messages": HELLO, "max_tokens": 60, "ignore_eos": True, "stream": stream}
        try:
            reply = self.on_ray.post("/v1/chat/completions", body)
        except httpx.HTTPError as error:
            return f"broken: {error!r}"
        if reply.status_code != 200:
            known = reply.status_code == 503 and "engine_died" in reply.text
            return "clear error" if known else f"{reply.status_code}: {reply.text[:200]}"
        if "engine_died" in reply.text:
            return "clear error"
        ended = "[DONE]" in reply.text if stream else reply.json()["choices"][0]["finish_reason"] == "length"
        return "answered" if ended else f"cut: {reply.text[-200:]}"


def test_a_replica_that_is_killed_costs_no_answered_request(on_ray: OnRay) -> None:
    """Every request is answered or ends with a clear error, and there are two replicas again."""
    with Load(on_ray) as load:
        until(lambda: len(load.outcomes) >= 8)
        for _ in range(2):
            before = both()
            os.kill(before[0], signal.SIGKILL)
            until(lambda gone=before[0]: gone not in both())  # type: ignore[misc]
            seen = len(load.outcomes)
            until(lambda seen=seen: len(load.outcomes) >= seen + 8)  # type: ignore[misc]
    assert set(load.outcomes) <= {"answered", "clear error"}, set(load.outcomes)
    assert load.outcomes.count("clear error") <= 8 and load.outcomes[-1] == "answered"


def test_an_adapter_that_comes_into_the_folder_is_there_for_every_replica(on_ray: OnRay) -> None:
    new = on_ray.folder / "adapters" / "fr.gguf"
    write_adapter(on_ray.folder / "fr.gguf", seed=9)
    shutil.move(on_ray.folder / "fr.gguf", new)
    try:
        until(lambda: "fr" in on_ray.names())
        body = {"model": "fr", "messages": HELLO, "max_tokens": 8, "temperature": 0}
        texts = {on_ray.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] for _ in range(6)}
        assert len(texts) == 1
        assert on_ray.python("-c", _COUNT_WORKING, on_ray.url, KEY, "fr").split() == ["2", "1"]
        write_adapter(on_ray.folder / "fr.gguf", seed=10)
        shutil.move(on_ray.folder / "fr.gguf", new)  # its name now means another content
        until(
            lambda: on_ray.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] not in texts,
            180,
        )
    finally:
        new.unlink()
    until(lambda: "fr" not in on_ray.names())
    assert on_ray.post("/v1/chat/completions", body).status_code == 404


def test_what_cannot_be_is_said_at_once(on_ray: OnRay) -> None:
    small = on_ray.serve("tiny.gguf", "--replicas", "9", check=False)
    assert small.returncode == 1 and "9 replicas of 1 cores each need 9" in small.stderr
    there = on_ray.slm("cluster", "serve", str(on_ray.folder / "tiny.gguf"), "--cores", "1", check=False)
    assert there.returncode == 1 and "a server runs on this cluster already" in there.stderr
    other = on_ray.serve("tiny.gguf", "--port", str(free_port()), check=False)
    assert other.returncode == 1 and f"listens on 127.0.0.1:{on_ray.port} already" in other.stderr
    version = (
        "import ray, slm.native.ray_cluster as a; ray.__version__ = '2.0.1'\n"
        "try:\n    with a.connected('ray'): pass\nexcept Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", version], cwd=ROOT, env=on_ray.environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("MismatchError Ray on the cluster has another version"), done.stdout + done.stderr
    assert on_ray.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2}).status_code == 200


def test_the_model_is_changed_without_a_refused_request(on_ray: OnRay) -> None:
    """By the command, and by the file for `serve deploy`. The adapters fit both models."""
    with Load(on_ray) as load:
        until(lambda: len(load.outcomes) >= 4)
        on_ray.serve("other.gguf", "--replicas", "2")
        until(lambda: "other" in on_ray.names())
        file = str(on_ray.folder / "serve.yaml")
        on_ray.slm("cluster", "config", *on_ray.words("tiny.gguf"), "--replicas", "2", "-o", file)
        on_ray.python("-c", _DEPLOY, file)
        until(lambda: "tiny" in on_ray.names(), 120)
        seen = len(load.outcomes)
        until(lambda: len(load.outcomes) >= seen + 8)
    assert set(load.outcomes) == {"answered"}, set(load.outcomes)


@pytest.mark.real
def test_an_index_made_on_ray_has_the_vectors_of_one_machine(idle: OnRay, pulled_model: Any) -> None:
    """To the bit, asked from a machine of the cluster and from one that is none of it."""
    pulled_model("multilingual-e5-small")
    here, documents = idle.folder / "here", str(ROOT / "data/handbook")
    idle.slm("rag", "add", str(here), documents)
    one = open_inventory(here)
    written = [path for path in one.folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    files = sorted(path.relative_to(one.folder) for path in written)
    assert any("vector" in str(file) for file in files)
    for name, address in (("there", "ray"), ("outside", idle.client_address)):
        idle.slm("rag", "add", str(idle.folder / name), documents, "--on", address)
        two = open_inventory(idle.folder / name)
        assert one.documents == two.documents and one.count == two.count > 100
        for file in files:
            assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes(), file


def write_batch(path: Path, count: int, tokens: int) -> list[str]:
    """A batch with a line for nobody in the middle, and the words of the command that answers it."""
    for n in range(count):
        body: dict[str, Any] = {"model": ("en", "ja", "base")[n % 3], "messages": HELLO, "temperature": 0}
        body |= {"max_tokens": tokens, "ignore_eos": True} if n != count // 2 else {"model": "none"}
        row = {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    folder = path.parent
    adapters = [word for name in ("en", "ja") for word in ("--adapter", f"{name}={folder}/adapters/{name}.gguf")]
    model = str(folder / "tiny.gguf")
    return ["generate", model, *adapters, "--batch", str(path), "--threads", "1", "-o", f"{path}.out"]


def assert_answered(path: Path, count: int, tokens: int) -> None:
    rows = [json.loads(row) for row in Path(f"{path}.out").read_text().splitlines()]
    assert [row["custom_id"] for row in rows] == [str(n) for n in range(count)]
    statuses = [row["response"]["status_code"] for row in rows]
    assert statuses == [404 if n == count // 2 else 200 for n in range(count)]
    answers = [row["response"]["body"] for row in rows if row["response"]["status_code"] == 200]
    assert {one["usage"]["completion_tokens"] for one in answers} == {tokens}


def test_a_batch_is_answered_by_all_machines_and_one_that_is_killed_costs_no_line(idle: OnRay) -> None:
    path, count, tokens = idle.folder / "killed.jsonl", 400, 200
    words = write_batch(path, count, tokens)
    process = subprocess.Popen(
        [sys.executable, "-m", "slm_cli", *words, "--on", "ray", "--json"], cwd=ROOT, env=idle.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    partial = Path(f"{path}.out.partial")
    until(lambda: process.poll() is not None or (partial.exists() and partial.read_bytes().count(b"\n") > 40))
    os.kill(both(b"BatchHand")[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["answered"] == count - 1
    assert_answered(path, count, tokens)


def kill_a_clients_process(seconds: float = 120.0) -> bool:
    """End the first that the cluster starts for a client, before it has come up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if b"--mode=specific-server" in (folder / "cmdline").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
                    return True
        time.sleep(0.02)
    return False


def test_a_batch_is_answered_for_a_machine_that_is_none_of_the_cluster(idle: OnRay) -> None:
    path = idle.folder / "outside.jsonl"
    words = write_batch(path, 12, 5)
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_a_clients_process)
        idle.slm(*words, "--on", idle.client_address)
    assert killed.result()
    assert_answered(path, 12, 5)
    there = idle.slm(*words, "--on", idle.client_address, "--resume")
    assert "had already been answered" in there.stderr
    large = idle.slm(*words, "--on", "ray", "--fresh", "--threads", "64", check=False)
    assert large.returncode == 1 and "no machine of the cluster has 64 cores" in large.stderr


def test_kills_under_load_are_counted_by_a_command(idle: OnRay) -> None:
    """It starts the server and ends it."""
    done = idle.slm(
        "bench", "cluster", str(idle.folder / "tiny.gguf"), "--kills", "1", "--clients", "2", "--tokens", "20", "--json"
    )
    told = json.loads(done.stdout)
    assert len(told["back_s"]) == 1 and told["others"] == {} and told["answered"] >= 4
    assert told["requests"] == told["answered"] + told["clear_errors"]


def test_more_engines_are_started_while_requests_wait(idle: OnRay) -> None:
    """Asked for from a machine that is none of the cluster."""
    idle.python("-c", _GIVE_CORES_BACK)
    idle.serve("tiny.gguf", "--replicas", "1:2", "--parallel", "1", "--on", idle.client_address)
    assert len(replicas()) <= 1
    with Load(idle) as load:
        until(lambda: len(replicas()) == 2)
        seen = len(load.outcomes)
        until(lambda: len(load.outcomes) >= seen + 4)
    assert set(load.outcomes) == {"answered"}, set(load.outcomes)

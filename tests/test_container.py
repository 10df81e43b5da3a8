"""The Dockerfile, compose.yaml and the script that carries out their steps say the same. Nothing is built here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from scripts import container_check
from scripts.packing import root as packed
from scripts.packing.contained import Orders
from scripts.packing.dockerfile import Copy, Run, Stage, expanded, ignores, in_context, lines_of, stages
from slm.errors import MissingFileError, UnsupportedError, VerificationError
from tests.documented import Command, fault
from tests.tiny_training import ROOT

TEXT = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
SERVER = COMPOSE["services"]["server"]
RULES = ignores((ROOT / ".dockerignore").read_text("utf-8"))
PACKAGES = ("slm", "convert", "train", "serve", "rag")


def image() -> Stage:
    return stages(TEXT, {})[-1]


def values(words: list[str]) -> dict[str, str]:
    """The options of a command, each with its value."""
    return {name: value for name, value in pairwise(words) if name.startswith("--")}


def test_the_image_runs_as_nobody_special_with_its_models_in_a_volume() -> None:
    last = image()
    assert [stage.base for stage in stages(TEXT, {})] == ["debian:bookworm-slim"] * 2
    assert last.user == "10001:10001"
    assert last.volumes == [last.environment["SLM_HOME"]] == [last.folder] == ["/models"]
    (users,) = [step.script for step in last.steps if isinstance(step, Run) and "useradd" in step.script]
    assert f"--uid {last.user.partition(':')[0]} " in users and "install -d -o slm -g slm /models" in users


def test_one_port_everywhere_and_a_health_check_that_asks_it() -> None:
    last = image()
    assert last.ports == [8080]
    assert values(last.command)["--port"] == "8080" and values(last.command)["--host"] == "0.0.0.0"
    assert "http://127.0.0.1:8080/health" in last.health[-1] and last.health[0] == "python3"
    compile(last.health[2], "health", "exec")
    assert SERVER["ports"] == ["127.0.0.1:8080:8080"]


def test_what_the_image_and_compose_start_is_a_command_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert image().entrypoint == ["slm"]
    of_compose = [expanded(word, {}) for word in SERVER["command"]]
    assert of_compose == image().command
    assert fault(Command("Dockerfile", " ".join(["slm", *image().command]), whole=True)) == ""


def test_compose_gives_the_server_no_more_than_it_needs() -> None:
    assert SERVER["read_only"] is True and SERVER["tmpfs"] == ["/tmp"]
    assert SERVER["cap_drop"] == ["ALL"] and SERVER["security_opt"] == ["no-new-privileges:true"]
    assert SERVER["volumes"] == [f"models:{image().volumes[0]}"] and list(COMPOSE["volumes"]) == ["models", "database"]
    variable = values(SERVER["command"])["--api-key-env"]
    assert SERVER["environment"][variable].startswith("${SERVER_API_KEY:?")  # without a key it does not start
    args = {line.value.partition("=")[0] for line in lines_of(TEXT) if line.word == "ARG"}
    assert set(SERVER["build"]["args"]) <= args


def test_postgresql_for_documents_is_there_where_it_is_asked_for() -> None:
    database = COMPOSE["services"]["database"]
    assert database["profiles"] == ["documents"] and "ports" not in database
    assert database["image"].startswith("pgvector/pgvector:") and database["read_only"] is True
    assert database["cap_drop"] == ["ALL"] and database["security_opt"] == ["no-new-privileges:true"]
    assert SERVER["depends_on"] == {"database": {"condition": "service_healthy", "required": False}}
    # Without a word of documents the server's own options stay as they are: an empty variable sets nothing.
    told = {name: expanded(SERVER["environment"][name], {}) for name in ("SLM_SERVE_RAG", "PGPASSWORD")}
    assert told == {"SLM_SERVE_RAG": "", "PGPASSWORD": ""}
    for value, shown in (("", "#rag =  # default\n"), ("x", 'rag = "x"  # environment variable SLM_SERVE_RAG\n')):
        words = [sys.executable, "-m", "slm_cli", "config", "serve"]
        ran = subprocess.run(
            words, cwd=ROOT, env={**os.environ, "SLM_SERVE_RAG": value}, capture_output=True, text=True
        )
        assert shown in ran.stdout


@pytest.mark.parametrize("file", ["compose.yaml", "docs/container.md"])
def test_the_address_that_is_shown_is_that_of_the_database(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    database = COMPOSE["services"]["database"]["environment"]
    (shown,) = set(re.findall(r"postgresql://[^'\"]+", text))
    parts = urlsplit(shown)
    assert (parts.username, parts.hostname, parts.path[1:]) == (
        database["POSTGRES_USER"],
        "database",
        database["POSTGRES_DB"],
    )
    (extras,) = set(re.findall(r"EXTRAS=(\w+,\w+)", text))
    assert fault(Command(file, f"pip install .[{extras}]", whole=True)) == ""


def test_every_package_reaches_the_build_and_nothing_else_does() -> None:
    copied = {name for step in stages(TEXT, {})[0].steps if isinstance(step, Copy) for name in step.sources}
    assert {*PACKAGES, "slm_cli.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= copied
    assert all((ROOT / name).exists() and in_context(name, RULES) for name in copied)
    for kept_out in (".git/config", ".slm/models/x.gguf", "data/en.txt", "tests/test_container.py", ".env", "a.gguf"):
        assert not in_context(kept_out, RULES), kept_out
    assert not in_context("slm/__pycache__/paths.cpython-311.pyc", RULES)
    assert in_context("wheelhouse/x.whl", RULES) and in_context("serve/server/web/index.html", RULES)


def test_a_wheelhouse_takes_the_place_of_the_index() -> None:
    def wheels(args: dict[str, str]) -> Copy:
        return next(s for s in stages(TEXT, args)[0].steps if isinstance(s, Copy) and s.target == "/src/wheels/")

    assert wheels({}).sources == ("constraints.txt", "constraints.txt")
    assert wheels({"WHEELS": "wheelhouse"}).sources == ("constraints.txt", "wheelhouse")
    scripts = [step for step in stages(TEXT, {"WHEELS": "wheelhouse"})[0].steps if isinstance(step, Run)]
    assert scripts[-1].environment == {
        "WHEELS": "wheelhouse", "EXTRAS": "", "PIP_EXTRA_INDEX_URL": "", "CMAKE_ARGS": "-DGGML_NATIVE=OFF"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "ran"),
    [
        ({"WHEELS": "", "EXTRAS": ""}, "install --no-cache-dir -c constraints.txt ."),
        ({"WHEELS": "", "EXTRAS": "rag"}, "install --no-cache-dir -c constraints.txt .[rag]"),
        (
            {"WHEELS": "wheelhouse", "EXTRAS": "train,rag"},
            "install --no-cache-dir --no-index --find-links wheels -c wheels/constraints.txt slm-cpu[train,rag]",
        ),
    ],
)
def test_the_build_installs_what_was_asked_for(given: dict[str, str], ran: str, tmp_path: Path) -> None:
    """The step's own shell script, with a pip that only says what it was told."""
    step = [step for step in stages(TEXT, given)[0].steps if isinstance(step, Run)][-1]
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    script = step.script.replace("/opt/slm/bin/pip", str(tmp_path / "pip"))
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=dict(step.environment), check=True)
    assert done.stdout.strip() == ran


@pytest.mark.skipif(sys.platform == "win32", reason="hadolint has no package there")
def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM a\nADD x /y", "line 2: 'ADD' is not read here"),
        ("RUN true", "line 1: an instruction before the first FROM"),
        ("FROM a\nRUN --mount=type=cache true", "line 2: RUN takes a shell command without options"),
        ("FROM a\nRUN true \\\n", "line 2: the instruction does not end"),
        ("FROM a\nCOPY *.py /x/", "line 2: COPY takes names without wildcards"),
        ("FROM a\nCOPY --chown=1 a /x/", "line 2: COPY takes names"),
        ("FROM a\nCOPY a b /x", "line 2: several sources need a folder"),
        ("FROM a AS b\nFROM c\nCOPY --from=d /a /a", "line 3: there is no earlier stage 'd'"),
        ("FROM a\nENV A='b c'", "line 2: ENV takes NAME=VALUE without quotes"),
        ("FROM a\nCMD slm serve", "line 2: a command is written as"),
        ("FROM a\nHEALTHCHECK --disable=1 CMD [\"a\"]", "line 2: HEALTHCHECK takes --interval="),
        ("FROM a b", "line 1: FROM takes an image"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        stages(text, {})
    assert said in str(caught.value)


def test_a_build_argument_that_nothing_takes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"no build argument WHEEL$"):
        stages(TEXT, {"WHEEL": "x"})


def test_steps_are_read_in_order_with_what_was_set_before_them() -> None:
    text = (
        "FROM debian:sid-slim AS one\nARG WHO=you\nENV GREETING=hi,${WHO}\n# a remark\n"
        "RUN echo \\\n  # inside\n  $GREETING\n"
        "WORKDIR /a\nWORKDIR b\nCOPY x ${NONE:-y} to/\nFROM debian:sid-slim\nCOPY --from=one /a /c\nUSER 7:7\n"
    )
    one, last = stages(text, {"WHO": "me"})
    assert one.steps == [
        Run("echo $GREETING", {"WHO": "me", "GREETING": "hi,me"}, "/"), Run("mkdir -p /a", {}, "/"),
        Run("mkdir -p /a/b", {}, "/"), Copy(("x", "y"), "/a/b/to/"),
    ]  # fmt: skip
    assert last.steps == [Copy(("/a",), "/c", "one")] and last.user == "7:7" and last.environment == {}


def test_copy_brings_a_folders_content_and_a_file_under_its_name(tmp_path: Path) -> None:
    place, root = tmp_path / "context", tmp_path / "root"
    for name in ("wheels/a.whl", "wheels/__pycache__/a.pyc", "setup.txt", "secret"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)
    rules = ignores("*\n!wheels\n!setup.txt\n**/__pycache__\n")
    packed.carry(Copy(("setup.txt", "wheels"), "/src/in/"), place, root, rules)
    packed.carry(Copy(("setup.txt",), "/src/other.txt"), place, root, rules)
    files = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
    assert files == ["src/in/a.whl", "src/in/setup.txt", "src/other.txt"]
    with pytest.raises(MissingFileError, match=r"COPY secret: \.dockerignore leaves nothing"):
        packed.carry(Copy(("secret",), "/src/"), place, root, rules)
    with pytest.raises(MissingFileError, match="COPY gone: there is no"):
        packed.carry(Copy(("gone",), "/src/"), place, root, rules)


def test_only_debians_slim_images_can_be_unpacked() -> None:
    assert packed.suite_of(image().base) == "bookworm"
    with pytest.raises(UnsupportedError, match=r"'python:3\.12-slim' cannot be unpacked"):
        packed.suite_of("python:3.12-slim")


def test_a_step_sees_nothing_of_this_machines_environment() -> None:
    *_, script = packed.inside(Path("/r"), ["/bin/sh", "-c", "echo a b"], {"A": "1"}, "/src")
    assert script == (
        "mount -t proc proc /r/proc && mount --rbind /dev /r/dev && exec chroot /r env -i -C /src "
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root A=1 /bin/sh -c 'echo a b'"
    )


def test_the_check_starts_what_the_image_starts_with_another_model_and_a_key() -> None:
    orders = container_check.orders_for(image(), Path("/r"), Path("/v"), "gemma-3-270m")
    assert orders.command == ["slm", "serve", "gemma-3-270m", *image().command[2:]]
    assert orders.environment == {**image().environment, "SERVER_API_KEY": orders.key} and orders.key
    assert (orders.port, orders.mounted_at, orders.health) == (8080, "/models", image().health)
    assert Orders(**json.loads(orders.written())) == orders
    words = orders.as_user(["true"])
    assert words[:2] == ["chroot", "/r"] and words[-1] == "true"
    assert {"--no-new-privs", "--bounding-set=-all", "--clear-groups"} <= set(words)
    assert values(words)["--reuid"] == values(words)["--regid"] == "10001"


@pytest.mark.parametrize("lacking", ["USER ", "HEALTHCHECK ", "VOLUME ", "EXPOSE "])
def test_an_image_that_lacks_what_is_promised_is_not_started(lacking: str) -> None:
    joined = TEXT.replace("\\\n", " ")
    text = "\n".join(line for line in joined.splitlines() if not line.startswith(lacking))
    with pytest.raises(VerificationError, match="needs a user, a health check, one volume and one port"):
        container_check.orders_for(stages(text, {})[-1], Path("/r"), Path("/v"), "m")

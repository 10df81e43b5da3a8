"""The files of docs/production as they stand: units, proxies, Prometheus and Grafana fit the program and each other."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.engine.events import Ticket
from serve.engine.router import Route
from serve.server.guard import Limits
from serve.server.metrics import Metrics
from slm.joints import Finish
from tests.documented import Command, fault
from tests.served import FakeEngine
from tests.test_serve_metrics import Figures, figures

FILES = Path(__file__).parent.parent / "docs/production"
UNITS = sorted(FILES.glob("*.service"))
DASHBOARD = json.loads((FILES / "grafana.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((FILES / "alerts.yml").read_text(encoding="utf-8"))
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
RULES = [(rule["alert"], rule["expr"]) for group in ALERTS["groups"] for rule in group["rules"]]
OF_A_SCRAPE = {"job", "instance", "le"}  # Prometheus' own labels


# --- systemd ----------------------------------------------------------------------------------------------------


def settings(unit: Path) -> dict[str, list[str]]:
    """{key: its values} of a unit; a line that ends with a backslash goes on."""
    text = re.sub(r"\\\n\s*", "", unit.read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def started(unit: Path) -> list[str]:
    """The words of its ExecStart, with the credentials' folder as systemd puts it in."""
    (command,) = settings(unit)["ExecStart"]
    return shlex.split(command.replace("${CREDENTIALS_DIRECTORY}", f"/run/credentials/{unit.name}"))


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_is_taken_as_it_stands(unit: Path, tmp_path: Path) -> None:
    for folder in settings(unit)["StateDirectory"][0].split():
        (tmp_path / folder).mkdir(parents=True)
    words = [word.replace("/var/lib", str(tmp_path)) for word in started(unit)]
    assert words[0] == "/opt/slm/.venv/bin/slm"
    assert fault(Command(unit.name, shlex.join(["slm", *words[1:]]), whole=True)) == ""
    misspelt = shlex.join(["slm", *words[1:]]).replace("--", "--x", 1)
    assert "No such option" in fault(Command(unit.name, misspelt, whole=True))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_may_write_what_its_command_writes_and_read_the_secrets_that_it_names(unit: Path) -> None:
    said = settings(unit)
    folders = [f"/var/lib/{name}" for name in said["StateDirectory"][0].split()]
    assert f"SLM_HOME={folders[0]}" in said["Environment"] and said["ProtectSystem"] == ["strict"]
    loaded = {line.split(":")[0] for line in said["LoadCredential"]}
    used = {word.rpartition("/")[2] for word in started(unit) if word.startswith("/run/credentials")}
    assert used == loaded
    others = [w for w in started(unit)[1:] if w.startswith("/") and not w.startswith("/run/credentials")]
    assert set(others) <= set(folders)


def test_the_server_and_the_sync_are_of_the_same_user_home_and_index() -> None:
    server, sync = (settings(FILES / name) for name in ("slm.service", "slm-sync.service"))
    assert server["User"] == sync["User"] and server["Group"] == sync["Group"]
    assert server["Environment"] == sync["Environment"]
    assert option(started(FILES / "slm.service"), "--rag") == started(FILES / "slm-sync.service")[3]


# --- proxies ----------------------------------------------------------------------------------------------------


def served() -> tuple[str, str, float]:
    """(address, the name it answers to, seconds of its longest answer) of the unit's server."""
    words = started(FILES / "slm.service")
    address = f"{option(words, '--host')}:{option(words, '--port')}"
    return address, option(words, "--allow-host"), float(option(words, "--request-timeout"))


def directives(text: str) -> list[tuple[str, ...]]:
    """nginx's directives as words, blocks as `location = /metrics {`."""
    bare = re.sub(r"#.*", "", text)
    return [tuple(found.split()) for found in re.findall(r"[^;{}\s][^;{}]*(?=[;{])", bare)]


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([a-zA-Z]*)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"m": 1 << 20, "MB": 10**6}[unit]


def test_nginx_passes_on_what_the_server_takes_to_where_it_listens() -> None:
    found = directives((FILES / "nginx.conf").read_text(encoding="utf-8"))
    address, name, seconds = served()
    said = dict(zip((d[0] for d in found), found, strict=True))
    assert said["proxy_pass"] == ("proxy_pass", f"http://{address}")
    assert [d for d in found if d[0] == "server_name"] == [("server_name", name)] * 2
    assert size(said["client_max_body_size"][1]) >= Limits().body_bytes
    assert float(said["proxy_read_timeout"][1].removesuffix("s")) > seconds
    assert said["proxy_buffering"] == ("proxy_buffering", "off")
    assert ("proxy_set_header", "Host", "$http_host") in found
    at = found.index(("location", "=", "/metrics"))
    assert found[at + 1] == ("return", "404")


def test_caddy_passes_on_what_the_server_takes_to_where_it_listens() -> None:
    text = (FILES / "Caddyfile").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    address, name, seconds = served()
    assert lines[0] == [name, "{"]
    said = {words[0]: words[1:] for words in lines}
    assert said["reverse_proxy"] == [address, "{"] and said["flush_interval"] == ["-1"]
    assert size(said["max_size"][0]) >= Limits().body_bytes
    assert float(said["response_header_timeout"][0].removesuffix("s")) > seconds
    assert said["respond"] == ["/metrics", "404"]


# --- Prometheus and Grafana -------------------------------------------------------------------------------------


def scrape() -> Figures:
    """Everything that the server counts, after one answer."""
    metrics = Metrics(FakeEngine())
    metrics._engine.free.set()  # type: ignore[attr-defined]
    sinks: list[Any] = []

    def begin(sink: Any) -> Ticket:
        sinks.append(sink)
        return Ticket(Route("en", "", None), lambda: None)

    metrics.measured(begin, "en")(lambda event: None)
    for event in ("He", "llo", Finish("stop", "en", "", 30, 5, 0.1, 0.2, cached_tokens=10)):
        sinks[0](event)
    metrics.responded("/v1/chat/completions", 200)
    return figures(metrics.text().decode())


def asked(expression: str) -> dict[str, set[str]]:
    """{metric: labels that are asked of it} of a PromQL expression; `by` counts for every metric in it."""
    grouped = {label for names in re.findall(r"by \(([\w, ]+)\)", expression) for label in re.findall(r"\w+", names)}
    found: dict[str, set[str]] = {}
    for name, selector in re.findall(r"\b(slm_\w+)(\{[^}]*\})?", expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        found.setdefault(name, set()).update(labels | grouped)
    return found


@pytest.mark.parametrize(("title", "expression"), [*PANELS, *RULES], ids=lambda value: value[:40])
def test_a_panel_or_rule_asks_for_metrics_and_labels_that_the_server_has(title: str, expression: str) -> None:
    there: dict[str, set[str]] = {}
    for name, pairs in scrape():
        there.setdefault(name, set()).update(label for label, _ in pairs)
    wanted = asked(expression)
    assert wanted, title
    for metric, labels in wanted.items():
        assert metric in there, f"'{title}' asks for {metric}"
        assert labels - OF_A_SCRAPE <= there[metric], f"'{title}' asks {metric} for {labels - there[metric]}"


def test_the_dashboard_shows_every_metric_of_the_server() -> None:
    shown = {metric for _, expression in PANELS for metric in asked(expression)}
    counted = {re.sub(r"_(bucket|sum|count)$", "", name) for name, _ in scrape()}
    assert {re.sub(r"_bucket$", "", metric) for metric in shown} == counted


def test_the_dashboard_is_one_that_grafana_lays_out() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([panels, DASHBOARD["templating"]]))) - {"__rate_interval"}
    assert used == names == {"datasource", "job", "instance"}


def test_prometheus_asks_the_server_where_it_listens_by_the_job_that_the_alerts_name() -> None:
    config = yaml.safe_load((FILES / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [served()[0]]}] and job["metrics_path"] == "/metrics"
    assert config["rule_files"] == ["alerts.yml"]
    named = {name for _, expression in RULES for name in re.findall(r'job="(\w+)"', expression)}
    assert named == {job["job_name"]}

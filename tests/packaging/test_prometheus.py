"""The alerts, their cases, and the resources of Prometheus' operator."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import yaml
from packages import PACKAGING, ROOT, end, manifests, needs, publish_ten, shipped
from support import PATIENCE, eventually

RULES = PACKAGING / "prometheus" / "alerts.yaml"
CASES = PACKAGING / "prometheus" / "alerts.test.yaml"
RESOURCES = PACKAGING / "kubernetes" / "prometheus.yaml"

# Metrics that a server without TLS, as it is shipped, does not have. tests/interop/test_tls_files.py scrapes them.
WITH_TLS = {"tidegate_tls_certificate_expiry_timestamp_seconds"}

promtool = needs("promtool", "scripts/test unpacks it from Debian's prometheus")


def alerts() -> dict[str, dict]:
    return {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


def run(*command) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@promtool
def test_the_rules_are_well_formed():
    assert f"{len(alerts())} rules found" in run("promtool", "check", "rules", "--lint-fatal", RULES)


@promtool
def test_every_alert_fires_when_it_should_and_is_silent_when_nothing_is_wrong():
    run("promtool", "test", "rules", CASES)
    fires, silent = set(), set()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for alert in case["alert_rule_test"]:
            (fires if alert["exp_alerts"] else silent).add(alert["alertname"])
    assert fires == silent == set(alerts())


@promtool
def test_a_rule_that_is_wrong_fails_its_case(tmp_path):
    shutil.copy(CASES, tmp_path)
    (tmp_path / RULES.name).write_text(RULES.read_text().replace("0.9 * tidegate_memory", "0.99 * tidegate_memory"))
    ran = subprocess.run(["promtool", "test", "rules", tmp_path / CASES.name], capture_output=True, text=True, timeout=60)
    assert ran.returncode != 0 and "TidegateNearMemoryBudget" in ran.stdout + ran.stderr


def test_the_rules_ask_for_what_the_server_answers(binary, tmp_path):
    with shipped("systemd", binary, tmp_path) as server:
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", server.get("/metrics")[1], re.MULTILINE))
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "info": ["_info"]}
    answered = {name + ending for name, kind in types.items() for ending in endings.get(kind, [""])}
    for name, alert in alerts().items():
        asked = set(re.findall(r"tidegate_\w+", alert["expr"]))
        assert asked - WITH_TLS <= answered, name


@contextmanager
def prometheus(tmp_path: Path, target: str) -> Iterator[Callable[[str], dict]]:
    """Prometheus itself, which asks a server every second. Returns a function that asks it."""
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "tidegate", "static_configs": [{"targets": [target]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    for _ in range(5):
        # It announces no port, so one that was free may be taken by the time that it asks for it.
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)

        def ask(path: str) -> dict:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=PATIENCE) as answer:
                return json.load(answer)["data"]

        while process.poll() is None:
            with suppress(OSError):
                ask("status/buildinfo")
                break
            time.sleep(0.05)
        if process.poll() is None:
            break
    try:
        assert process.poll() is None, process.stderr.read()
        yield ask
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


@needs("prometheus", "scripts/test unpacks it from Debian's package")
def test_prometheus_reads_the_metrics_and_evaluates_every_rule(binary, tmp_path):
    (tmp_path / "server").mkdir()
    with shipped("systemd", binary, tmp_path / "server") as server, prometheus(
        tmp_path, server.http.removeprefix("http://")
    ) as ask:
        publish_ten(server)
        await_value(ask, "tidegate_events_published_total", 10)
        await_value(ask, 'up{job="tidegate"}', 1)

        def states() -> dict[str, tuple[str, str]]:
            rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
            return {rule["name"]: (rule["health"], rule["state"]) for rule in rules}

        # Rules may be evaluated before the first answer, when nothing is known of a server.
        quiet = dict.fromkeys(alerts(), ("ok", "inactive"))
        took = eventually(lambda: states() == quiet, lambda: f"every rule to be evaluated, and silent: {states()}")
        end(server.process)
        # It is down.
        eventually(lambda: states()["TidegateDown"][1] != "inactive", "an alert to say so", PATIENCE - took)


def await_value(ask: Callable[[str], dict], query: str, wanted: float) -> None:
    def found() -> list[float]:
        return [float(result["value"][1]) for result in ask(f"query?query={quote(query)}")["result"]]

    eventually(lambda: found() == [wanted], lambda: f"{query} = {wanted}: {found()}, {ask('targets')['activeTargets']}")


def test_every_alert_says_what_to_do():
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in ("critical", "warning"), name
        assert alert["annotations"].keys() == {"summary", "description"}, name


def test_the_document_lists_every_alert():
    text = (ROOT / "docs" / "metrics.md").read_text()
    listed = re.findall(r"^\| `(Tidegate\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert listed == [(name, alert["labels"]["severity"]) for name, alert in alerts().items()]


def test_the_operator_gets_the_same_rules():
    """UPDATE_EXPECT=1 writes them anew."""
    if os.environ.get("UPDATE_EXPECT"):
        head, _ = RESOURCES.read_text().split("\nspec:\n  groups:\n")
        rules = RULES.read_text().split("groups:\n")[1].splitlines()
        lines = [f"  {line}\n" for line in rules if not line.lstrip().startswith("#")]
        RESOURCES.write_text(f"{head}\nspec:\n  groups:\n{''.join(lines)}")
    rules = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(RESOURCES.read_text())}["PrometheusRule"]
    assert rules["apiVersion"] == "monitoring.coreos.com/v1"
    assert rules["spec"] == yaml.safe_load(RULES.read_text())


def test_the_operator_finds_the_service():
    monitor = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(RESOURCES.read_text())}["ServiceMonitor"]
    service = manifests()["Service"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    # The label `job` is the name of the service, unless the monitor says otherwise.
    assert "jobLabel" not in monitor["spec"]
    assert service["metadata"]["name"] == re.search(r'up\{job="(\w+)"\}', alerts()["TidegateDown"]["expr"])[1]

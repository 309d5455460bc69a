"""The alerts, their cases, and the resources of Prometheus' operator."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml
from packages import PACKAGING, ROOT, manifests, shipped

RULES = PACKAGING / "prometheus" / "alerts.yaml"
CASES = PACKAGING / "prometheus" / "alerts.test.yaml"
RESOURCES = PACKAGING / "kubernetes" / "prometheus.yaml"

# Metrics that a server without TLS, as it is shipped, does not have. tests/interop/test_tls_files.py scrapes them.
WITH_TLS = {"tidegate_tls_certificate_expiry_timestamp_seconds"}

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: scripts/test unpacks it from Debian's prometheus"
)


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


def test_every_alert_says_what_to_do():
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in ("critical", "warning"), name
        assert alert["annotations"].keys() == {"summary", "description"}, name


def test_the_document_lists_every_alert():
    text = (ROOT / "docs" / "metrics.md").read_text()
    listed = re.findall(r"^\| `(Tidegate\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert listed == [(name, alert["labels"]["severity"]) for name, alert in alerts().items()]


def test_the_operator_gets_the_same_rules():
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

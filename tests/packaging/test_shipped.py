"""A stranger who uses the unit, the image or the manifest as it is shipped gets a server that can be run in earnest:
metrics, health, a memory bound, no open admin service, a reload, and a restart. The servers run by the commands of the
packages, with their configurations."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess

import grpc
import pytest
from packages import (
    COMPOSE,
    CONFIGURATIONS,
    DOCKERFILE,
    MANIFESTS,
    MANIFESTS_TLS,
    adapted,
    as_root,
    commands,
    compose,
    container,
    program,
    publish_ten,
    shipped,
    unit_setting,
    unit_settings,
)
from support import PATIENCE, Client, admin_calls, eventually, make_certificate, new_event, pb
from tidegate.v1 import admin_service_pb2 as admin
from tidegate.v1.admin_service_pb2_grpc import AdminServiceStub
from tidegate.v1.event_service_pb2_grpc import EventServiceStub

PACKAGES = list(commands())


@pytest.fixture(params=PACKAGES)
def server(request, binary, tmp_path):
    with shipped(request.param, binary, tmp_path) as server:
        yield server


# ===== Metrics and health =====


def test_it_has_metrics(server):
    status, text = server.get("/metrics")
    assert status == 200
    assert "tidegate_build_info{" in text and text.endswith("# EOF\n")


def test_it_is_healthy_and_ready(server):
    assert server.get("/healthz")[0] == 200
    assert server.get("/readyz")[0] == 200


def test_it_is_healthy_and_not_ready_while_it_drains(binary, tmp_path):
    with shipped("Kubernetes", binary, tmp_path) as server:
        client = Client(server.address)
        # It is not read, so the drain waits for it.
        stream = client.subscribe("a")
        for _ in range(4):
            client.publish(*[new_event("a", bytes(1000))] * 500)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.get("/readyz")[0] == 503, "the drain")
        assert server.get("/healthz")[0] == 200
        assert stream.ending().code() == grpc.StatusCode.UNAVAILABLE
        client.close()


@pytest.mark.parametrize("file", [MANIFESTS, MANIFESTS_TLS], ids=lambda file: file.stem)
def test_the_probes_ask_what_the_server_answers_without_tls(file, binary, tmp_path):
    spec = container(file)
    ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
    with shipped("Kubernetes", binary, tmp_path) as server:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = spec[probe]["httpGet"]
            assert ports[asked["port"]] == 50080 and asked.get("scheme", "HTTP") == "HTTP"
            assert server.get(asked["path"])[0] == 200
    # What says that it is not ready must not have it killed.
    assert spec["livenessProbe"]["httpGet"]["path"] != spec["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_manifest_with_tls_serves_clients_with_tls_and_probes_without(binary, tmp_path):
    certificate, key = make_certificate(tmp_path)
    [folder] = [mount["mountPath"] for mount in container(MANIFESTS_TLS)["volumeMounts"] if mount["name"] == "tls"]
    # The secret has the two files under the names that Kubernetes gives them.
    variables = {
        variable["name"]: variable["value"].replace(folder, str(tmp_path)) for variable in container(MANIFESTS_TLS)["env"]
    }
    assert set(variables.values()) == {str(certificate), str(key)}
    with shipped("Kubernetes", binary, tmp_path, variables=variables) as server:
        assert server.get("/healthz")[0] == server.get("/readyz")[0] == server.get("/metrics")[0] == 200
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(server.address.replace("127.0.0.1", "localhost"), credentials) as channel:
            answer = EventServiceStub(channel).Publish(pb.PublishRequest(events=[new_event("a")]), timeout=PATIENCE)
            assert answer.count == 1


def test_only_this_machine_reaches_metrics_where_there_is_no_container():
    assert '\nhttp = "127.0.0.1:' in CONFIGURATIONS["systemd"].read_text()
    assert all(port.startswith("127.0.0.1:") for port in compose()["ports"])
    # The command in the Dockerfile publishes the one port alone.
    assert re.findall(r"--publish (\S+)", DOCKERFILE.read_text()) == ["50051:50051"]


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_in_its_configuration_is_warned_of(package, binary):
    ran = subprocess.run([binary, "check-config", CONFIGURATIONS[package]], capture_output=True, text=True, timeout=60)
    # The variable is that of the tests.
    said = [line for line in ran.stderr.splitlines() if "TIDEGATE_BIN" not in line]
    assert (ran.returncode, said) == (0, [])


# ===== The admin service =====


def test_nobody_can_list_disconnect_or_drain(server):
    with grpc.insecure_channel(server.address) as channel:
        for call in admin_calls(channel):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert server.get("/readyz")[0] == 200


def test_image_keeps_its_configuration_when_a_user_gives_it_arguments(binary, tmp_path):
    """`docker run tidegate serve --heartbeat 5s`: the arguments take the place of CMD."""
    with shipped("Docker", binary, tmp_path, more=("--heartbeat", "5s")) as server:
        assert server.get("/metrics")[0] == 200
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            AdminServiceStub(channel).GetServer(admin.GetServerRequest(), timeout=PATIENCE)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert '\nCMD ["serve"]' in DOCKERFILE.read_text()


# ===== Memory =====

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]?)I?", text.upper()).groups()
    return int(number) * UNITS[unit]


def test_each_package_bounds_its_memory():
    bounds = {
        "systemd": unit_setting("MemoryMax"),
        "Docker": compose()["mem_limit"],
        "docker run": re.search(r"--memory (\S+)", DOCKERFILE.read_text())[1],
        "Kubernetes": container()["resources"]["limits"]["memory"],
        "Kubernetes with TLS": container(MANIFESTS_TLS)["resources"]["limits"]["memory"],
    }
    assert {package: size(bound) for package, bound in bounds.items()} == dict.fromkeys(bounds, 2 << 30)
    # Memory on a disk would make every client wait, before the bound is reached.
    assert unit_setting("MemorySwapMax") == "0" and compose()["memswap_limit"] == compose()["mem_limit"]


def test_its_budget_for_events_is_finite(server):
    with open("/proc/meminfo") as meminfo:
        machine = int(re.search(r"^MemTotal: +(\d+) kB", meminfo.read(), re.MULTILINE)[1]) * 1024
    assert 0 < server.metric("tidegate_memory_budget_bytes") <= machine / 4


# ===== Reload =====


def reload_by_unit(server, binary) -> subprocess.CompletedProcess:
    """What `systemctl reload` does: the commands one after the other, and no further than the first that fails."""
    for line in unit_settings("ExecReload"):
        words = shlex.split(line.replace("$MAINPID", str(server.process.pid)))
        ran = subprocess.run(adapted(words, binary, server.configuration), capture_output=True, text=True, timeout=60)
        if ran.returncode != 0:
            break
    return ran


def shorten_history(server) -> None:
    with server.configuration.open("a") as file:
        file.write("[history]\nevents = 2\n")


def await_short_history(server) -> None:
    eventually(lambda: server.metric("tidegate_history_events") == 2, "the server to read its configuration again")


def test_systemctl_reload_has_the_server_read_its_configuration_again(binary, tmp_path):
    with shipped("systemd", binary, tmp_path) as server:
        publish_ten(server)
        shorten_history(server)
        ran = reload_by_unit(server, binary)
        assert ran.returncode == 0, ran.stderr
        await_short_history(server)


def test_systemctl_reload_fails_where_the_configuration_is_wrong(binary, tmp_path):
    with shipped("systemd", binary, tmp_path) as server:
        publish_ten(server)
        shorten_history(server)
        with server.configuration.open("a") as file:
            file.write("evnets = 3\n")
        ran = reload_by_unit(server, binary)
        assert ran.returncode == 2 and "evnets" in ran.stderr
        assert server.metric("tidegate_history_events") == 10


@pytest.mark.parametrize("package", ["Docker", "Kubernetes"])
def test_a_container_takes_its_signals_as_the_first_process(package, binary, tmp_path):
    # To the first process of a namespace of processes, a signal that it does not handle does not come at all.
    before = [*as_root(), "unshare", "--pid", "--fork"]
    with shipped(package, binary, tmp_path, *before) as server:
        pid = program(server.process)
        with open(f"/proc/{pid}/status") as status:
            # Its number in each namespace, the innermost last.
            assert re.search(r"^NSpid:.*\t1$", status.read(), re.MULTILINE)
        publish_ten(server)
        shorten_history(server)
        subprocess.run([*as_root(), "kill", "-HUP", str(pid)], check=True)
        await_short_history(server)
        subprocess.run([*as_root(), "kill", "-TERM", str(pid)], check=True)
        assert server.process.wait(PATIENCE) == 0


# ===== Restart =====


def test_every_supervisor_starts_it_again_whatever_it_ended_with():
    # A drain that somebody asked for over the network is a success, and yet nobody wanted the service gone.
    assert unit_setting("Restart") == "always"
    assert compose()["restart"] == "always"
    assert "--restart always" in DOCKERFILE.read_text()
    # A container of a deployment knows no other policy.
    assert "restartPolicy" not in COMPOSE.read_text() + MANIFESTS.read_text()


def test_the_unit_gives_up_on_a_wrong_configuration_alone(binary, tmp_path):
    command = adapted(commands()["systemd"], binary, tmp_path / "tidegate.toml")
    (tmp_path / "tidegate.toml").write_text("listn = 1\n")
    ran = subprocess.run(command, capture_output=True, timeout=PATIENCE)
    assert unit_settings("RestartPreventExitStatus") == [str(ran.returncode)]
    # No number of failures stops it.
    assert unit_setting("StartLimitIntervalSec") == "0"
    (tmp_path / "tidegate.toml").write_text('listen = "203.0.113.1:50051"\n')
    ran = subprocess.run(command, capture_output=True, timeout=PATIENCE)
    assert ran.returncode not in (0, 2), "an address that is not there yet heals by itself"

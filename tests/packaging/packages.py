"""The packages as they are shipped: their files, and servers that run as they say."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from support import PATIENCE, Client, metric, new_event

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
UNIT = PACKAGING / "systemd" / "tidegate.service"
DOCKERFILE = PACKAGING / "Dockerfile"
COMPOSE = PACKAGING / "compose.yaml"
MANIFESTS = PACKAGING / "kubernetes" / "tidegate.yaml"
MANIFESTS_TLS = PACKAGING / "kubernetes" / "tidegate-tls.yaml"

# Where each package has the program and its configuration.
PROGRAM = "/usr/local/bin/tidegate"
CONFIGURATION = "/etc/tidegate/tidegate.toml"
# Where each package takes the configuration from.
CONFIGURATIONS = {
    "systemd": PACKAGING / "tidegate.toml",
    "Docker": PACKAGING / "container" / "tidegate.toml",
    "Kubernetes": PACKAGING / "container" / "tidegate.toml",
}


def needs(program: str, how: str):
    """Skips a test where that program is missing, and says how to get it."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is missing: {how}")


# ===== Their files =====


def unit_settings(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def unit_setting(name: str) -> str:
    [value] = unit_settings(name)
    return value


def instruction(name: str) -> str:
    """The last instruction of that name in the Dockerfile."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE.read_text(), re.MULTILINE)[-1]


def compose() -> dict:
    return yaml.safe_load(COMPOSE.read_text())["services"]["tidegate"]


def manifests(file: Path = MANIFESTS) -> dict[str, dict]:
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(file.read_text())}


def pod(file: Path = MANIFESTS) -> dict:
    return manifests(file)["Deployment"]["spec"]["template"]["spec"]


def container(file: Path = MANIFESTS) -> dict:
    [only] = pod(file)["containers"]
    return only


def commands() -> dict[str, list[str]]:
    """The program with its arguments, as each package starts it."""
    entrypoint = json.loads(instruction("ENTRYPOINT"))
    return {
        "systemd": shlex.split(unit_setting("ExecStart")),
        # The variables of the image name the configuration.
        "Docker": entrypoint + json.loads(instruction("CMD")),
        # The arguments of a container take the place of CMD.
        "Kubernetes": entrypoint + container()["args"],
    }


# ===== Servers =====


def as_root() -> list[str]:
    """The words before a command that needs root. A test that cannot have it is skipped."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n"]
    pytest.skip("it needs root, or sudo without a password")


class Shipped:
    """A server that was started by the command of a package, with its configuration."""

    def __init__(self, process: subprocess.Popen, configuration: Path, address: str, http: str) -> None:
        self.process = process
        self.configuration = configuration
        self.address = address
        self.url = f"http://{address}"
        self.http = f"http://{http}"

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.http + path, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        return metric(self.http, name)


def variables_of(package: str, configuration: Path) -> dict[str, str]:
    """The variables that a package sets."""
    if package != "Docker":
        return {}
    found = dict(line.split("=", 1) for line in re.findall(r"^ENV (.*)$", DOCKERFILE.read_text(), re.MULTILINE))
    return {name: adapted([value], "", configuration)[0] for name, value in found.items()}


def adapted(words: list[str], binary: str, configuration: Path) -> list[str]:
    """A command of a package, with the program under test and a configuration of the test."""
    return [word.replace(PROGRAM, binary).replace(CONFIGURATION, str(configuration)) for word in words]


@contextmanager
def shipped(
    package: str,
    binary: str,
    tmp_path: Path,
    *before: str,
    more: tuple[str, ...] = (),
    variables: dict[str, str] | None = None,
) -> Iterator[Shipped]:
    """Starts a server as a package does. `before` are words in front of its command; `more` and `variables` are those of
    a user."""
    # Only the ports are others.
    configuration = tmp_path / "tidegate.toml"
    text = CONFIGURATIONS[package].read_text()
    configuration.write_text(re.sub(r"^((?:listen|http) = .*):\d+", r"\1:0", text, flags=re.MULTILINE))
    command = adapted(commands()[package], binary, configuration)
    # By a command: sudo passes no variables on. The server would warn of the one that is removed.
    variables = variables_of(package, configuration) | (variables or {})
    command = ["env", "--unset=TIDEGATE_BIN", *(f"{name}={value}" for name, value in variables.items()), *command]
    process = subprocess.Popen(
        [*before, *command, *more],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    try:
        said = b""
        while said.count(b"\n") < 2:
            readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
            more = process.stdout.read(1000) if readable else b""
            assert more, f"{package} said {said!r}, exit code {process.poll()}"
            said += more
        found = re.fullmatch(r"listening on (\S+)\nHTTP on (\S+)\n", said.decode().replace("0.0.0.0", "127.0.0.1"))
        assert found, said
        yield Shipped(process, configuration, *found.groups())
    finally:
        end(process)


def publish_ten(server: Shipped) -> None:
    client = Client(server.address)
    client.publish(*(new_event("a", b"x") for _ in range(10)))
    client.close()
    assert server.metric("tidegate_history_events") == 10


def end(process: subprocess.Popen) -> None:
    """Ends a server that a package started, which may be the child of other programs."""
    if process.poll() is None:
        pid = program(process)
        try:
            os.kill(pid, signal.SIGTERM)
        except PermissionError:
            subprocess.run([*as_root(), "kill", str(pid)], check=True)
        except ProcessLookupError:
            # It ended meanwhile.
            pass
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()


def program(process: subprocess.Popen) -> int:
    """The server behind the programs that started it, such as sudo and unshare: the last child of children."""
    pid = process.pid
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        [pid] = map(int, children)
    return pid

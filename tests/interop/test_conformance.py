"""`tidegate conformance`: the clients that follow the protocol pass, and one that does not is told what it broke."""

import json
import subprocess
import sys

import pytest
from support import PATIENCE
from test_examples import ENVIRONMENT, EXAMPLES

pytestmark = pytest.mark.no_server

PYTHON = [sys.executable, str(EXAMPLES / "subscribe.py")]


@pytest.fixture
def conformance(binary):
    """Runs the command, and returns its exit code and its lines."""

    def conformance(*arguments):
        run = subprocess.run(
            [binary, "conformance", "--output", "json", *arguments],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=5 * PATIENCE,
        )
        return run.returncode, [json.loads(line) for line in run.stdout.splitlines()]

    return conformance


def told(lines):
    """What each failed scenario says, for the message of a test."""
    return {line["name"]: (line["problems"], line["transcript"]) for line in lines if not line.get("passed", True)}


def test_the_client_of_the_program_passes(binary, conformance):
    code, lines = conformance("--", binary, "sub")
    assert told(lines) == {}
    assert code == 0
    assert lines[-1]["passed"] > 120


def test_the_python_example_passes(conformance):
    code, lines = conformance("--", *PYTHON)
    assert told(lines) == {}
    assert code == 0
    assert lines[-1]["passed"] > 120


def test_requests_alone_suffice(binary, conformance):
    code, lines = conformance("--requests-only", "--only", "position-batch", "--", *PYTHON, "--output", "text")
    assert (code, told(lines)) == (0, {})


# Faults that copies of the example may have: each is a line that is changed, and the scenarios that notice it.
FAULTS = {
    "conflated": (
        'case "gap" if response.gap.reason != pb.GAP_REASON_CONFLATED:',
        'case "gap":',
        "position-gap-conflated",
    ),
    "head": ("if self.position is None and self._starts_live:", "if True:", "position-replay-start"),
    "older": ("if not (is_older and position.sequence < self.position.sequence):", "if True:", "position-heartbeat"),
    "unsettled": (
        "if self.position is not None and position.epoch == self.position.epoch:",
        "if True:",
        "position-nothing-settled",
    ),
    "delay": ("max(going_away, status.delay)", "going_away", "delay-of-the-server/quota"),
    "back-off": ("min(30, 0.25 * 2**failures)", "0.25", "back-off-grows/opened"),
    "stop": (
        "if status.step is Step.STOP or (status.step is Step.RENEW and not began):",
        "if False:",
        "stop-at-an-ended-stream/TAKEN_OVER",
    ),
    "index": ("if first_index != self._next_index:", "if False:", "index-broken/hole"),
    "silence": ("3 * options.heartbeat + LARGEST_EVENT_SECONDS", "1", "heartbeats-keep-a-stream"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_copy_of_the_example_with_a_fault_fails(conformance, tmp_path, fault):
    right, wrong, scenario = FAULTS[fault]
    text = (EXAMPLES / "subscribe.py").read_text()
    assert text.count(right) == 1
    (tmp_path / "subscribe.py").write_text(text.replace(right, wrong))
    (tmp_path / "status.py").write_text((EXAMPLES / "status.py").read_text())

    code, lines = conformance("--only", scenario, "--", sys.executable, str(tmp_path / "subscribe.py"))

    assert code == 1
    verdict = lines[0]
    assert not verdict["passed"]
    assert verdict["problems"][0]["expected"] and verdict["problems"][0]["seen"]
    assert verdict["rows"] and verdict["transcript"]


def test_client_that_is_started_by_hand_is_judged(binary):
    command = [binary, "conformance", "--output", "json", "--only", "position-batch", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as played:
        first = json.loads(played.stdout.readline())
        assert first["type"] == "listening"
        arguments = [*PYTHON, "--server", first["address"], "conformance.>"]
        with subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as client:
            verdict, summary = (json.loads(line) for line in played.stdout)
            client.kill()
    assert verdict["passed"]
    assert summary == {"type": "summary", "passed": 1, "failed": 0, "left_out": 0}
    assert played.returncode == 0

"""`tidegate pub` and `tidegate sub`, as a shell uses them."""

import base64
import json
import signal
import subprocess

import pytest
from support import PATIENCE, new_event, payloads


@pytest.fixture
def tidegate(binary, server):
    """Runs a command of the program, and waits for its end."""

    def tidegate(command, *arguments, **options):
        return subprocess.run(
            [binary, command, *arguments, "--server", server.url], capture_output=True, timeout=PATIENCE, **options
        )

    return tidegate


@pytest.fixture
def follow(binary, server):
    """Starts `tidegate sub --output json`, and returns once it is subscribed."""
    children = []

    def follow(*arguments):
        child = subprocess.Popen(
            [binary, "sub", *arguments, "--output", "json", "--server", server.url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        children.append(child)
        first = json.loads(child.stdout.readline())
        assert first["type"] == "subscribed"
        return child

    yield follow
    for child in children:
        child.kill()
        child.communicate()


def json_lines(output):
    return [json.loads(line) for line in output.splitlines()]


def events_of(lines):
    return [line for line in lines if line["type"] == "event"]


def test_lines_of_standard_input_become_events(tidegate, follow):
    lines = [f"line {number}" for number in range(1000)]
    child = follow("logs.*", "--count", "1000", "--max-events", "10000")

    published = tidegate("pub", "logs.app", input="\n".join(lines).encode() + b"\n")
    output, errors = child.communicate(timeout=PATIENCE)

    assert published.returncode == 0, published.stderr
    assert b"1000" in (published.stdout + published.stderr).replace(b",", b"")
    assert child.returncode == 0, errors
    events = events_of(json_lines(output))
    assert [event["payload"] for event in events] == lines
    assert all(event["topic"] == "logs.app" for event in events)
    sequences = [event["sequence"] for event in events]
    assert sequences == sorted(set(sequences))


def test_one_event_with_key_and_attributes(client, tidegate):
    stream = client.subscribe("a.b")

    published = tidegate("pub", "a.b", "hello", "--key", "k", "--attribute", "x=1", "--attribute", "y=2=3")

    assert published.returncode == 0, published.stderr
    [event] = stream.take(1)
    assert (event.payload, event.key, dict(event.attributes)) == (b"hello", "k", {"x": "1", "y": "2=3"})


def test_replay_resume_and_bytes_that_are_not_text(client, tidegate):
    answer = client.publish(new_event("a", b"1"), new_event("a", b"\xff\x00"), new_event("a", b"3"))

    replayed = tidegate("sub", "a", "--replay", "2", "--count", "2", "--output", "json")
    resumed = tidegate(
        "sub", "a", "--resume", f"{answer.epoch:016x}:{answer.first_sequence}", "--count", "2", "--output", "json"
    )

    for run in (replayed, resumed):
        assert run.returncode == 0, run.stderr
        binary, text = events_of(json_lines(run.stdout))
        assert base64.b64decode(binary["payload_base64"]) == b"\xff\x00" and "payload" not in binary
        assert text["payload"] == "3"


def test_a_gap_is_a_line(client, tidegate):
    answer = client.publish(new_event("a", b"1"))

    run = tidegate("sub", "a", "--resume", f"{answer.epoch ^ 2:016x}:5", "--count", "1", "--output", "json")

    assert run.returncode == 0, run.stderr
    kinds = [line["type"] for line in json_lines(run.stdout)]
    assert kinds.index("gap") < kinds.index("event")
    [gap] = [line for line in json_lines(run.stdout) if line["type"] == "gap"]
    assert {"first_sequence", "last_sequence", "count", "reason"} <= gap.keys()


def test_text_is_for_people(client, tidegate):
    client.publish(new_event("orders.eu", "grüße".encode()))

    run = tidegate("sub", "orders.>", "--replay", "1", "--count", "1")

    assert run.returncode == 0, run.stderr
    assert "orders.eu" in run.stdout.decode() and "grüße" in run.stdout.decode()


def test_an_interrupt_ends_it_quietly(follow):
    child = follow("a")

    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=PATIENCE)

    assert b"panic" not in errors and b"error" not in errors.lower()


def test_a_closed_pipe_ends_it_quietly(client, follow):
    child = follow("a")
    child.stdout.close()

    # The command notices a closed pipe only when it writes.
    while child.poll() is None:
        client.publish(new_event("a", b"x" * 1000))

    errors = child.stderr.read()
    assert b"panic" not in errors and b"error" not in errors.lower()


def test_a_refusal_is_an_error_that_names_its_cause(tidegate):
    run = tidegate("pub", "a.*", "x")

    assert run.returncode != 0
    assert b"a.*" in run.stderr or b"wildcard" in run.stderr


def test_what_was_published_is_what_plain_clients_see(client, tidegate):
    stream = client.subscribe("a")

    assert tidegate("pub", "a", input=b"one\ntwo\n").returncode == 0

    assert payloads(stream.take(2)) == [b"one", b"two"]

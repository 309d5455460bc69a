"""The Python examples, run as their README says."""

import importlib
import os
import pathlib
import queue
import subprocess
import sys
import threading

import pytest
from support import PATIENCE, Client, Server, pb

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples" / "python"
STUBS = pathlib.Path(pb.__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(STUBS), "PYTHONUNBUFFERED": "1"}


def command(name, *arguments):
    return [sys.executable, str(EXAMPLES / name), *arguments]


def publish(server, topic, *payloads):
    subprocess.run(
        command("publish.py", topic, *payloads, "--server", server.address),
        env=ENVIRONMENT,
        check=True,
        timeout=PATIENCE,
    )


@pytest.fixture
def output():
    """Starts `subscribe.py`, and returns a function that awaits a line with some text in it."""
    children = []

    def output(server, *filters):
        child = subprocess.Popen(
            command("subscribe.py", *filters, "--server", server.address),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        lines = queue.Queue()

        def collect():
            for line in child.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=collect, daemon=True).start()

        def await_line(text):
            while (line := lines.get(timeout=PATIENCE)) is not None:
                if text in line:
                    return line
            pytest.fail(f"the subscriber ended before it said {text!r}")

        return await_line

    yield output
    for child in children:
        child.kill()
        child.wait()


def test_example_subscriber_survives_a_restart(binary, output):
    server = Server(binary)
    await_line = output(server, "orders.>")
    await_line("subscribed")
    publish(server, "orders.eu", "first")
    assert "orders.eu" in await_line("first")
    server.stop()

    # The position is from the epoch of the old server, and the subscriber reports that.
    server = Server(binary, listen=server.address)
    await_line("GAP")
    await_line("caught up")
    publish(server, "orders.us", "second")
    assert "orders.us" in await_line("second")
    server.stop()


def test_example_subscriber_waits_for_its_quota(binary, output):
    with Server(binary, "--quotas-address-subscriptions", "1") as server:
        client = Client(server.address)
        holder = client.subscribe("orders.>")
        await_line = output(server, "orders.>")
        assert "quota" in await_line("QUOTA_EXCEEDED")
        holder.cancel()
        await_line("subscribed")
        publish(server, "orders.eu", "first")
        await_line("first")
        client.close()


def test_example_publisher_waits_for_its_quota(binary):
    with Server(binary, "--quotas-address-publish-events", "1") as server:
        for _ in range(2):
            publish(server, "orders.eu", "a", "b")


def test_examples_end_with_words_and_no_traceback(binary):
    with Server(binary) as server:
        for arguments, reason in ((["subscribe.py", "a..b"], "INVALID_FILTER"), (["publish.py", "a..b", "x"], "INVALID_TOPIC")):
            ended = subprocess.run(
                command(*arguments, "--server", server.address),
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            assert ended.returncode == 1
            assert ended.stderr.startswith(f"{reason}: ")
            assert "Traceback" not in ended.stderr


def test_example_subscriber_names_a_token_file_that_it_cannot_read(binary, tmp_path):
    binary_file = tmp_path / "binary"
    binary_file.write_bytes(b"\xff\xfe")
    with Server(binary) as server:
        for path in (tmp_path / "nowhere", binary_file, tmp_path):
            arguments = command("subscribe.py", "a", "--server", server.address, "--token-file", str(path))
            ended = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
            assert ended.returncode == 1
            assert str(path) in ended.stderr and "Traceback" not in ended.stderr


class SilentCall:
    """A call with two responses, which then is silent until it is cancelled."""

    def __init__(self):
        self.cancelled = threading.Event()

    def __iter__(self):
        yield from (1, 2)
        self.cancelled.wait(PATIENCE)

    def is_active(self):
        return not self.cancelled.is_set()

    def cancel(self):
        self.cancelled.set()


@pytest.mark.no_server
def test_example_subscriber_counts_no_time_in_which_it_handles_a_response(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    call, limit = SilentCall(), 0.2
    for _ in importlib.import_module("subscribe").unless_silent(call, limit):
        # As where nobody reads the output.
        assert not call.cancelled.wait(3 * limit)
    assert call.cancelled.is_set()

"""The Python examples, run as their README says."""

import os
import pathlib
import queue
import subprocess
import sys
import threading

import pytest
from support import PATIENCE, Server, pb

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples" / "python"
STUBS = pathlib.Path(pb.__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(STUBS), "PYTHONUNBUFFERED": "1"}


def command(name, *arguments):
    return [sys.executable, str(EXAMPLES / name), *arguments]


def publish(server, topic, payload):
    subprocess.run(
        command("publish.py", topic, payload, "--server", server.address),
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

"""The largest event that a client takes with the limit that its library has by default."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import grpc
import pytest
from support import PATIENCE, Client, Server, new_event

# gRPC's limit for what is received.
MESSAGE = 4 << 20
# The largest event, encoded, whose response is no larger.
FITTING = 4_194_270
MORE = ["--limits-max-publish-bytes=16MiB", "--limits-max-event-bytes=8MiB"]


def check(binary: str, folder: Path, max_event_bytes: int) -> str:
    """Returns what a check says of a configuration, which is valid."""
    (folder / "tidegate.toml").write_text(f"[limits]\nmax_publish_bytes = \"16MiB\"\nmax_event_bytes = {max_event_bytes}\n")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    command = [binary, "check-config", str(folder / "tidegate.toml")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=variables)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


def test_events_that_no_client_takes_by_default_are_warned_of(binary, tmp_path):
    assert check(binary, tmp_path, FITTING) == ""
    warned = check(binary, tmp_path, FITTING + 1)
    for words in ("tidegate.toml:3", "4194304", f"limits.max_event_bytes to {FITTING} at most", "limit of every client"):
        assert words in warned
    log = tmp_path / "log"
    with log.open("wb") as sink, Server(binary, *MORE, log=sink):
        pass
    assert "limits.max_event_bytes" in log.read_text()


def event_of(size: int):
    """Returns an event that has so many bytes when it is encoded with a time, which the server adds."""
    event = new_event("t", b"")
    event.time.seconds = 1_788_947_152
    payload = size - event.ByteSize()
    # The payload's tag and length.
    event.payload = bytes(payload - 5)
    assert event.ByteSize() == size
    return event


def test_largest_fitting_event_reaches_a_client_with_the_default_limit(binary):
    with Server(binary, *MORE) as server:
        client = Client(server.address)
        stream = client.subscribe("t", limits={"max_bytes": 64 << 20})
        client.publish(event_of(FITTING))
        (event,) = stream.take(1)
        assert len(event.payload) > MESSAGE - 100
        # One byte more than the fields of the response leave room for, at most.
        client.publish(event_of(FITTING + 30))
        with pytest.raises(grpc.RpcError) as ended:
            stream.take(1)
        assert ended.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        # It is the client's own status, so it has no reason.
        assert not [key for key, _ in ended.value.trailing_metadata() or () if key == "tidegate-reason"]
        client.close()

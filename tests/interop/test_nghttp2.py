"""The programs of nghttp2: `h2load`, many calls at once, and `nghttp`, frames in unusual forms."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import (
    PATIENCE,
    Server,
    eventually,
    make_certificate,
    metric,
    new_event,
    pb,
)

PUBLISH = "tidegate.v1.EventService/Publish"
HEADERS = ["--header=content-type: application/grpc", "--header=te: trailers"]


@pytest.fixture
def measured(binary: str) -> Iterator[Server]:
    """A server with a page of metrics."""
    with Server(binary, "--http", "127.0.0.1:0", "--http2-max-header-list-size", "64KiB") as server:
        # Announced after the address.
        assert server.http
        yield server


@pytest.fixture
def body(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that makes the file of a request."""

    def body(*events: pb.NewEvent) -> Path:
        request = pb.PublishRequest(events=events).SerializeToString()
        path = tmp_path / "body"
        path.write_bytes(bytes(1) + len(request).to_bytes(4, "big") + request)
        return path

    return body


def run(program: str, *arguments: str | Path) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is missing: scripts/test unpacks it from Debian's nghttp2-client")
    command = [program, *HEADERS, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout


def load(requests: int, *arguments: str | Path) -> str:
    """Makes that many calls, each of which must have a response of HTTP. Returns the report."""
    said = run("h2load", f"--requests={requests}", *arguments)
    assert f" {requests} succeeded, 0 failed, 0 errored, 0 timeout" in said, said
    assert f"status codes: {requests} 2xx" in said, said
    return said


def published(server: Server) -> float:
    return metric(server.http, "tidegate_events_published_total")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--clients=10", "--max-concurrent-streams=20"),
        ("--clients=2", "--header-table-size=0", "--encoder-header-table-size=0"),
        ("--clients=2", "--header-table-size=65536", "--encoder-header-table-size=65536"),
        # Windows of a KiB.
        ("--clients=2", "--window-bits=10", "--connection-window-bits=10", "--max-concurrent-streams=20"),
    ],
    ids=" ".join,
)
def test_calls_of_many_streams_are_all_answered(measured, body, arguments):
    load(2000, *arguments, f"--data={body(new_event('a', b'x'))}", f"{measured.url}/{PUBLISH}")
    assert published(measured) == 2000


def test_events_larger_than_the_windows_come_whole(measured, body):
    arguments = ("--clients=2", "--max-concurrent-streams=10", f"--data={body(new_event('a', bytes(900_000)))}")
    load(40, *arguments, f"{measured.url}/{PUBLISH}")
    assert published(measured) == 40


def test_calls_that_are_refused_before_their_bodies_have_come_cost_the_connection_nothing(measured, body):
    refused = body(new_event("a", bytes(1_200_000)))
    began = time.monotonic()
    load(40, "--clients=2", "--max-concurrent-streams=10", f"--data={refused}", f"{measured.url}/{PUBLISH}")
    # It sends all of a body, whatever was answered. Without a window for the rest, that would be until the reset after 5 s.
    assert time.monotonic() - began < 5
    assert published(measured) == 0


def test_streams_that_are_left_leave_no_subscription(measured, tmp_path):
    request = pb.SubscribeRequest(filters=["a"]).SerializeToString()
    (tmp_path / "body").write_bytes(bytes(1) + len(request).to_bytes(4, "big") + request)
    arguments = ["--clients=5", "--max-concurrent-streams=20", "--duration=1", f"--data={tmp_path / 'body'}"]
    run("h2load", *arguments, f"{measured.url}/tidegate.v1.EventService/Subscribe")
    eventually(lambda: metric(measured.http, "tidegate_connections") == 0, "the connections to go")
    assert metric(measured.http, "tidegate_subscriptions") == 0


def test_load_over_tls(binary, body, tmp_path):
    chain, key = make_certificate(tmp_path)
    with Server(binary, "--tls-certificate", chain, "--tls-key", key) as server:
        url = f"https://{server.address}/{PUBLISH}"
        data = body(new_event("a", bytes(20_000)))
        said = load(500, "--clients=5", "--max-concurrent-streams=10", f"--data={data}", url)
        assert "Application protocol: h2\n" in said


def test_frames_in_unusual_forms_are_understood(measured, body):
    """Padding, priorities, a header block in several frames, and trailers behind a request."""
    forms = ["--padding=255", "--continuation", "--trailer=sum: 1", "--weight=200", "--verbose", "--null-out"]
    said = run("nghttp", *forms, f"--data={body(new_event('a', bytes(100_000)))}", f"{measured.url}/{PUBLISH}")
    said = re.sub(r"\x1b\[[0-9;]*m", "", said)
    # It tells of frames as they would be if they had no largest size.
    assert max(map(int, re.findall(r"send HEADERS frame <length=(\d+)", said))) > 16_384, said
    assert "PADDED" in said and re.search(r"recv \(stream_id=\d+\) grpc-status: 0", said), said
    assert published(measured) == 1

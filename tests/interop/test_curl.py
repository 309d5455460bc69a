"""curl, on nghttp2: calls of gRPC made by hand, whose trailers and frames are seen as they came."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import grpc
import pytest
from libraries import Ending
from support import (
    PATIENCE,
    Server,
    Stream,
    assert_status,
    eventually,
    head,
    make_certificate,
    metric,
    new_event,
    payloads,
    pb,
)

SERVICE = "tidegate.v1.EventService"
MIB = 1 << 20


@pytest.fixture(scope="session")
def curl() -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is missing: scripts/test gets it")
    if "HTTP2" not in subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this curl is without HTTP/2")
    return program


class Call:
    """A call of curl, whose responses are read from its output as they come."""

    def __init__(self, curl: str, url: str, folder: Path, request: bytes, *arguments: str) -> None:
        folder.mkdir()
        self._headers = folder / "headers"
        body = folder / "request"
        body.write_bytes(bytes(1) + len(request).to_bytes(4, "big") + request)
        command = [curl, "--silent", "--show-error", "--no-buffer", "--dump-header", self._headers, *arguments]
        command += ["--header", "content-type: application/grpc", "--header", "te: trailers"]
        command += ["--data-binary", f"@{body}", url]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def message(self) -> bytes:
        """Returns the next message. Raises the status at the end, which may be OK."""
        prefix = self.process.stdout.read(5)
        if not prefix:
            raise self.ending()
        assert prefix[0] == 0, "a message that is compressed"
        length = int.from_bytes(prefix[1:], "big")
        message = self.process.stdout.read(length)
        assert len(message) == length, "the response ends in the middle of a message"
        return message

    def ending(self) -> Ending:
        assert self.process.wait(PATIENCE) == 0
        lines = self._headers.read_text().splitlines()
        assert lines[0].split() == ["HTTP/2", "200"]
        fields = [tuple(line.split(": ", 1)) for line in lines[1:] if line]
        status = dict(fields)
        return Ending(int(status["grpc-status"]), unquote(status.get("grpc-message", "")), fields)

    def __iter__(self) -> Iterator[pb.SubscribeResponse]:
        return self

    def __next__(self) -> pb.SubscribeResponse:
        return pb.SubscribeResponse.FromString(self.message())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def call(curl: str, tmp_path: Path) -> Iterator:
    """Returns a function that begins calls."""
    calls: list[Call] = []

    def call(url: str, request: bytes, *arguments: str) -> Call:
        arguments = arguments or ("--http2-prior-knowledge",)
        calls.append(Call(curl, url, tmp_path / str(len(calls)), request, *arguments))
        return calls[-1]

    yield call
    for begun in calls:
        begun.stop()


@pytest.fixture
def subscribe(call):
    """Returns a function that subscribes, with curl as the client."""

    def subscribe(server: Server, *filters: str, **fields) -> Stream:
        request = pb.SubscribeRequest(filters=filters, **fields)
        return Stream(call(f"{server.url}/{SERVICE}/Subscribe", request.SerializeToString()), request)

    return subscribe


def publish(call, url: str, *events: pb.NewEvent, arguments=()) -> pb.PublishResponse:
    begun = call(f"{url}/{SERVICE}/Publish", pb.PublishRequest(events=events).SerializeToString(), *arguments)
    answer = pb.PublishResponse.FromString(begun.message())
    with pytest.raises(Ending) as ended:
        begun.message()
    assert ended.value.code() == grpc.StatusCode.OK
    return answer


def test_events_that_curl_publishes_arrive(server, client, call):
    stream = client.subscribe("a")
    large = bytes(range(256)) * 3500
    for payload in (b"1", large):
        assert publish(call, server.url, new_event("a", payload)).count == 1
        assert payloads(stream.take(1)) == [payload]


def test_health_is_told(server, call):
    checked = call(f"{server.url}/grpc.health.v1.Health/Check", b"")
    # SERVING is 1, in field 1.
    assert checked.message() == b"\x08\x01"
    assert checked.ending().code() == grpc.StatusCode.OK


def test_refusal_is_a_response_of_headers_alone(server, call):
    refused = call(f"{server.url}/{SERVICE}/Subscribe", pb.SubscribeRequest(filters=["a.>.b"]).SerializeToString())
    with pytest.raises(Ending) as ended:
        refused.message()
    assert_status(ended.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FILTER", "filters[0]")


def test_events_come_one_by_one_and_trailers_behind_the_last(server, client, subscribe):
    stream = subscribe(server, "a", client_id="ann")
    for number in range(5):
        client.publish(new_event("a", b"%d" % number))
        assert payloads(stream.take(1)) == [b"%d" % number]
    # Not by a drain: curl before 8.0 closes the connection at the first GOAWAY, whatever is open on it.
    client.subscribe("a", client_id="ann")
    assert_status(stream.ending(), grpc.StatusCode.ABORTED, "TAKEN_OVER")


def test_subscription_resumes_and_has_large_events_whole(server, client, subscribe):
    position = head(client.publish(new_event("a", b"0")))
    sent = [bytes([number]) * (MIB - 1000) for number in range(4)]
    for payload in sent:
        client.publish(new_event("a", payload))
    assert payloads(subscribe(server, "a", resume_after=position).replay()) == sent


def test_process_that_stops_reading_is_told_its_losses(server, client, subscribe):
    stream = subscribe(server, "a", limits=pb.Limits(max_events=100, max_bytes=MIB))
    stream.call.process.send_signal(signal.SIGSTOP)
    # More than all windows and buffers between the two: curl's windows are of 32 MiB.
    for _ in range(100):
        client.publish(*(new_event("a", bytes(10_000)) for _ in range(50)))
    stream.call.process.send_signal(signal.SIGCONT)
    client.publish(new_event("a", b"end"))
    stream.take_through(b"end")
    assert stream.ledger.missed > 0
    assert len(stream.ledger.events) + stream.ledger.missed == 5001


def test_process_that_is_killed_leaves_no_subscription(binary, subscribe):
    with Server(binary, "--http", "127.0.0.1:0") as server:
        assert server.http
        stream = subscribe(server, "a")
        assert metric(server.http, "tidegate_subscriptions") == 1
        stream.call.process.kill()
        eventually(lambda: metric(server.http, "tidegate_subscriptions") == 0, "the subscription to go")


def test_http2_is_chosen_over_tls(binary, call, curl, tmp_path):
    chain, key = make_certificate(tmp_path)
    with Server(binary, "--tls-certificate", chain, "--tls-key", key) as server:
        url = f"https://{server.address}"
        assert publish(call, url, new_event("a"), arguments=("--cacert", str(chain))).count == 1
        # Without HTTP/2 there is nothing to speak.
        command = [curl, "--silent", "--show-error", "--http1.1", "--cacert", str(chain), url]
        assert subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE).returncode != 0

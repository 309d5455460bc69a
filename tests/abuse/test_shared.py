"""An honest subscriber on the same connection as calls of others, which a proxy brings together: whatever the server
refuses them, and however they end, the connection is no place to blame."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PRIORITY,
    PATIENCE,
    PREFACE,
    PUBLISH,
    PUBLISH_STREAM,
    REFUSED_STREAM,
    SUBSCRIBE,
    Peer,
    block,
    data,
    frame,
    header_block,
    message,
    request_headers,
    reset,
    settings,
    window_update,
)
from google.protobuf import empty_pb2
from siege import audit, publish_request, subscribe_request
from support import Client, Server, fails_on_hyper, new_event, pb
from tokens import bearer, write_tokens

HEALTH_CHECK = "/grpc.health.v1.Health/Check"

# More than h2 forgives a connection in its life, and some.
CALLS = 1_100
# How long the server waits for the rest of a body that nobody reads.
LINGERS_SECONDS = 5
# How many are open at once, which a proxy takes from the settings of the server.
AT_ONCE = 200

RULES = """
[[rule]]
principals = ["ann"]
publish = { allow = ["attack.>"] }
subscribe = { allow = ["attack.>"] }
"""


class Proxy:
    """One connection with an honest subscription on it."""

    def __init__(self, binary: str, *arguments: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.server = Server(binary, *arguments)
        self.headers = headers
        self.peer = Peer.greeted(self.server.address)
        self.peer.send(window_update(0, 1 << 30))
        self.request = subscribe_request("attack.>")
        self.stream = self.peer.call(SUBSCRIBE, message(self.request), *headers)
        self.peer.until(lambda: self.peer.calls[self.stream].data, "subscribed")
        self.published = 0

    def leave(self) -> None:
        """Checks that the honest subscription lives and has lost nothing, and ends the server."""
        for _ in range(3):
            content = publish_request(new_event("attack.honest", b"%d" % self.published))
            call = self.peer.wait(self.peer.call(PUBLISH, message(content), *self.headers))
            assert call.status == 0, call
            self.published += 1
        assert self.peer.answers(), self.peer.goaway
        assert self.peer.goaway is None
        ledger = audit(self.request, self.peer.calls[self.stream])
        numbers = [event.payload for event in ledger.events if event.topic == "attack.honest"]
        assert numbers == [b"%d" % number for number in range(self.published)] and not ledger.gaps
        assert not self.peer.calls[self.stream].is_over
        self.peer.close()
        self.server.stop()

    def refuse(self, path: str, before: bytes, after: list[bytes], *headers: tuple[str, str], count: int = CALLS) -> None:
        """Begins calls, waits until each has its status, and only then sends the rest of their bodies."""
        for start in range(0, count, AT_ONCE):
            streams = [self.peer.stream() for _ in range(min(AT_ONCE, count - start))]
            head = block(request_headers(path, *headers))
            self.peer.send(
                b"".join(
                    frame(HEADERS, END_HEADERS, stream, head) + (data(stream, before) if before else b"")
                    for stream in streams
                )
            )
            for stream in streams:
                self.peer.until(lambda: self.peer.calls[stream].has_ended, f"the status of {stream}")
                assert self.peer.calls[stream].headers.get("grpc-status") != "0", self.peer.calls[stream]
            last = len(after) - 1
            for stream in streams:
                rest = [data(stream, piece, ends=at == last) for at, piece in enumerate(after)]
                self.peer.send(b"".join(rest))
            assert self.peer.answers(), self.peer.goaway


@pytest.fixture
def proxy(binary: str) -> Iterator[Callable[..., Proxy]]:
    """Returns a function that starts a server and connects to it as a proxy does."""
    proxies: list[Proxy] = []

    def proxy(*arguments: str, **options) -> Proxy:
        proxies.append(Proxy(binary, *arguments, **options))
        return proxies[-1]

    yield proxy
    for opened in proxies:
        opened.server.process.kill()
        opened.server.process.wait()


EVENT = message(publish_request(new_event("attack.x", bytes(100))))
BODY = [EVENT[:20], EVENT[20:50], EVENT[50:]]


def guarded(files: Path) -> list[str]:
    return [f"--auth-tokens={files / 'tokens'}", f"--auth-rules={files / 'rules.toml'}", "--quotas-address-auth-failures=none"]


@pytest.fixture
def files(binary: str, tmp_path: Path) -> Path:
    write_tokens(binary, tmp_path / "tokens", ann="annann", bob="bobbob")
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path


@pytest.mark.parametrize("token", ["eve", "bobbob"])
def test_refused_credentials_with_bodies_under_way_spare_the_connection(proxy, files, token):
    shared = proxy(*guarded(files), headers=bearer("annann"))
    # Bob is known, and may do nothing: an admin's method is refused before anything of its body is read.
    path = PUBLISH if token == "eve" else "/tidegate.v1.AdminService/Drain"
    shared.refuse(path, b"", BODY, *bearer(token))
    shared.refuse(path, BODY[0], BODY[1:], *bearer(token))
    shared.leave()


@pytest.mark.parametrize(
    ("path", "arguments", "before"),
    [
        ("/tidegate.v1.EventService/Nothing", [], BODY[0]),
        ("/grpc.nothing.v1.Nothing/Nothing", [], BODY[0]),
        # A message that says how large it is.
        (PUBLISH, [], b"\0\x10\0\0\0"),
        (SUBSCRIBE, [], b"\0\x10\0\0\0"),
        (PUBLISH_STREAM, [], b"\0\x10\0\0\0"),
        # Invalid requests, and more under way.
        (PUBLISH_STREAM, [], message(publish_request(new_event("a.*")))),
        (PUBLISH_STREAM, [], b"\x07\0\0\0\x01x"),
        # Not in time.
        (PUBLISH, ["--limits-request-timeout", "10ms"], BODY[0]),
        (SUBSCRIBE, ["--limits-request-timeout", "10ms"], BODY[0]),
        # Over a quota, which the honest one has used up.
        (SUBSCRIBE, ["--quotas-address-subscriptions", "1"], message(subscribe_request("attack.>"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_calls_with_bodies_under_way_spare_the_connection(proxy, path, arguments, before):
    shared = proxy(*arguments)
    shared.refuse(path, before, BODY)
    shared.leave()


def test_publish_streams_that_went_on_after_their_end_spare_the_connection(proxy):
    shared = proxy()
    # Many small messages: h2 charges each frame below 256 bytes, and gives back only what is read.
    shared.refuse(PUBLISH_STREAM, message(publish_request(new_event("a.*"))), [EVENT] * 40, count=500)
    shared.leave()


@pytest.mark.parametrize(
    "more",
    [[("x-long", "v" * 17_000)], [("content-length", "10")]],
    ids=["headers beyond the limit", "more than was said"],
)
def test_malformed_requests_with_bodies_under_way_spare_the_connection(proxy, more):
    shared = proxy()
    head = block(request_headers(PUBLISH, *more))
    for _ in range(0, CALLS, AT_ONCE):
        streams = [shared.peer.stream() for _ in range(AT_ONCE)]
        for stream in streams:
            shared.peer.send(header_block(stream, head, ends=False) + data(stream, BODY[0]))
        for stream in streams:
            shared.peer.wait(stream)
        shared.peer.send(b"".join(data(stream, piece) for stream in streams for piece in BODY[1:]))
        assert shared.peer.answers(), shared.peer.goaway
    shared.leave()


def test_calls_beyond_the_limit_spare_the_connection(proxy):
    shared = proxy()
    head = block(request_headers(PUBLISH))
    for _ in range(4):
        streams = [shared.peer.stream() for _ in range(600)]
        shared.peer.send(b"".join(frame(HEADERS, END_HEADERS, stream, head) for stream in streams))
        for stream in streams[-100:]:
            assert shared.peer.wait(stream).reset == REFUSED_STREAM
        # Under way when the refusal came.
        shared.peer.send(b"".join(data(stream, BODY[0]) for stream in streams[-100:]))
        shared.peer.send(b"".join(reset(stream) for stream in streams if not shared.peer.calls[stream].is_over))
        assert shared.peer.answers(), shared.peer.goaway
    shared.leave()


def test_uploads_beyond_all_bounds_spare_the_connection(proxy):
    shared = proxy()
    for _ in range(8):
        streams = []
        for _ in range(10):
            streams.append(shared.peer.call(PUBLISH, b"\0\x10\0\0\0", ends=False))
        for stream in streams:
            shared.peer.until(lambda: shared.peer.calls[stream].has_ended, "a status")
        # All that the first window of each admits.
        shared.peer.send(b"".join(data(stream, bytes(250_000)) for stream in streams))
        assert shared.peer.answers(), shared.peer.goaway
    shared.leave()


def test_calls_that_are_cancelled_at_once_spare_the_connection(proxy):
    shared = proxy()
    head = block(request_headers(PUBLISH))
    for _ in range(8):
        # In one write, as they are in the socket of a server that had a pause.
        streams = [shared.peer.stream() for _ in range(500)]
        shared.peer.send(
            b"".join(
                frame(HEADERS, END_HEADERS, stream, head) + data(stream, BODY[0]) + reset(stream) for stream in streams
            )
        )
        assert shared.peer.answers(), shared.peer.goaway
    for _ in range(8):
        streams = [shared.peer.call(PUBLISH, BODY[0], ends=False) for _ in range(100)]
        shared.peer.send(b"".join(map(reset, streams)))
        assert shared.peer.answers(), shared.peer.goaway
    shared.leave()


def test_short_deadlines_from_many_threads_spare_the_connection(binary):
    with Server(binary) as server:
        client = Client(server.address)
        stream = client.subscribe("honest.>", timeout=600)
        until, ended = time.monotonic() + 3, []

        def call() -> None:
            while time.monotonic() < until:
                try:
                    client.stub.Publish(pb.PublishRequest(events=[new_event("a", bytes(50))]), timeout=random.uniform(0.002, 0.005))
                except grpc.RpcError as error:
                    ended.append(error.code())

        threads = [threading.Thread(target=call) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        # Without a deadline that passed, nothing is proved.
        assert ended
        assert set(ended) <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}, set(ended)
        client.publish(new_event("honest.x", b"1"))
        assert stream.take(1)[0].payload == b"1"
        client.close()


# As gRPC libraries make it of the path of a socket, and Envoy of a cluster.
AUTHORITIES = ["%2Frun%2Ftg.sock", "/run/tg.sock", "outbound|50051||x", "xds cluster"]


@pytest.mark.parametrize("authority", AUTHORITIES)
def test_odd_authorities_spare_the_connection(proxy, authority):
    shared = proxy()
    check = message(empty_pb2.Empty().SerializeToString())
    for _ in range(0, 2_200, AT_ONCE):
        streams = [shared.peer.call(HEALTH_CHECK, check, authority=authority) for _ in range(AT_ONCE)]
        for stream in streams:
            shared.peer.wait(stream)
    shared.leave()


# ----- floods, which end the connection all the same -----


def test_frames_of_ended_calls_to_a_peer_that_does_not_read_end_the_connection(besiege):
    with besiege() as siege:
        peer = siege.peer(PREFACE + settings(), receive_buffer=4_096)
        stream = peer.call("/tidegate.v1.EventService/Nothing", ends=False)
        peer.wait(stream)
        # Beyond what the server still reads of the body, and then frames to which it has to answer one by one.
        peer.send(data(stream, bytes(1 << 18)))
        time.sleep(LINGERS_SECONDS + 1)
        late = frame(DATA, 0, stream, b"x") * 10_000
        sent, began = 0, time.monotonic()
        peer.socket.setblocking(False)
        while time.monotonic() - began < PATIENCE:
            try:
                peer.socket.send(late)
                sent += 10_000
            except BlockingIOError:
                time.sleep(0.01)
            except ConnectionError:
                break
        siege.note("late frames", f"{sent} sent, ended after {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < PATIENCE, "it goes on forever"
        assert siege.growth_kib < 32 << 10


def depending_on_itself(stream: int) -> bytes:
    return frame(PRIORITY, 0, stream, stream.to_bytes(4) + b"\1")


def with_header(name: str, value: str) -> Callable[[int], bytes]:
    head = block([*request_headers(PUBLISH), (name, value)])
    return lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, head)


@pytest.mark.parametrize("takes_a_little", [False, True], ids=["reads nothing", "reads a little"])
@pytest.mark.parametrize(
    "provoke",
    [depending_on_itself, with_header("connection", "x"), with_header("te", "gzip")],
    ids=["priority", "connection", "te"],
)
def test_frames_that_provoke_resets_end_a_connection_that_does_not_read_them(besiege, provoke, takes_a_little):
    """h2 keeps each reset until it can be written, and anybody who reaches the port may provoke them."""
    with besiege() as siege:
        peer = siege.peer(PREFACE + settings(), receive_buffer=4_096)
        # More than the buffers of the sockets in between take.
        size = len(provoke(1))
        blob = b"".join(provoke(stream) for stream in range(1, 2 * (16 << 20) // size, 2))
        sent, began, read = 0, time.monotonic(), 0.0
        peer.socket.setblocking(False)
        while sent < len(blob) and time.monotonic() - began < PATIENCE:
            try:
                sent += peer.socket.send(blob[sent : sent + (1 << 16)])
                if takes_a_little and time.monotonic() > read + 0.1:
                    read = time.monotonic()
                    peer.socket.recv(400)
            except BlockingIOError:
                time.sleep(0.01)
            except ConnectionError:
                break
        siege.note("provoked", f"{sent >> 10} KiB sent, ended after {time.monotonic() - began:.1f} s")
        assert sent < len(blob), "all of it was taken"
        assert time.monotonic() - began < PATIENCE, "it goes on forever"
        assert siege.growth_kib < 48 << 10


# ----- what hyper and h2 cannot do -----


@fails_on_hyper("h2 has the trailers of a stream that it forgot end the connection")
def test_trailers_of_refused_requests_spare_the_connection(proxy):
    shared = proxy()
    head, trailers = block(request_headers(PUBLISH)), block([("x-checksum", "1")])
    for _ in range(3):
        streams = [shared.peer.stream() for _ in range(AT_ONCE)]
        shared.peer.send(b"".join(frame(HEADERS, END_HEADERS, stream, head) + data(stream, b"\0\x10\0\0\0") for stream in streams))
        for stream in streams:
            shared.peer.until(lambda: shared.peer.calls[stream].has_ended, "a status")
        # Longer than the server waits for the rest of a body.
        time.sleep(LINGERS_SECONDS + 1)
        shared.peer.send(b"".join(frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers) for stream in streams))
        assert shared.peer.answers(), shared.peer.goaway
    shared.leave()


@fails_on_hyper("h2 counts empty DATA frames in the life of a connection, up to 100")
def test_empty_frames_of_many_calls_spare_the_connection(proxy):
    shared = proxy()
    for _ in range(150):
        stream = shared.peer.call(PUBLISH, EVENT, ends=False)
        shared.peer.send(frame(DATA, 0, stream) + frame(DATA, END_STREAM, stream))
        assert shared.peer.wait(stream).status == 0
    shared.leave()


@pytest.mark.parametrize("authority", AUTHORITIES)
@fails_on_hyper("h2 refuses an `:authority` that is no host and port")
def test_odd_authorities_are_served(proxy, authority):
    shared = proxy()
    check = message(empty_pb2.Empty().SerializeToString())
    call = shared.peer.wait(shared.peer.call(HEALTH_CHECK, check, authority=authority))
    assert call.status == 0, call
    shared.leave()

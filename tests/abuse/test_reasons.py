"""Reasons and delays as plain trailers, on a raw connection: what a client sees that reads neither protobuf's `Any` nor
binary headers."""

from __future__ import annotations

import itertools
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from frames import INITIAL_WINDOW_SIZE, PATIENCE, PUBLISH, PUBLISH_STREAM, SUBSCRIBE, Call, Peer, message, window_update
from siege import delay, publish_request, reason, subscribe_request
from support import Server, eventually, new_event, pb
from tidegate.v1 import admin_service_pb2 as admin_pb
from tokens import SECRET, bearer, token, write_tokens

DISCONNECT_CLIENT = "/tidegate.v1.AdminService/DisconnectClient"

RULES = """
[[rule]]
principals = ["ann"]
publish = { allow = ["orders.>"] }
subscribe = { allow = ["orders.>"] }
"""


class Caller:
    """One server for one question, and a raw connection to it."""

    def __init__(self, binary: str, *arguments: str, window: int | None = None) -> None:
        self.log = tempfile.TemporaryFile()
        self.server = Server(binary, *arguments, log=self.log)
        self.peer = Peer.greeted(self.server.address, *([] if window is None else [(INITIAL_WINDOW_SIZE, window)]))

    def call(self, path: str, content: bytes, *more: tuple[str, str]) -> Call:
        """A call to its end."""
        return self.peer.wait(self.peer.call(path, message(content), *more))

    def subscribe(self, *filters: str, headers: tuple[tuple[str, str], ...] = (), **fields) -> Call:
        return self.call(SUBSCRIBE, subscribe_request(*filters, **fields), *headers)

    def publish(self, *events: pb.NewEvent, headers: tuple[tuple[str, str], ...] = ()) -> Call:
        return self.call(PUBLISH, publish_request(*events), *headers)

    def begin(self, *filters: str, headers: tuple[tuple[str, str], ...] = (), **fields) -> int:
        """Begins a subscription, and returns its stream when it has."""
        stream = self.peer.call(SUBSCRIBE, message(subscribe_request(*filters, **fields)), *headers)
        self.peer.until(lambda: self.peer.calls[stream].headers or self.peer.calls[stream].is_over, "an answer")
        assert not self.peer.calls[stream].is_over, self.peer.calls[stream]
        return stream

    def publish_aside(self, count: int) -> int:
        """Publishes on a connection of its own. Returns the number of deliveries that make."""
        aside = Peer.greeted(self.server.address)
        call = aside.wait(aside.call(PUBLISH, message(publish_request(*[new_event("a")] * count))))
        aside.close()
        return pb.PublishResponse.FromString(call.messages()[0]).matched

    def await_log(self, words: str) -> None:
        eventually(lambda: words.encode() in os.pread(self.log.fileno(), 1 << 20, 0), f"{words!r} in the log", PATIENCE)

    def close(self) -> None:
        self.peer.close()
        self.server.stop()


@pytest.fixture
def calling(binary: str) -> Iterator[Callable[..., Caller]]:
    """Returns a function that starts a server with given arguments and connects to it."""
    callers: list[Caller] = []

    def calling(*arguments: str, **options) -> Caller:
        callers.append(Caller(binary, *arguments, **options))
        return callers[-1]

    yield calling
    for caller in callers:
        caller.close()


@pytest.fixture
def files(binary: str, tmp_path: Path) -> Path:
    """Writes tokens and rules for Ann and Bob, and the secret of the issuer."""
    write_tokens(binary, tmp_path / "tokens", ann="annann", bob="bobbob")
    (tmp_path / "rules.toml").write_text(RULES)
    (tmp_path / "secret").write_bytes(SECRET)
    return tmp_path


def with_tokens(files: Path) -> list[str]:
    return [f"--auth-tokens={files / 'tokens'}", f"--auth-rules={files / 'rules.toml'}"]


def with_jwt(files: Path) -> list[str]:
    return [
        *("--auth-jwt-issuer=me", "--auth-jwt-audience=tidegate", "--auth-jwt-leeway=0s"),
        *(f"--auth-jwt-secrets={files / 'secret'}", f"--auth-rules={files / 'rules.toml'}"),
    ]


# ----- one function for each reason -----


def costly(calling, files, binary) -> Call:
    patterns = [".".join(tokens) for tokens in itertools.product("a*", repeat=5)]
    return calling("--limits-max-filter-work", "4").subscribe(*patterns)


def taken_over(calling, files, binary) -> Call:
    caller = calling()
    old = caller.begin("a", client_id="ann")
    caller.begin("a", client_id="ann")
    return caller.peer.wait(old)


def taken(calling, files, binary) -> Call:
    caller = calling("--client-ids", "reject")
    caller.begin("a", client_id="ann")
    return caller.subscribe("a", client_id="ann")


def too_slow(calling, files, binary) -> Call:
    caller = calling(window=0)
    stream = caller.begin("a", limits=pb.Limits(max_events=10, overflow=pb.OVERFLOW_DISCONNECT))
    assert caller.publish_aside(400) == 400
    caller.peer.send(window_update(stream, 1 << 20))
    return caller.peer.wait(stream)


def stalled(calling, files, binary) -> Call:
    patience = ["--stall-timeout", "200ms", "--on-stall", "close", "--reset-grace", "1h"]
    caller = calling(*patience, "--log", "info", window=0)
    stream = caller.begin("a")
    assert caller.publish_aside(1) == 1
    caller.await_log("ended stuck streams")
    caller.peer.send(window_update(stream, 1 << 20))
    return caller.peer.wait(stream)


def over_quota(calling, files, binary) -> Call:
    caller = calling("--quotas-address-publish-events", "10")
    while (call := caller.publish(*[new_event("a")] * 10)).status == 0:
        pass
    assert delay(call) is not None
    return call


def position_ahead(calling, files, binary) -> Call:
    caller = calling()
    answer = pb.PublishResponse.FromString(caller.publish(new_event("a")).messages()[0])
    return caller.subscribe("a", resume_after=pb.Position(epoch=answer.epoch, sequence=answer.last_sequence + 1))


def shutting_down(calling, files, binary) -> Call:
    caller = calling()
    stream = caller.begin("a")
    caller.server.signal(signal.SIGTERM)
    call = caller.peer.wait(stream)
    assert delay(call) is not None
    return call


def max_age(calling, files, binary) -> Call:
    call = calling("--connections-max-age", "100ms").subscribe("a")
    assert delay(call) is not None
    return call


def deadline(calling, files, binary) -> Call:
    return calling().subscribe("a", headers=(("grpc-timeout", "50m"),))


def disconnected(calling, files, binary) -> Call:
    caller = calling()
    stream = caller.begin("a", client_id="ann")
    caller.call(DISCONNECT_CLIENT, admin_pb.DisconnectClientRequest(client_id="ann").SerializeToString())
    return caller.peer.wait(stream)


def expired(calling, files, binary) -> Call:
    call = calling(*with_jwt(files)).subscribe("orders.>", headers=bearer(token(exp=int(time.time()) + 2)))
    assert delay(call) is not None
    return call


def revoked(calling, files, binary) -> Call:
    caller = calling(*with_tokens(files))
    stream = caller.begin("orders.>", headers=bearer("annann"))
    write_tokens(binary, files / "tokens", bob="bobbob")
    caller.server.process.send_signal(signal.SIGHUP)
    call = caller.peer.wait(stream)
    assert delay(call) is not None
    return call


def publish_stream(calling, files, binary) -> Call:
    caller = calling()
    requests = message(publish_request(new_event("a"))) + message(publish_request(new_event("a.*")))
    return caller.peer.wait(caller.peer.call(PUBLISH_STREAM, requests))


def malformed(calling, files, binary) -> Call:
    caller = calling()
    return caller.peer.wait(caller.peer.call(PUBLISH, message(b"", flag=7)))


def admin_not_allowed(calling, files, binary) -> Call:
    request = admin_pb.DisconnectClientRequest(client_id="ann").SerializeToString()
    return calling(*with_tokens(files)).call(DISCONNECT_CLIENT, request, *bearer("annann"))


PROVOKED: list[tuple[str, Callable[..., Call]]] = [
    ("INVALID_FILTER", lambda calling, *_: calling().subscribe("a..b")),
    ("INVALID_TOPIC", lambda calling, *_: calling().publish(new_event("a.*"))),
    ("INVALID_TOPIC", publish_stream),
    ("INVALID_CLIENT_ID", lambda calling, *_: calling().subscribe("a", client_id="a.b")),
    ("INVALID_LIMITS", lambda calling, *_: calling().subscribe("a", limits=pb.Limits(overflow=99))),
    ("INVALID_POSITION", lambda calling, *_: calling().subscribe("a", resume_after=pb.Position(sequence=1))),
    ("INVALID_REQUEST", lambda calling, *_: calling().publish()),
    ("INVALID_REQUEST", lambda calling, *_: calling().subscribe("a", headers=(("grpc-timeout", "soon"),))),
    ("TOO_MANY_FILTERS", lambda calling, *_: calling("--limits-max-filters", "1").subscribe("a", "b")),
    ("FILTERS_TOO_COSTLY", costly),
    ("TOO_MANY_EVENTS", lambda calling, *_: calling().publish(*[new_event("a")] * 1_001)),
    ("EVENT_TOO_LARGE", lambda calling, *_: calling("--limits-max-event-bytes", "9").publish(new_event("a", b"long"))),
    (
        "BATCH_TOO_LARGE",
        lambda calling, *_: calling("--limits-max-publish-bytes", "9", "--limits-max-event-bytes", "9").publish(
            *[new_event("a")] * 4
        ),
    ),
    (
        "COMPRESSION_UNSUPPORTED",
        lambda calling, *_: calling().publish(new_event("a"), headers=(("grpc-encoding", "deflate"),)),
    ),
    ("MALFORMED_MESSAGE", malformed),
    ("CLIENT_ID_TAKEN", taken),
    ("TAKEN_OVER", taken_over),
    ("TOO_SLOW", too_slow),
    ("STALLED", stalled),
    ("QUOTA_EXCEEDED", over_quota),
    ("POSITION_AHEAD", position_ahead),
    ("SHUTTING_DOWN", shutting_down),
    ("MAX_CONNECTION_AGE", max_age),
    ("DEADLINE_EXCEEDED", deadline),
    ("DISCONNECTED", disconnected),
    ("CREDENTIALS_MISSING", lambda calling, files, _: calling(*with_tokens(files)).publish(new_event("orders.a"))),
    (
        "CREDENTIALS_INVALID",
        lambda calling, files, _: calling(*with_tokens(files)).publish(new_event("orders.a"), headers=bearer("eve")),
    ),
    ("CREDENTIALS_EXPIRED", expired),
    ("CREDENTIALS_REVOKED", revoked),
    (
        "NOT_ALLOWED",
        lambda calling, files, _: calling(*with_tokens(files)).publish(new_event("news"), headers=bearer("annann")),
    ),
    ("NOT_ALLOWED", admin_not_allowed),
]

# Reasons that a peer cannot bring about: the tests of the crates have them.
BEYOND_REACH = {"EPOCH_CHANGED", "KEYS_UNAVAILABLE", "INTERNAL"}


@pytest.mark.parametrize(("expected", "provoke"), PROVOKED, ids=lambda value: value if isinstance(value, str) else "")
def test_reason_is_a_plain_trailer(calling, files, binary, expected, provoke):
    call = provoke(calling, files, binary)
    assert call.headers.get("tidegate-reason") == expected, call
    # And the details say the same.
    assert reason(call) == expected
    assert call.headers.get("tidegate-retry-after-ms") == (None if delay(call) is None else str(delay(call)))


def test_every_documented_reason_is_provoked():
    document = Path(__file__).parents[2].joinpath("docs/protocol.md").read_text()
    table = document.split("| Reason | meaning |")[1].split("\n\n")[0]
    documented = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    assert {expected for expected, _ in PROVOKED} | BEYOND_REACH == documented

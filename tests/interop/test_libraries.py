"""Libraries of gRPC over whole connections: windows, many streams, cancelling, refusals, and the end of a server.

The ledger audits every stream, so that what is lost on the way, or comes twice, fails its test.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
from libraries import library
from support import (
    PATIENCE,
    Client,
    Server,
    assert_status,
    eventually,
    head,
    make_certificate,
    metric,
    new_event,
    payloads,
    pb,
    refused,
)

__all__ = ["library"]

MIB = 1 << 20

Connect = Callable[..., Client]


@pytest.fixture
def measured(binary: str) -> Iterator[Server]:
    """A server with a page of metrics."""
    with Server(binary, "--http", "127.0.0.1:0") as server:
        # Announced after the address.
        assert server.http
        yield server


def await_metric(server: Server, name: str, value: float) -> None:
    def measured() -> float:
        return metric(server.http, name)

    eventually(lambda: measured() == value, lambda: f"{name} = {value}: it is {measured()}")


# ===== Windows =====


def test_events_larger_than_the_windows_pass_in_both_directions(server, library: Connect):
    caller = library(server.address)
    stream = caller.subscribe("a", limits=pb.Limits(max_bytes=8 * MIB))
    sent = [bytes([number]) * (MIB - 1000) for number in range(4)]
    for payload in sent:
        assert caller.publish(new_event("a", payload)).count == 1
    assert payloads(stream.take(len(sent))) == sent


def test_publish_stream_larger_than_the_windows_has_all_its_answers(server, client, library: Connect):
    stream = client.subscribe("a", limits=pb.Limits(max_bytes=8 * MIB))
    sent = [bytes([number]) * (64 << 10) for number in range(64)]
    requests = (pb.PublishRequest(events=[new_event("a", payload)]) for payload in sent)
    answers = library(server.address).stub.PublishStream(requests, timeout=PATIENCE)
    assert [answer.count for answer in answers] == [1] * len(sent)
    assert payloads(stream.take(len(sent))) == sent


def test_stream_that_is_not_read_is_told_its_losses_and_delays_no_other(server, client, library: Connect):
    caller = library(server.address)
    stalled = caller.subscribe("a", limits=pb.Limits(max_events=100, max_bytes=MIB))
    reader = caller.subscribe("b")
    # More than all windows and buffers between the two.
    for _ in range(40):
        client.publish(*(new_event("a", bytes(10_000)) for _ in range(50)))
    for number in range(10):
        client.publish(new_event("b", b"%d" % number))
        assert payloads(reader.take(1)) == [b"%d" % number]
    client.publish(new_event("a", b"end"))
    stalled.take_through(b"end")
    assert stalled.ledger.missed > 0
    assert len(stalled.ledger.events) + stalled.ledger.missed == 2001
    assert not reader.ledger.gaps


def test_streams_that_are_cancelled_unread_leave_the_window_of_their_connection_whole(measured, library: Connect):
    caller, publisher = library(measured.address), Client(measured.address)
    reader = caller.subscribe("b", limits=pb.Limits(max_bytes=8 * MIB))
    # Together several times the window of a connection, whichever the library has.
    for number in range(30):
        unread = caller.subscribe("a", limits=pb.Limits(max_bytes=8 * MIB))
        publisher.publish(*(new_event("a", bytes(10_000)) for _ in range(100)))
        # Something of it is on the way.
        unread.take(1)
        unread.cancel()
        assert unread.ending().code() == grpc.StatusCode.CANCELLED
    await_metric(measured, "tidegate_subscriptions", 1)
    publisher.publish(*(new_event("b", bytes(100_000)) for _ in range(30)))
    assert len(reader.take(30)) == 30
    assert metric(measured.http, "tidegate_connections") == 2
    publisher.close()


# ===== Streams =====


def test_a_hundred_streams_of_one_connection(measured, library: Connect):
    caller, publisher = library(measured.address), Client(measured.address)
    streams = [caller.subscribe(f"a.{number}") for number in range(100)]
    publisher.publish(*(new_event(f"a.{number}", b"%d" % number) for number in range(100)))
    for number, stream in enumerate(streams):
        assert payloads(stream.take(1)) == [b"%d" % number]
    assert metric(measured.http, "tidegate_connections") == 2
    publisher.close()


def test_streams_beyond_the_limit_begin_when_others_end(binary, library: Connect):
    with Server(binary, "--http2-max-concurrent-streams", "4") as server:
        caller = library(server.address)
        streams = [caller.subscribe("a") for _ in range(4)]
        begun: queue.Queue = queue.Queue()
        # It waits for its response.
        threading.Thread(target=lambda: begun.put(caller.subscribe("b")), daemon=True).start()
        with pytest.raises(queue.Empty):
            begun.get(timeout=0.5)
        streams.pop().cancel()
        # grpc-java sends what waited when it next hears of the server.
        publisher = Client(server.address)
        publisher.publish(new_event("a"))
        begun.get(timeout=PATIENCE)
        publisher.close()


def test_stream_that_is_cancelled_is_gone_and_its_connection_goes_on(measured, library: Connect):
    caller = library(measured.address)
    streams = [caller.subscribe("a") for _ in range(3)]
    await_metric(measured, "tidegate_subscriptions", 3)
    streams[1].cancel()
    assert streams[1].ending().code() == grpc.StatusCode.CANCELLED
    await_metric(measured, "tidegate_subscriptions", 2)
    caller.publish(new_event("a", b"1"))
    for stream in (streams[0], streams[2]):
        assert payloads(stream.take(1)) == [b"1"]
    assert metric(measured.http, "tidegate_connections") == 1


# ===== Refusals =====


def test_refusals_come_with_their_details(server, library: Connect):
    caller = library(server.address)
    with refused("INVALID_FILTER", "filters[0]"):
        caller.subscribe("a.>.b")
    # Refused before its body has come in full.
    with refused("TOO_MANY_EVENTS"):
        caller.publish(*[new_event("a", bytes(1000))] * 2000)
    with refused("INVALID_TOPIC", "events[30].topic"):
        caller.publish(*[new_event("a", bytes(100_000))] * 30, new_event("a.*"))
    assert caller.publish(new_event("a")).count == 1


def test_refusal_in_the_middle_of_a_publish_stream_comes_with_its_reason(server, library: Connect):
    outgoing: queue.Queue = queue.Queue()
    answers = library(server.address).stub.PublishStream(iter(outgoing.get, None), timeout=PATIENCE)
    for number in range(3):
        outgoing.put(pb.PublishRequest(events=[new_event("a", b"%d" % number)]))
        assert next(answers).count == 1
    outgoing.put(pb.PublishRequest(events=[new_event("a.*")]))
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert_status(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_TOPIC")
    outgoing.put(None)


# ===== Endings of the server =====


def test_streams_of_a_server_that_drains_are_told_where_to_resume(binary, library: Connect):
    with Server(binary) as server:
        caller = library(server.address)
        busy, idle = caller.subscribe("a"), caller.subscribe("b")
        position = head(caller.publish(new_event("a", b"1")))
        assert payloads(busy.take(1)) == [b"1"]
        server.stop()
        for stream in (busy, idle):
            assert_status(stream.ending(), grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
            assert stream.ledger.going_away.resume_after == position
    with Server(binary, listen=server.address) as server:
        resumed = until_served(lambda: caller.subscribe("a", resume_after=position))
        # Another process has another epoch.
        assert resumed.expect("gap").reason == pb.GAP_REASON_EPOCH_CHANGED
        caller.publish(new_event("a", b"2"))
        assert payloads(resumed.take(1)) == [b"2"]


def test_subscription_over_connections_that_end_by_their_age_misses_and_repeats_nothing(binary, library: Connect):
    with Server(binary, "--connections-max-age", "500ms") as server:
        caller = library(server.address)
        number, received, position = 0, [], None
        for _ in range(3):
            fields = {} if position is None else {"resume_after": position}
            stream = until_served(lambda fields=fields: caller.subscribe("a", **fields))
            # On connections of the same age.
            while True:
                try:
                    event = new_event("a", b"%d" % number)
                    until_served(lambda event=event: caller.publish(event))
                    stream.read()
                except grpc.RpcError as ending:
                    assert_status(ending, grpc.StatusCode.UNAVAILABLE, "MAX_CONNECTION_AGE")
                    break
                finally:
                    number += 1
            received += payloads(stream.ledger.events)
            position = stream.ledger.going_away.resume_after
        stream = until_served(lambda: caller.subscribe("a", resume_after=position))
        received += payloads(stream.replay())
        assert received == [b"%d" % sent for sent in range(number)]


def until_served(call: Callable[[], object]) -> object:
    """Calls until there is a connection: libraries differ in whether they make a new one before the call fails."""
    answers: list[object] = []

    def is_served() -> bool:
        try:
            answers.append(call())
        except grpc.RpcError as ending:
            # Connect makes INTERNAL of a call that its own connection refused after GOAWAY.
            assert ending.code() == grpc.StatusCode.UNAVAILABLE or "REFUSED_STREAM" in ending.details(), ending
        return bool(answers)

    eventually(is_served, "a connection")
    return answers[0]


# ===== TLS =====


# Debian's Netty has no ALPN.
@pytest.mark.parametrize("library", ["grpcio", "grpc-js", "connect-node"], indirect=True)
def test_calls_over_tls(binary, library: Connect, tmp_path):
    chain, key = make_certificate(tmp_path)
    with Server(binary, "--tls-certificate", chain, "--tls-key", key) as server:
        port = server.address.rsplit(":", 1)[1]
        caller = library(f"localhost:{port}", chain)
        stream = caller.subscribe("a", limits=pb.Limits(max_bytes=8 * MIB))
        sent = [bytes([number]) * 300_000 for number in range(8)]
        for payload in sent:
            caller.publish(new_event("a", payload))
        assert payloads(stream.take(len(sent))) == sent
        server.stop()
        assert_status(stream.ending(), grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")

"""The start and the end of the server."""

import signal

import grpc
import pytest
from support import Client, Server, assert_status, head, new_event, payloads


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_stream_is_told_where_to_resume(server, connect, number):
    client = connect()
    busy, idle = connect().subscribe("a"), connect().subscribe("b")
    position = head(client.publish(new_event("a", b"1")))
    assert payloads(busy.take(1)) == [b"1"]

    server.signal(number)

    for stream in (busy, idle):
        assert_status(stream.ending(), grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        going_away = stream.ledger.going_away
        assert going_away is not None
        assert going_away.resume_after == position
        assert going_away.reason
    server.stop()


def test_a_server_that_starts_again_begins_a_new_epoch(binary):
    epochs = set()
    for _ in range(2):
        server = Server(binary)
        client = Client(server.address)
        epochs.add(client.publish(new_event("a")).epoch)
        client.close()
        server.stop()

    assert len(epochs) == 2


def test_unread_stream_does_not_keep_the_server_from_ending(binary):
    server = Server(binary, "--drain-timeout", "2s")
    stalled, client = Client(server.address), Client(server.address)
    stream = stalled.subscribe("a")
    for _ in range(10):
        client.publish(*[new_event("a", bytes(1000))] * 500)

    server.stop()

    assert stream.ending().code() != grpc.StatusCode.OK
    stalled.close()
    client.close()

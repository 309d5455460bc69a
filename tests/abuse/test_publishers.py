"""Publishers that do not read what they are answered."""

from __future__ import annotations

import time

from frames import FIRST_WINDOW, INITIAL_WINDOW_SIZE, PATIENCE, PUBLISH_STREAM, data, message, window_update
from siege import publish_request
from support import new_event
from tidegate.v1 import admin_service_pb2 as admin_pb

LIST = "/tidegate.v1.AdminService/ListPublishStreams"

EVENT = message(publish_request(new_event("attack.unread", bytes(100))))


def listed(siege) -> list[admin_pb.PublishStreamState]:
    peer = siege.greeted()
    call = peer.wait(peer.call(LIST, message(admin_pb.ListPublishStreamsRequest().SerializeToString())))
    assert call.status == 0, call
    peer.close()
    return admin_pb.ListPublishStreamsResponse.FromString(call.messages()[0]).publish_streams


def test_publisher_that_never_reads_is_listed_and_ended(besiege):
    with besiege("--stall-timeout", "2s", "--log", "warn") as siege:
        peer = siege.greeted((INITIAL_WINDOW_SIZE, 100))
        stream = peer.call(PUBLISH_STREAM, ends=False)
        reading = peer.call(PUBLISH_STREAM, ends=False)
        silent = peer.call(PUBLISH_STREAM, EVENT, ends=False)
        peer.until(lambda: peer.calls[silent].messages(), "an answer")
        # As much as the window of the server admits.
        sent, budget = 0, min(FIRST_WINDOW, 200_000)
        while sent + len(EVENT) < budget:
            peer.send(data(stream, EVENT))
            sent += len(EVENT)
        siege.eventually(lambda: any(state.unread_bytes and state.HasField("unread_for") for state in listed(siege)), "a list")
        [unread] = [state for state in listed(siege) if state.unread_bytes]
        assert unread.address.startswith("127.0.0.1:") and unread.requests == unread.events > 0
        assert len(listed(siege)) == 3
        # One that reads a little is not stalled, and neither is one that waits for its client.
        while not peer.calls[stream].is_over:
            peer.send(data(reading, EVENT) + window_update(reading, 20))
            time.sleep(0.2)
            assert peer.answers()
        call = peer.calls[stream]
        assert call.reset is not None
        assert not peer.calls[silent].is_over and not peer.calls[reading].is_over
        assert peer.answers()
        siege.eventually(lambda: len(listed(siege)) == 2, "two streams", PATIENCE)
        assert "did not read the answers" in siege.logged()

"""Clients that are slower than the events they subscribed to."""

import sys
import threading
import time

import grpc
import pytest
from support import PATIENCE, assert_status, new_event, payloads, pb, seconds

KIB = b"k" * 1000


def numbered(number):
    """Returns an event of about 1 KiB with its number."""
    return new_event("load.x", b"%09d:%s" % (number, KIB))


def publish_in_step(client, readers, numbers, batch):
    """Publishes the events with those numbers, and lets no reader fall behind by more than one batch."""
    for start in range(numbers.start, numbers.stop, batch):
        client.publish(*(numbered(number) for number in range(start, start + batch)))
        for reader in readers:
            reader.await_events(start + batch)


class Reader(threading.Thread):
    """Reads a stream as fast as events come, up to `total` events."""

    def __init__(self, stream, total):
        super().__init__(daemon=True)
        self.stream = stream
        self.total = total
        self._progress = threading.Condition()
        self._failure = None

    def run(self):
        try:
            while len(self.stream.ledger.events) < self.total:
                self.stream.read()
                with self._progress:
                    self._progress.notify_all()
        except BaseException as failure:
            with self._progress:
                self._failure = failure
                self._progress.notify_all()

    def await_events(self, count):
        def arrived():
            return self._failure is not None or len(self.stream.ledger.events) >= count

        with self._progress:
            assert self._progress.wait_for(arrived, PATIENCE), f"{count} events did not arrive"
        if self._failure is not None:
            raise self._failure


def test_stalled_client_delays_nobody_and_is_told_its_exact_losses(server, client, connect):
    fill, flood, batch = 500, 100_000, 500
    total = fill + flood
    # Fill history first, so that it does not grow later.
    publish_in_step(client, [], range(12_000), batch)
    stalled = connect().subscribe("load.>", timeout=5 * PATIENCE)
    readers = [Reader(connect().subscribe("load.>", timeout=5 * PATIENCE), total) for _ in range(3)]
    for reader in readers:
        reader.start()

    # First fill the transport's buffers for the stalled client, in steps too small to overflow it.
    publish_in_step(client, readers, range(fill), 50)
    before = server.resident_kib() if sys.platform == "linux" else 0
    publish_in_step(client, readers, range(fill, total), batch)
    after = server.resident_kib() if sys.platform == "linux" else 0

    assert after - before < 8 * 1024, f"the server grew from {before} to {after} KiB"
    for reader in readers:
        assert reader.stream.ledger.gaps == []
        assert [int(event.payload[:9]) for event in reader.stream.ledger.events] == list(range(total))

    stalled.take_through(numbered(total - 1).payload)
    ledger = stalled.ledger
    [gap] = ledger.gaps
    assert gap.reason == pb.GAP_REASON_OVERFLOW
    assert len(ledger.events) + gap.count == total
    # The events in the transport's buffers, the gap, the newest events: three runs without a hole.
    got = [int(event.payload[:9]) for event in ledger.events]
    held = gap.first_index - stalled.subscribed.next_index
    assert got == [*range(held), *range(held + gap.count, total)]
    assert 0 < len(got) - held <= stalled.subscribed.limits.max_events
    by_sequence = {int(event.payload[:9]): event.sequence for event in readers[0].stream.ledger.events}
    assert gap.first_sequence == by_sequence[held]
    assert gap.last_sequence == by_sequence[held + gap.count - 1]


def test_slow_client_is_disconnected_under_that_policy(client, connect):
    stream = connect().subscribe("load.>", limits=pb.Limits(max_events=10, overflow=pb.OVERFLOW_DISCONNECT))

    publish_in_step(client, [], range(400), batch=100)

    assert_status(stream.ending(), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_SLOW")
    got = [int(event.payload[:9]) for event in stream.ledger.events]
    assert got == list(range(len(got)))


def test_conflate_keeps_the_newest_of_each_key_and_counts_the_rest(client, connect):
    stream = connect().subscribe("price.>", limits=pb.Limits(overflow=pb.OVERFLOW_CONFLATE))
    keys, rounds = 50, 400

    for value in range(rounds):
        client.publish(*(new_event("price.x", KIB + b"%d" % value, key=str(key)) for key in range(keys)))
    client.publish(new_event("price.end", b"end"))

    stream.take_through(b"end")
    ledger = stream.ledger
    assert {gap.reason for gap in ledger.gaps} == {pb.GAP_REASON_CONFLATED}
    assert len(ledger.events) + sum(gap.count for gap in ledger.gaps) == keys * rounds + 1
    newest = {event.key: event.payload for event in ledger.events if event.topic == "price.x"}
    assert newest == {str(key): KIB + b"%d" % (rounds - 1) for key in range(keys)}


@pytest.mark.parametrize("overflow", [pb.OVERFLOW_CONFLATE, pb.OVERFLOW_DROP_OLDEST])
def test_heartbeat_within_a_release_passes_no_event_that_is_not_counted(client, connect, overflow):
    keys, rounds = 60, 3
    request = {"limits": pb.Limits(max_events=1_000, max_bytes=16 << 20, overflow=overflow), "client_id": "c"}
    # The first release is more than the transport takes of a client that does not read, and the next one is far away.
    interval = seconds(600)
    stream = connect().subscribe("price.*", min_interval=interval, heartbeat_interval=seconds(1), **request)
    for number in range(rounds):
        # All of the events before are replaced in the middle of their release.
        client.publish(*(new_event(f"price.{key}", b"%d" % number + KIB * 5) for key in range(keys)))
        time.sleep(0.2)
    total = keys * rounds

    position = stream.skip_to("heartbeat").position
    ledger = stream.ledger
    before = len(ledger.events), ledger.missed
    stream.cancel()
    resumed = connect().subscribe("price.*", resume_after=position, **request)
    resumed.replay()
    after = len(resumed.ledger.events), resumed.ledger.missed

    assert sum(before) + sum(after) == total, f"{before} before the heartbeat at {position.sequence}, {after} after it"
    # A heartbeat that says nothing new would prove nothing.
    assert position.sequence >= ledger.events[-1].sequence > 0


def test_newest_event_arrives_even_if_larger_than_the_limits(client):
    stream = client.subscribe("load.>", limits=pb.Limits(max_events=1, max_bytes=1))

    for payload in (b"a" * 10_000, b"b" * 10_000):
        client.publish(new_event("load.x", payload))
        assert payloads(stream.take_through(payload))[-1] == payload

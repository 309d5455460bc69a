"""Replay from history, joined with live events."""

import signal
import threading

import pytest
from grpc import StatusCode
from support import PATIENCE, Client, Server, assert_status, head, new_event, payloads, pb, refused, rich_details

GENEROUS = pb.Limits(max_events=100_000, max_bytes=64 << 20)


def numbers(count, start=0):
    return [b"%d" % number for number in range(start, start + count)]


def publish_numbers(client, topic, count, start=0):
    return client.publish(*(new_event(topic, payload) for payload in numbers(count, start)))


def test_replay_last_yields_newest_matches_and_then_live_events(client):
    publish_numbers(client, "a", 10)
    publish_numbers(client, "b", 10, start=100)
    last = publish_numbers(client, "a", 1, start=10)
    stream = client.subscribe("a", replay_last=3)

    assert payloads(stream.replay()) == numbers(3, start=8)
    assert stream.ledger.caught_up.position == head(last)
    publish_numbers(client, "a", 2, start=11)
    assert payloads(stream.take(2)) == numbers(2, start=11)
    assert not stream.ledger.gaps


def test_replay_last_of_more_than_there_is_gives_all(client):
    publish_numbers(client, "a", 5)

    assert payloads(client.subscribe("a", replay_last=1000).replay()) == numbers(5)


def test_replay_last_of_nothing_is_caught_up_at_once(client):
    stream = client.subscribe("a", replay_last=10)

    assert stream.expect("caught_up").position == stream.subscribed.position


def test_resuming_gives_what_came_after_the_position(client):
    publish_numbers(client, "a", 5)
    position = head(publish_numbers(client, "b", 1))
    publish_numbers(client, "a", 5, start=5)
    stream = client.subscribe("a", resume_after=position)

    assert payloads(stream.replay()) == numbers(5, start=5)
    publish_numbers(client, "a", 1, start=10)
    assert payloads(stream.take(1)) == [b"10"]
    assert not stream.ledger.gaps


def test_resuming_at_the_head_is_caught_up_at_once(client):
    position = head(publish_numbers(client, "a", 5))
    stream = client.subscribe("a", resume_after=position)

    assert stream.expect("caught_up").position == position


def test_sequence_zero_is_before_the_first_event(client):
    epoch = publish_numbers(client, "a", 5).epoch
    stream = client.subscribe("a", resume_after=pb.Position(epoch=epoch))

    assert payloads(stream.replay()) == numbers(5)
    assert not stream.ledger.gaps


def test_a_position_resumes_any_filter(client):
    position = client.subscribe("a").subscribed.position
    client.publish(*(new_event(topic, topic.encode()) for topic in ("a", "b.1", "c", "b.2", "a")))

    assert payloads(client.subscribe("b.*", "c", resume_after=position).replay()) == [b"b.1", b"c", b"b.2"]


def test_resuming_joins_without_gap_or_repeat_while_events_flow(client, connect):
    total = 3000
    position = client.subscribe("load.>").subscribed.position
    publisher = connect()

    def publish():
        for payload in numbers(total):
            publisher.publish(new_event("load.%s" % payload[-1:].decode(), payload))

    thread = threading.Thread(target=publish)
    thread.start()
    received = []
    streams = 0
    try:
        while len(received) < total:
            stream = client.subscribe("load.>", resume_after=position, limits=GENEROUS)
            events = stream.take(min(total - len(received), 40 + 7 * streams))
            stream.cancel()
            assert not stream.ledger.gaps
            received += payloads(events)
            position.sequence = events[-1].sequence
            streams += 1
    finally:
        thread.join(PATIENCE)

    assert received == numbers(total)
    assert streams > 10


def test_position_of_another_epoch_yields_a_gap_and_all_history(client):
    answer = publish_numbers(client, "a", 20)
    other = pb.Position(epoch=answer.epoch ^ 1, sequence=7)
    stream = client.subscribe("a", resume_after=other)

    assert stream.expect("gap").reason == pb.GAP_REASON_EPOCH_CHANGED
    assert payloads(stream.replay()) == numbers(20)
    assert len(stream.ledger.gaps) == 1
    publish_numbers(client, "a", 1, start=20)
    assert payloads(stream.take(1)) == [b"20"]


def test_position_before_history_yields_a_gap_and_all_history(client):
    # History holds 10,000 events by default.
    asked = head(publish_numbers(client, "a", 10))
    for start in range(10, 11_010, 1000):
        publish_numbers(client, "a", 1000, start)
    stream = client.subscribe("a", resume_after=asked, limits=GENEROUS)

    gap = stream.expect("gap")
    events = stream.replay()
    assert gap.reason == pb.GAP_REASON_EXPIRED
    assert gap.first_sequence == asked.sequence + 1
    assert gap.last_sequence == events[0].sequence - 1
    missed = 11_000 - len(events)
    assert missed > 0
    # The gap counts exactly, or has no count.
    assert gap.count in (0, missed)
    assert payloads(events) == numbers(len(events), start=10 + missed)
    assert len(stream.ledger.gaps) == 1


def test_a_sequence_ahead_of_the_head_is_out_of_range(client):
    position = head(publish_numbers(client, "a", 1))
    position.sequence += 1000

    with refused("POSITION_AHEAD", code=StatusCode.OUT_OF_RANGE):
        client.subscribe("a", resume_after=position)


@pytest.mark.parametrize("sequence", [0, 1])
def test_resume_after_excludes_replay_last(client, sequence):
    epoch = publish_numbers(client, "a", 1).epoch

    with refused("INVALID_REQUEST"):
        client.subscribe("a", resume_after=pb.Position(epoch=epoch, sequence=sequence), replay_last=1)


def test_a_replay_larger_than_the_limits_is_not_overflow(client):
    for start in range(0, 5000, 1000):
        publish_numbers(client, "a", 1000, start)
    stream = client.subscribe("a", replay_last=5000, limits=pb.Limits(max_events=10))

    assert payloads(stream.replay()) == numbers(5000)
    assert not stream.ledger.gaps


def test_replay_that_ends_before_its_first_event_states_no_position(binary):
    streams, events = 40, 100_000
    with Server(binary, "--history-events", str(events), "--history-bytes", "1GiB") as server:
        client = Client(server.address)
        for start in range(0, events, 1_000):
            client.publish(*(new_event(f"a.{number}") for number in range(start, start + 1_000)))
        # Each looks through all of history, and finds nothing.
        replaying = [client.subscribe("none", replay_last=5) for _ in range(streams)]
        server.signal(signal.SIGTERM)

        early = 0
        for stream in replaying:
            ending = stream.ending()
            assert_status(ending, StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
            # The ledger has checked that the position is there if and only if something is settled.
            info, _ = rich_details(ending)
            assert ("resume_after_sequence" in info.metadata) == stream.ledger.is_settled
            early += not stream.ledger.is_settled
        assert early > 0, "all replays had ended before the server did"
        client.close()


def test_epochs_are_exact_as_doubles(binary):
    epochs = set()
    for _ in range(8):
        with Server(binary) as server:
            client = Client(server.address)
            epochs.add(client.publish(new_event("a")).epoch)
            client.close()
    assert len(epochs) == 8
    assert all(0 < epoch < 1 << 53 and int(float(epoch)) == epoch for epoch in epochs)

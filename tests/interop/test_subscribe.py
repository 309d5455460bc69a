"""Subscriptions to events that are published while they are open."""

import itertools
import threading

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from support import PATIENCE, head, new_event, payloads, pb, seconds


def test_subscribed_is_sent_at_once_without_events(client):
    stream = client.subscribe("orders.>", timeout=5)

    assert stream.subscribed.limits == pb.Limits(max_events=1024, max_bytes=1 << 20, overflow=pb.OVERFLOW_DROP_OLDEST)


def test_the_client_id_is_kept_or_made(client):
    named = client.subscribe("a", client_id="dashboard-7")
    one, other = client.subscribe("a"), client.subscribe("a")

    assert named.subscribed.client_id == "dashboard-7"
    assert one.subscribed.client_id != other.subscribed.client_id
    ids = {stream.subscribed.subscription_id for stream in (named, one, other)}
    assert len(ids) == 3


def test_smaller_limits_are_in_force_as_asked(client):
    asked = pb.Limits(max_events=10, max_bytes=4096, overflow=pb.OVERFLOW_DISCONNECT)

    assert client.subscribe("a", limits=asked).subscribed.limits == asked


def test_an_event_arrives_as_it_was_published(client):
    stream = client.subscribe("orders.>")
    time = Timestamp(seconds=1_700_000_000, nanos=123_456_789)
    attributes = {"content-type": "application/x", "empty": "", "snö": "☃"}

    client.publish(new_event("orders.eu.created", bytes(range(256)), key="order-1", attributes=attributes, time=time))

    [event] = stream.take(1)
    assert event.topic == "orders.eu.created"
    assert event.payload == bytes(range(256))
    assert event.key == "order-1"
    assert dict(event.attributes) == attributes
    assert event.time == time


def test_an_event_without_a_time_gets_the_time_of_the_server(client):
    stream = client.subscribe("a")
    before, after = Timestamp(), Timestamp()

    before.GetCurrentTime()
    client.publish(new_event("a"))
    after.GetCurrentTime()

    [event] = stream.take(1)
    assert before.ToMicroseconds() - 1000 <= event.time.ToMicroseconds() <= after.ToMicroseconds() + 1000


def test_an_event_of_nearly_a_mebibyte_arrives_whole(client):
    stream = client.subscribe("big")
    payload = bytes(range(256)) * 4000

    client.publish(new_event("big", payload), new_event("big", b"small"))

    assert payloads(stream.take(2)) == [payload, b"small"]


def test_publish_answers_with_the_place_of_the_batch(client):
    streams = [client.subscribe("a"), client.subscribe("*"), client.subscribe("b")]

    first = client.publish(new_event("a", b"1"), new_event("a", b"2"), new_event("c", b"3"))
    second = client.publish(new_event("b", b"4"))

    assert first.epoch == streams[0].subscribed.position.epoch == second.epoch
    assert (first.count, second.count) == (3, 1)
    assert first.last_sequence - first.first_sequence >= 2
    assert second.first_sequence == second.last_sequence > first.last_sequence
    # `a` matches two events, `*` all, `b` the last.
    assert (first.matched, second.matched) == (5, 2)
    assert streams[0].take(2)[0].sequence == first.first_sequence
    assert streams[1].take(4)[-1].sequence == second.last_sequence


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["orders.eu.created"], "orders.eu.created"),
        (["orders.*"], "orders.eu"),
        (["orders.*.created"], "orders.eu.created orders.us.created"),
        (["*.eu"], "orders.eu stock.eu"),
        (["orders.>"], "orders.eu orders.eu.created orders.us.created orders.eu.a.b"),
        (["orders.*.>"], "orders.eu.created orders.us.created orders.eu.a.b"),
        (["stock.>", "orders"], "orders stock.eu"),
        (["*"], "orders"),
        (["Orders.>"], ""),
        ([">"], "orders orders.eu stock.eu orders.eu.created orders.us.created orders.eu.a.b"),
    ],
)
def test_filters_match_by_token(client, filters, expected):
    topics = ["orders", "orders.eu", "stock.eu", "orders.eu.created", "orders.us.created", "orders.eu.a.b"]
    # The last event has its own filter. After it no other can come.
    stream = client.subscribe(*filters, "the.last.one.of.all")

    client.publish(*(new_event(topic) for topic in topics), new_event("the.last.one.of.all", b"end"))

    got = [event.topic for event in stream.take_through(b"end")[:-1]]
    assert got == [topic for topic in expected.split() if topic != "the.last.one.of.all"]


@pytest.mark.parametrize(
    "filters", [["a.*", "*.b"], ["a.b", "a.*", "a.>", ">"], ["a.b", "a.b"], ["a.*", "*.b", "c.>", "*.*", "a.b"]]
)
def test_overlapping_filters_deliver_an_event_once(client, filters):
    stream = client.subscribe(*filters)

    topics = ["a.b", "a.x", "x.b", "a.b"] if "a.*" in filters else ["a.b", "a.b"]
    answer = client.publish(*(new_event(topic) for topic in topics))
    client.publish(new_event("a.b", b"end"))

    assert [event.topic for event in stream.take_through(b"end")[:-1]] == topics
    assert answer.matched == len(topics)
    assert stream.ledger.missed == 0


def test_publish_stream_answers_each_request_in_order(client):
    count = 40
    stream = client.subscribe("load.>")
    all_sent, all_answered = threading.Event(), threading.Event()

    def requests():
        for size in range(1, count + 1):
            yield pb.PublishRequest(events=[new_event("load.x", b"%d" % size)] * size)
        all_sent.set()
        # The answers must come before the stream of requests ends.
        all_answered.wait(PATIENCE)

    answers = client.stub.PublishStream(requests(), timeout=PATIENCE)
    # Requests do not wait for answers: all of them are in flight before one answer is read.
    assert all_sent.wait(PATIENCE)
    got = [next(answers) for _ in range(count)]
    all_answered.set()
    assert list(answers) == []

    assert [answer.count for answer in got] == list(range(1, count + 1))
    assert all(earlier.last_sequence < later.first_sequence for earlier, later in itertools.pairwise(got))
    assert all(answer.matched == answer.count for answer in got)
    published = [b"%d" % size for size in range(1, count + 1) for _ in range(size)]
    assert payloads(stream.take(len(published))) == published


def test_heartbeats_carry_the_position_past_what_did_not_match(client):
    stream = client.subscribe("quiet.>", heartbeat_interval=seconds(1))

    for payload in (b"1", b"2"):
        published = head(client.publish(new_event("busy", payload)))
        # One may have been under way already.
        while stream.expect("heartbeat").position.sequence < published.sequence:
            pass
        assert stream.ledger.heartbeats[-1].position == published

    client.publish(new_event("quiet.x", b"at last"))
    assert payloads(stream.take(1)) == [b"at last"]


def test_a_position_from_a_heartbeat_resumes(client):
    stream = client.subscribe("quiet.>", heartbeat_interval=seconds(1))
    published = head(client.publish(new_event("busy")))
    while (position := stream.expect("heartbeat").position) != published:
        pass
    stream.cancel()
    client.publish(new_event("quiet.x", b"while away"))

    assert payloads(client.subscribe("quiet.>", resume_after=position).replay()) == [b"while away"]

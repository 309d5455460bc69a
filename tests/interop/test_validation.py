"""Invalid requests: the status and the details of each refusal, which leaves nothing behind."""

import grpc
import pytest
from support import PATIENCE, assert_status, new_event, payloads, pb, refused, seconds

MIB = 1 << 20

NOT_TOPICS = ["", ".a", "a.", "a..b", "a b", "a\tb", "a\u0000b", "x" * 257, ".".join("a" * 33)]


@pytest.mark.parametrize("bad", [*NOT_TOPICS, "a.>.b", ">.a", "$sys", "$client.me", "$client.*", "$>"])
def test_a_bad_filter_is_refused_and_named(client, bad):
    with refused("INVALID_FILTER", field="filters[1]"):
        client.subscribe("good", bad)


@pytest.mark.parametrize("bad", [*NOT_TOPICS, "a.*", "a.>", "*", ">", "$sys.x", "$client", "$client.", "$client.a.b"])
def test_bad_topic_refuses_the_whole_batch(client, bad):
    with refused("INVALID_TOPIC", field="events[1].topic"):
        client.publish(new_event("good"), new_event(bad), new_event("good"))

    assert client.subscribe("good", replay_last=10).replay() == []


@pytest.mark.parametrize("good", ["x" * 256, ".".join("a" * 32), "ünï.☃", "a-b_c:d/e", "a$.b"])
def test_unusual_topics_are_allowed(client, good):
    stream = client.subscribe(good)

    client.publish(new_event(good, b"1"))

    assert stream.take(1)[0].topic == good


@pytest.mark.parametrize("bad", ["a.b", "*", ">", "a b", "a\nb", "x" * 129])
def test_a_bad_client_id_is_refused(client, bad):
    with refused("INVALID_CLIENT_ID", field="client_id"):
        client.subscribe("a", client_id=bad)


def test_an_unknown_overflow_is_refused(client):
    with refused("INVALID_LIMITS", field="limits.overflow"):
        client.subscribe("a", limits=pb.Limits(overflow=99))


@pytest.mark.parametrize("bad", [0.5, 3601, -1])
def test_a_heartbeat_interval_out_of_range_is_refused(client, bad):
    with refused("INVALID_REQUEST", field="heartbeat_interval"):
        client.subscribe("a", heartbeat_interval=seconds(bad))


@pytest.mark.parametrize("bad", [3601, -1])
def test_a_min_interval_out_of_range_is_refused(client, bad):
    with refused("INVALID_REQUEST", field="min_interval"):
        client.subscribe("a", min_interval=seconds(bad))


def test_too_many_filters_are_refused(client):
    filters = [f"topic.{number}" for number in range(1025)]

    assert client.subscribe(*filters[:1024]).subscribed
    with refused("TOO_MANY_FILTERS", field="filters"):
        client.subscribe(*filters)


def test_too_many_events_are_refused(client):
    assert client.publish(*[new_event("a")] * 1000).count == 1000
    with refused("TOO_MANY_EVENTS", field="events"):
        client.publish(*[new_event("a")] * 1001)


def test_an_event_over_a_mebibyte_is_refused(client):
    with refused("EVENT_TOO_LARGE", field="events[1]"):
        client.publish(new_event("a"), new_event("a", bytes(MIB + 1)))

    assert client.subscribe("a", replay_last=10).replay() == []


def test_a_batch_over_four_mebibytes_is_refused(client):
    with refused("BATCH_TOO_LARGE", field="events"):
        client.publish(*[new_event("a", bytes(900_000))] * 5)

    assert client.subscribe("a", replay_last=10).replay() == []


def test_invalid_request_ends_a_publish_stream_and_keeps_the_rest(client):
    requests = [
        pb.PublishRequest(events=[new_event("a", b"1")]),
        pb.PublishRequest(events=[new_event("a", b"2"), new_event("a", b"3")]),
        pb.PublishRequest(events=[new_event("a", b"no"), new_event("a.*", b"no")]),
        pb.PublishRequest(events=[new_event("a", b"no")]),
    ]

    answers = client.stub.PublishStream(iter(requests), timeout=PATIENCE)
    counts = []
    with pytest.raises(grpc.RpcError) as caught:
        for answer in answers:
            counts.append(answer.count)

    assert counts == [1, 2]
    assert_status(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_TOPIC", "events[1].topic")
    assert payloads(client.subscribe("a", replay_last=10).replay()) == [b"1", b"2", b"3"]

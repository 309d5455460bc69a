"""Events for one client, and client ids that are used twice."""

import grpc
from support import assert_status, head, new_event, payloads


def test_an_event_for_a_client_reaches_that_client_alone(client, connect):
    ann = connect().subscribe("news.>", client_id="ann")
    others = [connect().subscribe(">", client_id="bob"), connect().subscribe(">", "*.*"), connect().subscribe("ann")]

    answer = client.publish(new_event("$client.ann", b"for ann"))
    client.publish(new_event("news.x", b"end"), new_event("ann", b"end"))

    assert answer.matched == 1
    assert payloads(ann.take_through(b"end")) == [b"for ann", b"end"]
    assert ann.ledger.events[0].topic == "$client.ann"
    for stream in others:
        assert payloads(stream.take_through(b"end")) == [b"end"]


def test_event_for_an_absent_client_arrives_when_it_resumes(client):
    position = client.subscribe("news.>").subscribed.position
    client.publish(new_event("$client.ann", b"1"), new_event("news.x", b"2"), new_event("$client.bob", b"3"))

    ann = client.subscribe("news.>", client_id="ann", resume_after=position)

    assert payloads(ann.replay()) == [b"1", b"2"]


def test_the_newest_stream_of_a_client_takes_over(client, connect):
    old = connect().subscribe("a", client_id="ann")
    new = connect().subscribe("a", client_id="ann")

    assert_status(old.ending(), grpc.StatusCode.ABORTED, "TAKEN_OVER")
    answer = client.publish(new_event("$client.ann", b"1"), new_event("a", b"2"))
    assert answer.matched == 2
    assert payloads(new.take(2)) == [b"1", b"2"]
    assert payloads(old.ledger.events) == []


def test_the_late_end_of_an_old_stream_leaves_the_new_one_alone(client, connect):
    old_client = connect()
    old = old_client.subscribe("a", client_id="ann")
    new = connect().subscribe("a", client_id="ann")
    old.cancel()
    old_client.close()

    # Many rounds, since a client cannot see when the server has handled the cancel.
    for number in range(200):
        answer = client.publish(new_event("$client.ann", b"%d" % number))
        assert answer.matched == 1
        assert payloads(new.take(1)) == [b"%d" % number]


def test_a_position_is_all_that_a_takeover_needs(client, connect):
    old = connect().subscribe("a", client_id="ann")
    position = head(client.publish(new_event("a", b"1")))
    assert payloads(old.take(1)) == [b"1"]
    client.publish(new_event("a", b"2"))

    new = connect().subscribe("a", client_id="ann", resume_after=position)

    assert payloads(new.replay()) == [b"2"]
    assert old.ending().code() == grpc.StatusCode.ABORTED

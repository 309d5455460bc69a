"""The examples of other languages do what docs/protocol.md says, and so does `tidegate sub`, beside which they run."""

import signal
import threading

import grpc
import pytest
from languages import Language, clojure, language, node
from scripted import Ending, ScriptedServer, batch, caught_up, gap, going_away, heartbeat, subscribed
from support import PATIENCE, Server, new_event, pb, seconds

__all__ = ["clojure", "language", "node"]

GONE = Ending(grpc.StatusCode.UNAVAILABLE)


def position(epoch: int, sequence: int) -> pb.Position:
    return pb.Position(epoch=epoch, sequence=sequence)


# ===== With a server =====


def test_subscriber_resumes_after_a_restart_and_tells_of_the_gap(binary, connect, language: Language):
    server = Server(binary)
    follower = language.follow(server.address, "orders.>")
    follower.skip_to("subscribed")
    # One event comes at once: nobody waits for more of them.
    language.publish(server.address, "orders.eu", "first")
    assert follower.skip_to("event")["payload"] == "first"
    server.stop()

    with Server(binary, listen=server.address) as server:
        assert follower.skip_to("gap")["reason"] == "epoch_changed"
        follower.skip_to("caught_up")
        language.publish(server.address, "orders.us", "second")
        assert follower.skip_to("event")["payload"] == "second"


def test_subscriber_resumes_where_it_is_told_to(server, client, language: Language):
    start = client.publish(new_event("orders.eu", b"1"))
    client.publish(new_event("orders.eu", b"2"), new_event("other", b"3"), new_event("orders.eu", b"\xff\x00"))

    follower = language.follow(server.address, "--resume", f"{start.epoch:016x}:{start.last_sequence}", "orders.>")

    events = [follower.skip_to("event") for _ in range(2)]
    assert events[0]["payload"] == "2"
    assert events[1]["payload_base64"] == "/wA="
    assert [event["sequence"] - start.last_sequence for event in events] == [1, 3]
    follower.skip_to("caught_up")


@pytest.mark.parametrize("language", ["clojure", "node"], indirect=True)
def test_subscriber_that_does_not_read_is_told_what_it_lost(server, client, language: Language):
    follower = language.follow(server.address, "orders.>")
    follower.skip_to("subscribed")
    follower.signal(signal.SIGSTOP)
    # Far more than the windows and buffers between the two, and the limit of 1 MiB.
    total, payload = 1024, b"x" * 16384
    for _ in range(total // 64):
        client.publish(*[new_event("orders.eu", payload)] * 64)
    client.publish(new_event("orders.eu", b"end"))
    follower.signal(signal.SIGCONT)

    delivered, lost = 0, 0
    while True:
        update = follower.next()
        if update["type"] == "gap":
            assert update["reason"] == "overflow"
            lost += update["count"]
        elif update["type"] == "event":
            delivered += 1
            if update["payload"] == "end":
                break
    assert lost > 0
    assert delivered + lost == total + 1


# ===== With a script =====


def test_positions_of_64_bits_come_back_exactly(language: Language):
    epoch, sequence = 2**64 - 1, 2**63 + 4
    streams = [
        [subscribed(epoch, sequence), batch(0, sequence + 1), GONE],
        [subscribed(epoch, sequence + 1), batch(0, sequence + 2), heartbeat(position(epoch, sequence + 3)), GONE],
    ]
    with ScriptedServer(*streams) as server:
        follower = language.follow(server.address, "a.b")
        assert not server.call().request.HasField("resume_after")
        assert follower.skip_to("event")["sequence"] == sequence + 1
        assert server.call().request.resume_after == position(epoch, sequence + 1)
        assert follower.skip_to("heartbeat")["position"] == f"ffffffffffffffff:{sequence + 3}"
        assert server.call().request.resume_after == position(epoch, sequence + 3)


def test_position_moves_as_the_protocol_says(language: Language):
    conflated, overflow, epoch_changed = pb.GAP_REASON_CONFLATED, pb.GAP_REASON_OVERFLOW, pb.GAP_REASON_EPOCH_CHANGED
    streams = [
        # The survivors of a conflated span are still to come.
        [subscribed(5, 10), gap(11, 14, count=3, reason=conflated), GONE],
        [subscribed(5, 14), gap(11, 14, count=3, reason=conflated), batch(3, 12), GONE],
        # The kind of the one and the reason of the other are newer than the client. The gap is a loss, the kind nothing.
        [subscribed(5, 14), pb.SubscribeResponse(), gap(13, 15, count=0, reason=99), GONE],
        # No position in place of one that is known.
        [subscribed(5, 15), heartbeat(), going_away(reason="drain"), GONE],
        [subscribed(5, 17), gap(16, 17, count=2, reason=overflow), GONE],
        # The head is not what was seen: the replay up to it is still to come.
        [subscribed(5, 30), GONE],
        [subscribed(7, 3), gap(0, 0, reason=epoch_changed), GONE],
        [subscribed(7, 3), batch(0, 1, 2, 3), caught_up(7, 3), GONE],
    ]
    resumed = [None, (5, 10), (5, 12), (5, 15), (5, 15), (5, 17), (5, 17), (7, 0), (7, 3)]
    with ScriptedServer(*streams) as server:
        follower = language.follow(server.address, "a.b")
        for expected in resumed:
            request = server.call().request
            seen = request.resume_after if request.HasField("resume_after") else None
            assert seen == (expected and position(*expected))
            # The id that the server made, from the second stream on.
            assert request.client_id == ("ann" if expected else "")
        assert [follower.skip_to("gap")["reason"] for _ in range(3)] == ["conflated", "conflated", "unknown_99"]


def test_replay_is_asked_for_again_only_while_there_is_no_position(language: Language):
    streams = [
        [subscribed(5, 10), heartbeat(), GONE],
        [subscribed(5, 10), batch(0, 9, 10), GONE],
    ]
    with ScriptedServer(*streams) as server:
        language.follow(server.address, "--replay", "2", "a.b")
        for _ in range(2):
            request = server.call().request
            assert request.replay_last == 2
            assert not request.HasField("resume_after")
        request = server.call().request
        assert request.replay_last == 0
        assert request.resume_after == position(5, 10)


def test_subscriber_waits_as_long_as_the_server_asks(language: Language):
    streams = [
        [subscribed(5, 10), Ending(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", retry_after_ms="1500")],
        [subscribed(5, 10), going_away(reconnect_after=seconds(1.5)), GONE],
    ]
    with ScriptedServer(*streams) as server:
        language.follow(server.address, "a.b")
        first, second, third = (server.call().at for _ in range(3))
        assert second - first >= 1.5
        assert third - second >= 1.5


def test_subscriber_leaves_a_silent_stream(language: Language):
    streams = [[subscribed(5, 10), batch(0, 11)], [subscribed(5, 11)]]
    with ScriptedServer(*streams) as server:
        language.follow(server.address, "--heartbeat", "1s", "a.b")
        first, second = server.call(), server.call()
        assert first.request.heartbeat_interval == seconds(1)
        assert second.request.resume_after == position(5, 11)
        # Three intervals, less what the clocks of two programs differ.
        assert second.at - first.at >= 2.9


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.ABORTED, "TAKEN_OVER"),
        # The reason decides, whatever the code is.
        (grpc.StatusCode.UNAVAILABLE, "NOT_ALLOWED"),
        (grpc.StatusCode.UNIMPLEMENTED, ""),
    ],
)
def test_subscriber_comes_back_or_stops_by_the_ending(language: Language, code: grpc.StatusCode, reason: str):
    streams = [
        # No Tidegate server ends a stream with OK.
        [subscribed(5, 10), batch(0, 11), Ending(grpc.StatusCode.OK)],
        # A reason that is newer than the client leaves the decision to the code.
        [subscribed(5, 11), batch(0, 12), Ending(grpc.StatusCode.UNAVAILABLE, "NOT_INVENTED_YET")],
        [subscribed(5, 12), batch(0, 13), Ending(grpc.StatusCode.ABORTED, "SHUTTING_DOWN")],
        [subscribed(5, 13), Ending(code, reason)],
    ]
    with ScriptedServer(*streams) as server:
        follower = language.follow(server.address, "a.b")
        for expected in (0, 11, 12, 13):
            assert server.call().request.resume_after.sequence == expected
        assert follower.exit_code() > 0
        assert server.has_no_call()


def test_position_ahead_is_forgotten(language: Language):
    streams = [
        [subscribed(5, 10), batch(0, 11), GONE],
        [Ending(grpc.StatusCode.OUT_OF_RANGE, "POSITION_AHEAD")],
    ]
    with ScriptedServer(*streams) as server:
        follower = language.follow(server.address, "a.b")
        server.call()
        assert server.call().request.resume_after == position(5, 11)
        if language.name == "program":
            # Its caller decides.
            assert follower.exit_code() == 8
        else:
            assert not server.call().request.HasField("resume_after")


def test_renewed_token_is_used_once(language: Language, tmp_path):
    token = tmp_path / "token"
    token.write_text("one\n")
    is_renewed = threading.Event()
    streams = [
        [subscribed(5, 10), is_renewed, Ending(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_EXPIRED")],
        [Ending(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")],
    ]
    with ScriptedServer(*streams) as server:
        follower = language.follow(server.address, "a.b", TIDEGATE_TOKEN_FILE=str(token))
        follower.skip_to("subscribed")
        assert server.call().metadata["authorization"] == "Bearer one"
        token.write_text("two\n")
        is_renewed.set()
        assert server.call().metadata["authorization"] == "Bearer two"
        assert follower.exit_code() > 0
        assert server.has_no_call()


def test_delay_that_cannot_be_read_is_as_none(language: Language):
    streams = [
        [subscribed(5, 10 + number), batch(0, 11 + number), Ending(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", delay)]
        for number, delay in enumerate(("soon", "-1500", "1e9", ""))
    ]
    with ScriptedServer(*streams) as server:
        follower = language.follow(server.address, "a.b")
        server.call()
        for _ in streams:
            waited = float(follower.skip_to("reconnecting")["retry_in"].removesuffix("s"))
            assert 0 <= waited <= 1
            server.call()


def test_delay_beyond_an_hour_counts_as_an_hour(language: Language):
    going = going_away(reconnect_after=seconds(9_000_000_000_000))
    with ScriptedServer([subscribed(5, 10), going, GONE]) as server:
        follower = language.follow(server.address, "a.b")
        waited = float(follower.skip_to("reconnecting")["retry_in"].removesuffix("s"))
        assert 3600 <= waited <= 3601


def test_event_that_cannot_be_written_ends_the_subscriber(language: Language):
    with ScriptedServer([subscribed(5, 10), batch(0, 11)]) as server:
        assert language.write_to("/dev/full", server.address, "a.b") > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--resme", "00000000000000ff:5"),
        ("--resume", "5"),
        ("--resume", "xyz:5"),
        ("--replay", "few"),
        ("--replay", "4294967297"),
        ("--replay", "-1"),
        ("--replay", "2", "--resume", "00000000000000ff:5"),
        ("--heartbeat", "never"),
    ],
    ids=" ".join,
)
def test_argument_that_means_nothing_is_refused(language: Language, arguments):
    with ScriptedServer([subscribed(5, 10)]) as server:
        assert language.write_to("/dev/null", server.address, *arguments, "a.b") > 0
        assert server.has_no_call()


def test_event_comes_whole(server, client, language: Language):
    attributes = {"__proto__": "1", "constructor": "2", "sequence": "3", "": "4", "ä": "5"}
    follower = language.follow(server.address, "a.b")
    follower.skip_to("subscribed")
    payload = '{"sequence":"1"}\u2028\x00</script>'
    client.publish(new_event("a.b", payload.encode(), key="k", attributes=attributes))
    event = follower.skip_to("event")
    assert (event["payload"], event["key"], event["attributes"]) == (payload, "k", attributes)


def test_event_beyond_the_default_limit_of_a_library_arrives(language: Language):
    with ScriptedServer([subscribed(5, 10), batch(0, 11, payload=b"x" * (5 << 20))]) as server:
        follower = language.follow(server.address, "a.b")
        assert len(follower.skip_to("event")["payload"]) == 5 << 20

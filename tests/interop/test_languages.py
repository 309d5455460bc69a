"""The examples of other languages do what docs/protocol.md says, and so does `tidegate sub`, beside which they run."""

import os
import signal
import subprocess

import grpc
import pytest
from languages import Language, language
from scripted import Ending, ScriptedServer, batch, going_away, heartbeat, subscribed
from support import PATIENCE, Server, new_event, pb, seconds
from tidegate.v1.event_service_pb2_grpc import EventServiceStub

__all__ = ["language"]

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


def test_subscriber_waits_as_the_quota_of_a_server_asks(binary, language: Language):
    with Server(binary, "--quotas-address-subscriptions", "1") as server, grpc.insecure_channel(server.address) as channel:
        held = EventServiceStub(channel).Subscribe(pb.SubscribeRequest(filters=["a.b"]))
        next(held)
        with pytest.raises(grpc.RpcError) as refused:
            next(EventServiceStub(channel).Subscribe(pb.SubscribeRequest(filters=["a.b"])))
        trailers = dict(refused.value.trailing_metadata())
        assert trailers["tidegate-reason"] == "QUOTA_EXCEEDED"
        delay = int(trailers["tidegate-retry-after-ms"])
        assert delay > 0

        update = language.follow(server.address, "a.b").skip_to("reconnecting")
        assert update["code"] == "RESOURCE_EXHAUSTED"
        assert float(update["retry_in"].removesuffix("s")) * 1000 >= delay
        held.cancel()


def test_subscriber_that_is_kicked_stays_away(binary, server, language: Language):
    follower = language.follow(server.address, "--client-id", "ann", "a.b")
    follower.skip_to("subscribed")
    subprocess.run([binary, "kick", "ann", "--server", server.url], check=True, timeout=PATIENCE)
    assert follower.exit_code() > 0


# ===== With a script =====


@pytest.mark.no_server
@pytest.mark.parametrize("language", ["clojure", "node"], indirect=True)
def test_example_follows_the_protocol(binary, language: Language):
    # The details need further packages in both languages, so that these two read the trailers.
    # No more at once than there are processors: many scenarios are about time, and a JVM takes its own to start.
    jobs = str(os.cpu_count() or 1)
    command = [binary, "conformance", "--jobs", jobs, "--without", "details", "--", *language.subscribe_command]
    run = subprocess.run([*command, "--server", "{address}"], capture_output=True, text=True, timeout=10 * PATIENCE)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.no_server
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


@pytest.mark.no_server
def test_delay_beyond_an_hour_counts_as_an_hour(language: Language):
    going = going_away(reconnect_after=seconds(9_000_000_000_000))
    with ScriptedServer([subscribed(5, 10), going, GONE]) as server:
        follower = language.follow(server.address, "a.b")
        waited = float(follower.skip_to("reconnecting")["retry_in"].removesuffix("s"))
        assert 3600 <= waited <= 3601


@pytest.mark.no_server
def test_event_that_cannot_be_written_ends_the_subscriber(language: Language):
    with ScriptedServer([subscribed(5, 10), batch(0, 11)]) as server:
        assert language.write_to("/dev/full", server.address, "a.b") > 0


@pytest.mark.no_server
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


@pytest.mark.no_server
def test_event_beyond_the_default_limit_of_a_library_arrives(language: Language):
    with ScriptedServer([subscribed(5, 10), batch(0, 11, payload=b"x" * (5 << 20))]) as server:
        follower = language.follow(server.address, "a.b")
        assert len(follower.skip_to("event")["payload"]) == 5 << 20

"""The end of the server, and of a connection, among peers of every kind. Cases G01 to G05 of docs/security.md."""

from __future__ import annotations

import signal
import time

from frames import GOAWAY, INITIAL_WINDOW_SIZE, LARGEST_WINDOW, PING, PREFACE, SUBSCRIBE, message, window_update
from siege import audit, reason, subscribe_request
from support import fails_on_hyper, new_event, on_hyper

UNAVAILABLE = 14
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
# grpc.health.v1.HealthCheckResponse of SERVING, and of NOT_SERVING.
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"

# Enough for a debug build on a machine that runs other tests meanwhile.
SLACK_SECONDS = 4


def ask_to_end(siege) -> float:
    siege.server.signal(signal.SIGTERM)
    return time.monotonic()


def test_drain_tells_idle_streams_where_to_resume_and_turns_health(besiege):
    with besiege("--drain-timeout", "20s", ends_itself=True) as siege:
        peers = [siege.greeted((INITIAL_WINDOW_SIZE, 1 << 20)) for _ in range(5)]
        for peer in peers:
            # Also for the events that count subscriptions.
            peer.send(window_update(0, 1 << 24))
        streams = [(peer, peer.call(SUBSCRIBE, message(subscribe_request()))) for peer in peers for _ in range(100)]
        siege.await_subscriptions(len(streams))
        health = siege.greeted()
        watch = health.call(HEALTH_WATCH, message(b""))
        health.until(lambda: health.calls[watch].messages() == [SERVING], "SERVING")

        began = ask_to_end(siege)
        health.until(lambda: len(health.calls[watch].messages()) == 2, "a change of health")
        assert health.calls[watch].messages()[-1] == NOT_SERVING
        for peer, stream in streams:
            call = peer.wait(stream)
            assert call.status == UNAVAILABLE
            assert audit(subscribe_request(), call).going_away.resume_after.epoch != 0
        for peer in peers:
            assert peer.goaway is not None or peer.outcome() is not None
            peer.close()
        health.close()
        siege.server.stop()
        siege.note("drained", f"{len(streams)} streams in {time.monotonic() - began:.2f} s")


@fails_on_hyper("a status has to wait for a window there")
def test_drain_tells_streams_without_window_where_to_resume(besiege):
    with besiege("--drain-timeout", "20s", ends_itself=True) as siege:
        peer = siege.greeted((INITIAL_WINDOW_SIZE, 0))
        streams = [peer.call(SUBSCRIBE, message(subscribe_request())) for _ in range(10)]
        siege.await_subscriptions(len(streams))
        siege.client.publish(*[new_event("attack.load", bytes(1_000))] * 100)
        began = ask_to_end(siege)
        for stream in streams:
            call = peer.wait(stream)
            assert (call.status, reason(call)) == (UNAVAILABLE, "SHUTTING_DOWN")
            assert int(call.headers["tidegate-retry-after-ms"]) > 0
        assert peer.outcome() is not None
        peer.close()
        siege.server.stop()
        took = time.monotonic() - began
        siege.note("ended", f"{took:.2f} s after it was asked to")
        assert took < SLACK_SECONDS


def test_deaf_peers_delay_the_end_by_at_most_the_drain_timeout(besiege):
    patience = 2
    with besiege("--drain-timeout", f"{patience}s", ends_itself=True) as siege:
        # Peers without a window, without reading, without a preface, with half of one, and silent after it.
        stalled = siege.greeted((INITIAL_WINDOW_SIZE, 0))
        for _ in range(10):
            stalled.call(SUBSCRIBE, message(subscribe_request()))
        siege.await_subscriptions(10)
        for number in range(99):
            siege.peer([b"", PREFACE[:10], PREFACE][number % 3])

        began = ask_to_end(siege)
        siege.server.stop()
        took = time.monotonic() - began
        siege.note("ended", f"{took:.2f} s after it was asked to")
        assert took <= patience + SLACK_SECONDS
        # Their status needs no window, but on hyper.
        assert f"streams={10 if on_hyper else 0}\n" in siege.logged()


def test_aged_connection_sends_two_goaways_and_loses_nothing(besiege):
    with besiege("--connections-max-age", "1s", neighbor_resumes=True) as siege:
        request = subscribe_request()
        peer = siege.greeted((INITIAL_WINDOW_SIZE, 1 << 20))
        stream = peer.call(SUBSCRIBE, message(request))
        call = peer.wait(stream)
        assert call.status == UNAVAILABLE
        assert audit(request, call).going_away.resume_after.sequence > 0
        peer.outcome()
        farewell = [frame for frame in peer.frames if frame.kind == GOAWAY or (frame.kind == PING and not frame.flags)]
        kinds = [frame.kind for frame in farewell[-3:]]
        assert kinds == [GOAWAY, PING, GOAWAY], kinds
        first, last = farewell[-3], farewell[-1]
        # The server accepts calls that were under way until its last GOAWAY.
        assert (first.last_stream, first.error) == (LARGEST_WINDOW, 0)
        assert (last.last_stream, last.error) == (stream, 0)
        siege.neighbor.await_events(600)
        siege.note("resumed", f"{len(siege.neighbor.earlier)} times")
        assert siege.neighbor.earlier

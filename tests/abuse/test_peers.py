"""Peers that are slow, silent, or a flood. Cases B01 to B18 and E05 of docs/security.md."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time

import hpack
import pytest
from frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_WINDOW,
    PADDED,
    PATIENCE,
    PREFACE,
    PRIORITY,
    PUBLISH_STREAM,
    REFUSED_STREAM,
    SUBSCRIBE,
    Call,
    Gone,
    Peer,
    block,
    data,
    frame,
    header_block,
    literal,
    message,
    ping,
    request_headers,
    reset,
    settings,
    window_update,
)
from siege import apart, audit, publish_request, reason, subscribe_request
from support import new_event, on_hyper, pb

# Enough for a debug build on a machine that runs other tests meanwhile.
SLACK_SECONDS = 4

SUBSCRIBE_HEADERS = block(request_headers(SUBSCRIBE))
SUBSCRIBE_BODY = message(subscribe_request())


def subscribing(stream: int) -> bytes:
    """A complete call of `Subscribe`."""
    return frame(HEADERS, END_HEADERS, stream, SUBSCRIBE_HEADERS) + frame(DATA, END_STREAM, stream, SUBSCRIBE_BODY)


def await_ends(peers: list[Peer], patience: float) -> list[float]:
    """Returns, for each peer, the time from its connect to its end."""
    open_peers, ended = {peer.socket: peer for peer in peers}, []
    while open_peers:
        readable, _, _ = select.select(list(open_peers), [], [], patience)
        assert readable, f"{len(open_peers)} connections are still there"
        for ready in readable:
            peer = open_peers[ready]
            peer.receive()
            if peer.has_ended:
                del open_peers[ready]
                ended.append(time.monotonic() - peer.connected_at)
    return sorted(ended)


def test_silent_connection_is_closed_at_the_preface_deadline(besiege):
    with besiege("--http2-preface-timeout", "1s") as siege:
        peers = [siege.peer() for _ in range(500)]
        ended = await_ends(peers, 1 + SLACK_SECONDS)
        siege.note("closed", f"500, after {ended[0]:.2f} s to {ended[-1]:.2f} s")
        assert 1 <= ended[0] and ended[-1] <= 1 + SLACK_SECONDS


def test_trickled_preface_is_closed_at_the_preface_deadline(besiege):
    with besiege("--http2-preface-timeout", "1s") as siege:
        peer = siege.peer()
        for byte in PREFACE[:-1]:
            peer.send(bytes([byte]))
            readable, _, _ = select.select([peer.socket], [], [], 0.1)
            if readable:
                break
        peer.outcome()
        took = time.monotonic() - peer.connected_at
        siege.note("closed", f"{took:.2f} s")
        assert 1 <= took <= 1 + SLACK_SECONDS


def test_peer_silent_after_its_preface_is_closed_by_keep_alive(besiege):
    with besiege("--http2-keep-alive-interval", "500ms", "--http2-keep-alive-timeout", "500ms") as siege:
        peer = siege.peer(PREFACE)
        peer.acknowledges = False
        began = time.monotonic()
        peer.outcome()
        took = time.monotonic() - began
        siege.note("closed", f"{took:.2f} s")
        assert took <= 1 + SLACK_SECONDS


def test_oversized_headers_end_the_connection_or_the_call(besiege):
    encoder = hpack.Encoder()
    huffman = encoder.encode([(":method", "POST"), ("x-huffman", "~" * 20_000)], huffman=True)
    # One large entry in the table, and then a byte for each time it is named.
    bomb = SUBSCRIBE_HEADERS + b"\x40\x01x\x7f\xa1\x1e" + b"v" * 4_000 + b"\xbe" * 10_000
    floods = {
        "CONTINUATION without content": lambda: (
            frame(HEADERS, 0, 1, SUBSCRIBE_HEADERS) + frame(CONTINUATION, 0, 1) * 5_000
        ),
        "CONTINUATION of one byte": lambda: frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1, b"\0") * 5_000,
        "beyond the limit": lambda: header_block(1, block(request_headers(SUBSCRIBE, ("x-long", "v" * 17_000)))),
        "beyond four times the limit": lambda: header_block(
            1, block(request_headers(SUBSCRIBE, ("x-long", "v" * 70_000)))
        ),
        "24,577 names": lambda: header_block(
            1, block(request_headers(SUBSCRIBE, *((f"a{n}", "") for n in range(24_577))))
        ),
        "Huffman": lambda: header_block(1, huffman),
        "a table named often": lambda: header_block(1, bomb),
        "headers without names": lambda: header_block(1, SUBSCRIBE_HEADERS + literal(b"", b"") * 5_000),
    }
    with besiege() as siege:
        for name, flood in floods.items():
            busy = siege.cpu_seconds()
            peer = siege.greeted()
            call = peer.calls.setdefault(1, Call())
            peer.send(flood())
            try:
                peer.until(lambda: call.is_over or ":status" in call.headers, "the end of the call")
                is_refused = call.headers.get(":status") == "431" or call.headers.get("grpc-status") == "8"
                assert call.reset is not None or is_refused, f"{name}: {call}"
            except Gone:
                assert peer.goaway is None or peer.goaway.error != 0, name
            assert siege.cpu_seconds() - busy < 1 + SLACK_SECONDS / 2, name
        # A table in which each entry evicts the one before.
        peer = siege.greeted()
        busy = siege.cpu_seconds()
        thrash = b"\x20\x3f\xe1\x1f" + SUBSCRIBE_HEADERS + (b"\x40\x01x\x7f\xa1\x1e" + b"v" * 4_000) * 3
        for stream in range(1, 401, 2):
            peer.calls[stream] = Call()
            peer.send(header_block(stream, thrash))
        peer.wait(399)
        siege.note("200 thrashed tables", f"{siege.cpu_seconds() - busy:.2f} s of a processor")


# The faults that make the server reset a stream by itself: the six of MadeYouReset (CVE-2025-8671).
FAULTS = {
    "a window beyond the largest": lambda stream: window_update(stream, LARGEST_WINDOW),
    "an increment of 0": lambda stream: window_update(stream, 0),
    "HEADERS after the end": lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, SUBSCRIBE_HEADERS),
    "DATA after the end": lambda stream: frame(DATA, END_STREAM, stream, b"x"),
    "PRIORITY of a wrong length": lambda stream: frame(PRIORITY, 0, stream, bytes(4)),
    "a stream that depends on itself": lambda stream: frame(PRIORITY, 0, stream, struct.pack(">IB", stream, 1)),
}


def test_provoked_resets_end_the_connection(besiege):
    limit, batch = 1_024, 64
    with besiege() as siege:
        for name, fault in FAULTS.items():
            peer = siege.greeted()
            sent, began = 0, time.monotonic()

            def most(began=began) -> float:
                """The budget, which refills in 10 s, so that a slow machine takes more."""
                return limit * (1 + (time.monotonic() - began) / 10) + 2 * batch

            while not peer.has_ended and peer.goaway is None and sent < most():
                streams = [peer.stream() for _ in range(batch)]
                sent += batch
                peer.send(b"".join(subscribing(stream) + fault(stream) for stream in streams))
                peer.answers()
                # Reset the streams that the fault did not end, as an attacker would have to.
                left = [stream for stream in streams if not peer.calls[stream].is_over]
                peer.send(b"".join(reset(stream) for stream in left))
                if left == streams:
                    break
            siege.note(name, f"{sent} streams" + (", ended" if peer.goaway or peer.has_ended else ", no reset"))
            is_harmless = name == "a stream that depends on itself" and left == streams
            assert peer.goaway is not None or peer.has_ended or is_harmless, name
            assert sent <= most(), name
            peer.close()
            siege.await_subscriptions(0)


# The budget refills by 1,000 a second. A server that shares its processor with five others may take no more than that.
@pytest.mark.compared
def test_rapid_reset_ends_the_connection(besiege):
    with besiege() as siege:
        peer = siege.greeted()
        began = time.monotonic()
        peer.send(b"".join(subscribing(stream) + reset(stream) for stream in range(1, 160_000, 2)))
        goaway = peer.outcome()
        assert goaway is None or goaway.error == ENHANCE_YOUR_CALM
        siege.note("ended", f"after {time.monotonic() - began:.1f} s")
        siege.await_subscriptions(0)


def test_churn_leaves_nothing(besiege):
    with besiege() as siege:
        peers = [siege.greeted() for _ in range(20)]
        began, busy = time.monotonic(), siege.cpu_seconds()
        for _ in range(25):
            for peer in peers:
                streams = [peer.stream() for _ in range(10)]
                peer.send(b"".join(map(subscribing, streams)))
            for peer in peers:
                peer.until(lambda peer=peer: all(call.headers for call in list(peer.calls.values())[-10:]), "headers")
                peer.send(b"".join(reset(stream) for stream in list(peer.calls)[-10:]))
        took = time.monotonic() - began
        siege.note("5,000 came and went", f"{took:.2f} s, {siege.cpu_seconds() - busy:.2f} s of a processor")
        assert all(peer.answers() for peer in peers)
        siege.await_subscriptions(0)


def test_the_cap_on_streams_holds_exactly(besiege):
    cap = 50
    with besiege("--http2-max-concurrent-streams", str(cap)) as siege:
        peer = siege.greeted()
        streams = [peer.call(SUBSCRIBE, SUBSCRIBE_BODY) for _ in range(cap + 10)]
        for stream in streams[cap:]:
            assert peer.wait(stream).reset == REFUSED_STREAM
        siege.await_subscriptions(cap)
        # A stream that ends frees its slot for the next.
        peer.send(reset(streams[0]))
        siege.await_subscriptions(cap - 1)
        peer.call(SUBSCRIBE, SUBSCRIBE_BODY)
        siege.await_subscriptions(cap)
        assert not any(peer.calls[stream].is_over for stream in streams[1:cap])


def test_peers_that_stop_reading_hold_little_and_are_cut(besiege):
    connections, streams, patience = 5, 20, 2
    with besiege("--http2-write-timeout", f"{patience}s", "--history-bytes", "1MiB", "--http2-keep-alive-interval", "1h") as siege:
        request = subscribe_request()
        peers = []
        for _ in range(connections):
            peer = siege.greeted((INITIAL_WINDOW_SIZE, LARGEST_WINDOW), receive_buffer=4_096)
            peer.send(window_update(0, LARGEST_WINDOW - 65_535))
            for _ in range(streams):
                peer.call(SUBSCRIBE, message(request))
            peers.append(peer)
        siege.await_subscriptions(connections * streams)
        began = time.monotonic()
        matched = connections * streams
        while matched > 0:
            # From here on the peers do not read.
            matched = siege.client.publish(*[new_event("attack.load", bytes(16_000))] * 20).matched
            assert time.monotonic() - began < patience + 2 + SLACK_SECONDS, "they are still there"
        took = time.monotonic() - began
        siege.note("cut", f"{took:.2f} s after they stopped")
        each = siege.growth_kib // (connections * streams)
        siege.note("held", f"{each} KiB a stream at most")
        # The send buffer of a stream, a chunk, its share of the connection's buffer, and events up to the limits, which
        # all streams share.
        assert siege.growth_kib < connections * streams * (64 + 32) + (16 << 10)


def test_stream_without_window_is_parked_and_told_its_losses(besiege):
    with besiege() as siege:
        request = subscribe_request(limits=pb.Limits(max_events=100))
        peer = siege.greeted((INITIAL_WINDOW_SIZE, 0))
        stream = peer.call(SUBSCRIBE, message(request))
        siege.await_subscriptions(1)
        published = 1
        for _ in range(10):
            siege.client.publish(*[new_event("attack.load", bytes(1_000))] * 500)
            published += 500
        # A byte at a time, and pings answered meanwhile.
        for _ in range(300):
            peer.send(window_update(stream, 1))
        assert peer.answers()
        assert len(peer.calls[stream].data) == 300
        peer.send(window_update(0, 1 << 24) + window_update(stream, 1 << 24))
        siege.client.publish(new_event("attack.load", b"last"))
        published += 1
        peer.until(
            lambda: peer.calls[stream].data.endswith(b"last") or b"last" in peer.calls[stream].data[-200:],
            "the last event",
        )
        ledger = audit(request, peer.calls[stream])
        siege.note("gap", f"{ledger.missed} of {published} events")
        assert len(ledger.events) + ledger.missed == published
        assert len(ledger.gaps) == 1


def test_stream_without_window_is_ended_by_configuration(besiege):
    with besiege("--stall-timeout", "500ms", "--on-stall", "close") as siege:
        peer = siege.greeted((INITIAL_WINDOW_SIZE, 0))
        stream = peer.call(SUBSCRIBE, SUBSCRIBE_BODY)
        siege.await_subscriptions(1)
        began = time.monotonic()
        # It answers every ping meanwhile.
        call = peer.wait(stream)
        took = time.monotonic() - began
        siege.note("ended", f"{took:.2f} s after it began")
        if on_hyper:
            # The status waits for a window, in the 5 s of grace.
            assert call.reset is not None
            assert took < 0.5 + 5 + SLACK_SECONDS
        else:
            assert reason(call) == "STALLED"
            assert took < 0.5 + SLACK_SECONDS
        assert peer.answers()
        siege.await_subscriptions(0)


def test_control_frame_floods_cost_only_processor_time(besiege):
    count = 20_000
    kinds = {
        "PING": ping(),
        "SETTINGS": settings(),
        "PRIORITY": frame(PRIORITY, 0, 1, struct.pack(">IB", 3, 1)),
        "WINDOW_UPDATE": window_update(0, 1),
        "unknown": frame(0x99, 0, 0, b"whatever"),
    }
    with besiege() as siege:
        for name, content in kinds.items():
            peer = siege.greeted()
            busy, began = siege.cpu_seconds(), time.monotonic()
            peer.send(content * count)
            is_alive = peer.answers()
            used, took = siege.cpu_seconds() - busy, time.monotonic() - began
            siege.note(
                f"{count} {name}", f"{used:.2f} s of a processor in {took:.2f} s" + ("" if is_alive else ", cut")
            )
            peer.close()
        assert siege.growth_kib < 16 << 10


def test_empty_data_frames_end_the_connection(besiege):
    with besiege() as siege:
        peer = siege.greeted()
        stream = peer.call(PUBLISH_STREAM, ends=False)
        peer.send(frame(DATA, 0, stream) * 1_000)
        goaway = peer.outcome()
        assert goaway is None or goaway.error == ENHANCE_YOUR_CALM


def test_padding_is_returned_to_the_window(besiege):
    with besiege() as siege:
        peer = siege.greeted((INITIAL_WINDOW_SIZE, 1 << 24))
        stream = peer.call(PUBLISH_STREAM, ends=False)
        body = message(publish_request(new_event("attack.padded", bytes(20_000))))
        # 5 MiB, of which the server accepts 256 KiB on a stream before it updates the window.
        for start in range(0, len(body), 500):
            padded = [
                frame(DATA, PADDED, stream, b"\xff" + body[at : at + 1] + bytes(255))
                for at in range(start, min(start + 500, len(body)))
            ]
            peer.send(b"".join(padded))
            assert peer.answers()
            owed = sum(update.number() for update in peer.frames if update.kind == 8 and update.stream == stream)
            assert owed >= (start + 500) * 257 - (256 << 10) or start + 500 >= len(body)
        peer.until(lambda: len(peer.calls[stream].messages()) == 1, "the answer")
        assert pb.PublishResponse.FromString(peer.calls[stream].messages()[0]).count == 1


def test_honest_burst_of_small_frames_is_answered(besiege):
    count = 10_000
    with besiege() as siege:
        peer = siege.greeted((INITIAL_WINDOW_SIZE, 1 << 24))
        peer.send(window_update(0, 1 << 24))
        stream = peer.call(PUBLISH_STREAM, ends=False)
        request = message(publish_request(new_event("attack.tiny", b"thirty bytes")))
        began = time.monotonic()
        for _ in range(count // 500):
            peer.send(data(stream, request) * 500)
            # Not beyond the window of the stream.
            assert peer.answers(), peer.goaway
        peer.send(frame(DATA, END_STREAM, stream))
        call = peer.wait(stream)
        siege.note("answered", f"{len(call.messages())} in {time.monotonic() - began:.2f} s")
        assert len(call.messages()) == count
        assert call.status == 0


def test_fast_stream_among_a_hundred_slow_ones_gets_every_event(besiege):
    with besiege() as siege:
        peer = siege.greeted((INITIAL_WINDOW_SIZE, 0))
        peer.send(window_update(0, LARGEST_WINDOW - 65_535))
        for _ in range(100):
            peer.call(SUBSCRIBE, SUBSCRIBE_BODY)
        request = subscribe_request("attack.>", limits=pb.Limits(max_events=5_000))
        fast = peer.call(SUBSCRIBE, message(request))
        peer.send(window_update(fast, 1 << 24))
        siege.await_subscriptions(101)
        for number in range(20):
            siege.client.publish(*[new_event("attack.load", b"%d" % number)] * 100)
        siege.client.publish(new_event("attack.load", b"the last one"))
        peer.until(lambda: b"the last one" in peer.calls[fast].data[-200:], "the last event")
        ledger = audit(request, peer.calls[fast])
        assert not ledger.gaps
        assert sum(event.topic == "attack.load" for event in ledger.events) == 2_001


# A filter that drops every packet of a socket: BPF's "return 0".
SO_ATTACH_FILTER = 26


def fall_off_the_network(peer: Peer) -> None:
    """Cuts the peer off: packets of the server neither arrive nor are acknowledged, and the peer sends nothing."""
    import ctypes

    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    peer.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def test_replay_storm_is_served_and_spares_the_others(besiege):
    events, connections, streams, rounds = 400, 4, 10, 10
    payload = b"x" * 100
    with besiege() as siege:
        for _ in range(events // 200):
            published = siege.client.publish(*[new_event("attack.history", payload)] * 200)
        beginning = pb.Position(epoch=published.epoch, sequence=0)
        request = subscribe_request("attack.history", "attack.count", resume_after=beginning)
        cpu, began = siege.cpu_seconds(), time.monotonic()
        at_least = events * len(payload)
        replays = apart("replay", siege.address, request, connections, streams, rounds, at_least)
        siege.note("storm", f"{connections * streams * rounds} subscribers replayed {events} events each")
        siege.note("took", f"{time.monotonic() - began:.1f} s, {siege.cpu_seconds() - cpu:.2f} s of a processor")
    assert len(replays) == connections * streams * rounds
    for call in replays:
        ledger = audit(request, call)
        assert sum(event.topic == "attack.history" for event in ledger.events) == events
        assert not ledger.gaps


def test_tight_reconnect_loop_leaves_nothing_behind(besiege):
    loops, times, places = 4, 150, 2
    with besiege("--quotas-address-subscriptions", str(places)) as siege:
        held = siege.greeted(source="127.0.0.3")
        for _ in range(places):
            held.call(SUBSCRIBE, SUBSCRIBE_BODY)
        siege.await_subscriptions(places)
        begun, refused = [], []

        def reconnect(source: str) -> None:
            for i in range(times):
                peer = Peer(siege.address, source=source, says=PREFACE + settings())
                call = peer.calls[peer.call(SUBSCRIBE, SUBSCRIBE_BODY)]
                peer.until(lambda call=call: call.messages() or call.is_over, "an answer")
                (begun if call.messages() else refused).append(source)
                # Half of the clients close their streams, and half vanish.
                (peer.close if i % 2 else peer.abort)()

        cpu, began = siege.cpu_seconds(), time.monotonic()
        # Two loops from an address below its quota, and two from one above it, which are told when to come back.
        sources = ["127.0.0.2", "127.0.0.3"] * (loops // 2)
        threads = [threading.Thread(target=reconnect, args=[source]) for source in sources]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a loop stands still"
        took = time.monotonic() - began
        assert len(begun) + len(refused) == loops * times
        assert "127.0.0.3" not in begun and refused.count("127.0.0.3") == loops * times // 2
        assert "127.0.0.2" in begun
        siege.note("reconnects", f"{loops * times} in {took:.1f} s, {len(refused)} refused by the quota")
        siege.note("processor", f"{siege.cpu_seconds() - cpu:.2f} s")
        # The subscriptions within the quota go on.
        assert held.answers()
        siege.await_subscriptions(places)


def test_vanished_peer_is_detected(besiege):
    with besiege("--http2-keep-alive-interval", "1s", "--http2-keep-alive-timeout", "1s", "--http2-write-timeout", "10s") as siege:
        peers = [siege.greeted() for _ in range(20)]
        for peer in peers:
            peer.call(SUBSCRIBE, SUBSCRIBE_BODY)
        siege.await_subscriptions(20)
        began = time.monotonic()
        for peer in peers:
            fall_off_the_network(peer)
        siege.await_subscriptions(0)
        took = time.monotonic() - began
        siege.note("found dead", f"{took:.2f} s")
        assert took <= 1 + 1 + 1 + SLACK_SECONDS


def test_honest_cancels_do_not_end_a_long_lived_connection(besiege):
    count, batch = 3_000, 20
    with besiege() as siege:
        peer = siege.greeted()
        for _ in range(count // batch):
            streams = [peer.call(SUBSCRIBE, SUBSCRIBE_BODY) for _ in range(batch)]
            peer.until(lambda streams=streams: all(peer.calls[stream].data for stream in streams), "subscribed")
            peer.send(b"".join(reset(stream) for stream in streams))
            # Return the window that the first messages used.
            peer.send(window_update(0, sum(len(peer.calls.pop(stream).data) for stream in streams)))
        assert peer.answers()
        siege.await_subscriptions(0)


# What a connection to the HTTP listener says, and then no more.
STRANGERS = {
    "silent": b"",
    "in the middle of a header": b"GET /metrics HTTP/1.1\r\nHost: tidegate\r\nX-Slow: ",
    "kept after an answer": b"GET /healthz HTTP/1.1\r\nHost: tidegate\r\n\r\n",
}


def probe(address: tuple[str, int], path: str) -> float:
    """Asks for the health of the server on a connection of its own. Returns how long the answer took."""
    began = time.monotonic()
    with socket.create_connection(address, PATIENCE) as asking:
        asking.settimeout(PATIENCE)
        asking.sendall(f"GET {path} HTTP/1.1\r\nHost: tidegate\r\nConnection: close\r\n\r\n".encode())
        answer = asking.recv(4_096)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
    return time.monotonic() - began


def test_probe_is_answered_beside_connections_that_stay(besiege):
    count = 100
    with besiege("--http", "127.0.0.1:0") as siege:
        host, port = siege.server.http.removeprefix("http://").split(":")
        address = host, int(port)
        for name, says in STRANGERS.items():
            strangers = []
            for _ in range(count):
                strangers.append(socket.create_connection(address, PATIENCE))
                strangers[-1].sendall(says)
            took = [probe(address, path) for path in ("/healthz", "/readyz") * 3]
            for stranger in strangers:
                stranger.close()
            siege.note(name, f"{count} connections, a probe answered after {max(took):.2f} s at most")
            assert max(took) < 1, name

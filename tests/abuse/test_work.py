"""Legal requests that cost the server far more than their sender. Cases C01 to C09 of docs/security.md.

Each attack runs beside a neighbor whose p99 is compared with that of a neighbor of an unattacked server, so these tests
run one at a time. The figures at the end have every comparison."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
from frames import INITIAL_WINDOW_SIZE, PATIENCE, PUBLISH, SUBSCRIBE, Peer, message, reset, window_update
from siege import ATTACKER, Siege, apart, publish_request, reason
from support import new_event, pb

pytestmark = pytest.mark.compared

# Words without a meaning of their own. A topic of as many tokens as may be is one of these, and a last token.
PLAIN, TOKENS = "t", 32
DEEP = ".".join([PLAIN] * (TOKENS - 1))


def deep_filters(seed: int, branching: range) -> list[str]:
    """Returns 256 filters as deep as may be, none of which matches. They branch at eight depths into a star and the token
    of the topic, so that a search has to follow all of them; `seed` fixes the other depths, so that filters of different
    seeds share little."""
    filters = []
    for branch in range(256):
        tokens = [PLAIN if seed >> (depth % 16) & 1 else "*" for depth in range(TOKENS - 1)]
        for bit, depth in enumerate(branching):
            tokens[depth] = "*" if branch >> bit & 1 else PLAIN
        filters.append(".".join([*tokens, f"z{seed}x{branch}"]))
    return filters


def tails(seed: int) -> list[str]:
    """Returns filters that all match and do not cover one another: each has five stars of ten, and a tail."""
    rest = [PLAIN if seed >> bit & 1 else "*" for bit in range(16)]
    return [
        ".".join(["*" if depth in word else PLAIN for depth in range(10)] + rest + [">"])
        for word in itertools.combinations(range(10), 5)
    ]


SHAPES: dict[str, Callable[[int], list[str]]] = {
    "branches first": lambda seed: deep_filters(seed, range(8)),
    "branches last": lambda seed: deep_filters(seed, range(23, 31)),
    "branches at every fourth token": lambda seed: deep_filters(seed, range(0, 32, 4)),
    "tails that all match": tails,
    "literals below stars": lambda seed: [".".join(["*"] * 15 + [f"l{seed}x{number}"]) for number in range(256)],
    # Filters that overlap, of which the groups have to be found.
    "half tails": lambda seed: [f"{PLAIN}.*.{seed}x{number}.>" for number in range(256)]
    + [f"{PLAIN}.{seed}x{number}.*.x" for number in range(256)],
    # Each feed of these is one more that an event of the neighbor goes into.
    "groups of their own": lambda seed: ["neighbor.*", "*.events", f"*.own{seed}"],
}


def seeds() -> itertools.count:
    return itertools.count(1, 977)


def subscribing(filters: list[str], **fields) -> bytes:
    return message(pb.SubscribeRequest(filters=filters, **fields).SerializeToString())


def refusal(peer: Peer, request: bytes) -> str | None:
    """Subscribes, and returns the reason if that is refused."""
    call = peer.calls[peer.call(SUBSCRIBE, request)]
    peer.until(lambda: call.headers or call.is_over, "an answer")
    return reason(call) if call.is_over else None


def just_below_the_bound(siege: Siege, filters: list[str]) -> int:
    """Returns how many of these filters, from the first on, one subscription may have."""
    peer = siege.peer_of_attacker()
    accepted, refused = 0, len(filters) + 1
    while refused - accepted > 1:
        # All of them at first, which is right where there is no bound.
        tried = len(filters) if refused > len(filters) else (accepted + refused) // 2
        why = refusal(peer, subscribing(filters[:tried]))
        assert why in (None, "FILTERS_TOO_COSTLY"), why
        accepted, refused = (tried, refused) if why is None else (accepted, tried)
    peer.close()
    assert accepted > 0, "not one of the filters is accepted"
    return accepted


def dear(siege: Siege, shape: Callable[[int], list[str]], count: int, **fields) -> list[bytes]:
    """Returns that many requests, of different filters that cost as much as one subscription may."""
    most = just_below_the_bound(siege, shape(1))
    return [subscribing(shape(seed)[:most], **fields) for seed in itertools.islice(seeds(), count)]


def hold(peers: list[Peer], requests: list[bytes]) -> int:
    """Subscribes on the connections in turn, as far as the quotas allow. Returns the number of streams."""
    refusals = [refusal(peer, request) for peer, request in zip(itertools.cycle(peers), requests)]
    assert set(refusals) <= {None, "QUOTA_EXCEEDED"}, set(refusals)
    return refusals.count(None)


def publishing(topic: str, count: int, **fields) -> bytes:
    return message(publish_request(*(new_event(f"{topic}.e{number}", **fields) for number in range(count))))


def publish_from(peers: list[Peer], request: bytes, times: int = 1) -> None:
    """Publishes on all of the connections at once."""
    for _ in range(times):
        streams = [peer.call(PUBLISH, request) for peer in peers]
        for peer, stream in zip(peers, streams):
            assert peer.wait(stream).status == 0, peer.calls[stream]


def test_costly_filters_do_not_delay_publishers(besiege):
    with besiege(compares=True) as siege:
        publishers = [siege.peer_of_attacker() for _ in range(2)]
        for name, shape in SHAPES.items():
            peer = siege.peer_of_attacker()
            streams = hold([peer], dear(siege, shape, 256 if name == "groups of their own" else 16))
            request = publishing(DEEP, 500)
            siege.beside(f"{streams} streams, {name}", lambda: publish_from(publishers, request))
            # All at once, which frees what they hold.
            siege.beside(f"{name}, leaving", peer.close)


def test_costly_filters_on_many_connections_do_not_delay_publishers(besiege):
    shape = SHAPES["branches first"]
    with besiege(compares=True) as siege:
        publishers = [siege.peer_of_attacker() for _ in range(4)]
        peers = [siege.peer_of_attacker() for _ in range(16)]
        streams = hold(peers, dear(siege, shape, 80))
        request = publishing(DEEP, 250)
        siege.beside(f"{streams} streams", lambda: publish_from(publishers, request))


def test_filters_that_come_and_go_do_not_delay_publishers(besiege):
    with besiege(compares=True) as siege:
        for name in ("branches first", "literals below stars", "tails that all match", "half tails"):
            requests = dear(siege, SHAPES[name], 16)
            come: list[int] = []

            def storm() -> None:
                come.append(apart("come_and_go", siege.address, ATTACKER, requests, 4, 1.0))

            siege.beside(name, storm)
            siege.note(f"{name}, came and went", str(come[-1]))
            assert come[-1] > 16, "hardly anyone came"


def test_bursts_of_subscriptions_do_not_delay_publishers(besiege):
    with besiege(compares=True) as siege:
        for name in ("half tails", "literals below stars", "tails that all match"):
            requests = dear(siege, SHAPES[name], 48)

            def burst() -> None:
                # All of a connection's calls are there before it has answered one, so it can answer them in one turn.
                peers = [siege.peer_of_attacker() for _ in range(3)]
                calls = [peer.calls[peer.call(SUBSCRIBE, request)] for peer, request in zip(itertools.cycle(peers), requests)]
                for peer in peers:
                    peer.until(lambda: all(call.headers or call.is_over for call in peer.calls.values()), "all answers")
                refusals = [reason(call) for call in calls if call.is_over]
                assert set(refusals) <= {"QUOTA_EXCEEDED"}, set(refusals)
                for peer in peers:
                    peer.close()

            siege.beside(f"{len(requests)} at once, {name}", burst)


def test_costly_replays_do_not_delay_the_neighbor(besiege):
    # The work of 256 filters, or as much of it as is allowed.
    shape = SHAPES["branches first"]
    with besiege("--history-events", "10000", compares=True) as siege:
        publisher = siege.peer_of_attacker()
        for start in range(10):
            publish_from([publisher], publishing(f"{DEEP[:-2]}.{start}", 1_000))
        head = siege.client.publish(new_event("attack.none"))
        beginning = pb.Position(epoch=head.epoch, sequence=0)
        kinds = {"the last": {"replay_last": 1_000_000}, "after a position": {"resume_after": beginning}}
        arrangements = {"16 streams": (1, 16), "16 connections": (16, 1), "256 streams": (1, 256)}
        for (kind, fields), (arrangement, (connections, streams)) in itertools.product(
            kinds.items(), arrangements.items()
        ):
            requests = dear(siege, shape, 16, **fields)

            def replay() -> None:
                peers = [siege.peer_of_attacker() for _ in range(connections)]
                calls = [(peer, peer.call(SUBSCRIBE, requests[i % 16])) for i in range(streams) for peer in peers]
                time.sleep(1)
                for peer, stream in calls:
                    peer.send(reset(stream))
                for peer in peers:
                    peer.close()

            siege.beside(f"{kind}, {arrangement}", replay)


def test_conflating_65536_keys_does_not_delay_publishers(besiege):
    keys = 1 << 16
    with besiege("--memory-budget", "256MiB", compares=True) as siege:
        limits = pb.Limits(max_events=keys, max_bytes=64 << 20, overflow=pb.OVERFLOW_CONFLATE)
        # Also to what the neighbor publishes, so that it meets the lock of this feed.
        request = subscribing([">"], limits=limits)
        peers = [siege.peer_of_attacker((INITIAL_WINDOW_SIZE, 0)) for _ in range(4)]
        calls = [(peer, peer.call(SUBSCRIBE, request)) for peer in peers]
        publisher = siege.peer_of_attacker()
        for start in range(0, keys, 1_000):
            events = [new_event("attack.key", b"-", key=str(key)) for key in range(start, start + 1_000)]
            publish_from([publisher], message(publish_request(*events)))

        def drain() -> None:
            # About a thousand events at a time, to have many drains with most of the keys left.
            for _ in range(16):
                for peer, stream in calls:
                    peer.send(window_update(stream, 48 << 10) + window_update(0, 48 << 10))
                for peer, stream in calls:
                    assert peer.answers()

        siege.beside("4 drain", drain)
        siege.note("drained", f"{sum(len(peer.calls[stream].data) for peer, stream in calls) >> 10} KiB")
        siege.beside("leaving", lambda: [peer.close() for peer in peers])


def test_large_keys_do_not_delay_publishers(besiege):
    size, feeds = 1_000_000, 64
    with besiege("--memory-budget", "256MiB", "--history-events", "0", compares=True) as siege:
        peer = siege.peer_of_attacker((INITIAL_WINDOW_SIZE, 0))
        limits = pb.Limits(overflow=pb.OVERFLOW_CONFLATE)
        # All of them match, each has a feed of its own.
        words = [word for word in itertools.product(("*", "attack"), repeat=6)][:feeds]
        for word in words:
            assert refusal(peer, subscribing([".".join(word)], limits=limits)) is None
        request = message(publish_request(new_event(".".join(["attack"] * 6), key="k" * size)))

        def publish() -> None:
            for _ in range(3):
                publisher = siege.peer_of_attacker()
                stream = publisher.call(PUBLISH, ends=False)
                publisher.send_paced(stream, request, ends=True)
                assert publisher.wait(stream).status == 0
                publisher.close()

        siege.beside(f"keys of {size} B in {len(words)} feeds", publish)


def test_quotas_on_filters_do_not_delay_others(besiege):
    with besiege(
        "--quotas-address-filters", "1000000", "--quotas-address-publish-events", "100000", compares=True
    ) as siege:
        filters = [f"attack.{number}" for number in range(1_024)]
        holder = siege.peer_of_attacker()
        held = hold([holder], [subscribing([f"{one}.s{number}" for one in filters]) for number in range(16)])
        requests = [subscribing([f"{one}.r{number}" for one in filters[:256]]) for number in range(8)]
        came: list[int] = []
        siege.beside(
            f"{held} x 1,024 filters, others come and go with 256",
            lambda: came.append(apart("come_and_go", siege.address, ATTACKER, requests, 4, 1.0)),
        )
        siege.note("came and went", str(came[-1]))


def test_connection_storm_does_not_delay_a_newcomer_or_the_neighbor(besiege):
    with open("/proc/sys/net/core/somaxconn") as limit:
        count = min(3_000, int(limit.read()))
    # The allocator keeps the pages of connections that have gone, of which an idle one has 26 KiB.
    with besiege(compares=True, memory_slack_kib=3_000 * 26) as siege:
        took: list[tuple[float, float]] = []

        def storm() -> None:
            took.append(apart("connect", siege.address, ATTACKER, count))

        # The neighbor has its share of the processors, beside as many handshakes.
        siege.beside(f"{count} connects", storm)
        longest, everything = min(took)
        siege.note("connected", f"the last after {longest:.2f} s, answered after {everything:.2f} s")
        # The kernel drops what does not fit into the queue, and a client tries again after a second.
        assert longest < 0.9, took
        assert everything < 3, took


def test_takeover_of_a_dead_stream_needs_no_further_place(besiege):
    with besiege("--quotas-address-subscriptions", "2") as siege:
        old = siege.greeted(source=ATTACKER)
        assert refusal(old, subscribing(["attack.a"], client_id="one")) is None
        assert refusal(old, subscribing(["attack.a"], client_id="other")) is None
        new = siege.greeted(source=ATTACKER)
        # Both places are taken, and one is that of the stream that ends by this.
        assert refusal(new, subscribing(["attack.a"], client_id="one")) is None
        assert refusal(new, subscribing(["attack.a"], client_id="third")) == "QUOTA_EXCEEDED"
        siege.eventually(lambda: siege.client.publish(new_event("attack.a")).matched == 2, "the end of the old stream")
        old.close()
        new.close()
        siege.eventually(lambda: siege.client.publish(new_event("attack.a")).matched == 0, "no streams")

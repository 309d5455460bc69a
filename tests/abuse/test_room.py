"""Limits on connections and streams. Cases E02 and E04 of docs/security.md; its other cases of E are Rust tests."""

from __future__ import annotations

from frames import SUBSCRIBE, message
from siege import subscribe_request


def test_connection_flood_from_one_address_spares_the_others(besiege):
    with besiege("--connections-max-per-address", "20") as siege:
        held = [siege.greeted(source="127.0.0.2") for _ in range(20)]
        refused = 0
        for _ in range(500):
            try:
                peer = siege.peer(source="127.0.0.2")
                peer.outcome()
            except ConnectionError:
                pass
            refused += 1
        siege.note("refused", str(refused))
        assert all(peer.answers() for peer in held)
        # A peer from another address.
        assert siege.greeted(source="127.0.0.3").answers()


def test_full_connection_is_refused_calls_and_others_are_served(besiege):
    with besiege("--http2-max-concurrent-streams", "10") as siege:
        greedy = siege.greeted()
        for _ in range(100):
            greedy.call(SUBSCRIBE, message(subscribe_request()))
        siege.await_subscriptions(10)
        other = siege.greeted()
        other.call(SUBSCRIBE, message(subscribe_request()))
        siege.await_subscriptions(11)

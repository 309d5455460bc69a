"""A storm of subscribers that all replay at once, in a process of its own: reading so much must not delay the neighbor,
which is a thread of the test's process."""

from __future__ import annotations

import pickle
import sys

from frames import INITIAL_WINDOW_SIZE, SUBSCRIBE, Call, Peer, message, reset, window_update

# The first byte of a response that is `caught_up`: the number of its field, 5, and its wire type, which has a length.
CAUGHT_UP = 5 << 3 | 2


def has_caught_up(call: Call, at_least: int) -> bool:
    latest = call.messages()[-2:] if len(call.data) >= at_least else ()
    return any(response[0] == CAUGHT_UP for response in latest)


def storm(address: str, request: bytes, connections: int, streams: int, rounds: int, at_least: int) -> list[Call]:
    """In each round, makes `streams` calls on each of `connections` connections at once, and waits until each call has
    caught up, with at least `at_least` bytes. Returns the calls."""
    peers = [Peer.greeted(address, (INITIAL_WINDOW_SIZE, 1 << 24)) for _ in range(connections)]
    replays = []
    for _ in range(rounds):
        calls = [(peer, peer.call(SUBSCRIBE, message(request))) for peer in peers for _ in range(streams)]
        for peer in peers:
            peer.send(window_update(0, 1 << 26))
        for peer, stream in calls:
            call = peer.calls[stream]
            peer.until(lambda call=call: has_caught_up(call, at_least) or call.is_over, "the end of the replay")
            replays.append(call)
            peer.send(reset(stream))
    for peer in peers:
        assert peer.answers()
        peer.close()
    return replays


if __name__ == "__main__":
    pickle.dump(storm(*pickle.load(sys.stdin.buffer)), sys.stdout.buffer)

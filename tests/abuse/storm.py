"""Subscribers who all replay at once, in a process of its own: who reads so much must not hold up the neighbor, which
lives in the process of the test."""

from __future__ import annotations

import pickle
import sys

from frames import INITIAL_WINDOW_SIZE, SUBSCRIBE, Call, Peer, message, reset, window_update

# What a response that is `caught_up` begins with: its field, which is 5, and that it has a length.
CAUGHT_UP = 5 << 3 | 2


def has_caught_up(call: Call, at_least: int) -> bool:
    latest = call.messages()[-2:] if len(call.data) >= at_least else ()
    return any(response[0] == CAUGHT_UP for response in latest)


def storm(address: str, request: bytes, connections: int, streams: int, rounds: int, at_least: int) -> list[Call]:
    """As many calls on each connection, all at once, until each has caught up, which takes so many bytes at least; and
    again. Returns what came."""
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

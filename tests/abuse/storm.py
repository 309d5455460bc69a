"""Storms in a process of their own: so much work must not delay the neighbor, which is a thread of the test's process."""

from __future__ import annotations

import errno
import pickle
import select
import socket
import sys
import time

from frames import INITIAL_WINDOW_SIZE, PATIENCE, PREFACE, SUBSCRIBE, Call, Peer, message, reset, settings, window_update

# The first byte of a response that is `caught_up`: the number of its field, 5, and its wire type, which has a length.
CAUGHT_UP = 5 << 3 | 2


def has_caught_up(call: Call, at_least: int) -> bool:
    latest = call.messages()[-2:] if len(call.data) >= at_least else ()
    return any(response[0] == CAUGHT_UP for response in latest)


def replay(address: str, request: bytes, connections: int, streams: int, rounds: int, at_least: int) -> list[Call]:
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


def come_and_go(address: str, source: str, requests: list[bytes], connections: int, seconds: float) -> int:
    """Subscribes on each connection and leaves at once, for so long. Returns how often."""
    peers = [Peer.greeted(address, source=source) for _ in range(connections)]
    came, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        calls = [(peer, peer.call(SUBSCRIBE, requests[(came + at) % len(requests)])) for at, peer in enumerate(peers)]
        for peer, stream in calls:
            call = peer.calls[stream]
            peer.until(lambda call=call: call.headers or call.is_over, "an answer")
            if not call.is_over:
                peer.send(reset(stream))
                came += 1
            # The window of the connection, which its first message uses.
            peer.send(window_update(0, 1_024))
    for peer in peers:
        peer.close()
    return came


def connect(address: str, source: str, count: int) -> tuple[float, float]:
    """Connects so often at once. Returns when the last connection was there, and when the server had greeted on all."""
    host, port = address.split(":")
    watching = select.epoll()
    sockets: dict[int, socket.socket] = {}
    began = time.monotonic()
    for _ in range(count):
        one = socket.socket()
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT, for the port is chosen when it connects
        one.bind((source, 0))
        assert one.connect_ex((host, int(port))) in (0, errno.EINPROGRESS)
        sockets[one.fileno()] = one
        watching.register(one, select.EPOLLOUT)
    connected = 0.0
    awaited = count
    while awaited:
        events = watching.poll(PATIENCE)
        assert events, f"{awaited} connections of {count} had no answer"
        for descriptor, event in events:
            one = sockets[descriptor]
            if event & select.EPOLLOUT:
                connected = time.monotonic() - began
                one.send(PREFACE + settings())
                watching.modify(one, select.EPOLLIN)
            else:
                assert one.recv(4_096), "the server has closed a connection"
                watching.unregister(one)
                awaited -= 1
    answered = time.monotonic() - began
    for one in sockets.values():
        one.close()
    return connected, answered


if __name__ == "__main__":
    name, arguments = pickle.load(sys.stdin.buffer)
    pickle.dump({"replay": replay, "come_and_go": come_and_go, "connect": connect}[name](*arguments), sys.stdout.buffer)

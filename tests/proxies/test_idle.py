"""Streams through nginx, HAProxy and Envoy on which nothing happens for longer than a minute, the most usual limit of proxies."""

from __future__ import annotations

import queue
import shutil
import time
from contextlib import ExitStack

import grpc
import pytest
from proxies import KINDS, Backend, Nginx, Proxy, ProxyClient
from support import PATIENCE, new_event, payloads, pb
from test_through import requests

IDLE = 70

# nginx with its own limits of a minute. The server's pings, every 30 s, would hide them.
DEFAULTS = {
    "client_body_timeout 1h;": "",
    "grpc_read_timeout 65m;": "",
    "grpc_send_timeout 65m;": "",
}


class Conversation:
    """A subscription and a publish stream, each open while nothing happens."""

    def __init__(self, client: ProxyClient) -> None:
        self.stream = client.subscribe("a", timeout=IDLE + PATIENCE)
        self.outgoing: queue.Queue = queue.Queue()
        self.answers = client.stub.PublishStream(requests(self.outgoing), timeout=IDLE + PATIENCE)
        self.speak(b"before")

    def speak(self, payload: bytes) -> None:
        self.outgoing.put(pb.PublishRequest(events=[new_event("a", payload)]))
        assert next(self.answers).count == 1
        assert payload in payloads(self.stream.take_through(payload))


@pytest.mark.slow
def test_streams_that_are_silent_for_more_than_a_minute_stay_open(binary, certificate, tmp_path):
    missing = [kind.PROGRAM for kind in KINDS.values() if shutil.which(kind.PROGRAM) is None]
    if missing:
        pytest.skip(f"{missing} are missing: scripts/test gets them")
    with ExitStack() as stack:
        backend = stack.enter_context(Backend(binary, "--http2-keep-alive-interval", "10m"))

        def converse(name: str, kind: type[Proxy], **changes: str) -> Conversation:
            (tmp_path / name).mkdir()
            proxy = stack.enter_context(kind(tmp_path / name, certificate, backend, **changes))
            return Conversation(stack.enter_context(ProxyClient(proxy, certificate)))

        # All at once, so that all wait for the same minute.
        conversations = [converse(name, kind) for name, kind in KINDS.items()]
        broken = converse("defaults", Nginx, **DEFAULTS)

        time.sleep(IDLE)

        for number, conversation in enumerate(conversations):
            conversation.speak(b"after %d" % number)
            # Heartbeats came meanwhile, every 15 s.
            assert len(conversation.stream.ledger.heartbeats) >= 3
        # This is what the settings in packaging/nginx are for.
        with pytest.raises((grpc.RpcError, StopIteration)):
            broken.speak(b"after")
        for conversation in (*conversations, broken):
            conversation.outgoing.put(None)

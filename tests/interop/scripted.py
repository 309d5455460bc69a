"""A server that plays what a test tells it to, for what a real one does seldom or never."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass

import grpc
from support import PATIENCE
from tidegate.v1 import event_service_pb2 as pb
from tidegate.v1.event_service_pb2_grpc import EventServiceServicer, add_EventServiceServicer_to_server


@dataclass(frozen=True)
class Ending:
    """The status that ends a stream, with its plain trailers. OK stands for something between that is no Tidegate server."""

    code: grpc.StatusCode
    reason: str = ""
    # Milliseconds, or whatever stands in their place.
    retry_after_ms: str | None = None

    def apply(self, context: grpc.ServicerContext) -> None:
        trailers = {"tidegate-reason": self.reason or None, "tidegate-retry-after-ms": self.retry_after_ms}
        context.set_trailing_metadata([(name, value) for name, value in trailers.items() if value is not None])
        if self.code != grpc.StatusCode.OK:
            context.abort(self.code, "as the script says")


@dataclass(frozen=True)
class Call:
    """A call as it arrived."""

    request: pb.SubscribeRequest
    metadata: dict[str, str]
    at: float


# A stream is a list of responses, of endings, and of events of a test, which hold it until they are set. One that has no
# ending stays open until the client leaves.
Step = pb.SubscribeResponse | Ending | threading.Event


class ScriptedServer(EventServiceServicer):
    """Plays one stream after the other. A call beyond the last of them stays open, and says nothing."""

    def __init__(self, *streams: list[Step]) -> None:
        self._calls: queue.Queue[Call] = queue.Queue()
        self._streams = list(streams)
        self._left: queue.Queue[None] = queue.Queue()
        self._stopped = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)]
        )
        add_EventServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.url = f"http://{self.address}"
        self._server.start()

    def Subscribe(self, request: pb.SubscribeRequest, context: grpc.ServicerContext) -> Iterator[pb.SubscribeResponse]:
        steps = self._streams.pop(0) if self._streams else []
        self._calls.put(Call(request, dict(context.invocation_metadata()), time.monotonic()))
        left = threading.Event()

        def leave() -> None:
            left.set()
            self._left.put(None)

        context.add_callback(leave)
        for step in steps:
            match step:
                case Ending():
                    step.apply(context)
                    return
                case threading.Event():
                    step.wait(PATIENCE)
                case _:
                    yield step
        while not (left.wait(0.05) or self._stopped.is_set()):
            pass

    def call(self) -> Call:
        """Awaits the next call."""
        return self._calls.get(timeout=PATIENCE)

    def has_no_call(self) -> bool:
        return self._calls.empty()

    def await_end(self, timeout: float = PATIENCE) -> bool:
        """Awaits the end of a stream, and returns whether it came."""
        try:
            self._left.get(timeout=timeout)
        except queue.Empty:
            return False
        return True

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.stop(None).wait(PATIENCE)


def subscribed(epoch: int, sequence: int, client_id: str = "ann") -> pb.SubscribeResponse:
    return pb.SubscribeResponse(
        subscribed=pb.Subscribed(
            client_id=client_id,
            subscription_id="s1",
            position=pb.Position(epoch=epoch, sequence=sequence),
            limits=pb.Limits(max_events=1024, max_bytes=1 << 20, overflow=pb.OVERFLOW_DROP_OLDEST),
        )
    )


def batch(first_index: int, *sequences: int, payload: bytes = b"x") -> pb.SubscribeResponse:
    events = [pb.Event(sequence=sequence, topic="a.b", payload=payload) for sequence in sequences]
    for event in events:
        event.time.GetCurrentTime()
    return pb.SubscribeResponse(batch=pb.Batch(events=events, first_index=first_index))


def heartbeat(position: pb.Position | None = None) -> pb.SubscribeResponse:
    return pb.SubscribeResponse(heartbeat=pb.Heartbeat(position=position))


def going_away(**fields: object) -> pb.SubscribeResponse:
    return pb.SubscribeResponse(going_away=pb.GoingAway(**fields))

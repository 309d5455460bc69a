"""Prints the events of a Tidegate server, and resumes after every interruption.

    python subscribe.py 'orders.>'
"""

import argparse
import random
import time

import grpc
from tidegate.v1 import event_service_pb2 as pb
from tidegate.v1.event_service_pb2_grpc import EventServiceStub

# A broken connection, a server that restarts, a stream that was reset or not read for too long, or a quota: reconnect and
# resume.
RETRY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}

# Detects within 40 seconds that the server has vanished without closing the connection.
KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]


class Cursor:
    """The position to resume after: everything up to it was handled, or counted by a gap."""

    def __init__(self):
        # None until the first stream has begun.
        self.position = None
        self._epoch = 0

    def advance(self, response):
        match response.WhichOneof("response"):
            case "subscribed":
                self._epoch = response.subscribed.position.epoch
                # After a reconnect, the old position is still the one to resume after.
                self.position = self.position or response.subscribed.position
            case "batch":
                self._move_to(response.batch.events[-1].sequence)
            # Conflated events lie between the events that survived, which are still to come.
            case "gap" if response.gap.reason != pb.GAP_REASON_CONFLATED:
                self._move_to(response.gap.last_sequence)
            case "heartbeat" if response.heartbeat.HasField("position"):
                self.position = response.heartbeat.position
            case "caught_up":
                self.position = response.caught_up.position
            # Not set while nothing was settled.
            case "going_away" if response.going_away.HasField("resume_after"):
                self.position = response.going_away.resume_after

    def _move_to(self, sequence):
        self.position = pb.Position(epoch=self._epoch, sequence=sequence)


def show(response):
    match response.WhichOneof("response"):
        case "subscribed":
            print(f"-- subscribed as {response.subscribed.client_id}")
        case "batch":
            for event in response.batch.events:
                print(f"{event.sequence} {event.topic} {event.payload.decode(errors='replace')}")
        case "gap":
            gap = response.gap
            # A newer server may have a reason that this program does not know, which is a loss all the same.
            known = gap.reason in pb.GapReason.values()
            reason = pb.GapReason.Name(gap.reason) if known else f"reason {gap.reason}"
            print(f"-- GAP: {gap.count or 'an unknown number of'} events missing, {reason}")
        case "caught_up":
            print("-- caught up, live from here")
        case "going_away":
            print(f"-- the server is going away: {response.going_away.reason}")


def follow(stub, filters):
    cursor = Cursor()
    failures = 0
    while True:
        pause = 0.0
        request = pb.SubscribeRequest(filters=filters, resume_after=cursor.position)
        try:
            for response in stub.Subscribe(request, wait_for_ready=True):
                # Handle the response first, then advance: if handling fails, its events come again.
                show(response)
                cursor.advance(response)
                kind = response.WhichOneof("response")
                if kind in ("batch", "heartbeat"):
                    failures = 0
                elif kind == "going_away":
                    pause = response.going_away.reconnect_after.ToTimedelta().total_seconds()
        except grpc.RpcError as error:
            print(f"-- {error.code().name}: {error.details()}")
            if error.code() == grpc.StatusCode.OUT_OF_RANGE:
                # The position is ahead of this server, which has lost events: begin anew.
                cursor = Cursor()
            elif error.code() not in RETRY:
                raise
        # Full jitter, so that many clients do not reconnect at the same moment.
        time.sleep(pause + random.uniform(0, min(30, 0.25 * 2**failures)))
        failures = min(failures + 1, 10)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("filters", nargs="+", metavar="FILTER", help="a topic, or a pattern with * and >")
    arguments.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT")
    options = arguments.parse_args()

    with grpc.insecure_channel(options.server, KEEPALIVE) as channel:
        follow(EventServiceStub(channel), options.filters)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass

"""Prints the events of a Tidegate server, and resumes after every interruption.

    python subscribe.py 'orders.>'
"""

import argparse
import base64
import json
import random
import sys
import threading
import time

import grpc
from google.protobuf.duration_pb2 import Duration
from status import Status, Step
from tidegate.v1 import event_service_pb2 as pb
from tidegate.v1.event_service_pb2_grpc import EventServiceStub

CHANNEL = [
    # Detects within 40 seconds that the server has vanished without closing the connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # An event may be as large as the server allows. By default gRPC refuses one above 4 MiB, and it would come again.
    ("grpc.max_receive_message_length", -1),
]

# gRPC hands over whole messages and not their bytes, so a large event over a slow link looks like silence for this long.
LARGEST_EVENT_SECONDS = 5


class BrokenProtocol(Exception):
    """The server's counts do not add up: events may be missing without a gap."""


class Cursor:
    """The position to resume after: everything up to it was handled, or counted by a gap."""

    def __init__(self, position=None, starts_live=True):
        # None until something is settled: then the original request is repeated.
        self.position = position
        self._starts_live = starts_live
        self._epoch = 0
        self._next_index = 0

    def check(self, response):
        """Call it before the response is handled: every index must continue the one before."""
        match response.WhichOneof("response"):
            case "subscribed":
                self._next_index = response.subscribed.next_index
            case "batch":
                self._count(response.batch.first_index, len(response.batch.events))
            # An unknown count takes no index.
            case "gap" if response.gap.count:
                self._count(response.gap.first_index, response.gap.count)

    def advance(self, response):
        """Call it after the response was handled: if that fails, its events come again."""
        match response.WhichOneof("response"):
            case "subscribed":
                self._epoch = response.subscribed.position.epoch
                # With a replay, the events up to the head are still to come.
                if self.position is None and self._starts_live:
                    self.position = response.subscribed.position
            case "batch":
                self._move_to(response.batch.events[-1].sequence)
            # The events that survived are still to come, in the batch that follows.
            case "gap" if response.gap.reason != pb.GAP_REASON_CONFLATED:
                self._move_to(response.gap.last_sequence)
            case "caught_up":
                self._settle(response.caught_up.position)
            case "heartbeat" if response.heartbeat.HasField("position"):
                self._settle_further(response.heartbeat.position)
            case "going_away" if response.going_away.HasField("resume_after"):
                self._settle_further(response.going_away.resume_after)

    def _count(self, first_index, count):
        if first_index != self._next_index:
            raise BrokenProtocol(f"index {self._next_index} must come next, but {first_index} came")
        self._next_index += count

    def _move_to(self, sequence):
        self._settle(pb.Position(epoch=self._epoch, sequence=sequence))

    def _settle_further(self, position):
        # While nothing is settled, or in another epoch, such a position leads past events that are still to come.
        if self.position is not None and position.epoch == self.position.epoch:
            self._settle(position)

    def _settle(self, position):
        is_older = self.position is not None and position.epoch == self.position.epoch
        if not (is_older and position.sequence < self.position.sequence):
            self.position = position


# ===== Output =====


def show(response):
    match response.WhichOneof("response"):
        case "subscribed":
            print(f"-- subscribed as {response.subscribed.client_id}")
        case "batch":
            for event in response.batch.events:
                print(f"{event.sequence} {event.topic} {event.payload.decode(errors='replace')}")
        case "gap":
            print(f"-- GAP: {response.gap.count or 'an unknown number of'} events missing, {gap_reason(response.gap)}")
        case "caught_up":
            print("-- caught up, live from here")
        case "going_away":
            print(f"-- the server is going away: {response.going_away.reason}")


def show_json(response):
    """Prints lines like those of `tidegate sub --output json`."""
    match response.WhichOneof("response"):
        case "subscribed":
            print_json("subscribed", client_id=response.subscribed.client_id)
        case "batch":
            for event in response.batch.events:
                line = {"sequence": event.sequence, "topic": event.topic, **payload(event.payload)}
                if event.key:
                    line["key"] = event.key
                if event.attributes:
                    line["attributes"] = dict(event.attributes)
                print_json("event", **line)
        case "gap":
            gap = response.gap
            bounds = {"first_sequence": gap.first_sequence, "last_sequence": gap.last_sequence}
            print_json("gap", **bounds, count=gap.count, reason=gap_reason(gap))
        case "caught_up":
            print_json("caught_up", position=written(response.caught_up.position))
        case "going_away":
            print_json("going_away", reason=response.going_away.reason)


def print_json(kind, **fields):
    print(json.dumps({"type": kind, **fields}), flush=True)


def payload(content):
    try:
        return {"payload": content.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(content).decode()}


def gap_reason(gap):
    # A newer server may have a reason that this program does not know, which is a loss all the same.
    known = gap.reason in pb.GapReason.values()
    return pb.GapReason.Name(gap.reason).removeprefix("GAP_REASON_").lower() if known else f"unknown_{gap.reason}"


def written(position):
    return f"{position.epoch:016x}:{position.sequence}"


def report(status, pause, output):
    if output == "json":
        print_json("reconnecting", code=status.code.name, message=status.message, retry_in=f"{pause:.3f}s")
    else:
        print(f"-- {status}; next attempt in {pause:.1f} s")


# ===== The subscription =====


def follow(stub, options):
    """Subscribes until the server says to stop, and returns why."""
    cursor = Cursor(options.resume, starts_live=not options.replay)
    client_id = options.client_id
    show_line = show_json if options.output == "json" else show
    failures = 0
    while True:
        request = pb.SubscribeRequest(
            filters=options.filters,
            client_id=client_id,
            resume_after=cursor.position,
            # Not with a position. A replay that settled nothing is asked for again.
            replay_last=0 if cursor.position else options.replay,
            heartbeat_interval=Duration(seconds=options.heartbeat),
        )
        began = False
        going_away = 0.0
        call = stub.Subscribe(request, wait_for_ready=True, metadata=credentials(options.token_file))
        try:
            for response in unless_silent(call, 3 * options.heartbeat + LARGEST_EVENT_SECONDS):
                cursor.check(response)
                show_line(response)
                cursor.advance(response)
                match response.WhichOneof("response"):
                    case "subscribed":
                        began = True
                        # An id that the server made stays the same, so that events for this client still reach it.
                        client_id = response.subscribed.client_id
                    case "batch" | "gap" | "heartbeat":
                        failures = 0
                    case "going_away":
                        going_away = response.going_away.reconnect_after.ToTimedelta().total_seconds()
            # OK comes from something that is not a Tidegate server.
            status = Status(EndedWithOk())
        except grpc.RpcError as error:
            status = Status(error)

        if status.step is Step.STOP or (status.step is Step.RENEW and not began):
            return status
        if status.step is Step.ANEW:
            # The server has lost events: begin anew, from now on. State that was built from events must be loaded again.
            cursor = Cursor()
        # Full jitter on top of what the server asks for, so that many clients do not come back at the same moment.
        pause = max(going_away, status.delay) + random.uniform(0, min(30, 0.25 * 2**failures))
        failures = min(failures + 1, 10)
        report(status, pause, options.output)
        time.sleep(pause)


class EndedWithOk(grpc.RpcError):
    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "the stream ended without a reason"

    def trailing_metadata(self):
        return ()


def credentials(token_file):
    """The metadata of a call. The file is read for each, since whoever renews the token writes it there."""
    if not token_file:
        return None
    try:
        with open(token_file) as file:
            return [("authorization", f"Bearer {file.read().strip()}")]
    except (OSError, UnicodeError) as error:
        sys.exit(f"the token file {token_file} cannot be read: {error}")


def unless_silent(call, limit):
    """The responses of a call, which is cancelled when none comes for so many seconds. The time in which one is handled,
    as when nobody reads the output, does not count."""
    heard = threading.Event()
    is_handling = False

    def watch():
        while (heard.wait(limit) or is_handling) and call.is_active():
            heard.clear()
        call.cancel()

    threading.Thread(target=watch, daemon=True).start()
    try:
        for response in call:
            is_handling = True
            yield response
            # First, so that the time begins anew before it counts.
            heard.set()
            is_handling = False
    finally:
        heard.set()


def position(text):
    epoch, sequence = text.split(":")
    return pb.Position(epoch=int(epoch, 16), sequence=int(sequence))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("filters", nargs="+", metavar="FILTER", help="a topic, or a pattern with * and >")
    arguments.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT")
    arguments.add_argument("--client-id", default="", metavar="ID", help="by default the server makes one")
    arguments.add_argument("--replay", type=int, default=0, metavar="N", help="the newest N events of history first")
    arguments.add_argument("--resume", type=position, metavar="EPOCH:SEQUENCE", help="what came after this position first")
    arguments.add_argument("--heartbeat", type=lambda text: int(text.removesuffix("s")), default=15, metavar="SECONDS")
    arguments.add_argument("--token-file", metavar="FILE", help="a bearer token, read again for each call")
    arguments.add_argument("--output", choices=("text", "json"), default="text")
    options = arguments.parse_args()

    # With TLS, as a token needs it: grpc.secure_channel(server, grpc.ssl_channel_credentials(), CHANNEL).
    with grpc.insecure_channel(options.server.removeprefix("http://"), CHANNEL) as channel:
        try:
            sys.exit(str(follow(EventServiceStub(channel), options)))
        except BrokenProtocol as error:
            sys.exit(f"the server broke the protocol: {error}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass

"""Publishes one batch of events to a Tidegate server.

    python publish.py orders.eu.created 'first' 'second'
"""

import argparse
import sys
import time

import grpc
from status import Status
from tidegate.v1 import event_service_pb2 as pb
from tidegate.v1.event_service_pb2_grpc import EventServiceStub


def publish(stub, events):
    while True:
        try:
            return stub.Publish(pb.PublishRequest(events=events), timeout=10)
        except grpc.RpcError as error:
            status = Status(error)
            # Over a quota nothing was stored. After any other failure the batch may have been stored, and sending it again
            # might store it twice.
            if status.reason != "QUOTA_EXCEEDED":
                sys.exit(str(status))
            print(f"-- {status}; next attempt in {status.delay:.1f} s", flush=True)
            time.sleep(status.delay or 1)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("topic")
    arguments.add_argument("payloads", nargs="+", metavar="PAYLOAD")
    arguments.add_argument("--key", default="", help="for conflating clients, which keep the newest event of each key")
    arguments.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT")
    options = arguments.parse_args()

    events = [
        pb.NewEvent(topic=options.topic, payload=payload.encode(), key=options.key) for payload in options.payloads
    ]
    with grpc.insecure_channel(options.server) as channel:
        answer = publish(EventServiceStub(channel), events)
    print(
        f"published {answer.count} as sequences {answer.first_sequence} to {answer.last_sequence}, "
        f"{answer.matched} deliveries to come"
    )


if __name__ == "__main__":
    main()

"""Compressed requests, as gRPC libraries send them."""

from __future__ import annotations

import grpc
import pytest
from support import CHANNEL_OPTIONS, PATIENCE, Server, new_event, pb, refused
from tidegate.v1 import admin_service_pb2 as admin_pb
from tidegate.v1.admin_service_pb2_grpc import AdminServiceStub
from tidegate.v1.event_service_pb2_grpc import EventServiceStub

SIZES = [0, 1, 100, 70_000, 200_000]


def channel(server: Server, compression: grpc.Compression) -> grpc.Channel:
    return grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS, compression=compression)


def test_gzip_is_accepted_by_every_method(server, client):
    stream = client.subscribe("a")
    with channel(server, grpc.Compression.Gzip) as compressed:
        stub = EventServiceStub(compressed)
        payloads = [b"x" * size for size in SIZES]
        for payload in payloads:
            assert stub.Publish(pb.PublishRequest(events=[new_event("a", payload)]), timeout=PATIENCE).count == 1
        requests = (pb.PublishRequest(events=[new_event("a", payload)]) for payload in payloads)
        assert [answer.count for answer in stub.PublishStream(requests, timeout=PATIENCE)] == [1] * len(payloads)
        assert [event.payload for event in stream.take(2 * len(payloads))] == payloads * 2
        # Responses are not compressed; a request for them may be.
        filters = ["a", *(f"long.filter.{number}" for number in range(500))]
        subscribed = stub.Subscribe(pb.SubscribeRequest(filters=filters, replay_last=3), timeout=PATIENCE)
        assert next(subscribed).WhichOneof("response") == "subscribed"
        subscribed.cancel()
        admin = AdminServiceStub(compressed)
        assert admin.GetServer(admin_pb.GetServerRequest(), timeout=PATIENCE).ready


@pytest.mark.parametrize("method", ["Publish", "PublishStream", "Subscribe"])
def test_deflate_is_refused_with_a_reason_and_the_way_out(server, method):
    with channel(server, grpc.Compression.Deflate) as compressed:
        stub = EventServiceStub(compressed)
        request = pb.PublishRequest(events=[new_event("a", b"x" * 10_000)])
        with refused("COMPRESSION_UNSUPPORTED", code=grpc.StatusCode.UNIMPLEMENTED):
            if method == "Publish":
                stub.Publish(request, timeout=PATIENCE)
            elif method == "PublishStream":
                next(stub.PublishStream(iter([request]), timeout=PATIENCE))
            else:
                filters = [f"long.filter.{number}" for number in range(500)]
                next(stub.Subscribe(pb.SubscribeRequest(filters=filters), timeout=PATIENCE))

"""Tools ask the server what it serves: by grpcio-reflection, which speaks `v1alpha`, and by health checks."""

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from support import PATIENCE, Server, pb

EVENT_SERVICE = "tidegate.v1.EventService"


@pytest.fixture
def database(client):
    return ProtoReflectionDescriptorDatabase(client.channel)


def ask(client, *requests):
    """Answers to questions that are asked in one stream."""
    answers = ServerReflectionStub(client.channel).ServerReflectionInfo(iter(requests), timeout=PATIENCE)
    return list(answers)


def test_reflection_lists_the_services(database):
    assert EVENT_SERVICE in database.get_services()


def test_client_without_stubs_publishes_by_reflection(client, connect, database):
    stream = connect().subscribe("a.b")
    service = DescriptorPool(database).FindServiceByName(EVENT_SERVICE)
    publish = service.FindMethodByName("Publish")
    request = GetMessageClass(publish.input_type)(events=[{"topic": "a.b", "payload": b"by reflection"}])

    call = client.channel.unary_unary(
        f"/{EVENT_SERVICE}/Publish",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(publish.output_type).FromString,
    )
    answer = call(request, timeout=PATIENCE)

    assert (answer.count, answer.matched) == (1, 1)
    assert stream.take(1)[0].payload == b"by reflection"


def test_reflection_has_every_file_that_a_message_needs(database):
    service = DescriptorPool(database).FindServiceByName(EVENT_SERVICE)
    assert service.full_name == pb.DESCRIPTOR.services_by_name["EventService"].full_name
    event = service.FindMethodByName("Subscribe").output_type.file.message_types_by_name["Event"]
    assert event.fields_by_name["time"].message_type.full_name == "google.protobuf.Timestamp"


def test_reflection_goes_on_after_a_question_that_it_cannot_answer(client):
    unknown, known = ask(
        client,
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Service"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=EVENT_SERVICE),
    )
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert unknown.error_response.error_message
    assert unknown.original_request.file_containing_symbol == "no.such.Service"
    assert known.file_descriptor_response.file_descriptor_proto


def test_reflection_refuses_a_name_that_it_does_not_have(database):
    with pytest.raises(KeyError):
        database.FindFileContainingSymbol("no.such.Service")
    with pytest.raises(KeyError):
        database.FindFileByName("no/such.proto")


@pytest.mark.parametrize("service", ["", EVENT_SERVICE])
def test_health_watch_sees_the_drain(binary, connect, service):
    server = Server(binary)
    with grpc.insecure_channel(server.address) as channel:
        watch = HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.stop()
        statuses = []
        with pytest.raises(grpc.RpcError) as ended:
            for response in watch:
                statuses.append(response.status)
        assert statuses == [health_pb2.HealthCheckResponse.NOT_SERVING]
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE


def test_health_watch_of_an_unknown_service_stays_open(client):
    stub = HealthStub(client.channel)
    request = health_pb2.HealthCheckRequest(service="no.such.Service")
    watch = stub.Watch(request, timeout=PATIENCE)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert watch.is_active()
    watch.cancel()
    with pytest.raises(grpc.RpcError) as refused:
        stub.Check(request, timeout=PATIENCE)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND

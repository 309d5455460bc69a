"""Reads from a failed call what a client of Tidegate should do next: the tables of docs/protocol.md as code."""

from enum import Enum

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class Step(Enum):
    RESUME = "resume with back-off"
    RENEW = "renew the credentials, then resume"
    ANEW = "forget the position, and subscribe anew"
    STOP = "stop"


# The reason decides, whatever the code is.
BY_REASON = {
    **dict.fromkeys(("TOO_SLOW", "STALLED", "QUOTA_EXCEEDED", "INTERNAL", "DEADLINE_EXCEEDED"), Step.RESUME),
    **dict.fromkeys(("SHUTTING_DOWN", "MAX_CONNECTION_AGE", "EPOCH_CHANGED", "KEYS_UNAVAILABLE"), Step.RESUME),
    **dict.fromkeys(("CREDENTIALS_MISSING", "CREDENTIALS_INVALID"), Step.RENEW),
    **dict.fromkeys(("CREDENTIALS_EXPIRED", "CREDENTIALS_REVOKED"), Step.RENEW),
    "POSITION_AHEAD": Step.ANEW,
    **dict.fromkeys(("INVALID_FILTER", "INVALID_TOPIC", "INVALID_CLIENT_ID", "INVALID_LIMITS"), Step.STOP),
    **dict.fromkeys(("INVALID_POSITION", "INVALID_REQUEST", "TOO_MANY_FILTERS", "FILTERS_TOO_COSTLY"), Step.STOP),
    **dict.fromkeys(("TOO_MANY_EVENTS", "EVENT_TOO_LARGE", "BATCH_TOO_LARGE"), Step.STOP),
    **dict.fromkeys(("COMPRESSION_UNSUPPORTED", "MALFORMED_MESSAGE"), Step.STOP),
    **dict.fromkeys(("CLIENT_ID_TAKEN", "TAKEN_OVER", "DISCONNECTED", "NOT_ALLOWED"), Step.STOP),
}

# Without a reason that is known, the code decides. A code that is not here means: stop.
BY_CODE = {
    grpc.StatusCode.UNAVAILABLE: Step.RESUME,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Step.RESUME,
    grpc.StatusCode.INTERNAL: Step.RESUME,
    grpc.StatusCode.UNKNOWN: Step.RESUME,
    grpc.StatusCode.CANCELLED: Step.RESUME,
    grpc.StatusCode.DEADLINE_EXCEEDED: Step.RESUME,
    grpc.StatusCode.UNAUTHENTICATED: Step.RENEW,
    grpc.StatusCode.OUT_OF_RANGE: Step.ANEW,
}


class Status:
    """The status of a call that failed: its reason, the next step, and the seconds to wait at least."""

    def __init__(self, error):
        self.code = error.code()
        self.message = error.details()
        details, trailers = _details(error), dict(error.trailing_metadata() or ())
        self.reason = _reason(details) or trailers.get("tidegate-reason") or None
        self.delay = _delay(details)
        if self.delay is None:
            self.delay = _seconds(trailers.get("tidegate-retry-after-ms"))
        self.step = BY_REASON.get(self.reason) or BY_CODE.get(self.code, Step.STOP)

    def __str__(self):
        return f"{self.reason or self.code.name}: {self.message}"


def _details(error):
    """The rich details of a status. Details that cannot be read are as none."""
    try:
        status = rpc_status.from_call(error)
    except (DecodeError, ValueError):
        return []
    return status.details if status else []


def _reason(details):
    info = error_details_pb2.ErrorInfo()
    for detail in details:
        # A proxy may answer with reasons of its own domain.
        if detail.Unpack(info) and info.domain == "tidegate":
            return info.reason
    return None


def _delay(details):
    info = error_details_pb2.RetryInfo()
    for detail in details:
        if detail.Unpack(info):
            return info.retry_delay.ToTimedelta().total_seconds()
    return None


def _seconds(milliseconds):
    # No sign, and nothing but digits. An hour is the longest.
    return min(int(milliseconds) / 1000, 3600) if (milliseconds or "").isdecimal() else 0

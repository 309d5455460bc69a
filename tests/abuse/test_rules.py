"""RFC 9113 and RFC 7541, rule by rule: the server's answer to a peer that breaks one. Case A03 of docs/security.md."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from dataclasses import dataclass

import pytest
from frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_WINDOW,
    MAX_FRAME_SIZE,
    PADDED,
    PATIENCE,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    PUBLISH_STREAM,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Call,
    Gone,
    Peer,
    block,
    data,
    frame,
    literal,
    message,
    ping,
    request_headers,
    reset,
    settings,
    window_update,
)
from siege import publish_request
from support import new_event, on_hyper

OPEN = END_HEADERS
WHOLE = END_HEADERS | END_STREAM

# The end of a call that reached no handler: the server resets the stream, or answers with an error of HTTP.
REFUSED = "the stream is refused"
# The connection ends, with one of the codes if it has a GOAWAY.
CONNECTION = "the connection ends"
# The connection goes on.
IGNORED = "ignored"


@dataclass
class Rule:
    """A rule, with the error codes of the standard. PROTOCOL_ERROR, which is less specific, is accepted for each."""

    section: str
    breach: bytes
    outcome: str
    codes: tuple[int, ...] = (PROTOCOL_ERROR,)


def headers(stream: int, flags: int = WHOLE, *more: tuple[str, str], **replaced: str | None) -> bytes:
    path = replaced.pop("path", PUBLISH_STREAM)
    return frame(HEADERS, flags, stream, block(request_headers(path, *more, **replaced)))


def with_block(content: bytes) -> bytes:
    return frame(HEADERS, WHOLE, 1, content)


ORDINARY = block(request_headers(PUBLISH_STREAM))

# A stream that the server has stopped reading, since it cannot send its answer, so that its window stays used. Only the
# beginning of the next message follows.
UNREAD = (
    settings((INITIAL_WINDOW_SIZE, 0))
    + headers(1, OPEN)
    + data(1, message(publish_request(new_event("attack.none"))))
    + frame(DATA, 0, 1, struct.pack(">BI", 0, 4_000_000))
)

RULES = {
    # 4. Frames
    "a frame longer than the limit": Rule("4.2", frame(DATA, 0, 1, bytes(16_385)), CONNECTION, (FRAME_SIZE_ERROR,)),
    "an unknown kind of frame": Rule("4.1", frame(0x99, 0xFF, 0, b"what"), IGNORED),
    "unknown flags": Rule("4.1", ping(flags=0xFE), IGNORED),
    "a reserved bit": Rule("4.1", frame(PING, 0, 1 << 31, bytes(8)), IGNORED),
    "a header block that is no HPACK": Rule(
        "4.3", with_block(b"\xff\xff\xff\xff\xff\xff"), CONNECTION, (COMPRESSION_ERROR,)
    ),
    "a header block cut short": Rule("4.3", with_block(ORDINARY[:-2]), CONNECTION, (COMPRESSION_ERROR, PROTOCOL_ERROR)),
    "PRIORITY within a header block": Rule(
        "4.3", headers(1, END_STREAM) + frame(PRIORITY, 0, 1, bytes(4) + b"\1"), CONNECTION
    ),
    "HEADERS within a header block": Rule("4.3", headers(1, END_STREAM) + headers(3), CONNECTION),
    "an unknown frame within a header block": Rule("4.3", headers(1, END_STREAM) + frame(0x99, 0, 1), CONNECTION),
    # 5.1 States of a stream
    "DATA on an idle stream": Rule("5.1", frame(DATA, 0, 1, b"x"), CONNECTION),
    "RST_STREAM on an idle stream": Rule("5.1", reset(1), CONNECTION),
    "WINDOW_UPDATE on an idle stream": Rule("5.1", window_update(1, 1), CONNECTION),
    "CONTINUATION on an idle stream": Rule("5.1", frame(CONTINUATION, END_HEADERS, 1, ORDINARY), CONNECTION),
    "DATA after the end": Rule("5.1", headers(1) + frame(DATA, 0, 1, b"x"), REFUSED, (STREAM_CLOSED,)),
    "HEADERS after the end": Rule("5.1", headers(1) + headers(1), REFUSED, (STREAM_CLOSED, PROTOCOL_ERROR)),
    "CONTINUATION after the end": Rule(
        "5.1", headers(1) + frame(CONTINUATION, END_HEADERS, 1, ORDINARY), CONNECTION, (STREAM_CLOSED, PROTOCOL_ERROR)
    ),
    "PRIORITY on any stream": Rule("5.1", frame(PRIORITY, 0, 99, bytes(4) + b"\1"), IGNORED),
    # 5.1.1 Names of streams
    "a stream of the server": Rule("5.1.1", headers(2), CONNECTION),
    "a stream below the newest": Rule(
        "5.1.1", headers(5, OPEN) + headers(3), CONNECTION, (PROTOCOL_ERROR, STREAM_CLOSED)
    ),
    "HEADERS on stream 0": Rule("6.2", headers(0), CONNECTION),
    # 5.3 Priority
    "HEADERS that depend on themselves": Rule(
        "5.3.1", frame(HEADERS, WHOLE | WITH_PRIORITY, 1, struct.pack(">IB", 1, 1) + ORDINARY), REFUSED
    ),
    # 6.1 DATA
    "DATA on stream 0": Rule("6.1", frame(DATA, 0, 0, b"x"), CONNECTION),
    "DATA that is all padding": Rule("6.1", headers(1, OPEN) + frame(DATA, PADDED, 1, b"\x05abcde"[:5]), CONNECTION),
    "padding longer than the frame": Rule("6.1", headers(1, OPEN) + frame(DATA, PADDED, 1, b"\xffabc"), CONNECTION),
    "HEADERS with padding longer than the frame": Rule(
        "6.2", frame(HEADERS, WHOLE | PADDED, 1, b"\xff" + ORDINARY[:20]), CONNECTION
    ),
    # 6.3 to 6.5
    "PRIORITY on stream 0": Rule("6.3", frame(PRIORITY, 0, 0, bytes(5)), CONNECTION),
    "PRIORITY of four bytes": Rule(
        "6.3", headers(1, OPEN) + frame(PRIORITY, 0, 1, bytes(4)), REFUSED, (FRAME_SIZE_ERROR,)
    ),
    "RST_STREAM on stream 0": Rule("6.4", reset(0), CONNECTION),
    "RST_STREAM of three bytes": Rule(
        "6.4", headers(1, OPEN) + frame(RST_STREAM, 0, 1, bytes(3)), CONNECTION, (FRAME_SIZE_ERROR,)
    ),
    "SETTINGS on a stream": Rule("6.5", frame(SETTINGS, 0, 1), CONNECTION),
    "SETTINGS of five bytes": Rule("6.5", frame(SETTINGS, 0, 0, bytes(5)), CONNECTION, (FRAME_SIZE_ERROR,)),
    "an acknowledgment with content": Rule("6.5", frame(SETTINGS, ACK, 0, bytes(6)), CONNECTION, (FRAME_SIZE_ERROR,)),
    "ENABLE_PUSH of 2": Rule("6.5.2", settings((ENABLE_PUSH, 2)), CONNECTION),
    "a window larger than any": Rule(
        "6.5.2", settings((INITIAL_WINDOW_SIZE, LARGEST_WINDOW + 1)), CONNECTION, (FLOW_CONTROL_ERROR,)
    ),
    "MAX_FRAME_SIZE of 16,383": Rule("6.5.2", settings((MAX_FRAME_SIZE, 16_383)), CONNECTION),
    "MAX_FRAME_SIZE of 16,777,216": Rule("6.5.2", settings((MAX_FRAME_SIZE, 1 << 24)), CONNECTION),
    "a setting nobody knows": Rule("6.5.2", settings((0x99, 1)), IGNORED),
    # 6.6 and 6.7
    "PUSH_PROMISE of a client": Rule(
        "6.6", headers(1, OPEN) + frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + ORDINARY), CONNECTION
    ),
    "PING on a stream": Rule("6.7", frame(PING, 0, 1, bytes(8)), CONNECTION),
    "PING of six bytes": Rule("6.7", frame(PING, 0, 0, bytes(6)), CONNECTION, (FRAME_SIZE_ERROR,)),
    "an answer to no PING": Rule("6.7", ping(b"nobody's", ACK), IGNORED),
    # 6.8
    "GOAWAY on a stream": Rule("6.8", frame(GOAWAY, 0, 1, bytes(8)), CONNECTION),
    # 6.9 Flow control
    "WINDOW_UPDATE of 0 on the connection": Rule("6.9", window_update(0, 0), CONNECTION),
    "WINDOW_UPDATE of 0 on a stream": Rule("6.9", headers(1, OPEN) + window_update(1, 0), REFUSED),
    "WINDOW_UPDATE of three bytes": Rule("6.9", frame(WINDOW_UPDATE, 0, 0, bytes(3)), CONNECTION, (FRAME_SIZE_ERROR,)),
    "a window of the connection beyond the largest": Rule(
        "6.9.1", window_update(0, LARGEST_WINDOW) * 2, CONNECTION, (FLOW_CONTROL_ERROR,)
    ),
    "a window of a stream beyond the largest": Rule(
        "6.9.1", headers(1, OPEN) + window_update(1, LARGEST_WINDOW) * 2, REFUSED, (FLOW_CONTROL_ERROR,)
    ),
    "settings that take a window beyond the largest": Rule(
        "6.9.2",
        headers(1, OPEN) + window_update(1, LARGEST_WINDOW - 65_535) + settings((INITIAL_WINDOW_SIZE, 65_536)),
        CONNECTION,
        (FLOW_CONTROL_ERROR,),
    ),
    "more DATA than the window": Rule(
        "6.9.1", UNREAD + frame(DATA, 0, 1, bytes(16_384)) * 200, REFUSED, (FLOW_CONTROL_ERROR,)
    ),
    # 6.10
    "CONTINUATION on stream 0": Rule(
        "6.10", headers(1, END_STREAM) + frame(CONTINUATION, END_HEADERS, 0, b""), CONNECTION
    ),
    "CONTINUATION after the block": Rule(
        "6.10", headers(1, OPEN) + frame(CONTINUATION, END_HEADERS, 1, ORDINARY), CONNECTION
    ),
    "CONTINUATION on another stream": Rule(
        "6.10", headers(1, END_STREAM) + frame(CONTINUATION, END_HEADERS, 3, b""), CONNECTION
    ),
    # 8. Requests
    "a name in upper case": Rule("8.2.1", headers(1, WHOLE, ("X-Upper", "v")), REFUSED),
    "a connection header": Rule("8.2.2", headers(1, WHOLE, ("connection", "keep-alive")), REFUSED),
    "te other than trailers": Rule("8.2.2", headers(1, WHOLE, ("te", "gzip")), REFUSED),
    "an unknown pseudo-header": Rule("8.3", headers(1, WHOLE, **{"other": "v"}), REFUSED),
    "a pseudo-header of a response": Rule("8.3", headers(1, WHOLE, **{"status": "200"}), REFUSED),
    "a pseudo-header after a header": Rule("8.3", with_block(block([("te", "trailers")]) + ORDINARY), REFUSED),
    "no method": Rule("8.3.1", headers(1, WHOLE, method=None), REFUSED),
    "no scheme": Rule("8.3.1", headers(1, WHOLE, scheme=None), REFUSED),
    "no path": Rule("8.3.1", headers(1, WHOLE, path=None), REFUSED),
    "an empty path": Rule("8.3.1", headers(1, WHOLE, path=""), REFUSED),
    "two methods": Rule("8.3.1", with_block(literal(b":method", b"POST") + ORDINARY), REFUSED),
    "two paths": Rule("8.3.1", with_block(literal(b":path", b"/") + ORDINARY), REFUSED),
    "a content-length that is not that of the body": Rule(
        "8.1.1", headers(1, OPEN, ("content-length", "1")) + frame(DATA, END_STREAM, 1, b"xx"), REFUSED
    ),
    "trailers that do not end the stream": Rule(
        "8.1", headers(1, OPEN) + frame(HEADERS, OPEN, 1, literal(b"x-last", b"v")), REFUSED
    ),
    # RFC 7541
    "an index of 0": Rule("7541 6.1", with_block(b"\x80"), CONNECTION, (COMPRESSION_ERROR,)),
    "an index beyond the tables": Rule("7541 2.3.3", with_block(b"\xff\x80\x01"), CONNECTION, (COMPRESSION_ERROR,)),
    "a table larger than allowed": Rule(
        "7541 6.3", with_block(b"\x3f\xe1\xff\x03" + ORDINARY), CONNECTION, (COMPRESSION_ERROR,)
    ),
    "a number without an end": Rule("7541 5.1", with_block(b"\x3f" + b"\xff" * 12), CONNECTION, (COMPRESSION_ERROR,)),
    "Huffman padding of a byte": Rule(
        "7541 5.2", with_block(ORDINARY + b"\0\x01x\x82\xff\xff"), CONNECTION, (COMPRESSION_ERROR,)
    ),
}


def test_broken_http2_rule_ends_the_stream_or_the_connection(besiege):
    with besiege() as siege:
        failures = []
        for name, rule in RULES.items():
            peer = siege.greeted()
            peer.send(rule.breach)
            ended = describe(peer, rule)
            if ended is not None:
                failures.append(f"{name} ({rule.section}): {ended}")
            peer.close()
        siege.note("rules", str(len(RULES)))
        assert not failures, "\n".join(failures)


def describe(peer: Peer, rule: Rule) -> str | None:
    """Returns the difference between the server's answer and the rule, or None."""
    if rule.outcome == IGNORED:
        return None if peer.answers() else f"the connection ended: {peer.goaway}"
    if rule.outcome == REFUSED:
        call = peer.calls.setdefault(1, Call())
        try:
            peer.until(lambda: call.is_over or peer.goaway is not None, "the end of the stream", patience=5)
        except Gone:
            return None
        except AssertionError as failure:
            return str(failure)
        # A server may always treat it as an error of the connection (5.4.2).
        code = call.reset if call.reset is not None else peer.goaway and peer.goaway.error
        is_answered = call.headers.get(":status", "200")[0] == "4"
        return None if is_answered or code in (*rule.codes, PROTOCOL_ERROR) else f"{call} {peer.goaway}"
    try:
        peer.until(lambda: peer.has_ended, "the end of the connection", patience=5)
    except AssertionError as failure:
        return str(failure)
    code = peer.goaway and peer.goaway.error
    return None if code is None or code in (*rule.codes, PROTOCOL_ERROR) else f"GOAWAY {code}"


# The failures of `httpwg` that are accepted. Two reasons hold for every case: the connection ends with PROTOCOL_ERROR,
# which is less specific than the expected code; or the call, which is no gRPC, was answered and closed before.
ANSWERED = ("but got ProtocolError", "but got NoError")
LENIENT = {
    # Its calls end at once, so they never reach the limit.
    "exceeds concurrent stream limit",
    # Handed on as they are, as hyper does.
    "sends headers frame with leading space in field value",
    "sends headers frame with trailing tab in field value",
    "sends headers frame with mismatched host authority",
}

# The breach follows the request, unlike in the other cases of headers. Like all others, these may find the call answered and
# over: then what comes for it is ignored.
BEHIND_THE_REQUEST = {
    "sends headers frame with pseudo header in trailer",
    "sends headers frame with incorrect content length single data frame",
    "sends headers frame with incorrect content length multiple data frames",
}

# h2 is more lenient than the standard, and no such request reaches a handler.
LENIENT_ON_HYPER = {
    "client sends push promise frame",
    "sends headers frame with pseudo header in trailer",
    "sends connect without authority",
}


def is_listed(case: str, said: str) -> bool:
    """Whether a case of httpwg may fail with these words."""
    lenient = LENIENT | LENIENT_ON_HYPER if on_hyper else LENIENT
    if case in lenient or said.endswith(ANSWERED):
        return True
    was_over = said.startswith("Timed out") and "#1:Headers" in said and "EndStream" in said
    is_in_the_request = case.startswith("sends headers frame") or case in LENIENT_ON_HYPER
    return was_over and (case in BEHIND_THE_REQUEST or not is_in_the_request)


@pytest.mark.skipif(shutil.which("httpwg") is None, reason="httpwg is missing: cargo install --locked httpwg-cli")
def test_httpwg_cases_pass_except_the_listed_ones(besiege):
    with besiege() as siege:
        command = ["httpwg", "--address", siege.address, "--frame-timeout", "5000", "--connect-timeout", "5000"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE)
        said = re.sub("\x1b\\[[0-9;]*m", "", ran.stdout + ran.stderr)
        passed = re.search(r"Passed (\d+)/(\d+) tests", said)
        assert passed, said[-2_000:]
        failed = re.findall(r"Test failed: .* :: (.*)\n\s*0: (.*)", said)
        siege.note("passed", f"{passed[1]} of {passed[2]}; {len(failed)} fail as listed")
        # Some cases stay undecided at their timeout, which ones differs from run to run.
        assert int(passed[1]) >= 70
        assert [one for one in failed if not is_listed(*one)] == []

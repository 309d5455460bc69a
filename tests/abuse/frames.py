"""HTTP/2 frame by frame, for peers that break its rules (RFC 9113).

It checks nothing that it sends. It splits what it receives into frames and decodes headers, no more.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import hpack

# The timeout of a step: long enough for a loaded machine. A test that passes never waits for it.
PATIENCE = 30

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5

LARGEST_WINDOW = 2**31 - 1
# The default of every window (RFC 9113, 6.9.2).
FIRST_WINDOW = 65_535
# The default of SETTINGS_MAX_FRAME_SIZE (RFC 9113, 6.5.2).
LARGEST_FRAME = 16_384

# The stream window in the server's settings.
SERVER_STREAM_WINDOW = 256 << 10

SUBSCRIBE = "/tidegate.v1.EventService/Subscribe"
PUBLISH = "/tidegate.v1.EventService/Publish"
PUBLISH_STREAM = "/tidegate.v1.EventService/PublishStream"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return frame_of_length(len(payload), kind, flags, stream, payload)


def frame_of_length(length: int, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame that may lie about its length."""
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def data(stream: int, content: bytes, *, ends: bool = False) -> bytes:
    """DATA, in frames of the largest size."""
    pieces = [content[start : start + LARGEST_FRAME] for start in range(0, len(content), LARGEST_FRAME)]
    last = len(pieces) - 1
    return b"".join(
        frame(DATA, END_STREAM if ends and at == last else 0, stream, piece) for at, piece in enumerate(pieces)
    )


def header_block(stream: int, headers: bytes, *, ends: bool = True) -> bytes:
    """HEADERS, and CONTINUATION for the rest."""
    pieces = [headers[start : start + LARGEST_FRAME] for start in range(0, len(headers), LARGEST_FRAME)]
    last = len(pieces) - 1
    sent = b""
    for at, piece in enumerate(pieces):
        flags = (END_HEADERS if at == last else 0) | (END_STREAM if ends and at == 0 else 0)
        sent += frame(CONTINUATION if at else HEADERS, flags, stream, piece)
    return sent


def ping(content: bytes = b"12345678", flags: int = 0) -> bytes:
    return frame(PING, flags, 0, content)


def literal(name: bytes, value: bytes) -> bytes:
    """A header in HPACK that neither uses nor changes the table, so that it may stand anywhere (RFC 7541, 6.2.2)."""
    return b"\0" + _text(name) + _text(value)


def _text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, encoded = len(text) - 127, bytearray([127])
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    return bytes(encoded) + bytes([rest]) + text


def request_headers(path: str | None, *more: tuple[str, str], **replaced: str | None) -> list[tuple[str, str]]:
    """The headers of a gRPC call. `replaced` names pseudo-headers without their colon; None leaves one out."""
    pseudo: dict[str, str | None] = {"method": "POST", "scheme": "http", "path": path, "authority": "tidegate"}
    pseudo |= replaced
    plain = [("te", "trailers"), ("content-type", "application/grpc")]
    kept = [(name, value) for name, value in plain if name not in {other for other, _ in more}]
    return [(f":{name}", value) for name, value in pseudo.items() if value is not None] + kept + list(more)


def block(headers: list[tuple[str, str]]) -> bytes:
    return b"".join(literal(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers)


def message(content: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", flag, len(content)) + content


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    def number(self) -> int:
        """The error code of RST_STREAM, or the increment of WINDOW_UPDATE."""
        return struct.unpack(">I", self.payload[:4])[0]

    @property
    def error(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        return struct.unpack(">I", self.payload[4:8])[0] if self.kind == GOAWAY else self.number()

    @property
    def last_stream(self) -> int:
        return self.number()


class Gone(Exception):
    """The connection has ended, with a reset or a close."""


@dataclass
class Call:
    """The frames received on one stream so far."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    # The error code of RST_STREAM.
    reset: int | None = None
    has_ended: bool = False

    @property
    def status(self) -> int | None:
        """The gRPC status; None if there is none yet."""
        status = self.headers.get("grpc-status")
        return None if status is None else int(status)

    @property
    def is_over(self) -> bool:
        return self.has_ended or self.reset is not None

    def messages(self) -> list[bytes]:
        """The complete gRPC messages."""
        found, at = [], 0
        while at + 5 <= len(self.data):
            length = struct.unpack(">I", self.data[at + 1 : at + 5])[0]
            if at + 5 + length > len(self.data):
                break
            found.append(self.data[at + 5 : at + 5 + length])
            at += 5 + length
        return found


class Peer:
    """One connection, as a client. It acknowledges settings and pings unless configured otherwise, and sends no window
    update by itself."""

    def __init__(
        self, address: str, *, source: str | None = None, receive_buffer: int | None = None, says: bytes | None = None
    ) -> None:
        host, port = address.split(":")
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        if source is not None:
            self.socket.bind((source, 0))
        # Read before connecting, so that no deadline of the server can begin earlier.
        self.connected_at = time.monotonic()
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.acknowledges = True
        self.calls: dict[int, Call] = {}
        # Every frame received, except DATA and HEADERS, whose content is in `calls`.
        self.frames: list[Frame] = []
        self.goaway: Frame | None = None
        self.has_ended = False
        self._buffer = bytearray()
        self._header_block = bytearray()
        self._decoder = hpack.Decoder()
        self._next_stream = 1
        if says is not None:
            self.send(says)

    @classmethod
    def greeted(cls, address: str, *pairs: tuple[int, int], **options) -> Peer:
        """Returns a peer that has sent its preface, with those settings, and received the settings of the server."""
        peer = cls(address, says=PREFACE + settings(*pairs), **options)
        peer.until(lambda: any(frame.kind == SETTINGS for frame in peer.frames), "settings")
        return peer

    def send_paced(self, stream: int, content: bytes, *, ends: bool = False) -> None:
        """Sends a body within the windows of the server, which must be its defaults, and used by this stream alone.
        Stops when the call is over."""
        call, sent = self.calls[stream], 0

        def room() -> int:
            given = {0: FIRST_WINDOW, stream: SERVER_STREAM_WINDOW}
            for update in self.frames:
                if update.kind == WINDOW_UPDATE and update.stream in given:
                    given[update.stream] += update.number()
            return min(given.values()) - sent

        while sent < len(content) and not call.is_over:
            self.until(lambda: room() > 0 or call.is_over, "a window")
            piece = content[sent : sent + room()]
            sent += len(piece)
            self.send(data(stream, piece, ends=ends and sent == len(content)))

    def close(self) -> None:
        self.socket.close()

    def abort(self) -> None:
        """Closes with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # ----- out -----

    def send(self, content: bytes) -> None:
        """Sends, and reads meanwhile, so that neither side waits for the other. Drops the rest of `content` if the
        connection has ended, which sets `has_ended`."""
        view = memoryview(content)
        deadline = time.monotonic() + PATIENCE
        while view and not self.has_ended:
            readable, writable, _ = select.select([self.socket], [self.socket], [], PATIENCE)
            assert readable or writable, "the server neither reads nor writes"
            assert time.monotonic() < deadline, "the server reads too slowly"
            if readable:
                self.receive()
            if writable and not self.has_ended:
                try:
                    view = view[self.socket.send(view[: 1 << 18]) :]
                except (ConnectionError, TimeoutError):
                    self._drain()

    def call(self, path: str, content: bytes = b"", *more: tuple[str, str], ends: bool = True, **replaced) -> int:
        """Begins a call with `content` as the bytes of its body, and returns its stream."""
        stream = self.stream()
        headers = block(request_headers(path, *more, **replaced))
        ends_now = ends and not content
        sent = frame(HEADERS, END_HEADERS | (END_STREAM if ends_now else 0), stream, headers)
        if content:
            sent += data(stream, content, ends=ends)
        self.send(sent)
        return stream

    def stream(self) -> int:
        """Returns the number of the next stream of a client."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self.calls[stream] = Call()
        return stream

    # ----- in -----

    def until(self, done: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Reads until `done`. Raises `Gone` if the connection ends before."""
        deadline = time.monotonic() + patience
        while not done():
            if self.has_ended:
                raise Gone(what)
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self.socket], [], [], max(left, 0))
            assert readable, (
                f"waited {patience} s for {what}; so far: {self.frames[-5:]}, {list(self.calls.items())[-2:]}"
            )
            self.receive()

    def wait(self, stream: int) -> Call:
        """Reads until the call is over."""
        call = self.calls[stream]
        self.until(lambda: call.is_over, f"the end of stream {stream}")
        return call

    def outcome(self) -> Frame | None:
        """Reads until the connection ends. Returns its GOAWAY with an error, if there was one."""
        self.until(lambda: self.has_ended, "the end of the connection")
        return self.goaway

    def answers(self, patience: float = PATIENCE) -> bool:
        """Whether the connection still answers a ping. The answer follows everything that was sent before."""
        before = self._pongs()
        self.send(ping(b"are you?"))
        try:
            self.until(lambda: self._pongs() > before, "a pong", patience)
        except Gone:
            return False
        return True

    def _pongs(self) -> int:
        return sum(frame.kind == PING and frame.flags == ACK for frame in self.frames)

    def receive(self) -> None:
        """Receives bytes. Waits if none have come."""
        try:
            received = self.socket.recv(1 << 18)
        except (ConnectionError, TimeoutError):
            received = b""
        if not received:
            self.has_ended = True
            return
        self._buffer += received
        replies = b"".join(self._take(frame) for frame in self._cut())
        if replies and not self.has_ended:
            try:
                self.socket.sendall(replies)
            except (ConnectionError, TimeoutError):
                self._drain()

    def _drain(self) -> None:
        """Receives the last bytes of the server, if a reset has left any of them."""
        while not self.has_ended:
            self.acknowledges = False
            self.receive()

    def _cut(self) -> Iterator[Frame]:
        at = 0
        while at + 9 <= len(self._buffer):
            length = int.from_bytes(self._buffer[at : at + 3], "big")
            if at + 9 + length > len(self._buffer):
                break
            kind, flags, stream = struct.unpack(">BBI", self._buffer[at + 3 : at + 9])
            yield Frame(kind, flags, stream & LARGEST_WINDOW, bytes(self._buffer[at + 9 : at + 9 + length]))
            at += 9 + length
        del self._buffer[:at]

    def _take(self, taken: Frame) -> bytes:
        call = self.calls.setdefault(taken.stream, Call()) if taken.stream else Call()
        if taken.kind in (HEADERS, CONTINUATION):
            # The server pads nothing and gives no priorities.
            self._header_block += taken.payload
            if taken.flags & END_HEADERS:
                call.headers |= dict(self._decoder.decode(bytes(self._header_block)))
                self._header_block.clear()
        elif taken.kind == DATA:
            call.data += taken.payload
        else:
            self.frames.append(taken)
        if taken.kind in (HEADERS, DATA) and taken.flags & END_STREAM:
            call.has_ended = True
        if taken.kind == RST_STREAM and call.reset is None:
            call.reset = taken.error
        if taken.kind == GOAWAY:
            self.goaway = taken
        if self.acknowledges and not taken.flags & ACK and taken.kind in (SETTINGS, PING):
            return frame(taken.kind, ACK, 0, taken.payload if taken.kind == PING else b"")
        return b""

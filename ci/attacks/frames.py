"""HTTP/2 by single frames (RFC 9113), and what is no TLS at all: each ends its own connection, and
nothing else.
"""

import os
import socket
import ssl
import struct

from attacks.stage import PREFIX, SOON, Stage
from attacks.table import Scenario, Wrong, must

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
# RFC 9113 §7.
ERRORS = {1: "PROTOCOL_ERROR", 3: "FLOW_CONTROL_ERROR", 9: "COMPRESSION_ERROR"}
ERRORS |= {6: "FRAME_SIZE_ERROR", 11: "ENHANCE_YOUR_CALM", 5: "STREAM_CLOSED", 0: "NO_ERROR"}
# `:method GET`, `:scheme https`, `:path /`, from the static table (RFC 7541, appendix A).
GET, POST = b"\x82\x87\x84", b"\x83\x87\x84"


def frame(kind, flags, stream, payload=b""):
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


def text(value):
    """A string of HPACK, not compressed, of less than 16 KiB."""
    count = len(value)
    if count < 127:
        return bytes([count]) + value
    rest, out = count - 127, b"\x7f"
    while rest >= 128:
        out, rest = out + bytes([rest % 128 | 128]), rest >> 7
    return out + bytes([rest]) + value


def field(name, value):
    """A literal field that is never indexed."""
    return b"\x10" + text(name) + text(value)


AUTHORITY = field(b":authority", b"a.example")


def spoken(stage, frames):
    """What comes back, as a list of (kind, flags, stream, payload), up to the end or an answer."""
    with stage.peer("open", alpn=b"h2", seconds=20) as peer:
        if peer.tls.get_alpn_proto_negotiated() != b"h2":
            raise Wrong("no HTTP/2 was agreed on")
        # One piece at a time: who is told off while they speak hears it.
        pieces = [PREFACE + frame(SETTINGS, 0, 0), *frames]
        for piece in pieces:
            if not peer.send(piece):
                break
        data, found = b"", []
        while True:
            while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
                size, stream = int.from_bytes(data[:3], "big"), int.from_bytes(data[5:9], "big")
                found.append((data[3], data[4], stream, data[9 : 9 + size]))
                data = data[9 + size :]
            if any(kind in (GOAWAY, RST, HEADERS) for kind, *_ in found):
                return found
            piece = peer.receive()
            if not piece:
                return found
            data += piece


def refusals(found):
    """The errors that connection and streams ended with."""
    codes = []
    for kind, _, _, payload in found:
        if kind in (GOAWAY, RST):
            code = int.from_bytes(payload[4:8] if kind == GOAWAY else payload[:4], "big")
            codes.append(f"{'GOAWAY' if kind == GOAWAY else 'RST_STREAM'} {ERRORS.get(code, code)}")
    return codes


def ends(make):
    """These frames are an error, or end the connection."""

    def act(stage):
        found = spoken(stage, make())
        codes = refusals(found)
        statuses = [payload[:1] for kind, _, _, payload in found if kind == HEADERS]
        # `:status 200` from the static table.
        if b"\x88" in statuses:
            raise Wrong(f"answered with 200: {found[:4]}")
        # 400 and 431 are no statuses of ours to choose: any refusal will do, silence will not.
        return ", ".join(codes) or ("an error's status" if statuses else "hung up")

    return act


def is_answered(stage):
    """All of the rest means something only because this is answered."""
    found = spoken(stage, [frame(HEADERS, END_STREAM | END_HEADERS, 1, GET + AUTHORITY)])
    return must(any(k == HEADERS and p[:1] == b"\x88" for k, _, _, p in found), "200")


def rapid_reset():
    """CVE-2023-44487."""
    for number in range(1, 4001, 2):
        head = frame(HEADERS, END_STREAM | END_HEADERS, number, GET + AUTHORITY)
        yield head + frame(RST, 0, number, struct.pack(">I", 8))


def endless_headers():
    """CVE-2024-27316 and its like."""
    yield frame(HEADERS, END_STREAM, 1, GET + AUTHORITY)
    for number in range(2000):
        yield frame(CONTINUATION, 0, 1, field(b"x-%d" % number, b"y" * 1000))


def bomb():
    """One large field of the table, named again and again."""
    large = b"\x40" + text(b"x-large") + text(b"y" * 4000)
    block = GET + AUTHORITY + large + b"\xbe" * 8000
    yield frame(HEADERS, END_STREAM | END_HEADERS, 1, block)


def pings():
    """What has to be answered each time, and is never read."""
    for _ in range(3000):
        yield frame(PING, 0, 0, bytes(8)) * 16


def settings():
    for _ in range(3000):
        yield frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)) * 16


HEAD = END_HEADERS | END_STREAM
FRAMES = {
    "rapid reset, 2,000 times": rapid_reset,
    "headers that never end": endless_headers,
    "a small block of large headers": bomb,
    "a window beyond 31 bits": lambda: [frame(WINDOW, 0, 0, struct.pack(">I", 2**31 - 1)) * 2],
    "data of no stream": lambda: [frame(DATA, 0, 0, b"x")],
    "data of a stream that was never opened": lambda: [frame(DATA, 0, 7, b"x")],
    "a frame larger than agreed": lambda: [frame(DATA, 0, 1, b"x" * 17000)],
    "an even stream": lambda: [frame(HEADERS, HEAD, 2, GET + AUTHORITY)],
    "an index of no field": lambda: [frame(HEADERS, HEAD, 1, b"\xff\xff\x7f")],
    "a line break in a path": lambda: [
        frame(HEADERS, HEAD, 1, b"\x82\x87" + field(b":path", b"/\r\nx: y") + AUTHORITY)
    ],
    "a header of one hop": lambda: [
        frame(HEADERS, HEAD, 1, GET + AUTHORITY + field(b"connection", b"close"))
    ],
    "a coding": lambda: [
        frame(HEADERS, HEAD, 1, POST + AUTHORITY + field(b"transfer-encoding", b"chunked"))
    ],
    "a name in capitals": lambda: [frame(HEADERS, HEAD, 1, GET + AUTHORITY + field(b"X-A", b"b"))],
    "two paths": lambda: [frame(HEADERS, HEAD, 1, GET + b"\x84" + AUTHORITY)],
    "more data than its length": lambda: [
        frame(HEADERS, END_HEADERS, 1, POST + AUTHORITY + field(b"content-length", b"1")),
        frame(DATA, END_STREAM, 1, b"xyz"),
    ],
}


def floods(make):
    """What is never read, and need not end: others are served meanwhile and afterwards."""

    def act(stage):
        with stage.peer("open", alpn=b"h2", seconds=5) as peer:
            peer.send(PREFACE + frame(SETTINGS, 0, 0))
            sent = 0
            for piece in make():
                if not peer.send(piece):
                    break
                sent += len(piece)
            return f"{sent >> 10} KiB were taken; meanwhile {stage.answers()}"

    return act


def garbage(data):
    """Bytes before TLS: at most an alert comes back, and the connection ends."""

    def act(stage):
        with socket.create_connection(("127.0.0.1", stage.ports["open"]), SOON) as peer:
            peer.settimeout(SOON)
            came = b""
            try:
                peer.sendall(data)
                while piece := peer.recv(4096):
                    came += piece
            except ConnectionError:
                pass
        # An alert's record has type 21 (RFC 8446 §5.1).
        seen = "an alert, then the end" if came else "the end"
        return must(not came or came[0] == 21, f"{seen} ({came[:8].hex()})")

    return act


def old_tls(stage):
    context = ssl._create_unverified_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with socket.create_connection(("127.0.0.1", stage.ports["open"]), SOON) as peer:
            context.wrap_socket(peer).close()
    except (ssl.SSLError, ConnectionError) as error:
        return f"refused: {error}"
    raise Wrong("TLS 1.2 was agreed on")


def not_encrypted():
    hello = f"GET {PREFIX}/evidence HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    return {
        "a request without TLS": hello,
        "random bytes": os.urandom(4096),
        "a record of 64 KiB": b"\x16\x03\x01\xff\xff" + b"\x01" * 65535,
        "a hello that lies about its length": b"\x16\x03\x01\0\x08\x01\xff\xff\xff\x03\x03xx",
        "an alert as the first word": b"\x15\x03\x03\0\x02\x02\x28",
        "SSL 2": b"\x80\x2e\x01\0\x02\0\x15\0\0\0\x10" + b"\x01\0\x80" * 7 + b"c" * 16,
        "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    }


GROUP = "frames"
SCENARIOS = [
    Scenario(GROUP, "HTTP/2 is answered where it is as it should be", is_answered),
    *(Scenario(GROUP, f"HTTP/2, {name}: refused", ends(make)) for name, make in FRAMES.items()),
    *(
        Scenario(GROUP, f"HTTP/2, {name} that are never read: others are served", floods(make))
        for name, make in (("pings", pings), ("settings", settings))
    ),
    *(
        Scenario(GROUP, f"{name} instead of TLS: an alert or nothing, then the end", garbage(data))
        for name, data in not_encrypted().items()
    ),
    Scenario(GROUP, "TLS 1.2: refused", old_tls),
    Scenario(GROUP, "afterwards everybody is served", Stage.unharmed),
]

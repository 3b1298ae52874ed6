"""Requests that two servers might read differently: the service gets one request that can be read
in one way, or none at all.

The service behind this port tells each byte that it heard, also of the connection before. So of a
request that was passed on, all is known that became of it; and of one that was refused, that no
request came of it.
"""

import contextlib
import re

from attacks.stage import Stage
from attacks.table import Scenario, Wrong, must

FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[^\0\r\n]*")
# A request's head that is as short as it may be, and one with a body to come.
HEAD = b"GET / HTTP/1.1\r\nHost: a.example\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.example\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n"
# What is asked in between, so that one that came meanwhile is told from it.
MARK = HEAD.replace(b"GET /", b"GET /mark") + b"\r\n"
SPOKEN = (
    "Via X-Forwarded-Host X-Forwarded-Server X_Forwarded_For Forwarded Proxy X-Cofferdam-Caller"
)
# Requests that nobody may pass on, and those that may be read in the one way that the RFC gives.
REFUSED = {
    "two lengths": POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "a list of lengths": POST + b"Content-Length: 4, 5\r\n\r\nabcde",
    "a length with a sign": POST + b"Content-Length: +5\r\n\r\nabcde",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length beyond 64 bits": POST + b"Content-Length: 18446744073709551621\r\n\r\nabcde",
    "a length in hexadecimal": POST + b"Content-Length: 0x5\r\n\r\nabcde",
    "a coding that is not chunked": POST + b"Transfer-Encoding: identity\r\n\r\n" + NEXT,
    "chunked, but not as the last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a coding with a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n",
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is no number": CHUNKED + b"\r\nzz\r\nabc\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": CHUNKED + b"\r\n10000000000000005\r\nabcde\r\n0\r\n\r\n",
    "a chunk size with a sign": CHUNKED + b"\r\n+5\r\nabcde\r\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKED + b"\r\n3\r\nabcde\r\n0\r\n\r\n",
    "a chunk's extension of 64 KiB": CHUNKED + b"\r\n1;" + b"x" * 65536 + b"\r\na\r\n0\r\n\r\n",
    "a folded line": HEAD + b"X-A: b\r\n c\r\n\r\n",
    "a zero byte in a value": HEAD + b"X-A: b\0c\r\n\r\n",
    "a bare CR in a value": HEAD + b"X-A: b\rX-B: c\r\n\r\n",
    "a space in a name": HEAD + b"X A: b\r\n\r\n",
    "a line without a colon": HEAD + b"nonsense\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": HEAD + b"Host: b.example\r\n\r\n",
    "a Host with a user": b"GET / HTTP/1.1\r\nHost: a@b.example\r\n\r\n",
    "a Host with a path": b"GET / HTTP/1.1\r\nHost: a.example/b\r\n\r\n",
    "a Host with a space": b"GET / HTTP/1.1\r\nHost: a.example b\r\n\r\n",
    "CONNECT": b"CONNECT 10.0.2.2:22 HTTP/1.1\r\nHost: 10.0.2.2:22\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "another version": HEAD.replace(b"1.1", b"3.0") + b"\r\n",
    "101 headers": HEAD + b"A: b\r\n" * 100 + b"\r\n",
    "a head of 33 KiB": HEAD + b"X-A: " + b"b" * (33 << 10) + b"\r\n\r\n",
    "a header of 8 MiB": HEAD + b"X-A: " + b"b" * (8 << 20) + b"\r\n\r\n",
    "the own prefix, percent-encoded": HEAD.replace(b"/ ", b"/%2ewell-known/cofferdam/v1 ")
    + b"\r\n",
    "the own prefix behind dots": HEAD.replace(b"/ ", b"/a/..;/.well-known/cofferdam/v1 ")
    + b"\r\n",
}
READ = {
    "one length, twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "length and chunks, the length shorter": CHUNKED
    + b"Content-Length: 4\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
    + NEXT,
    "length and chunks, the length longer": CHUNKED + b"Content-Length: 80\r\n\r\n0\r\n\r\n" + NEXT,
    "chunked, twice": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n" + NEXT,
    "chunks that end with a bare LF": CHUNKED + b"\r\n1\na\n0\n\n" + NEXT,
    "a body to GET": HEAD + f"Content-Length: {len(NEXT)}\r\n\r\n".encode() + NEXT,
    "an absolute target of another host": HEAD.replace(b"/ ", b"http://b.example/c ") + b"\r\n",
    "lines that end with a bare LF": HEAD.replace(b"\r\n", b"\n") + b"X-A: b\n\n",
    "h2c that nobody offered": HEAD
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
}


def told(answer):
    """What the service says that it heard."""
    return bytes.fromhex(answer.body.split()[1].decode())[1:]


def heard(told):
    """The headers of the one whole request in what the service tells, and its body."""
    text = told.decode("latin-1")
    head, ended, body = text.partition("\r\n\r\n")
    line, *fields = head.split("\r\n")
    if not ended or not re.fullmatch(r"[A-Z]+ [^\s]+ HTTP/1\.1", line):
        raise Wrong(f"no request: {text[:200]!r}")
    odd = [field for field in fields if not FIELD.fullmatch(field)]
    pairs = [(name.lower(), value.strip()) for name, _, value in (f.partition(":") for f in fields)]
    found = dict(pairs)
    lengths = [value for name, value in pairs if name == "content-length"]
    codings = [value for name, value in pairs if name == "transfer-encoding"]
    hosts = [value for name, value in pairs if name == "host"]
    if odd or len(hosts) != 1 or len(lengths) + len(codings) > 1:
        raise Wrong(f"a request that can be read in two ways: {text[:300]!r}")
    if codings:
        body, rest = unchunked(body)
        if codings != ["chunked"] or rest:
            raise Wrong(f"codings {codings}, behind the body {rest[:100]!r}")
    elif len(body) != int(lengths[0] if lengths else "0"):
        raise Wrong(f"lengths {lengths} and a body of {len(body)}: {body[:100]!r}")
    return {**found, ":line": line}, body


def unchunked(text):
    """The body, and what follows it."""
    body = ""
    while True:
        size, _, text = text.partition("\r\n")
        if not re.fullmatch(r"[0-9A-Fa-f]{1,8}", size):
            raise Wrong(f"a chunk's size {size[:40]!r}")
        count = int(size, 16)
        if count == 0:
            trailers, ended, rest = ("\r\n" + text).partition("\r\n\r\n")
            if not ended:
                raise Wrong(f"no end behind the last chunk: {trailers[:100]!r}")
            return body, rest
        body, end, text = body + text[:count], text[count : count + 2], text[count + 2 :]
        if end != "\r\n":
            raise Wrong(f"a chunk of {count} bytes ends with {end!r}")


def heard_last(stage):
    """What the service heard on the connection before this one."""
    return stage.ask(MARK, "heard").body.split()[0]


def refused(data):
    def act(stage):
        with stage.peer("heard") as peer:
            taken = peer.send(data)
            answer = peer.answer()
        last = bytes.fromhex(heard_last(stage).decode())[1:]
        seen = str(answer) if taken else f"{answer}, not all was read"
        # What is wrong in a body may be read when the head is on its way. It becomes no request.
        if not last.startswith(MARK[:12]):
            with contextlib.suppress(Wrong):
                raise LookupError(f"the service got {heard(last)}")
            seen += "; its head came to the service"
        hung_up = answer.status == 0 and not taken
        return must(400 <= answer.status < 500 or hung_up, seen)

    return act


def heard_as_said(stage):
    """The other claims mean something because of this; and what follows has a mark before it."""
    answer = stage.ask(MARK, "heard")
    headers, body = heard(told(answer))
    fits = (headers[":line"], headers["host"], body) == ("GET /mark HTTP/1.1", "a.example", "")
    return must(fits, f"the service got `{headers[':line']}` for `{headers['host']}`")


def read(data):
    def act(stage):
        answer = stage.ask(data, "heard")
        if answer.status == 200:
            headers, body = heard(told(answer))
            if "smuggled" in headers[":line"] or {"upgrade", "http2-settings"} & set(headers):
                raise Wrong(f"the service got {headers}")
            return f"the service got `{headers[':line']}` with a body of {len(body)}"
        return must(answer.status == 400, f"{answer}")

    return act


def hop_by_hop(stage):
    fields = "".join(f"{name}: forged\r\n" for name in SPOKEN.split()).encode()
    hop = b"Connection: X-Private, close\r\nX-Private: 1\r\nKeep-Alive: 1\r\nTE: trailers\r\n"
    answer = stage.ask(HEAD + hop + fields + b"\r\n", "heard")
    headers, _ = heard(told(answer))
    left = [name for name, value in headers.items() if value == "forged" or "private" in name]
    return must(not left, f"{len(headers)} headers came, of those forged {left or 'none'}")


def trailers(stage):
    body = b"1\r\na\r\n0\r\nX-Cofferdam-Caller: operator:demo\r\nContent-Length: 9\r\n\r\n"
    announced = b"Trailer: X-Cofferdam-Caller\r\nTE: trailers\r\n"
    answer = stage.ask(CHUNKED + announced + b"\r\n" + body, "heard")
    if answer.status != 200:
        return must(answer.status == 400, str(answer))
    text = told(answer).lower()
    forged = b"operator:demo" in text or b"x-cofferdam-caller" in text
    return must(not forged, "the service hears no caller")


def caller_of_everybodys(stage):
    """Who is not known cannot name an operator at the operators' port either."""
    answer = stage.ask(HEAD + b"X-Cofferdam-Caller: operator:demo\r\n\r\n", "web")
    return must(answer.status == 401, str(answer))


GROUP = "framing"
SCENARIOS = [
    Scenario(GROUP, "a request as it should be is heard as it is", heard_as_said),
    *(
        Scenario(GROUP, f"{name}: refused, and no request comes of it", refused(data))
        for name, data in REFUSED.items()
    ),
    *(
        Scenario(GROUP, f"{name}: one request in one reading, or 400", read(data))
        for name, data in READ.items()
    ),
    Scenario(GROUP, "what belongs to a hop, or says who calls, does not pass", hop_by_hop),
    Scenario(GROUP, "trailers name no caller", trailers),
    Scenario(GROUP, "a forged caller opens no operators' port", caller_of_everybodys),
    Scenario(GROUP, "afterwards everybody is served", Stage.unharmed),
]

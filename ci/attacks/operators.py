"""The appliance's own interface: what is not signed for this very request on this very connection
changes nothing and learns nothing.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attacks.stage import PREFIX, signed
from attacks.table import Scenario, must

STATUS, SECRETS = PREFIX + "/v1/status", PREFIX + "/v1/secrets"
PUT = PREFIX + "/v1/secrets/demo/live/value"


def answered(*statuses):
    """A scenario of one request, made for one connection, that gets one of these."""

    def of(make):
        def act(stage):
            with stage.peer() as peer:
                peer.send(make(stage, peer))
                answer = peer.answer()
            return must(answer.status in statuses, str(answer))

        return act

    return of


@answered(401)
def unsigned(stage, peer):
    return f"GET {STATUS} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@answered(401)
def stranger(stage, peer):
    return signed(peer, Ed25519PrivateKey.generate(), "GET", STATUS)


@answered(401)
def another_connection(stage, peer):
    with stage.peer() as other:
        return signed(other, stage.key, "PUT", PUT, b"{}")


@answered(401)
def another_path(stage, peer):
    return signed(peer, stage.key, "GET", STATUS).replace(b"/v1/status", b"/v1/events")


@answered(401)
def another_method(stage, peer):
    return signed(peer, stage.key, "GET", PUT).replace(b"GET", b"DELETE", 1)


@answered(401)
def another_body(stage, peer):
    return signed(peer, stage.key, "PUT", PUT, b"x" * 64, said=b"y" * 64)


@answered(401)
def two_signatures(stage, peer):
    mine = signed(peer, stage.key, "GET", STATUS)
    line = next(line for line in mine.split(b"\r\n") if line.startswith(b"Authorization"))
    return mine.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")


@answered(413)
def beyond_the_vault(stage, peer):
    """Within what a body may be, and in base64 beyond what the vault reads."""
    return signed(peer, stage.key, "PUT", PUT, b"x" * (120 << 10))


@answered(413)
def a_mebibyte(stage, peer):
    return signed(peer, stage.key, "PUT", PUT, b"x" * (1 << 20))


@answered(413)
def unsigned_mebibyte(stage, peer):
    return signed(peer, Ed25519PrivateKey.generate(), "PUT", PUT, b"x" * (1 << 20))


@answered(400)
def no_secret(stage, peer):
    return signed(peer, stage.key, "PUT", PUT, b"not a sealed secret")


@answered(404)
def nowhere(stage, peer):
    return signed(peer, stage.key, "GET", PREFIX + "/v1/nothing")


@answered(405)
def wrong_method(stage, peer):
    return signed(peer, stage.key, "DELETE", STATUS)


@answered(400)
def sign_in_with_a_body(stage, peer):
    return signed(peer, stage.key, "POST", PREFIX + "/v1/sign-in", b"body")


@answered(400)
def no_tail(stage, peer):
    return signed(peer, stage.key, "GET", PREFIX + "/v1/logs?service=open&tail=-1")


@answered(404)
def log_of_nobody(stage, peer):
    return signed(peer, stage.key, "GET", PREFIX + "/v1/logs?service=../vault")


def cut_off(stage):
    """The connection ends inside a signed body: nothing is done."""
    before = stage.operator("GET", "/v1/secrets").body
    with stage.peer() as peer:
        peer.send(signed(peer, stage.key, "PUT", PUT, b"x" * 100, length=1000))
    after = stage.operator("GET", "/v1/secrets").body
    return must(before == after, "the same secrets as before")


def replayed(stage):
    """A request is the same twice on its own connection, where nobody else is, and nowhere else."""
    with stage.peer() as peer:
        request = signed(peer, stage.key, "GET", SECRETS)
        first = peer.ask(request)
    with stage.peer(source="198.18.0.1") as other:
        second = other.ask(request)
    return must((first.status, second.status) == (200, 401), f"{first.status}, then {second}")


def nonces(stage):
    """What is not a nonce gets no quote."""
    queries = ["", "nonce=", "nonce=AAAA", "nonce=" + "A" * 200, "x=1", "nonce=" + "%41" * 22]
    statuses = []
    for query in queries:
        request = f"GET {PREFIX}/evidence?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        statuses.append(stage.ask(request).status)
    posted = stage.ask(f"POST {PREFIX}/evidence HTTP/1.1\r\nHost: x\r\n\r\n".encode()).status
    return must({*statuses} == {400} and posted == 405, f"{statuses}, {posted} for POST")


def the_doctor_is_calm(stage):
    return stage.answers(), stage.diagnosed(exit_code=0)


GROUP = "operators"
CLAIMS = {
    "unsigned: 401": unsigned,
    "signed by a stranger's key: 401": stranger,
    "signed for another connection: 401": another_connection,
    "signed for another path: 401": another_path,
    "signed for another method: 401": another_method,
    "signed for another body: 401": another_body,
    "two signatures: 401": two_signatures,
    "signed, and beyond what the vault takes: 413": beyond_the_vault,
    "signed, a body of 1 MiB: 413": a_mebibyte,
    "a stranger's body of 1 MiB: 413, unread": unsigned_mebibyte,
    "signed, and no sealed secret: 400": no_secret,
    "signed, and nothing there: 404": nowhere,
    "signed, with another method than there is: 405": wrong_method,
    "a sign-in with a body: 400": sign_in_with_a_body,
    "lines of a log, and no number: 400": no_tail,
    "a log outside of the services: 404": log_of_nobody,
    "a signed body that breaks off changes nothing": cut_off,
    "a request heard on one connection is worth nothing on another": replayed,
    "what is no nonce gets no quote: 400": nonces,
    "afterwards all is served, and the doctor finds nothing": the_doctor_is_calm,
}
SCENARIOS = [Scenario(GROUP, claim, act) for claim, act in CLAIMS.items()]

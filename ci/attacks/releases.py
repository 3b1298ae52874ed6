"""GitHub fails, refuses, or is somebody else's: what is not vouched for is not believed, the
appliance serves on, and the doctor says which of it is so.
"""

import contextlib
import json
import os
import signal
import time

from attacks.table import Scenario, must
from harness import REPOSITORY, tamper_claims

FOREIGN = "mallory/app"


@contextlib.contextmanager
def faults(stage, *some):
    stage.faults(*some)
    try:
        yield
    finally:
        stage.faults()


def failing(status, *codes, headers=None, body=None, exit_code=6):
    """All of GitHub's API answers with this, for the client and for the appliance."""
    fault = {"method": "GET", "path": "/api/v3/", "status": status, "times": 10_000}
    fault |= {"headers": headers} if headers else {}
    fault |= {"body": body} if body else {}

    def act(stage):
        with faults(stage, fault):
            said = stage.diagnosed(*codes, exit_code=exit_code)
            code, _, _ = stage.world.coffer("verify", REPOSITORY, *limited(stage, 3))
            seen = stage.answers()
        return must(code == exit_code, f"verify: {code}; {seen}"), said

    return act


def limited(stage, seconds):
    return [*stage.options, "--timeout", f"{seconds}s"]


def slow(stage):
    with faults(stage, {"method": "GET", "path": "/", "delay": 1, "times": 10_000}):
        code, out, err = stage.world.coffer("verify", REPOSITORY, *limited(stage, 60))
    return must(code == 0, f"verify: {code} {'' if code == 0 else out + err}")


@contextlib.contextmanager
def standing_still(stage):
    """GitHub takes connections and says nothing."""
    github = next(p for p in stage.world.processes if "server.py" in str(p.args))
    os.kill(github.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(github.pid, signal.SIGCONT)


def silent(stage):
    with standing_still(stage):
        codes, code = stage.doctor(seconds=28)
        seen = stage.answers()
    said = f"{' '.join(codes)} ({code})"
    wanted = ["github-away", "appliance-not-asked"]
    return must((codes, code) == (wanted, 6), f"{said}; {seen}"), said


def state(stage):
    return stage.status()["publish"]["state"]


def newest(stage):
    tag = stage.status()["publish"]["tag"]
    return stage.world.api("GET", f"/repos/{REPOSITORY}/releases/tags/{tag}")


def delete(stage, release, repository=REPOSITORY):
    stage.world.api("DELETE", f"/repos/{repository}/releases/{release['id']}")


def publish(stage, document, repository=REPOSITORY, tag=None):
    """As somebody with the token does it."""
    releases = f"/repos/{repository}/releases"
    tag = tag or stage.world.forged_tag(document)
    about = {"tag_name": tag, "target_commitish": "main", "draft": True}
    release = stage.world.api("POST", releases, about)
    if document is not None:
        upload = release["upload_url"].split("{")[0] + "?name=attestation.json"
        stage.world.api("POST", upload, document)
    stage.world.api("PATCH", f"{releases}/{release['id']}", {"draft": False})
    return release


def document(stage):
    path = stage.world.path("released.json")
    stage.world.coffer_ok("verify", REPOSITORY, *stage.options, "--save", path)
    with open(path, "rb") as file:
        return file.read()


def deleted(stage):
    before = newest(stage)
    delete(stage, before)
    said = stage.diagnosed("no-release")
    answer = stage.operator("POST", "/v1/publish")
    tag = stage.until(
        "another release",
        lambda: (
            stage.status()["publish"].get("tag") not in (None, before["tag_name"])
            and stage.status()["publish"]["state"] == "published"
            and stage.status()["publish"]["tag"]
        ),
    )
    healed = stage.diagnosed(exit_code=0)
    return must(answer.status == 202 and tag, "published again"), f"{said}, then {healed}"


def passed_over(stage, document, tag, *codes):
    """A newer release that is none leads nobody away from the one below it."""
    release = publish(stage, document, tag=tag)
    try:
        said = stage.diagnosed(*codes, exit_code=0)
        stage.world.coffer_ok("verify", REPOSITORY, *stage.options)
    finally:
        delete(stage, release)
    return "verify: 0, by the release below it", said


def without_document(stage):
    return passed_over(stage, None, "attest-29991231T235959Z-00000000")


def garbage(stage):
    tag = time.strftime("attest-%Y%m%dT%H%M%SZ-00000000", time.gmtime(time.time() + 60))
    return passed_over(stage, b"{" * 4096, tag, "newer-releases-refused")


def foreign(stage):
    """A newer attestation names another endpoint and another key."""
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))
    forged = tamper_claims(
        document(stage), endpoint="127.0.0.1:1", tls_key="sha256:" + "0" * 64, issued_at=later
    )
    release = publish(stage, forged)
    wanted = ["newer-releases-refused"]
    try:
        if stage.long:
            # It looks every five minutes; to ask it would be to have it publish against the other.
            stage.until("an alarm", lambda: state(stage) == "contested", 400)
            wanted.append("publish-contested")
        said = stage.diagnosed(*wanted)
        out = stage.world.coffer_ok("verify", REPOSITORY, *stage.options, "--json")
        endpoint = json.loads(out)["claims"]["endpoint"]
    finally:
        delete(stage, release)
    stage.operator("POST", "/v1/publish")
    stage.until("no alarm", lambda: state(stage) == "published")
    mine = endpoint == f"127.0.0.1:{stage.ports['web']}"
    return must(mine, f"verify leads to {endpoint}"), f"{said}, then {stage.diagnosed(exit_code=0)}"


def foreign_owner(stage):
    """Another repository shows our attestation as its own."""
    world = stage.world
    with open(world.path("appliance.yaml"), encoding="utf-8") as file:
        world.commit(file.read(), repository=FOREIGN)
    publish(stage, document(stage), FOREIGN)
    codes, code = stage.doctor(FOREIGN)
    verdict, _, _ = world.coffer("verify", FOREIGN, *stage.options)
    said = f"{' '.join(codes)} ({code})"
    return must((verdict, code) == (3, 3), f"verify {FOREIGN}: {verdict}"), said


def nobodys(stage):
    codes, code = stage.doctor("nobody/none")
    return must(code == 6 and codes, "could not check"), f"{' '.join(codes)} ({code})"


def another_branch(stage):
    """What the default branch declares has changed since the boot."""
    world = stage.world
    with open(world.path("appliance.yaml"), encoding="utf-8") as file:
        running = file.read()
    world.commit(running.replace("name: demo", "name: other"), "Change")
    try:
        said = stage.diagnosed("declaration-differs", exit_code=3)
        code, _, _ = world.coffer("verify", REPOSITORY, *stage.options)
    finally:
        world.git("reset", "-q", "--hard", stage.commit)
    return must(code == 3, f"verify: {code}"), f"{said}, then {stage.diagnosed(exit_code=0)}"


LIMIT = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "4000000000"}
GROUP = "github"
CLAIMS = {
    "500 to everything: could not check, and the doctor says so": failing(500, "github-away"),
    "502 with a page: could not check": failing(502, "github-away", body="<html>bad gateway"),
    "403 to everything": failing(403, "github-refuses", exit_code=4),
    "404 to everything: no release is known": failing(404, "release-unchecked"),
    "403 beyond the rate limit": failing(
        403, "github-limit", headers=LIMIT, body='{"message":"API rate limit exceeded"}'
    ),
    "429 with Retry-After": failing(429, "github-limit", headers={"Retry-After": "3600"}),
    "200 with nonsense": failing(200, "release-unchecked", body="{" * 1000),
    "silence: could not check, within the time that was given": silent,
    "slowness is waited for": slow,
    "the newest release is deleted: said, and published again when asked": deleted,
    "a release of the future without a document blinds nobody": without_document,
    "a newer release that is no attestation blinds nobody": garbage,
    "a newer attestation of another machine: said, and clients stay here": foreign,
    "the default branch declares something else: refused": another_branch,
    "another owner shows our attestation: refused": foreign_owner,
    "a repository that is not there: could not check": nobodys,
}
# `coffer` asks again for some seconds.
LONG = ("500", "502")
SCENARIOS = [Scenario(GROUP, c, act, c.startswith(LONG)) for c, act in CLAIMS.items()]

#!/usr/bin/python3
"""A development GitHub on loopback: releases, assets, contents, commits and git's own protocol over
TLS.

Responsible for: answering like GitHub Enterprise Server does under `https://HOST/api/v3`, from real
git repositories in a folder (`ROOT/OWNER/REPO`, anything that git can read). Contents, commits and
comparisons come from git itself, as does `OWNER/REPO.git/git-upload-pack`; releases and assets live
in memory and, with --state, in a file. A published release is immutable, as it is on GitHub once
immutable releases are switched on. A release's `created_at` is its commit's date; lists are paged
with `Link`, answers carry an `ETag`, and each caller has a rate limit. Never: anything but
loopback, an answer that only our clients would understand, or a way for a client to tell it from
the real one. With --contract every request and response is checked against GitHub's own description
and each violation is appended to --violations.

Faults for tests: --faults names a JSON file that is read on every request, a list of `{"method":
"POST", "path": REGEX, "status": 500, "times": 2, "headers": {}, "body": "…", "delay": 0}`; a
matched entry is answered, after `delay` seconds, and counted down; without a status it only delays.

Scenarios for tests: --scenario names a JSON file that is read on every request: `order` of lists
(`newest` as GitHub does at most times, `oldest`, `shuffled`: it promises none), `immutable`
(whether releases are), `limits` per hour (`{"anonymous": 60, "token": 5000}`; without it there is
none), `limited` (the status of an answer beyond them, 403 or 429; the limits' hour begins with
the first request) and `verified` (what it says of each commit's signature, without a look).
--log appends a line of JSON for each request.
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import json
import os
import posixpath
import random
import re
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

API = "/api/v3"
UPLOADS = "/api/uploads"
STORAGE = "/storage"
LARGEST_BODY = 16 << 20


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Problem(Exception):
    """An answer that is an error, in GitHub's shape."""

    def __init__(self, status, message, headers=None, errors=None):
        super().__init__(message)
        self.status, self.message, self.headers, self.errors = (
            status,
            message,
            headers or {},
            errors,
        )


class Repositories:
    """The git side: commits and files, read with git itself."""

    def __init__(self, root):
        self.root = root

    def git(self, owner, repo, *arguments):
        if not all(
            re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", part) and part not in (".", "..")
            for part in (owner, repo)
        ):
            raise Problem(404, "Not Found")
        folder = os.path.join(self.root, owner, repo)
        if not os.path.isdir(folder):
            raise Problem(404, "Not Found")
        command = ["git", "-c", "safe.directory=*", "-C", folder, *arguments]
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
        return done.stdout if done.returncode == 0 else None

    def resolve(self, owner, repo, ref):
        """A commit by its name, or by any ref of that name: whoever may push can make one that is
        called HEAD.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,199}", ref):
            raise Problem(422, f"No commit found for SHA: {ref}")
        names = (
            [ref]
            if re.fullmatch(r"[0-9a-f]{40}", ref)
            else [f"refs/tags/{ref}", f"refs/heads/{ref}", f"refs/{ref}", ref]
        )
        for name in names:
            out = self.git(owner, repo, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
            if out is not None:
                return out.decode().strip()
        raise Problem(422, f"No commit found for SHA: {ref}")

    def default_branch(self, owner, repo):
        out = self.git(owner, repo, "symbolic-ref", "HEAD")
        return out.decode().strip().removeprefix("refs/heads/") if out else "main"

    def date(self, owner, repo, ref):
        """The date of a commit, as a release shows it."""
        out = self.git(owner, repo, "show", "-s", "--format=%cI", self.resolve(owner, repo, ref))
        return (
            datetime.fromisoformat(out.decode().strip())
            .astimezone(UTC)
            .strftime("%Y-%m-%dT%H:%M:%SZ")
        )

    def tag(self, owner, repo, names):
        """Makes the tags of published releases, `{name: target}`, where there is none of that name
        yet.
        """
        known = (
            (self.git(owner, repo, "for-each-ref", "--format=%(refname)", "refs/tags") or b"")
            .decode()
            .split()
        )
        lines = [
            f"create refs/tags/{name} {self.resolve(owner, repo, target)}\n"
            for name, target in names.items()
            if f"refs/tags/{name}" not in known
        ]
        folder = os.path.join(self.root, owner, repo)
        subprocess.run(
            ["git", "-c", "safe.directory=*", "-C", folder, "update-ref", "--stdin"],
            input="".join(lines).encode(),
            timeout=60,
            check=True,
        )

    def upload_pack(self, owner, repo, version, body):
        """One request of git's protocol, answered by git."""
        self.git(owner, repo, "rev-parse")
        environment = {
            **os.environ,
            "GIT_PROTOCOL": version,
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        command = ["git", "upload-pack", "--stateless-rpc", os.path.join(self.root, owner, repo)]
        return subprocess.run(
            command, input=body, capture_output=True, timeout=20, check=True, env=environment
        ).stdout

    def entry(self, owner, repo, commit, path):
        """Mode, name and bytes of a blob; `None` when there is none at this path."""
        entry = self.git(owner, repo, "ls-tree", commit, "--", path)
        if not entry or entry.split()[1] != b"blob":
            return None
        mode, _, sha = entry.split(b"\t")[0].decode().split()
        return mode, sha, self.git(owner, repo, "cat-file", "blob", sha)

    def file(self, owner, repo, commit, path):
        """Name, bytes and kind of a file. A symbolic link to a file of the repository is answered
        with that file.
        """
        entry = found = self.entry(owner, repo, commit, path)
        if not entry:
            raise Problem(404, "Not Found")
        for _ in range(5):
            if not found or found[0] != "120000":
                break
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[2].decode()))
            found = None if path.startswith(("/", "..")) else self.entry(owner, repo, commit, path)
        if found and found[0] != "120000":
            return found[1], found[2], "file"
        return entry[1], entry[2], "symlink"

    def log(self, owner, repo, commit, path, count, until=None, page=1):
        arguments = [
            "log",
            f"-{count}",
            f"--skip={count * (page - 1)}",
            "--format=%H%x00%T%x00%P%x00%an%x00%ae%x00%aI%x00%cn%x00%ce%x00%cI%x00%B%x01",
            *([f"--until={until}"] if until else []),
            commit,
        ]
        out = self.git(owner, repo, *arguments, *(["--", path] if path else []))
        return [
            entry.lstrip("\n").split("\0")
            for entry in (out or b"").decode().split("\x01")
            if entry.strip()
        ]


class Releases:
    """The releases of every repository, in memory and, when asked, in one file."""

    def __init__(self, state):
        self.state, self.lock, self.entries, self.next_id = state, threading.RLock(), [], 1
        if state and os.path.exists(state):
            with open(state, encoding="utf-8") as file:
                saved = json.load(file)
            self.entries, self.next_id = saved["entries"], saved["next_id"]

    def save(self):
        if self.state:
            with open(self.state + ".new", "w", encoding="utf-8") as file:
                json.dump({"entries": self.entries, "next_id": self.next_id}, file)
            os.replace(self.state + ".new", self.state)

    def id(self):
        self.next_id += 1
        return self.next_id - 1

    def of(self, owner, repo):
        return [entry for entry in self.entries if entry["repository"] == f"{owner}/{repo}"]

    def one(self, owner, repo, release_id):
        for entry in self.of(owner, repo):
            if entry["id"] == int(release_id):
                return entry
        raise Problem(404, "Not Found")


class Handler(BaseHTTPRequestHandler):
    """One connection. The routes are at the end of the class, in the order of the API's pages."""

    protocol_version = "HTTP/1.1"
    server_version = "GitHub.com"
    sys_version = ""
    timeout = 60

    def log_message(self, format, *arguments):
        if self.server.options.verbose:
            sys.stderr.write(f"{self.command} {format % arguments}\n")

    # -- plumbing ---------------------------------------------------------------------------------

    def handle_any(self):
        self.logged = None
        try:
            self.handle_request()
        finally:
            if self.logged:
                self.server.log(self.logged)

    def handle_request(self):
        parts = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        if length > LARGEST_BODY:
            self.close_connection = True
            return self.answer(413, {"message": "Payload Too Large"})
        body = self.rfile.read(length)
        path, uploads = unquote(parts.path), parts.path.startswith(UPLOADS)
        kind = "api" if path.startswith((API, UPLOADS)) else "git" if ".git/" in path else "storage"
        self.logged = {
            "kind": kind,
            "method": self.command,
            "path": path,
            "query": parts.query,
            "user_agent": self.headers.get("User-Agent"),
            "token": "Authorization" in self.headers,
            "conditional": "If-None-Match" in self.headers,
            "status": None,
        }
        below = (
            path[len(UPLOADS) :] if uploads else path[len(API) :] if path.startswith(API) else None
        )
        contract = self.server.contract
        if contract and below is not None:
            self.server.violated(
                contract.request_problems(
                    self.command, below, parts.query, self.headers.get("Content-Type", ""), body
                )
            )
            if "User-Agent" not in self.headers:
                self.server.violated([f"{self.command} {below}: no User-Agent"])
        fault = self.server.fault(self.command, path)
        if fault and fault.get("delay"):
            time.sleep(fault["delay"])
        try:
            if kind == "api" and below != "/rate_limit":
                self.within_limits()
            if fault and "status" in fault:
                headers = fault.get("headers", {})
                raw = fault.get("body", json.dumps({"message": "made to fail"})).encode()
                return self.send(fault["status"], "application/json; charset=utf-8", raw, headers)
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path) if method == self.command else None
                if match:
                    status, content_type, raw, headers = action(self, body, **match.groupdict())
                    break
            else:
                raise Problem(404, "Not Found")
        except Problem as problem:
            answer = {
                "message": problem.message,
                "documentation_url": "https://docs.github.com/rest",
                "status": str(problem.status),
            }
            if problem.errors:
                answer["errors"] = problem.errors
            status, content_type, raw, headers = (
                problem.status,
                "application/json; charset=utf-8",
                json.dumps(answer).encode(),
                problem.headers,
            )
        if contract and below is not None:
            self.server.violated(
                contract.response_problems(self.command, below, status, content_type, raw)
            )
        if kind == "api" and (self.command, status) == ("GET", 200):
            # Weak, as GitHub's are; who is told other things by other rights has another one.
            known = content_type.encode() + bytes([self.signed_in()]) + raw
            etag = f'W/"{hashlib.sha256(known).hexdigest()}"'
            headers = {
                **headers,
                "ETag": etag,
                "Cache-Control": f"{'private' if self.signed_in() else 'public'}, max-age=60",
            }
            if etag in [
                given.strip() for given in self.headers.get("If-None-Match", "").split(",")
            ]:
                status, raw = 304, b""
                if self.signed_in():
                    # Free of charge for those who have a token, and for them alone.
                    self.server.charge(self.caller(), -1)
        return self.send(status, content_type, raw, headers)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_any

    def answer(self, status, value):
        return self.send(status, "application/json; charset=utf-8", json.dumps(value).encode(), {})

    def send(self, status, content_type, raw, headers):
        if self.logged:
            self.logged["status"] = status
        self.send_response(status)
        if status not in (204, 304):
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(raw)))
        self.send_header("X-GitHub-Request-Id", os.urandom(8).hex().upper())
        limit, used, reset = self.server.limit(self.caller())
        given = {name.lower() for name in headers}
        for name, value in (
            ("X-RateLimit-Limit", limit),
            ("X-RateLimit-Remaining", max(limit - used, 0)),
            ("X-RateLimit-Used", used),
            ("X-RateLimit-Reset", reset),
        ):
            if name.lower() not in given:
                self.send_header(name, str(value))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(raw)

    def caller(self):
        return "token" if self.signed_in() or self.reader() else "anonymous"

    def within_limits(self):
        """Counts the request; beyond the limit it is refused with the time when the hour ends."""
        limit, used, _ = self.server.limit(self.caller())
        if self.server.limited(self.caller()) and used >= limit:
            message = (
                "API rate limit exceeded for 127.0.0.1. (But here's the good news: "
                "Authenticated requests get a higher rate limit.)"
            )
            raise Problem(self.server.scenario().get("limited", 403), message)
        self.server.charge(self.caller(), 1)

    def rate_limit(self, _body):
        limit, used, reset = self.server.limit(self.caller())
        core = {
            "limit": limit,
            "remaining": max(limit - used, 0),
            "reset": int(reset),
            "used": used,
        }
        return self.json(200, {"resources": {"core": core, "search": core}, "rate": core})

    def base(self):
        return f"https://{self.headers.get('Host', 'localhost')}"

    def signed_in(self):
        given = self.headers.get("Authorization", "")
        token = self.server.options.token
        return bool(token) and any(
            hmac.compare_digest(given, f"{scheme} {token}") for scheme in ("Bearer", "token")
        )

    def reader(self):
        """Whether the token is one that may read and not push."""
        return self.headers.get("Authorization", "") == "Bearer read-only" and bool(
            self.server.options.token
        )

    def need_token(self):
        if "Authorization" not in self.headers:
            raise Problem(401, "Requires authentication")
        if self.reader():
            raise Problem(403, "Resource not accessible by personal access token")
        if not self.signed_in():
            raise Problem(401, "Bad credentials")

    def user(self):
        url = f"{self.base()}{API}/users/cofferdam-dev"
        names = (
            "followers_url following_url gists_url starred_url subscriptions_url organizations_url "
            "repos_url events_url received_events_url"
        )
        return {
            "login": "cofferdam-dev",
            "id": 1,
            "node_id": "U_1",
            "avatar_url": f"{self.base()}/avatar",
            "gravatar_id": "",
            "url": url,
            "html_url": f"{self.base()}/cofferdam-dev",
            "type": "User",
            "site_admin": False,
            **dict.fromkeys(names.split(), url),
        }

    def shown_asset(self, entry, asset):
        url = f"{self.base()}{API}/repos/{entry['repository']}/releases/assets/{asset['id']}"
        folder = f"{self.base()}/{entry['repository']}/releases/download/{quote(entry['tag_name'])}"
        page = f"{folder}/{quote(asset['name'])}"
        return {
            "url": url,
            "browser_download_url": page,
            "id": asset["id"],
            "node_id": f"RA_{asset['id']}",
            "name": asset["name"],
            "label": asset["label"],
            "state": "uploaded",
            "content_type": asset["content_type"],
            "size": asset["size"],
            "digest": asset["digest"],
            "download_count": 0,
            "created_at": asset["at"],
            "updated_at": asset["at"],
            "uploader": self.user(),
        }

    def shown(self, entry):
        url = f"{self.base()}{API}/repos/{entry['repository']}/releases/{entry['id']}"
        page = f"{self.base()}/{entry['repository']}/releases/tag/{quote(entry['tag_name'])}"
        tag = (
            None
            if entry["draft"]
            else f"{self.base()}{API}/repos/{entry['repository']}/{{0}}/{quote(entry['tag_name'])}"
        )
        return {
            "url": url,
            "assets_url": url + "/assets",
            "html_url": page,
            "id": entry["id"],
            "node_id": f"RE_{entry['id']}",
            "author": self.user(),
            "upload_url": f"{self.base()}{UPLOADS}/repos/{entry['repository']}/releases/"
            f"{entry['id']}/assets{{?name,label}}",
            "tag_name": entry["tag_name"],
            "target_commitish": entry["target_commitish"],
            "name": entry["name"],
            "body": entry["body"],
            "draft": entry["draft"],
            "prerelease": entry["prerelease"],
            "immutable": self.immutable(entry),
            "created_at": entry["created_at"],
            "published_at": entry["published_at"],
            "updated_at": entry["updated_at"],
            "assets": [self.shown_asset(entry, a) for a in entry["assets"]],
            "tarball_url": tag and tag.format("tarball"),
            "zipball_url": tag and tag.format("zipball"),
        }

    def immutable(self, entry):
        return not entry["draft"] and self.server.scenario().get("immutable", True)

    def json(self, status, value, headers=None):
        return status, "application/json; charset=utf-8", json.dumps(value).encode(), headers or {}

    # -- releases ---------------------------------------------------------------------------------

    def list_releases(self, _body, owner, repo):
        self.server.repositories.git(owner, repo, "rev-parse")
        seen = [
            e for e in self.server.releases.of(owner, repo) if not e["draft"] or self.signed_in()
        ]
        order = self.server.scenario().get("order", "newest")
        seen.sort(key=lambda entry: (entry["created_at"], entry["id"]), reverse=order != "oldest")
        if order == "shuffled":
            # The same for each page of one list, so that pages add up.
            random.Random(len(seen)).shuffle(seen)
        entries, headers = self.page(seen, f"repos/{owner}/{repo}/releases")
        return self.json(200, [self.shown(entry) for entry in entries], headers)

    def page(self, entries, path):
        """The part of a list that is asked for, and where its other pages are."""
        per_page, page = (
            max(1, min(int(self.query.get("per_page", 30)), 100)),
            max(1, int(self.query.get("page", 1))),
        )
        last = max(1, -(-len(entries) // per_page))
        places = {"prev": page - 1, "next": page + 1, "first": 1, "last": last}
        known = {
            name: at
            for name, at in places.items()
            if 1 <= at <= last and not (page == at and name in ("first", "last")) and last > 1
        }
        link = ", ".join(
            f'<{self.base()}{API}/{path}?per_page={per_page}&page={at}>; rel="{name}"'
            for name, at in known.items()
        )
        return entries[(page - 1) * per_page : page * per_page], {"Link": link} if link else {}

    def create_release(self, body, owner, repo):
        self.need_token()
        asked = json.loads(body)
        self.server.repositories.git(owner, repo, "rev-parse")
        tag = asked.get("tag_name", "")
        with self.server.releases.lock:
            if any(
                e["tag_name"] == tag and not e["draft"]
                for e in self.server.releases.of(owner, repo)
            ):
                raise Problem(
                    422,
                    "Validation Failed",
                    errors=[{"resource": "Release", "code": "already_exists", "field": "tag_name"}],
                )
            target = asked.get("target_commitish") or self.server.repositories.default_branch(
                owner, repo
            )
            draft = asked.get("draft", False)
            entry = {
                "repository": f"{owner}/{repo}",
                "id": self.server.releases.id(),
                "tag_name": tag,
                "target_commitish": target,
                "name": asked.get("name"),
                "body": asked.get("body"),
                "draft": draft,
                "prerelease": asked.get("prerelease", False),
                "created_at": self.server.repositories.date(owner, repo, target),
                "published_at": None if draft else now(),
                "updated_at": now(),
                "assets": [],
            }
            if not draft:
                self.server.repositories.tag(owner, repo, {tag: target})
            self.server.releases.entries.append(entry)
            self.server.releases.save()
        return self.json(201, self.shown(entry), {"Location": self.shown(entry)["url"]})

    def published(self, owner, repo):
        return [e for e in self.server.releases.of(owner, repo) if not e["draft"]]

    def latest_release(self, _body, owner, repo):
        seen = [e for e in self.published(owner, repo) if not e["prerelease"]]
        if not seen:
            raise Problem(404, "Not Found")
        return self.json(
            200, self.shown(max(seen, key=lambda entry: (entry["published_at"], entry["id"])))
        )

    def release_by_tag(self, _body, owner, repo, tag):
        for entry in self.published(owner, repo):
            if entry["tag_name"] == tag:
                return self.json(200, self.shown(entry))
        raise Problem(404, "Not Found")

    def visible(self, owner, repo, release):
        entry = self.server.releases.one(owner, repo, release)
        if entry["draft"] and not self.signed_in():
            raise Problem(404, "Not Found")
        return entry

    def get_release(self, _body, owner, repo, release):
        return self.json(200, self.shown(self.visible(owner, repo, release)))

    def update_release(self, body, owner, repo, release):
        self.need_token()
        asked = json.loads(body)
        with self.server.releases.lock:
            entry = self.server.releases.one(owner, repo, release)
            if self.immutable(entry) and set(asked) - {"name", "body", "prerelease", "make_latest"}:
                raise Problem(422, "Cannot update an immutable release")
            publishing = entry["draft"] and asked.get("draft") is False
            if publishing and any(
                e["tag_name"] == asked.get("tag_name", entry["tag_name"])
                for e in self.published(owner, repo)
            ):
                raise Problem(
                    422,
                    "Validation Failed",
                    errors=[{"resource": "Release", "code": "already_exists", "field": "tag_name"}],
                )
            entry.update(
                {
                    key: asked[key]
                    for key in (
                        "tag_name",
                        "target_commitish",
                        "name",
                        "body",
                        "draft",
                        "prerelease",
                    )
                    if key in asked
                }
            )
            entry["updated_at"] = now()
            if publishing:
                entry["published_at"] = now()
                self.server.repositories.tag(
                    owner, repo, {entry["tag_name"]: entry["target_commitish"]}
                )
            self.server.releases.save()
        return self.json(200, self.shown(entry))

    def delete_release(self, _body, owner, repo, release):
        self.need_token()
        with self.server.releases.lock:
            self.server.releases.entries.remove(self.server.releases.one(owner, repo, release))
            self.server.releases.save()
        return 204, "", b"", {}

    def list_assets(self, _body, owner, repo, release):
        entry = self.visible(owner, repo, release)
        return self.json(200, [self.shown_asset(entry, asset) for asset in entry["assets"]])

    def upload_asset(self, body, owner, repo, release):
        self.need_token()
        with self.server.releases.lock:
            entry = self.server.releases.one(owner, repo, release)
            name = self.query.get("name", "")
            if self.immutable(entry):
                raise Problem(422, "Cannot upload assets to an immutable release.")
            if any(asset["name"] == name for asset in entry["assets"]):
                raise Problem(
                    422,
                    "Validation Failed",
                    errors=[
                        {"resource": "ReleaseAsset", "code": "already_exists", "field": "name"}
                    ],
                )
            asset = {
                "id": self.server.releases.id(),
                "name": name,
                "label": self.query.get("label"),
                "size": len(body),
                "at": now(),
                "content_type": self.headers.get("Content-Type", "application/octet-stream"),
                "digest": "sha256:" + hashlib.sha256(body).hexdigest(),
                "data": base64.b64encode(body).decode(),
            }
            entry["assets"].append(asset)
            self.server.releases.save()
        return self.json(201, self.shown_asset(entry, asset))

    def asset(self, owner, repo, asset):
        for entry in self.server.releases.of(owner, repo):
            for candidate in entry["assets"]:
                if candidate["id"] == int(asset) and (not entry["draft"] or self.signed_in()):
                    return entry, candidate
        raise Problem(404, "Not Found")

    def get_asset(self, _body, owner, repo, asset):
        entry, found = self.asset(owner, repo, asset)
        if self.headers.get("Accept") == "application/octet-stream":
            # As on GitHub the bytes come from another place, by a redirect that carries its own
            # permission.
            return (
                302,
                "text/html",
                b"",
                {"Location": f"{self.base()}{STORAGE}/{owner}/{repo}/{found['id']}"},
            )
        return self.json(200, self.shown_asset(entry, found))

    def stored(self, _body, owner, repo, asset):
        if "Authorization" in self.headers and self.server.contract:
            self.server.violated(
                ["the token was sent along to the asset storage"]
                if self.server.options.strict_storage
                else []
            )
        _, found = self.asset(owner, repo, asset)
        return 200, found["content_type"], base64.b64decode(found["data"]), {}

    def download(self, _body, owner, repo, tag, name):
        for entry in self.published(owner, repo):
            for asset in entry["assets"]:
                if (entry["tag_name"], asset["name"]) == (tag, name):
                    return (
                        302,
                        "text/html",
                        b"",
                        {"Location": f"{self.base()}{STORAGE}/{owner}/{repo}/{asset['id']}"},
                    )
        raise Problem(404, "Not Found")

    # -- git --------------------------------------------------------------------------------------

    def contents(self, _body, owner, repo, path):
        commit = self.server.repositories.resolve(owner, repo, self.query.get("ref", "HEAD"))
        sha, data, kind = self.server.repositories.file(owner, repo, commit, path)
        if "raw" in self.headers.get("Accept", ""):
            return 200, "application/vnd.github.raw+json; charset=utf-8", data, {}
        url = f"{self.base()}{API}/repos/{owner}/{repo}/contents/{quote(path)}?ref={commit}"
        blob = f"{self.base()}{API}/repos/{owner}/{repo}/git/blobs/{sha}"
        page = f"{self.base()}/{owner}/{repo}/blob/{commit}/{quote(path)}"
        raw = f"{self.base()}/{owner}/{repo}/raw/{commit}/{quote(path)}"
        held = (
            {"target": data.decode()}
            if kind == "symlink"
            else {"encoding": "base64", "content": base64.encodebytes(data).decode()}
        )
        return self.json(
            200,
            {
                "type": kind,
                "size": len(data),
                "name": path.split("/")[-1],
                "path": path,
                **held,
                "sha": sha,
                "url": url,
                "git_url": blob,
                "html_url": page,
                "download_url": raw,
                "_links": {"git": blob, "self": url, "html": page},
            },
        )

    def shown_commit(self, owner, repo, fields):
        sha, tree, parents, author, mail, at, committer, committer_mail, committed, message = fields
        url = f"{self.base()}{API}/repos/{owner}/{repo}"

        def utc(text):
            return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

        def link(kind, one):
            return {"sha": one, "url": f"{url}/{kind}/{one}"}

        return {
            "sha": sha,
            "node_id": f"C_{sha[:12]}",
            "url": f"{url}/commits/{sha}",
            "html_url": f"{self.base()}/{owner}/{repo}/commit/{sha}",
            "comments_url": f"{url}/commits/{sha}/comments",
            "author": self.user(),
            "committer": self.user(),
            "parents": [
                {**link("commits", p), "html_url": f"{self.base()}/{owner}/{repo}/commit/{p}"}
                for p in parents.split()
            ],
            "commit": {
                "url": f"{url}/git/commits/{sha}",
                "message": message.rstrip("\n"),
                "comment_count": 0,
                "tree": link("git/trees", tree),
                "author": {"name": author, "email": mail, "date": utc(at)},
                "committer": {"name": committer, "email": committer_mail, "date": utc(committed)},
                "verification": self.verification(owner, repo, sha),
            },
        }

    def verification(self, owner, repo, sha):
        """The signed text of a commit and its signature, as git has them. Whether GitHub calls it
        verified is the scenario's word (`verified`), for clients that would believe that.
        """
        raw = self.server.repositories.git(owner, repo, "cat-file", "commit", sha)
        headers, message = raw.decode(errors="replace").split("\n\n", 1)
        header = re.compile(r"^gpgsig (.*(?:\n .*)*)\n", re.MULTILINE)
        signatures = header.findall(headers + "\n")
        payload = header.sub("", headers + "\n") + "\n" + message if signatures else None
        verified = self.server.scenario().get("verified", False)
        return {
            "verified": verified,
            "reason": "valid" if verified else "unknown_key" if signatures else "unsigned",
            "signature": signatures[0].replace("\n ", "\n") + "\n" if signatures else None,
            "payload": payload,
            "verified_at": now() if verified else None,
        }

    def git_commit(self, _body, owner, repo, sha):
        """A commit as git stores it, by its whole name."""
        if self.server.repositories.git(owner, repo, "cat-file", "commit", sha) is None:
            raise Problem(404, "Not Found")
        found = self.server.repositories.log(owner, repo, sha, None, 1)[0]
        shown = self.shown_commit(owner, repo, found)
        return self.json(
            200,
            {
                **{key: shown["commit"][key] for key in ("author", "committer", "message", "tree")},
                "verification": shown["commit"]["verification"],
                **{key: shown[key] for key in ("sha", "node_id", "html_url", "parents")},
                "url": shown["commit"]["url"],
            },
        )

    def git_tree(self, _body, owner, repo, sha):
        """A directory, by its whole name."""
        out = self.server.repositories.git(owner, repo, "ls-tree", "-z", "-l", "--full-tree", sha)
        if out is None:
            raise Problem(404, "Not Found")
        url = f"{self.base()}{API}/repos/{owner}/{repo}/git"
        entries = []
        for line in filter(None, out.decode(errors="replace").split("\0")):
            described, path = line.split("\t", 1)
            mode, kind, one, size = described.split()
            entry = {"path": path, "mode": mode, "type": kind, "sha": one}
            if kind != "commit":
                entry["url"] = f"{url}/{kind}s/{one}"
            if kind == "blob":
                entry["size"] = int(size)
            entries.append(entry)
        shown = {"sha": sha, "url": f"{url}/trees/{sha}", "tree": entries, "truncated": False}
        return self.json(200, shown)

    def repository(self, _body, owner, repo):
        self.server.repositories.git(owner, repo, "rev-parse")
        url, page = f"{self.base()}{API}/repos/{owner}/{repo}", f"{self.base()}/{owner}/{repo}"
        links = (
            "archive assignees blobs branches collaborators comments commits compare contents "
            "contributors deployments downloads events forks git_commits git_refs git_tags hooks "
            "issue_comment issue_events issues keys labels languages merges milestones "
            "notifications pulls releases stargazers statuses subscribers subscription tags teams "
            "trees"
        )
        counts = (
            "forks forks_count open_issues open_issues_count size stargazers_count watchers "
            "watchers_count network_count subscribers_count"
        )
        features = (
            "has_issues has_projects has_wiki has_pages has_discussions archived disabled fork "
            "private"
        )
        at = self.server.repositories.date(
            owner, repo, self.server.repositories.default_branch(owner, repo)
        )
        return self.json(
            200,
            {
                "id": 1,
                "node_id": "R_1",
                "name": repo,
                "full_name": f"{owner}/{repo}",
                "owner": self.user(),
                "html_url": page,
                "url": url,
                **{f"{name}_url": f"{url}/{name}" for name in links.split()},
                **dict.fromkeys(counts.split(), 0),
                **dict.fromkeys(features.split(), False),
                "description": None,
                "homepage": None,
                "language": None,
                "license": None,
                "mirror_url": None,
                "created_at": at,
                "updated_at": at,
                "pushed_at": at,
                "clone_url": page + ".git",
                "git_url": page + ".git",
                "ssh_url": page + ".git",
                "svn_url": page,
                "default_branch": self.server.repositories.default_branch(owner, repo),
            },
        )

    def git_ref(self, _body, owner, repo, ref):
        """One ref by its whole name below `refs/`, never a guess."""
        out = self.server.repositories.git(
            owner,
            repo,
            "for-each-ref",
            "--format=%(refname) %(objectname) %(objecttype)",
            f"refs/{ref}",
        )
        for line in (out or b"").decode().splitlines():
            name, sha, kind = line.split()
            if name == f"refs/{ref}":
                url = f"{self.base()}{API}/repos/{owner}/{repo}/git"
                return self.json(
                    200,
                    {
                        "ref": name,
                        "node_id": "REF_1",
                        "url": f"{url}/{name}",
                        "object": {"type": kind, "sha": sha, "url": f"{url}/{kind}s/{sha}"},
                    },
                )
        raise Problem(404, "Not Found")

    def compare(self, _body, owner, repo, base, head):
        repositories = self.server.repositories
        try:
            base, head = (
                repositories.resolve(owner, repo, base),
                repositories.resolve(owner, repo, head),
            )
        except Problem as problem:
            raise Problem(404, "Not Found") from problem
        found = repositories.git(owner, repo, "merge-base", base, head)
        if not found:
            raise Problem(404, f"No common ancestor between {base} and {head}.")
        merge_base = found.decode().split()[0]

        def count(span):
            return int(repositories.git(owner, repo, "rev-list", "--count", span))

        ahead, behind = count(f"{base}..{head}"), count(f"{head}..{base}")
        status = {(False, False): "identical", (True, False): "ahead", (False, True): "behind"}.get(
            (ahead > 0, behind > 0), "diverged"
        )

        def shown(commit):
            return self.shown_commit(owner, repo, repositories.log(owner, repo, commit, None, 1)[0])

        between = (
            repositories.git(owner, repo, "rev-list", "--reverse", f"{base}..{head}")
            .decode()
            .split()
        )
        listed, headers = (
            self.page(between, f"repos/{owner}/{repo}/compare/{base}...{head}")
            if "page" in self.query or "per_page" in self.query
            else (between[:250], {})
        )
        page = f"{self.base()}/{owner}/{repo}/compare/{base}...{head}"
        url = f"{self.base()}{API}/repos/{owner}/{repo}/compare/{base}...{head}"
        return self.json(
            200,
            {
                "url": url,
                "html_url": page,
                "permalink_url": page,
                "diff_url": page + ".diff",
                "patch_url": page + ".patch",
                "base_commit": shown(base),
                "merge_base_commit": shown(merge_base),
                "status": status,
                "ahead_by": ahead,
                "behind_by": behind,
                "total_commits": len(between),
                "commits": [shown(commit) for commit in listed],
                "files": self.changed_files(owner, repo, merge_base, head),
            },
            headers,
        )

    def changed_files(self, owner, repo, base, head):
        """What differs between two commits: 300 files at most, as on GitHub."""
        out = self.server.repositories.git(
            owner, repo, "diff-tree", "-r", "-z", "--no-renames", base, head
        ).decode()
        parts, files = out.split("\0"), []
        for described, name in zip(parts[::2], parts[1::2]):
            old, new, letter = described.split()[2:5]
            url = f"{self.base()}{API}/repos/{owner}/{repo}/contents/{quote(name)}?ref={head}"
            page = f"{self.base()}/{owner}/{repo}/{{}}/{head}/{quote(name)}"
            files.append(
                {
                    "sha": old if letter == "D" else new,
                    "filename": name,
                    "status": {"A": "added", "D": "removed"}.get(letter, "modified"),
                    "additions": 1,
                    "deletions": 1,
                    "changes": 2,
                    "blob_url": page.format("blob"),
                    "raw_url": page.format("raw"),
                    "contents_url": url,
                }
            )
        return files[:300]

    def upload_pack(self, body, owner, repo):
        """Git's own protocol, for those who speak version 2 of it."""
        if self.headers.get(
            "Content-Type"
        ) != "application/x-git-upload-pack-request" or not self.headers.get(
            "User-Agent", ""
        ).startswith("git/"):
            raise Problem(415, "Unsupported Media Type")
        if "Authorization" in self.headers:
            given = (
                base64.b64decode(self.headers["Authorization"].removeprefix("Basic "))
                .decode()
                .split(":", 1)[-1]
            )
            if given not in (self.server.options.token, "read-only"):
                raise Problem(401, "Bad credentials")
        out = self.server.repositories.upload_pack(
            owner, repo, self.headers.get("Git-Protocol", ""), body
        )
        return 200, "application/x-git-upload-pack-result", out, {"Cache-Control": "no-cache"}

    def commits(self, _body, owner, repo):
        commit = self.server.repositories.resolve(owner, repo, self.query.get("sha", "HEAD"))
        entries = self.server.repositories.log(
            owner,
            repo,
            commit,
            self.query.get("path"),
            min(int(self.query.get("per_page", 30)), 100),
            self.query.get("until"),
            int(self.query.get("page", 1)),
        )
        return self.json(200, [self.shown_commit(owner, repo, fields) for fields in entries])

    def commit(self, _body, owner, repo, ref):
        sha = self.server.repositories.resolve(owner, repo, ref)
        if self.headers.get("Accept") == "application/vnd.github.sha":
            return 200, "application/vnd.github.sha", sha.encode(), {}
        return self.json(
            200,
            self.shown_commit(
                owner, repo, self.server.repositories.log(owner, repo, sha, None, 1)[0]
            ),
        )


REPO = r"/repos/(?P<owner>[^/]+)/(?P<repo>[^/]+)"
ROUTES = [
    ("GET", API + "/rate_limit", Handler.rate_limit),
    ("GET", API + REPO, Handler.repository),
    ("GET", API + REPO + r"/git/ref/(?P<ref>.+)", Handler.git_ref),
    ("GET", API + REPO + r"/git/commits/(?P<sha>[0-9a-f]{40})", Handler.git_commit),
    ("GET", API + REPO + r"/git/trees/(?P<sha>[0-9a-f]{40})", Handler.git_tree),
    ("GET", API + REPO + r"/compare/(?P<base>.+?)\.\.\.(?P<head>.+)", Handler.compare),
    ("POST", r"/(?P<owner>[^/]+)/(?P<repo>[^/]+)\.git/git-upload-pack", Handler.upload_pack),
    ("GET", API + REPO + r"/releases", Handler.list_releases),
    ("POST", API + REPO + r"/releases", Handler.create_release),
    ("GET", API + REPO + r"/releases/latest", Handler.latest_release),
    ("GET", API + REPO + r"/releases/tags/(?P<tag>[^/]+)", Handler.release_by_tag),
    ("GET", API + REPO + r"/releases/assets/(?P<asset>\d+)", Handler.get_asset),
    ("GET", API + REPO + r"/releases/(?P<release>\d+)", Handler.get_release),
    ("PATCH", API + REPO + r"/releases/(?P<release>\d+)", Handler.update_release),
    ("DELETE", API + REPO + r"/releases/(?P<release>\d+)", Handler.delete_release),
    ("GET", API + REPO + r"/releases/(?P<release>\d+)/assets", Handler.list_assets),
    ("POST", UPLOADS + REPO + r"/releases/(?P<release>\d+)/assets", Handler.upload_asset),
    ("GET", API + REPO + r"/contents/(?P<path>.+)", Handler.contents),
    ("GET", API + REPO + r"/commits", Handler.commits),
    ("GET", API + REPO + r"/commits/(?P<ref>.+)", Handler.commit),
    ("GET", STORAGE + r"/(?P<owner>[^/]+)/(?P<repo>[^/]+)/(?P<asset>\d+)", Handler.stored),
    (
        "GET",
        r"/(?P<owner>[^/]+)/(?P<repo>[^/]+)/releases/download/(?P<tag>[^/]+)/(?P<name>[^/]+)",
        Handler.download,
    ),
]


class Server(ThreadingHTTPServer):
    """The listener, with what all connections share."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, options):
        host, port = options.listen.rsplit(":", 1)
        if host != "127.0.0.1":
            raise SystemExit("error: the development GitHub listens on 127.0.0.1 only")
        super().__init__((host, int(port)), Handler)
        self.options, self.fault_lock = options, threading.Lock()
        self.used, self.hour = {}, time.time()
        self.repositories, self.releases = Repositories(options.root), Releases(options.state)
        names = {}
        for entry in self.releases.entries:
            if not entry["draft"]:
                names.setdefault(entry["repository"], {})[entry["tag_name"]] = entry[
                    "target_commitish"
                ]
        for repository, tags in names.items():
            self.repositories.tag(*repository.split("/"), tags)
        self.contract = None
        if options.contract:
            from contract import Contract

            self.contract = Contract(options.contract)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls_cert, options.tls_key)
        self.context = context

    def get_request(self):
        connection, address = super().get_request()
        return self.context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        ), address

    def handle_error(self, request, client_address):
        # A client that breaks off is none of the server's troubles; anything else is printed.
        if not isinstance(sys.exc_info()[1], (ConnectionError, ssl.SSLError, TimeoutError)):
            super().handle_error(request, client_address)

    def violated(self, problems):
        for problem in problems:
            print(f"contract: {problem}", file=sys.stderr, flush=True)
            if self.options.violations:
                with open(self.options.violations, "a", encoding="utf-8") as file:
                    file.write(problem + "\n")

    def log(self, entry):
        if self.options.log:
            with self.fault_lock, open(self.options.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def scenario(self):
        if not self.options.scenario or not os.path.exists(self.options.scenario):
            return {}
        with open(self.options.scenario, encoding="utf-8") as file:
            return json.load(file)

    def limited(self, caller):
        return caller in self.scenario().get("limits", {})

    def limit(self, caller):
        """The limit of a caller, what of it is used, and when its hour is over."""
        if time.time() >= self.hour + 3600:
            self.used, self.hour = {}, time.time()
        limit = self.scenario().get("limits", {}).get(caller, {"anonymous": 60}.get(caller, 5000))
        return limit, min(self.used.get(caller, 0), limit), int(self.hour) + 3600

    def charge(self, caller, count):
        with self.fault_lock:
            self.used[caller] = (
                max(self.used.get(caller, 0) + count, 0) if self.limited(caller) else 0
            )

    def fault(self, method, path):
        if not self.options.faults or not os.path.exists(self.options.faults):
            return None
        with self.fault_lock:
            with open(self.options.faults, encoding="utf-8") as file:
                faults = json.load(file)
            for fault in faults:
                if (
                    fault.get("times", 1) > 0
                    and fault.get("method", method) == method
                    and re.search(fault["path"], path)
                ):
                    fault["times"] = fault.get("times", 1) - 1
                    with open(self.options.faults + ".new", "w", encoding="utf-8") as file:
                        json.dump(faults, file)
                    os.replace(self.options.faults + ".new", self.options.faults)
                    return fault
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--listen",
        default="127.0.0.1:0",
        help="address; port 0 picks a free one (default %(default)s)",
    )
    parser.add_argument("--root", required=True, help="folder with OWNER/REPO git repositories")
    parser.add_argument("--tls-cert", required=True)
    parser.add_argument("--tls-key", required=True)
    parser.add_argument(
        "--token", default="", help="the token that may write; without it nothing may"
    )
    parser.add_argument("--state", help="file that keeps the releases")
    parser.add_argument(
        "--contract", help="GitHub's OpenAPI description: check every request and response"
    )
    parser.add_argument("--violations", help="file to append contract violations to")
    parser.add_argument("--faults", help="file with faults to inject (see above)")
    parser.add_argument("--scenario", help="file that says how this GitHub behaves (see above)")
    parser.add_argument("--log", help="file to append a line of JSON per request to")
    parser.add_argument(
        "--strict-storage",
        action="store_true",
        help="a token sent to the asset storage is a violation",
    )
    parser.add_argument("--verbose", action="store_true", help="a line per request")
    options = parser.parse_args()
    server = Server(options)
    print(f"listening on https://127.0.0.1:{server.server_address[1]}{API}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()

#!/usr/bin/python3
"""The development GitHub against GitHub's own API description, with a plain HTTPS client.

The description lies beside the checkout in `../shared/contracts`; without it the behaviour is
tested and the validation is said to be skipped.
"""

import base64
import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
CONTRACT = os.path.join(
    HERE, "..", "..", "..", "shared", "contracts", "github-releases.openapi.json"
)
TOKEN = "development-token"


class Development(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        root = cls.folder.name
        subprocess.run([os.path.join(HERE, "..", "tls"), root], check=True)
        repo = os.path.join(root, "repos", "acme", "app")
        os.makedirs(repo)
        git = ["git", "-C", repo, "-c", "user.name=dev", "-c", "user.email=dev@example.org"]
        subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
        with open(os.path.join(repo, "cofferdam.yaml"), "w", encoding="utf-8") as file:
            file.write("version: 1\n")
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "declare"], check=True)
        cls.git = staticmethod(
            lambda *arguments: subprocess.run(
                [*git, *arguments], check=True, capture_output=True, text=True
            ).stdout.strip()
        )
        cls.commit = cls.git("rev-parse", "HEAD")
        cls.violations, cls.faults = os.path.join(root, "violations"), os.path.join(root, "faults")
        cls.scenario, cls.log = os.path.join(root, "scenario"), os.path.join(root, "log")
        command = [
            sys.executable,
            os.path.join(HERE, "server.py"),
            "--root",
            os.path.join(root, "repos"),
            "--token",
            TOKEN,
            "--faults",
            cls.faults,
            "--scenario",
            cls.scenario,
            "--log",
            cls.log,
            "--tls-cert",
            os.path.join(root, "server.pem"),
            "--tls-key",
            os.path.join(root, "server.key"),
            "--state",
            os.path.join(root, "state"),
        ]
        if os.path.exists(CONTRACT):
            command += ["--contract", CONTRACT, "--violations", cls.violations]
        else:
            print(
                "skipped: validation against GitHub's API description (../shared is not there)",
                file=sys.stderr,
            )
        cls.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        cls.api = cls.server.stdout.readline().split()[-1]
        cls.trust = ssl.create_default_context(cafile=os.path.join(root, "ca.pem"))

    @classmethod
    def tearDownClass(cls):
        cls.server.terminate()
        cls.server.wait()
        cls.server.stdout.close()
        cls.folder.cleanup()

    def tearDown(self):
        self.play({})
        self.assertFalse(
            os.path.exists(self.violations) and open(self.violations, encoding="utf-8").read(),
            "contract violations",
        )

    def play(self, scenario):
        with open(self.scenario, "w", encoding="utf-8") as file:
            json.dump(scenario, file)

    def call(self, *arguments, **options):
        status, body, self.headers = self.whole(*arguments, **options)
        return status, body

    def whole(
        self, method, url, body=None, token=TOKEN, accept="application/vnd.github+json", more=None
    ):
        """One call: status, body (parsed when it is JSON) and headers."""
        url = url if url.startswith("https:") else self.api + url
        headers = {"Accept": accept, "User-Agent": "test", **(more or {})}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        if isinstance(body, bytes):
            headers.setdefault("Content-Type", "application/octet-stream")
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, context=self.trust, timeout=20) as response:
                raw = response.read()
                return (
                    response.status,
                    json.loads(raw) if "json" in response.headers.get("Content-Type", "") else raw,
                    response.headers,
                )
        except urllib.error.HTTPError as error:
            with error:
                raw = error.read()
                return error.code, json.loads(raw) if raw else None, error.headers

    def publish(self, tag, target=None):
        body = {"tag_name": tag, "target_commitish": target or self.commit, "draft": False}
        status, release = self.call("POST", "/repos/acme/app/releases", body)
        self.assertEqual(status, 201)
        self.addCleanup(self.call, "DELETE", f"/repos/acme/app/releases/{release['id']}")
        return release

    def draft(self, tag):
        body = {
            "tag_name": tag,
            "target_commitish": self.commit,
            "name": tag,
            "body": "text",
            "draft": True,
        }
        status, release = self.call("POST", "/repos/acme/app/releases", body)
        self.assertEqual(status, 201)
        return release

    def test_release_from_draft_to_immutable(self):
        release = self.draft("one")
        self.assertEqual(self.call("GET", "/repos/acme/app/releases/tags/one")[0], 404)
        self.assertNotIn(
            "one",
            [r["tag_name"] for r in self.call("GET", "/repos/acme/app/releases", token=None)[1]],
        )
        upload = release["upload_url"].split("{")[0] + "?name=attestation.json"
        status, asset = self.call("POST", upload, b"{}")
        self.assertEqual(
            (status, asset["digest"]), (201, "sha256:" + hashlib.sha256(b"{}").hexdigest())
        )
        self.assertEqual(
            self.call("PATCH", f"/repos/acme/app/releases/{release['id']}", {"draft": False})[1][
                "immutable"
            ],
            True,
        )
        self.assertEqual(
            self.call("GET", "/repos/acme/app/releases/tags/one", token=None)[1]["assets"][0][
                "name"
            ],
            "attestation.json",
        )
        self.assertEqual(
            self.call("GET", asset["url"], accept="application/octet-stream", token=None),
            (200, b"{}"),
        )
        self.assertEqual(self.call("GET", asset["browser_download_url"], token=None), (200, b"{}"))
        self.assertEqual(self.call("POST", upload + "2", b"x")[0], 422)
        self.assertEqual(
            self.call("PATCH", f"/repos/acme/app/releases/{release['id']}", {"tag_name": "other"})[
                0
            ],
            422,
        )
        again = {"tag_name": "one", "target_commitish": self.commit, "draft": False}
        self.assertEqual(self.call("POST", "/repos/acme/app/releases", again)[0], 422)

    def test_writing_needs_the_token(self):
        for token, status in ((None, 401), ("wrong", 401)):
            self.assertEqual(
                self.call("POST", "/repos/acme/app/releases", {"tag_name": "x"}, token=token)[0],
                status,
            )

    def test_contents_and_commits_come_from_git(self):
        status, file = self.call(
            "GET", f"/repos/acme/app/contents/cofferdam.yaml?ref={self.commit}", token=None
        )
        self.assertEqual((status, base64.b64decode(file["content"])), (200, b"version: 1\n"))
        self.assertEqual(
            self.call("GET", "/repos/acme/app/commits/main", token=None)[1]["sha"], self.commit
        )
        self.assertEqual(
            len(self.call("GET", "/repos/acme/app/commits?path=cofferdam.yaml&per_page=1")[1]), 1
        )
        self.assertEqual(
            self.call("GET", f"/repos/acme/app/contents/none?ref={self.commit}")[0], 404
        )
        self.assertEqual(self.call("GET", "/repos/acme/other/contents/cofferdam.yaml")[0], 404)
        self.assertEqual(self.call("GET", "/repos/../app/releases")[0], 404)

    def test_a_release_is_dated_by_its_commit_and_lists_promise_no_order(self):
        tags = [f"order-{number}" for number in range(5)]
        for tag in tags:
            release = self.publish(tag)
            self.assertEqual(
                release["created_at"],
                self.call("GET", f"/repos/acme/app/commits/{self.commit}")[1]["commit"][
                    "committer"
                ]["date"],
            )
            self.assertNotEqual(release["published_at"], None)
        seen = []
        for order in ("newest", "oldest", "shuffled"):
            self.play({"order": order})
            seen.append(
                [
                    release["tag_name"]
                    for release in self.call("GET", "/repos/acme/app/releases")[1]
                    if release["tag_name"] in tags
                ]
            )
        self.assertEqual(seen[:2], [tags[::-1], tags])
        self.assertEqual(sorted(seen[2]), tags)
        self.assertNotIn(seen[2], seen[:2])

    def test_a_symbolic_link_is_answered_with_the_file_that_it_points_to(self):
        folder, before = os.path.join(self.folder.name, "repos", "acme", "app"), self.commit
        os.makedirs(os.path.join(folder, "links"), exist_ok=True)
        for name, target in (
            ("file", "../cofferdam.yaml"),
            ("twice", "file"),
            ("out", "../../other"),
            ("loop", "loop"),
        ):
            os.symlink(target, os.path.join(folder, "links", name))
        self.git("add", ".")
        self.git("commit", "-q", "-m", "links")
        try:
            for name in ("file", "twice"):
                _, file = self.call(
                    "GET", f"/repos/acme/app/contents/links/{name}?ref=main", token=None
                )
                self.assertEqual(
                    (file["type"], base64.b64decode(file["content"])), ("file", b"version: 1\n")
                )
            for name, target in (("out", "../../other"), ("loop", "loop")):
                _, link = self.call(
                    "GET", f"/repos/acme/app/contents/links/{name}?ref=main", token=None
                )
                self.assertEqual(
                    (link["type"], link["target"], "content" in link), ("symlink", target, False)
                )
        finally:
            self.git("reset", "-q", "--hard", before)

    def test_lists_come_in_pages_with_links(self):
        tags = {f"page-{number}" for number in range(5)}
        for tag in tags:
            self.publish(tag)
        found, url = set(), "/repos/acme/app/releases?per_page=2"
        while url:
            found |= {release["tag_name"] for release in self.call("GET", url)[1]}
            following = re.search(r'<([^>]+)>; rel="next"', self.headers.get("Link", ""))
            url = following and following[1]
        self.assertLessEqual(tags, found)
        self.call("GET", "/repos/acme/app/releases?per_page=100")
        self.assertNotIn("Link", self.headers, "one page has no others")

    def test_drafts_are_seen_by_those_who_may_push_and_by_nobody_else(self):
        self.draft("unseen")
        for token, seen in ((TOKEN, True), ("read-only", False), (None, False)):
            tags = [
                one["tag_name"]
                for one in self.call("GET", "/repos/acme/app/releases", token=token)[1]
            ]
            self.assertEqual("unseen" in tags, seen, token)
        self.assertEqual(
            self.call("POST", "/repos/acme/app/releases", {"tag_name": "x"}, token="read-only")[0],
            403,
        )

    def test_releases_need_not_be_immutable(self):
        self.play({"immutable": False})
        release = self.publish("mutable")
        self.assertIs(release["immutable"], False)
        upload = release["upload_url"].split("{")[0] + "?name=late"
        self.assertEqual(self.call("POST", upload, b"late")[0], 201)

    def test_commits_and_directories_have_what_their_names_are_computed_of(self):
        found = self.call("GET", f"/repos/acme/app/git/commits/{self.commit}", token=None)[1]
        self.assertEqual(found["sha"], self.commit)
        unsigned = {"verified": False, "reason": "unsigned", "signature": None, "payload": None}
        self.assertEqual(found["verification"] | unsigned, found["verification"])
        tree = self.call("GET", f"/repos/acme/app/git/trees/{found['tree']['sha']}", token=None)[1]
        entries = b"".join(
            f"{entry['mode'].lstrip('0')} {entry['path']}\0".encode() + bytes.fromhex(entry["sha"])
            for entry in tree["tree"]
        )
        computed = hashlib.sha1(b"tree %d\0" % len(entries) + entries, usedforsecurity=False)
        self.assertEqual(computed.hexdigest(), found["tree"]["sha"])
        for kind in ("commits", "trees"):
            self.assertEqual(self.call("GET", f"/repos/acme/app/git/{kind}/{'0' * 40}")[0], 404)

    def test_the_default_branch_is_found_by_its_whole_name(self):
        repository = self.call("GET", "/repos/acme/app", token=None)[1]
        self.assertEqual(repository["default_branch"], "main")
        self.git("update-ref", "refs/heads/HEAD", "main")
        self.git("tag", "-f", "main", self.git("commit-tree", "-m", "a thief's", "main^{tree}"))
        self.addCleanup(self.git, "tag", "-d", "main")
        self.addCleanup(self.git, "update-ref", "-d", "refs/heads/HEAD")
        status, ref = self.call("GET", "/repos/acme/app/git/ref/heads/main", token=None)
        self.assertEqual((status, ref["object"]["sha"]), (200, self.commit))
        self.assertEqual(
            self.call("GET", "/repos/acme/app/git/ref/heads/mai", token=None)[0],
            404,
            "the whole name or nothing",
        )
        self.assertNotEqual(
            self.call("GET", "/repos/acme/app/commits/main", token=None)[1]["sha"],
            self.commit,
            "a tag shadows the branch's bare name",
        )

        def line(text):
            return f"{len(text) + 5:04x}{text}\n"

        body = (
            line("command=ls-refs") + "0001" + line("symrefs") + line("ref-prefix HEAD") + "0000"
        ).encode()
        headers = {
            "Content-Type": "application/x-git-upload-pack-request",
            "Git-Protocol": "version=2",
            "User-Agent": "git/test",
        }
        git = self.api.replace("/api/v3", "/acme/app.git/git-upload-pack")
        status, answer, _ = self.whole("POST", git, body, token=None, more=headers)
        self.assertEqual(
            (status, answer),
            (200, (line(f"{self.commit} HEAD symref-target:refs/heads/main") + "0000").encode()),
        )

    def test_commits_are_compared_as_git_compares_them(self):
        self.git("checkout", "-q", "-b", "side")
        self.git("commit", "-q", "--allow-empty", "-m", "aside")
        side = self.git("rev-parse", "HEAD")
        self.git("checkout", "-q", "--orphan", "alone")
        self.git("commit", "-q", "--allow-empty", "-m", "unrelated")
        alone = self.git("rev-parse", "HEAD")
        self.git("checkout", "-q", "main")
        for base, head, status, merge_base in (
            (self.commit, side, "ahead", self.commit),
            (side, self.commit, "behind", self.commit),
            (self.commit, self.commit, "identical", self.commit),
        ):
            found = self.call("GET", f"/repos/acme/app/compare/{base}...{head}", token=None)[1]
            self.assertEqual(
                (found["status"], found["merge_base_commit"]["sha"]), (status, merge_base)
            )
        status, answer = self.call(
            "GET", f"/repos/acme/app/compare/{alone}...{self.commit}", token=None
        )
        self.assertEqual(status, 404)
        self.assertTrue(answer["message"].startswith("No common ancestor"))
        self.assertEqual(
            self.call("GET", f"/repos/acme/app/compare/{'0' * 40}...{self.commit}", token=None)[0],
            404,
        )

    def test_what_has_not_changed_is_not_sent_again(self):
        url = "/repos/acme/app/releases"
        for token in (None, TOKEN):
            self.assertEqual(self.call("GET", url, token=token)[0], 200)
            etag = self.headers["ETag"]
            self.assertEqual(
                self.call("GET", url, token=token, more={"If-None-Match": etag}), (304, None)
            )
            release = self.draft("changing") if token else self.publish("changing-too")
            self.assertEqual(
                self.call("GET", url, token=token, more={"If-None-Match": etag})[0], 200
            )
            self.call("DELETE", f"/repos/acme/app/releases/{release['id']}")

    def test_the_rate_limit_is_told_and_kept(self):
        self.play({"limits": {"anonymous": 2, "token": 3}})
        url = "/repos/acme/app/releases"

        def remaining():
            return (
                self.headers["X-RateLimit-Remaining"],
                self.headers["X-RateLimit-Limit"],
            )

        self.call("GET", url, token=None)
        self.assertEqual(remaining(), ("1", "2"))
        etag = self.headers["ETag"]
        self.assertEqual(self.call("GET", url, token=None, more={"If-None-Match": etag})[0], 304)
        self.assertEqual(remaining(), ("0", "2"), "an anonymous caller pays for 304 too")
        self.assertEqual(self.call("GET", url, token=None)[0], 403)
        self.assertGreater(int(self.headers["X-RateLimit-Reset"]), time.time())
        self.play({"limits": {"anonymous": 2, "token": 3}, "limited": 429})
        self.assertEqual(self.call("GET", url, token=None)[0], 429)
        self.call("GET", url)
        etag, before = self.headers["ETag"], remaining()
        self.call("GET", url, more={"If-None-Match": etag})
        self.assertEqual(remaining(), before, "with a token 304 is free")

    def test_each_request_is_logged(self):
        self.call("GET", "/repos/acme/app/releases?per_page=7", token=None)
        with open(self.log, encoding="utf-8") as file:
            last = [json.loads(line) for line in file][-1]
        self.assertEqual(
            (last["kind"], last["method"], last["query"], last["status"], last["token"]),
            ("api", "GET", "per_page=7", 200, False),
        )

    def test_faults_are_counted_down(self):
        with open(self.faults, "w", encoding="utf-8") as file:
            json.dump(
                [
                    {
                        "method": "GET",
                        "path": "/commits/main$",
                        "status": 403,
                        "times": 1,
                        "headers": {"Retry-After": "1"},
                    }
                ],
                file,
            )
        self.assertEqual(self.call("GET", "/repos/acme/app/commits/main")[0], 403)
        self.assertEqual(self.call("GET", "/repos/acme/app/commits/main")[0], 200)


if __name__ == "__main__":
    unittest.main()

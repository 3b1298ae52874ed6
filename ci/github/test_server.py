#!/usr/bin/python3
"""The development GitHub against GitHub's own API description, with a plain HTTPS client.

The description lies beside the checkout in `../shared/contracts`; without it the behaviour is tested
and the validation is said to be skipped.
"""

import base64
import hashlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
import unittest
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
CONTRACT = os.path.join(HERE, "..", "..", "..", "shared", "contracts", "github-releases.openapi.json")
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
        cls.commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        cls.violations, cls.faults = os.path.join(root, "violations"), os.path.join(root, "faults")
        command = [sys.executable, os.path.join(HERE, "server.py"), "--root", os.path.join(root, "repos"), "--token", TOKEN, "--faults", cls.faults,
                   "--tls-cert", os.path.join(root, "server.pem"), "--tls-key", os.path.join(root, "server.key"), "--state", os.path.join(root, "state")]
        if os.path.exists(CONTRACT):
            command += ["--contract", CONTRACT, "--violations", cls.violations]
        else:
            print("skipped: validation against GitHub's API description (../shared is not there)", file=sys.stderr)
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
        self.assertFalse(os.path.exists(self.violations) and open(self.violations, encoding="utf-8").read(), "contract violations")

    def call(self, method, url, body=None, token=TOKEN, accept="application/vnd.github+json"):
        url = url if url.startswith("https:") else self.api + url
        headers = {"Accept": accept, "User-Agent": "test"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/octet-stream"
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, context=self.trust, timeout=20) as response:
                raw = response.read()
                return response.status, json.loads(raw) if "json" in response.headers.get("Content-Type", "") else raw
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def draft(self, tag):
        body = {"tag_name": tag, "target_commitish": self.commit, "name": tag, "body": "text", "draft": True}
        status, release = self.call("POST", "/repos/acme/app/releases", body)
        self.assertEqual(status, 201)
        return release

    def test_release_from_draft_to_immutable(self):
        release = self.draft("one")
        self.assertEqual(self.call("GET", "/repos/acme/app/releases/tags/one")[0], 404)
        self.assertNotIn("one", [r["tag_name"] for r in self.call("GET", "/repos/acme/app/releases", token=None)[1]])
        upload = release["upload_url"].split("{")[0] + "?name=attestation.json"
        status, asset = self.call("POST", upload, b"{}")
        self.assertEqual((status, asset["digest"]), (201, "sha256:" + hashlib.sha256(b"{}").hexdigest()))
        self.assertEqual(self.call("PATCH", f"/repos/acme/app/releases/{release['id']}", {"draft": False})[1]["immutable"], True)
        self.assertEqual(self.call("GET", "/repos/acme/app/releases/tags/one", token=None)[1]["assets"][0]["name"], "attestation.json")
        self.assertEqual(self.call("GET", asset["url"], accept="application/octet-stream", token=None), (200, b"{}"))
        self.assertEqual(self.call("GET", asset["browser_download_url"], token=None), (200, b"{}"))
        self.assertEqual(self.call("POST", upload + "2", b"x")[0], 422)
        self.assertEqual(self.call("PATCH", f"/repos/acme/app/releases/{release['id']}", {"tag_name": "other"})[0], 422)
        again = {"tag_name": "one", "target_commitish": self.commit, "draft": False}
        self.assertEqual(self.call("POST", "/repos/acme/app/releases", again)[0], 422)

    def test_writing_needs_the_token(self):
        for token, status in ((None, 401), ("wrong", 401)):
            self.assertEqual(self.call("POST", "/repos/acme/app/releases", {"tag_name": "x"}, token=token)[0], status)

    def test_contents_and_commits_come_from_git(self):
        status, file = self.call("GET", f"/repos/acme/app/contents/cofferdam.yaml?ref={self.commit}", token=None)
        self.assertEqual((status, base64.b64decode(file["content"])), (200, b"version: 1\n"))
        self.assertEqual(self.call("GET", "/repos/acme/app/commits/main", token=None)[1]["sha"], self.commit)
        self.assertEqual(len(self.call("GET", "/repos/acme/app/commits?path=cofferdam.yaml&per_page=1")[1]), 1)
        self.assertEqual(self.call("GET", f"/repos/acme/app/contents/none?ref={self.commit}")[0], 404)
        self.assertEqual(self.call("GET", "/repos/acme/other/contents/cofferdam.yaml")[0], 404)
        self.assertEqual(self.call("GET", "/repos/../app/releases")[0], 404)

    def test_faults_are_counted_down(self):
        with open(self.faults, "w", encoding="utf-8") as file:
            json.dump([{"method": "GET", "path": "/commits/main$", "status": 403, "times": 1, "headers": {"Retry-After": "1"}}], file)
        self.assertEqual(self.call("GET", "/repos/acme/app/commits/main")[0], 403)
        self.assertEqual(self.call("GET", "/repos/acme/app/commits/main")[0], 200)


if __name__ == "__main__":
    unittest.main()

"""The links of the documents: each leads to a file of the tree, and to a heading that it has.

Run with `python3 ci/tests/test_documents.py`. Addresses elsewhere are not asked.
"""

import os
import re
import subprocess
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def broken(page, folder):
    """Links of a page in a folder that lead nowhere."""
    for link in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(folder, path)) if path else None
        absent = target and not os.path.exists(target)
        if absent or (anchor and anchor not in anchors(read(target) if target else page)):
            yield link


class Links(unittest.TestCase):
    def test_each_leads_somewhere(self):
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        pages = listed.stdout.split()
        self.assertIn("README.md", pages)
        for name in pages:
            path = os.path.join(ROOT, name)
            self.assertEqual(list(broken(read(path), os.path.dirname(path))), [], name)

    def test_what_leads_nowhere_is_found(self):
        page = (
            "# A b\n[x](#a-b) [y](#c) [z](gone.md) [e](https://x.example/)\n```\n[n](no.md)\n```\n"
        )
        self.assertEqual(list(broken(page, ROOT)), ["#c", "gone.md"])


if __name__ == "__main__":
    unittest.main(verbosity=2)

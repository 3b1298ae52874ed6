"""GitHub's own API description as a judge: each request and response is checked against it.

Responsible for: finding the operation that a request belongs to and validating parameters, bodies
and status codes. Never repairs anything: what does not fit is reported and the test that drove the
server fails on the report.
"""

import json
import re
from urllib.parse import parse_qs

import jsonschema


def in_path(*names):
    """Parameters that stand in the path."""
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]


# Operations that the description at hand leaves out, as GitHub's pages on "Compare two commits" and
# "Get a tree" have them: what both sides rely on.
LEFT_OUT = {
    "/repos/{owner}/{repo}/git/trees/{tree_sha}": {
        "get": {
            "parameters": in_path("owner", "repo", "tree_sha"),
            "responses": {
                "200": {
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "properties": {
                                    "sha": {"type": "string"},
                                    "url": {"type": "string"},
                                    "truncated": {"type": "boolean"},
                                    "tree": {
                                        "type": "array",
                                        "items": {
                                            "type": "object",
                                            "properties": {
                                                "path": {"type": "string"},
                                                "mode": {"type": "string"},
                                                "type": {"type": "string"},
                                                "sha": {"type": "string"},
                                                "size": {"type": "integer"},
                                                "url": {"type": "string"},
                                            },
                                            "required": ["path", "mode", "type", "sha"],
                                        },
                                    },
                                },
                                "required": ["sha", "tree", "truncated"],
                            }
                        }
                    }
                },
                "404": {},
                "409": {},
            },
        }
    },
    "/repos/{owner}/{repo}/compare/{basehead}": {
        "get": {
            "parameters": in_path("owner", "repo", "basehead")
            + [
                {"name": name, "in": "query", "schema": {"type": "integer"}}
                for name in ("page", "per_page")
            ],
            "responses": {
                "200": {
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "properties": {
                                    "status": {
                                        "type": "string",
                                        "enum": ["diverged", "ahead", "behind", "identical"],
                                    },
                                    "base_commit": {"$ref": "#/components/schemas/commit"},
                                    "merge_base_commit": {"$ref": "#/components/schemas/commit"},
                                    "ahead_by": {"type": "integer"},
                                    "behind_by": {"type": "integer"},
                                    "total_commits": {"type": "integer"},
                                    "commits": {
                                        "type": "array",
                                        "items": {"$ref": "#/components/schemas/commit"},
                                    },
                                    "files": {
                                        "type": "array",
                                        "maxItems": 300,
                                        "items": {"$ref": "#/components/schemas/diff-entry"},
                                    },
                                },
                                "required": [
                                    "url",
                                    "html_url",
                                    "permalink_url",
                                    "diff_url",
                                    "patch_url",
                                    "base_commit",
                                    "merge_base_commit",
                                    "status",
                                    "ahead_by",
                                    "behind_by",
                                    "total_commits",
                                    "commits",
                                ],
                            }
                        }
                    }
                },
                "404": {},
                "500": {},
                "503": {},
            },
        }
    },
}


def _nullable(node):
    """OpenAPI 3.0 says `nullable: true` where JSON Schema says `type: [T, "null"]`."""
    if isinstance(node, list):
        return [_nullable(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _nullable(value) for key, value in node.items()}
    if node.pop("nullable", False) is True:
        return {"anyOf": [node, {"type": "null"}]}
    return node


class Contract:
    """The operations of one OpenAPI 3.0 document."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.document = _nullable(json.load(file))
        self.document["paths"] = {**LEFT_OUT, **self.document["paths"]}
        self.resolver = jsonschema.RefResolver.from_schema(self.document)
        self.operations = []
        for template, methods in self.document["paths"].items():
            # `{path}` of the contents endpoint and `{ref}` span slashes, as they do on GitHub.
            pattern = re.sub(r"\{(path|ref)\}", r"(?P<\1>.+)", template)
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
            for method, operation in methods.items():
                self.operations.append(
                    (method.upper(), template, re.compile(pattern + r"\Z"), operation)
                )
        # More literal templates first, so that `/releases/latest` is not read as a release id.
        self.operations.sort(key=lambda entry: entry[1].count("{"))

    def _dereference(self, node):
        while "$ref" in node:
            node = self.resolver.resolve(node["$ref"])[1]
        return node

    def _schema_problems(self, schema, value, where):
        validator = jsonschema.Draft4Validator(
            schema, resolver=self.resolver, format_checker=jsonschema.draft4_format_checker
        )
        return [
            f"{where}: {'/'.join(map(str, error.path))}: {error.message[:300]}"
            for error in validator.iter_errors(value)
        ]

    def operation(self, method, path):
        """The operation for a path below the API root, with its path parameters, or None."""
        for candidate, template, pattern, operation in self.operations:
            match = pattern.match(path) if candidate == method else None
            if match:
                return template, operation, match.groupdict()
        return None

    def request_problems(self, method, path, query, content_type, body):
        """What a request violates; an empty list when it fits."""
        found = self.operation(method, path)
        if found is None:
            return [f"{method} {path}: no such operation in the contract"]
        template, operation, path_values = found
        where = f"{method} {template}: request"
        problems = []
        given = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
        for parameter in map(self._dereference, operation.get("parameters", [])):
            values = path_values if parameter["in"] == "path" else given
            if parameter["in"] not in ("path", "query"):
                continue
            value = values.get(parameter["name"])
            if value is None:
                if parameter.get("required"):
                    problems.append(f"{where}: parameter {parameter['name']} is missing")
                continue
            if parameter["schema"].get("type") == "integer":
                if not re.fullmatch(r"-?\d+", value):
                    problems.append(f"{where}: parameter {parameter['name']} is not an integer")
                    continue
                value = int(value)
            problems += self._schema_problems(
                parameter["schema"], value, f"{where} {parameter['name']}"
            )
        known = {p["name"] for p in map(self._dereference, operation.get("parameters", []))}
        problems += [
            f"{where}: unknown query parameter {name}" for name in given if name not in known
        ]
        described = self._dereference(operation.get("requestBody", {}))
        if described:
            content = described["content"]
            if "application/json" in content:
                try:
                    problems += self._schema_problems(
                        content["application/json"]["schema"], json.loads(body), f"{where} body"
                    )
                except ValueError as error:
                    problems.append(f"{where} body: {error}")
        elif body:
            problems.append(f"{where}: a body where none belongs")
        return problems

    def response_problems(self, method, path, status, content_type, body):
        """What a response violates; an empty list when it fits."""
        found = self.operation(method, path)
        if found is None:
            return (
                []
                if status == 404
                else [f"{method} {path}: answered {status} outside the contract"]
            )
        template, operation, _ = found
        where = f"{method} {template}: response {status}"
        response = operation["responses"].get(str(status))
        if response is None:
            # 401, 403 and 429 are described once for the whole API, outside of the single
            # operations.
            return [] if status in (401, 403, 429, 422) else [f"{where}: not in the contract"]
        response = self._dereference(response)
        content = response.get("content", {})
        media = content_type.split(";")[0]
        if not content:
            return []
        if media == "application/octet-stream":
            return []
        if media == "application/vnd.github.sha" and media in content:
            return []
        if "application/json" not in content or media != "application/json":
            return [f"{where}: content type {content_type} is not described"]
        try:
            return self._schema_problems(
                content["application/json"]["schema"], json.loads(body), where
            )
        except ValueError as error:
            return [f"{where}: {error}"]

"""A hub that takes uploads, over HTTP as the real one: repositories, pre-uploads, LFS, commits; it keeps all files."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
TOKEN = "hf_test"


class FakeUploads:
    """files: what was committed, by name. Files of these endings go through LFS. refuse: an HTTP status for commits."""

    large = (".safetensors", ".gguf")

    def __init__(self, server: HTTPServer, repository: str) -> None:
        self.repository, self.url = repository, server.url_for("").rstrip("/")
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.commits: list[str] = []
        self.refuse = 0
        self.server = server
        api = f"/api/models/{repository}"
        for path, handler in {
            "/api/repos/create": self.create,
            "/api/validate-yaml": self.fine,
            f"{api}/preupload/main": self.preupload,
            f"{api}/revision/main": self.info,
            api: self.info,
            f"/{repository}.git/info/lfs/objects/batch": self.batch,
            f"{api}/commit/main": self.commit,
        }.items():
            server.expect_request(path).respond_with_handler(self._known(handler))

    def _known(self, handler: Any) -> Any:
        def answer(request: Request) -> Response:
            if request.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.json({"error": "Invalid credentials"}, 401)
            return handler(request)  # type: ignore[no-any-return]

        return answer

    @staticmethod
    def json(body: Any, status: int = 200) -> Response:
        return Response(json.dumps(body), status, content_type="application/json")

    def create(self, request: Request) -> Response:
        asked = request.get_json()
        private = asked.get("private", asked.get("visibility") == "private")  # older and newer clients
        self.created.append({"name": asked["name"], "private": private})
        return self.json({"url": f"{self.url}/{self.repository}", "id": self.repository, "name": self.repository})

    def fine(self, request: Request) -> Response:
        return self.json({"errors": [], "warnings": []})

    def info(self, request: Request) -> Response:
        siblings = [{"rfilename": name} for name in self.files]
        return self.json({"id": self.repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": True})

    def preupload(self, request: Request) -> Response:
        files = [
            {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(self.large) else "regular",
             "shouldIgnore": False, "oid": None}
            for one in request.get_json()["files"]
        ]  # fmt: skip
        return self.json({"files": files, "commitOid": COMMIT})

    def batch(self, request: Request) -> Response:
        objects = []
        for one in request.get_json(force=True)["objects"]:
            path = f"/blob/{one['oid']}"
            self.server.expect_request(path, method="PUT").respond_with_handler(self.blob)
            objects.append({**one, "actions": {"upload": {"href": self.url + path}}})
        return self.json({"transfer": "basic", "objects": objects})

    def blob(self, request: Request) -> Response:
        content = request.get_data()
        assert hashlib.sha256(content).hexdigest() == request.path.rpartition("/")[2]
        self.blobs[request.path.rpartition("/")[2]] = content
        return Response("")

    def commit(self, request: Request) -> Response:
        if self.refuse:
            return self.json({"error": "You have no right to write here"}, self.refuse)
        for line in request.get_data().decode().splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                self.commits.append(value["summary"])
            elif row["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                self.files[value["path"]] = self.blobs[value["oid"]]
        url = f"{self.url}/{self.repository}/commit/{COMMIT}"
        return self.json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

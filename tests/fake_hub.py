"""A hub on this machine: the few endpoints by which a folder is uploaded and fetched."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub:
    """Repositories in memory: name to commits, newest last, each a mapping of files."""

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, Files]]] = {}
        self.token: str | None = None

    def files(self, name: str, revision: str = "main") -> tuple[str, Files]:
        for commit, files in reversed(self.commits[name]):
            if revision in ("main", commit):
                return commit, files
        raise KeyError(revision)

    def add(self, name: str, files: Files) -> str:
        digest = hashlib.sha1(f"{name}{len(self.commits[name])}".encode()).hexdigest()
        self.commits[name].append((digest, files))
        return digest


class Handler(BaseHTTPRequestHandler):
    """The endpoints."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes | dict | list, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(unquote(self.path)).path
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            body = json.loads(content)
            name = f"{body.get('organization') or 'ada'}/{body['name']}"
            if name in self.hub.commits:
                return self.answer(
                    409, {"error": "exists", "url": f"https://huggingface.co/{name}"}
                )
            self.hub.commits[name] = []
            self.hub.add(name, {".gitattributes": b"*.safetensors lfs\n"})
            return self.answer(200, {"url": f"https://huggingface.co/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(content)["files"]
            ]
            return self.answer(200, {"files": files})
        if "/commit/" in path:
            return self.answer(200, self.committed(name, content))
        return self.refuse(404, "EntryNotFound")

    def committed(self, name: str, content: bytes) -> dict[str, Any]:
        files = dict(self.hub.files(name)[1])
        for line in content.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "deletedFile":
                files.pop(item["value"]["path"], None)
        oid = self.hub.add(name, files)
        return {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"https://huggingface.co/{name}/commit/{oid}",
        }

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(unquote(self.path)).path
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name = "/".join(parts[:2])
        if name not in self.hub.commits:
            return self.refuse(404, "RepoNotFound")
        try:
            commit, files = self.hub.files(name, parts[3] if len(parts) > 3 else "main")
        except KeyError:
            return self.refuse(404, "RevisionNotFound")
        if api and parts[2:3] == ["tree"]:
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                for path, content in files.items()
            ]
            return self.answer(200, tree)
        if api:
            siblings = [{"rfilename": path} for path in files]
            return self.answer(200, {"id": name, "sha": commit, "siblings": siblings})
        content = files.get("/".join(parts[4:]))
        if parts[2] != "resolve" or content is None:
            return self.refuse(404, "EntryNotFound")
        return self.answer(200, content, ETag=f'"{_oid(content)}"', X_Repo_Commit=commit)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def running() -> Iterator[tuple[str, Hub]]:
    """The hub's address and what it holds."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)

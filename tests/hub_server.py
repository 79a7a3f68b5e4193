"""A hub on loopback: repositories with one branch, as much of the Hugging Face hub's HTTP interface as bundles need."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_the_test"


class Hub:
    """`repos` by name: name of a file -> content. Whoever writes, or reads one of `private`, needs `TOKEN`."""

    def __init__(self):
        self.repos, self.private, self.stored = {}, set(), {}
        self.requests = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.broken = 0  # status of all answers from now on

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def sha(self, repo):
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refused(writes=True):
            return
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            self.send({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given['organization']}/{given['name']}"
            if given.get("visibility") == "private" or given.get("private"):
                self.hub.private.add(repo)
            if repo in self.hub.repos:
                self.send({"error": "exists", "url": f"{self.hub.url}/{repo}"}, 409)
            else:
                self.hub.repos[repo] = {}
                self.send({"url": f"{self.hub.url}/{repo}"})
        elif path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            kinds = {True: "lfs", False: "regular"}
            self.send(
                {
                    "files": [
                        {"path": name, "uploadMode": kinds[name.endswith(".safetensors")], "shouldIgnore": False}
                        for name in files
                    ]
                }
            )
        elif path.endswith("/info/lfs/objects/batch"):
            upload = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/put/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self.send({"transfer": "basic", "objects": upload})
        elif found := re.fullmatch(r"/api/models/(.+/.+)/commit/main", path):
            self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.send({"error": f"no {path}"}, 404)

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.hub.stored[hashlib.sha256(content).hexdigest()] = content
        self.send({})

    def commit(self, repo, lines):
        files = dict(self.hub.repos[repo])
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.hub.stored[line["value"]["oid"]]
        self.hub.repos[repo] = files
        sha = self.hub.sha(repo)
        self.send({"success": True, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)/?(.*)", path)
        short = re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)
        repo = found[1] if found else short[1] if short else ""
        if self.refused(writes=repo in self.hub.private):
            return
        if repo not in self.hub.repos:
            self.send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        files, sha = self.hub.repos[repo], self.hub.sha(repo)
        kind, revision, name = found.groups()[1:] if found else ("revision", "main", "")
        if revision not in ("main", sha):
            self.send({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif kind == "revision":
            siblings = [{"rfilename": each, "size": len(content)} for each, content in files.items()]
            self.send({"id": repo, "sha": sha, "siblings": siblings, "private": False, "tags": []})
        elif kind == "tree":
            self.send(
                [
                    {"type": "file", "path": each, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for each, content in files.items()
                ]
            )
        else:
            self.hub.requests.append(name)
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            self.send(files[name], 200, {"ETag": etag, "X-Repo-Commit": sha})

    def refused(self, writes):
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        status = self.hub.broken or (401 if writes and not known else 0)
        if status:
            self.send({"error": "refused"}, status)
        return status

    def send(self, content, status=200, headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # so that a server that has been shut down answers nobody
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format, *args):
        """Keep the output of the tests clean."""

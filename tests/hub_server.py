"""A stand-in for the Hugging Face hub on loopback: the paths that huggingface_hub's client asks for, with its headers.

`gated`: names of which the list of files may be read and no file, as the hub has it. `requests` lists what was asked:
(method, path, the Range header or None).
"""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_sha(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def hub(repositories, gated=(), cut=()):
    """-> (address, requests). `repositories`: name -> {path: bytes}. `cut`: paths of which half arrives before the
    connection breaks."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):  # noqa: N802 - the name that http.server calls
            self.answer(body=False)

        def do_GET(self):  # noqa: N802
            self.answer(body=True)

        def answer(self, body):
            path = urllib.parse.unquote(self.path.partition("?")[0])
            requests.append((self.command, path, self.headers.get("Range")))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                return self.api("/".join(parts[2:4]), parts[4:], body)
            name, rest = "/".join(parts[:2]), parts[2:]
            if name in gated:
                return self.refuse(403, "GatedRepo", body)
            files = repositories.get(name, {})
            if rest[:1] == ["resolve"] and "/".join(rest[2:]) in files:
                return self.file("/".join(rest[2:]), files["/".join(rest[2:])], body)
            return self.refuse(404, "EntryNotFound" if name in repositories else "RepoNotFound", body)

        def api(self, name, rest, body):
            if name not in repositories:
                return self.refuse(401, "RepoNotFound", body)
            files = repositories.get(name, {})
            if rest[:1] == ["tree"]:
                results = [
                    {"type": "file", "oid": git_sha(data), "size": len(data), "path": path,
                     **({"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
                        if path.endswith(".safetensors") else {})}
                    for path, data in files.items()
                ]  # fmt: skip
                return self.send(200, json.dumps(results).encode(), {"Content-Type": "application/json"}, body)
            results = {"id": name, "modelId": name, "sha": COMMIT, "private": False, "gated": "manual" if name in gated
                     else False, "siblings": [{"rfilename": path} for path in files]}  # fmt: skip
            return self.send(200, json.dumps(results).encode(), {"Content-Type": "application/json"}, body)

        def file(self, path, data, body):
            large = path.endswith(".safetensors")
            tag = hashlib.sha256(data).hexdigest() if large else git_sha(data)
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
            if large:
                headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(data))}
            start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(206 if start else 200, data[start:], headers, body, cut=path in cut and not start)

        def refuse(self, status, code, body):
            self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body)

        def send(self, status, data, headers, body, cut=False):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), "Connection": "close", **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = True  # else a thread that still has the connection answers after the end

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

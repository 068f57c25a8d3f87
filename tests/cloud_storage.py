"""A bucket of Google Cloud Storage without a network: its JSON API, of this process.

Objects are written whole, replace each other, and have no folders; nothing is appended
and nothing renamed. Tensorstore speaks to it as to the real one. So does gcsfs where it
is installed; elsewhere `FileSystem` stands in for it.
"""

import base64
import contextlib
import hashlib
import http.server
import importlib.util
import itertools
import json
import os
import re
import struct
import sys
import threading
import types
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

URL = "STORAGE_EMULATOR_HOST"
"""The variable of the environment that says where it is, in other processes too."""


class Bucket(http.server.ThreadingHTTPServer):
    """One that holds everything that it is sent, whatever its bucket.

    Attributes:
      objects: bytes and generation by "bucket/name".  log: (method, what) of requests.
      before: called with (method, what) of each; True refuses it.
    """

    daemon_threads = True

    def handle_error(self, request, client_address):
        """Those who hang up are no errors."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.log: list[tuple[str, str]] = []
        self.before = lambda method, what: None
        self.generations, self.lock = itertools.count(1), threading.Lock()
        self.uploads: dict[str, tuple[str, bytearray]] = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def names(self, prefix=""):
        """Names of objects below "bucket/..."."""
        return sorted(n for n in list(self.objects) if n.startswith(prefix))

    def read(self, name):
        return self.objects[name][0]


@contextlib.contextmanager
def serving():
    """A bucket, and an environment in which everyone finds it."""
    with Bucket() as bucket:
        thread = threading.Thread(target=bucket.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield bucket
        finally:
            bucket.shutdown()
            thread.join()


def environment(bucket):
    """For this process or another."""
    return {
        URL: bucket.url,
        "TENSORSTORE_GCS_HTTP_URL": bucket.url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
    }


class Handler(http.server.BaseHTTPRequestHandler):
    """Requests to the JSON API."""

    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def do_PUT(self):
        self._answer(self._put)

    def do_DELETE(self):
        self._answer(self._delete)

    def _answer(self, act):
        split = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(split.query))
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        parts = split.path.removeprefix("/download").split("/")
        self.parts = [urllib.parse.unquote(part) for part in parts]
        what = "/".join([*self.parts[4:], self.query.get("name", "")])
        self.server.log.append((self.command, what))
        if self.server.before(self.command, what):
            return self._send(403, {"error": {"code": 403, "message": "no access"}})
        with self.server.lock:
            act()

    def _send(self, status, value=None, body=None, headers=()):
        data = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status not in (204, 304):  # they have none
            self.wfile.write(data)

    def _missing(self):
        self._send(404, {"error": {"code": 404, "message": "Not Found"}})

    def _name(self):
        """bucket/name of /storage/v1/b/BUCKET/o/NAME."""
        _, _, _, _, bucket, *rest = self.parts
        return f"{bucket}/{rest[1]}" if len(rest) > 1 else bucket

    def _describe(self, name):
        data, generation = self.server.objects[name]
        bucket, _, rest = name.partition("/")
        return {
            "kind": "storage#object",
            "id": f"{name}/{generation}",
            "name": rest,
            "bucket": bucket,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "crc32c": base64.b64encode(struct.pack(">I", crc32c(data))).decode(),
            "etag": str(generation),
        }

    def _matches(self, name):
        """Whether the conditions on the generation hold; answers if not."""
        generation = self.server.objects.get(name, (b"", 0))[1]
        for word, equal in (("", True), ("Not", False)):
            key = f"ifGeneration{word}Match"
            if key in self.query and (int(self.query[key]) == generation) != equal:
                there = 304 if self.command == "GET" and not equal else 412
                self._send(there, {"error": {"code": there, "message": key}})
                return False
        return True

    def _get(self):
        if len(self.parts) == 5:
            name = self.parts[4]
            return self._send(200, {"kind": "storage#bucket", "name": name, "id": name})
        if len(self.parts) == 6:
            return self._list(self.parts[4])
        name = self._name()
        if name not in self.server.objects:
            return self._missing()
        if not self._matches(name):
            return None
        if self.query.get("alt") != "media":
            return self._send(200, self._describe(name))
        data, generation = self.server.objects[name]
        headers, status = {"x-goog-generation": str(generation)}, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            begin, end = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
            if begin >= len(data):
                return self._send(416, {"error": {"code": 416}})
            part, status = data[begin:end], 206
            last = begin + len(part) - 1
            headers["Content-Range"] = f"bytes {begin}-{last}/{len(data)}"
            data = part
        return self._send(status, body=data, headers=headers)

    def _list(self, bucket):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        items, prefixes = [], {}
        for name in self.server.names(f"{bucket}/{prefix}"):
            rest = name.removeprefix(f"{bucket}/")
            begin = self.query.get("startOffset", "")
            end = self.query.get("endOffset")
            if rest < begin or (end and rest >= end):
                continue
            below = rest.removeprefix(prefix)
            if delimiter and delimiter in below:
                prefixes[prefix + below.partition(delimiter)[0] + delimiter] = None
            else:
                items.append(self._describe(name))
        found = {"kind": "storage#objects", "items": items, "prefixes": list(prefixes)}
        self._send(200, {k: v for k, v in found.items() if v})

    def _store(self, name, data):
        if self._matches(name):
            self.server.objects[name] = bytes(data), next(self.server.generations)
            self._send(200, self._describe(name))

    def _post(self):
        if self.parts[1] == "batch":
            return self._batch()
        if self.parts[1] != "upload":  # .../o/NAME/rewriteTo/b/BUCKET/o/NAME
            name, (*_, bucket, _, target) = self._name(), self.parts
            if name not in self.server.objects:
                return self._missing()
            copied = self.server.objects[name][0]
            target = f"{bucket}/{target}"
            self.server.objects[target] = copied, next(self.server.generations)
            described = self._describe(target)
            size = described["size"]
            rewritten = {"done": True, "objectSize": size, "resource": described}
            return self._send(200, {**rewritten, "totalBytesRewritten": size})
        if "upload_id" in self.query:
            return self._put()
        bucket, kind = self.parts[5], self.query["uploadType"]
        if kind == "multipart":
            described, data = self._parts_of_body()
            name = json.loads(described)["name"]
            return self._store(f"{bucket}/{name}", data)
        if kind == "resumable":
            name = self.query.get("name") or json.loads(self.body)["name"]
            key = str(next(self.server.generations))
            self.server.uploads[key] = f"{bucket}/{name}", bytearray()
            place = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?upload_id={key}"
            return self._send(200, {}, headers={"Location": place})
        return self._store(f"{bucket}/{self.query['name']}", self.body)

    def _parts_of_body(self):
        """The contents of a body of several parts."""
        boundary = re.search(r"boundary=[\"']?([^\"';]+)", self.headers["Content-Type"])
        assert boundary is not None
        for part in self.body.split(b"--" + boundary[1].encode())[1:-1]:
            blank = re.search(rb"\r?\n\r?\n", part)
            assert blank is not None
            yield part[blank.end() :].removesuffix(b"\n").removesuffix(b"\r")

    def _put(self):
        name, data = self.server.uploads[self.query["upload_id"]]
        data += self.body
        if self.headers["Content-Range"].endswith("/*"):
            last = f"bytes=0-{len(data) - 1}"
            return self._send(308, body=b"", headers={"Range": last} if data else {})
        return self._store(name, data)

    def _delete(self):
        name = self._name()
        if name not in self.server.objects:
            return self._missing()
        if self._matches(name):
            del self.server.objects[name]
            self._send(204, body=b"")
        return None

    def _batch(self):
        """Deletes of many, as gcsfs sends them."""
        answers = []
        for path in re.findall(rb"DELETE (\S+)", self.body):
            found = urllib.parse.urlsplit(path.decode()).path.split("/")
            _, _, _, _, bucket, _, name = map(urllib.parse.unquote, found)
            there = self.server.objects.pop(f"{bucket}/{name}", None)
            status = "404 Not Found" if there is None else "204 No Content"
            answers.append(
                f"--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n"
                "Content-Length: 0\r\n\r\n\r\n"
            )
        body = ("".join(answers) + "--b--\r\n").encode()
        kind = {"Content-Type": "multipart/mixed; boundary=b"}
        self._send(200, body=body, headers=kind)


TABLE = []
for number in range(256):
    for _ in range(8):
        number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
    TABLE.append(number)


def crc32c(data):
    """Castagnoli's."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class FileSystem(AbstractFileSystem):
    """What gcsfs is to fsspec, as far as runs need it."""

    protocol = ("gs", "gcs")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        return re.sub("^gc?s://", "", os.fspath(path)).rstrip("/")

    def _ask(self, method, path, data=None, **query):
        url = f"{os.environ[URL]}{path}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, data=data, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    raise FileNotFoundError(path) from None
                raise HttpError(f"{error.code}, {json.loads(error.read())}") from None

    def _object(self, path):
        bucket, _, name = self._strip_protocol(path).partition("/")
        return f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        bucket, _, name = path.partition("/")
        query = {"prefix": f"{name}/" if name else "", "delimiter": "/"}
        found = json.loads(self._ask("GET", f"/storage/v1/b/{bucket}/o", **query))
        entries = [
            {"name": f"{bucket}/{o['name']}", "size": int(o["size"]), "type": "file"}
            for o in found.get("items", ())
        ]
        for prefix in found.get("prefixes", ()):
            folder = f"{bucket}/{prefix.rstrip('/')}"
            entries.append({"name": folder, "size": 0, "type": "directory"})
        if not entries:
            entries = [self._described(path)]
        return entries if detail else [entry["name"] for entry in entries]

    def _described(self, path):
        size = json.loads(self._ask("GET", self._object(path)))["size"]
        return {"name": path, "size": int(size), "type": "file"}

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if "/" not in path:
            return {"name": path, "size": 0, "type": "directory"}
        try:
            return self._described(path)
        except FileNotFoundError:
            self.ls(path)
            return {"name": path, "size": 0, "type": "directory"}

    def exists(self, path, **_):
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def mkdir(self, path, create_parents=True, **_):
        """There are no folders."""

    def makedirs(self, path, exist_ok=False):
        """There are no folders."""

    def _rm(self, path):
        self._ask("DELETE", self._object(path))

    def rm(self, path, recursive=False, maxdepth=None):
        names = self.find(path) if recursive else [path]
        if not names:
            raise FileNotFoundError(path)
        for name in names:
            self._rm(name)

    def cp_file(self, path1, path2, **_):
        self.pipe_file(path2, self.cat_file(path1))

    def cat_file(self, path, start=None, end=None, **_):
        return self._ask("GET", self._object(path), alt="media")[start:end]

    def pipe_file(self, path, value, **_):
        bucket, _, name = self._strip_protocol(path).partition("/")
        query = {"uploadType": "media", "name": name}
        self._ask("POST", f"/upload/storage/v1/b/{bucket}/o", bytes(value), **query)

    def _open(self, path, mode="rb", **kwargs):
        if "a" in mode:
            raise NotImplementedError("objects are not appended to")
        return File(self, path, mode, cache_type="all")


class HttpError(Exception):
    """As gcsfs raises; no OSError."""


class File(AbstractBufferedFile):
    """Written when it is closed."""

    def _fetch_range(self, start, end):
        return self.fs.cat_file(self.path, start, end)

    def _initiate_upload(self):
        self.parts = bytearray()

    def _upload_chunk(self, final=False):
        self.parts += self.buffer.getvalue()
        if final:
            self.fs.pipe_file(self.path, self.parts)
        return True


class Client:
    """What google-cloud-storage, which comes with gcsfs, is to orbax."""

    def get_bucket(self, name):
        return types.SimpleNamespace(name=name)


def install():
    """Let fsspec and orbax find what stands in for gcsfs where it is not installed."""
    if importlib.util.find_spec("gcsfs") is not None:
        return
    for protocol in FileSystem.protocol:
        fsspec.register_implementation(protocol, FileSystem, clobber=True)
    storage: Any = types.ModuleType("google.cloud.storage")
    storage.Client = Client
    cloud: Any = sys.modules.setdefault(
        "google.cloud", types.ModuleType("google.cloud")
    )
    cloud.storage = sys.modules[storage.__name__] = storage

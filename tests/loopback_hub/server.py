"""The HTTP side: a threaded server on 127.0.0.1 that logs requests, plays faults and asks the routes."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from .errors import HubError
from .faults import Fault, Faults
from .repository import Repository
from .routes import Response, answer


@dataclass(frozen=True)
class LoggedRequest:
    """What a client asked and the status it got; header names are in lower case.

    `origin` is where a client thought it was asking, `http://host`, if it took this server for a proxy.
    """

    method: str
    path: str
    headers: dict[str, str]
    status: int
    origin: str = ""


class LoopbackHub:
    """A Hub for kernel and model repositories in `root`, which keeps them over restarts.

    Args:
        root: folder of the repositories, created when missing.
        port: port on 127.0.0.1; 0 takes a free one.
        trusted: namespaces whose publisher the Hub vouches for.
        page_size: entries in one page of a tree listing.

    Clients may also have it as their proxy: it answers for whatever host they ask, itself.

    Use it as a context manager, or call `start` and `stop`. `faults` makes requests fail, `requests` lists
    those that came.
    """

    def __init__(
        self, root: str | Path, port: int = 0, trusted: tuple[str, ...] = (), page_size: int = 1000
    ) -> None:
        self.root = Path(root)
        self.trusted = frozenset(trusted)
        self.page_size = page_size
        self.faults = Faults()
        self.requests: list[LoggedRequest] = []
        self.stopped = False
        self._repositories: dict[Path, Repository] = {}
        self._lock = threading.Lock()
        self.root.mkdir(parents=True, exist_ok=True)
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The endpoint for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> LoopbackHub:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop answering and close the port."""
        self.stopped = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self) -> None:
        """Block until the server stops."""
        self._thread.join()

    def __enter__(self) -> LoopbackHub:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def repository(self, repo_id: str, kind: str = "kernels") -> Repository:
        """Return the repository of an id, existing or not; always the same object, for its lock.

        `kind` is "kernels" or "models".
        """
        with self._lock:
            folder = self.root / kind / f"{repo_id}.git"
            return self._repositories.setdefault(folder, Repository(folder))

    def has_namespace(self, name: str) -> bool:
        return any((self.root / kind / name).is_dir() for kind in ("kernels", "models"))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: LoopbackHub

    def handle_error(self, request: object, client_address: object) -> None:
        """Let clients go away as they like; anything else is worth a traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_any(self) -> None:
        hub, body = self.server.hub, self._read_body()
        if hub.stopped:  # a connection kept alive must not outlive the server
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        origin, path = _split(self.path)
        fault = hub.faults.take(self.command, path) or Fault(path, 1)
        fault.wait()
        if fault.status:
            response = Response.error(HubError(fault.status, None, "Injected fault", fault.headers))
        elif fault.body is not None:
            response = Response(fault.body, headers=fault.headers)
        else:
            response = answer(hub, self.command, fault.redirect(path), headers, body)
        hub.requests.append(LoggedRequest(self.command, path, headers, response.status, origin))
        if fault.reset:
            self._reset()
        else:
            self._send(response, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: `LoopbackHub.requests` is the log."""

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _reset(self) -> None:
        """Have the client see the connection break: lingering for no time sends RST."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _send(self, response: Response, fault: Fault) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = 0
        for piece in fault.pieces(response.body):
            self.wfile.write(piece)
            sent += len(piece)
        if sent < len(response.body):
            self.close_connection = True


def _split(target: str) -> tuple[str, str]:
    """Take the origin off a target; only clients that talk to a proxy send one."""
    scheme, mark, rest = target.partition("://")
    if not mark or scheme not in ("http", "https"):
        return "", target
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", f"/{path}"

"""Faults on demand: tests tell the server where to fail or to lie, and how often."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

ALWAYS = -1


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `path`, `times` times."""

    path: str
    times: int
    method: str | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    replaced: str | None = None
    body: bytes | None = None
    keep: int | None = None
    delay: float = 0.0
    pause: float = 0.0
    reset: bool = False
    corrupt: bool = False

    def wait(self) -> None:
        time.sleep(self.delay)

    def redirect(self, path: str) -> str:
        """Return the path that is answered instead."""
        return path if self.replaced is None else path.replace(self.path, self.replaced)

    def pieces(self, body: bytes) -> Iterator[bytes]:
        """Yield what is really sent of `body`; the announced length and ETag stay those of the true one."""
        if self.corrupt and body:
            body = body[:-1] + bytes([body[-1] ^ 0xFF])
        if not self.pause:
            yield body if self.keep is None else body[: self.keep]
            return
        for byte in body:
            time.sleep(self.pause)
            yield bytes([byte])


@dataclass
class Faults:
    """The faults waiting to happen, oldest first."""

    _waiting: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def status(self, path: str, status: int, times: int = 1, **headers: str) -> None:
        """Answer with an HTTP error; `retry_after="3"` becomes the header Retry-After."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._add(Fault(path, times, status=status, headers=named))

    def truncate(self, path: str, keep: int = 1, times: int = 1) -> None:
        """Close the connection after `keep` bytes of the body."""
        self._add(Fault(path, times, method="GET", keep=keep))

    def reset(self, path: str, times: int = 1) -> None:
        """Break the connection instead of answering."""
        self._add(Fault(path, times, reset=True))

    def corrupt(self, path: str, times: int = 1) -> None:
        """Flip the last byte of the body, keeping length and ETag."""
        self._add(Fault(path, times, method="GET", corrupt=True))

    def delay(self, path: str, seconds: float, times: int = 1) -> None:
        """Answer late."""
        self._add(Fault(path, times, delay=seconds))

    def trickle(self, path: str, seconds: float, times: int = 1) -> None:
        """Pause before every byte of the body."""
        self._add(Fault(path, times, method="GET", pause=seconds))

    def answer(self, path: str, body: bytes, times: int = ALWAYS, **headers: str) -> None:
        """Answer with something else, its length announced as it is."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._add(Fault(path, times, body=body, headers=named))

    def replace(self, path: str, other: str) -> None:
        """Answer as if `other` stood in the place of `path`, from now on."""
        self._add(Fault(path, ALWAYS, replaced=other))

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """Use up one occurrence of the first fault that matches a request."""
        with self._lock:
            for fault in self._waiting:
                if fault.path in path and fault.method in (None, method):
                    fault.times -= 1
                    if fault.times == 0:
                        self._waiting.remove(fault)
                    return fault
        return None

    def _add(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.append(fault)

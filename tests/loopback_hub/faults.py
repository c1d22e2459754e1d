"""Faults on demand: tests tell the server where to fail and how often."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `path`, `times` times."""

    path: str
    times: int
    method: str | None = None
    status: int | None = None
    keep: int | None = None
    delay: float = 0.0
    corrupt: bool = False

    def wait(self) -> None:
        time.sleep(self.delay)

    def spoil(self, body: bytes) -> bytes:
        """Return what is really sent of `body`; the announced length and ETag stay those of the true one."""
        if self.corrupt and body:
            body = body[:-1] + bytes([body[-1] ^ 0xFF])
        return body if self.keep is None else body[: self.keep]


@dataclass
class Faults:
    """The faults waiting to happen, oldest first."""

    _waiting: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def status(self, path: str, status: int, times: int = 1) -> None:
        """Answer with an HTTP error."""
        self._add(Fault(path, times, status=status))

    def truncate(self, path: str, keep: int = 1, times: int = 1) -> None:
        """Close the connection after `keep` bytes of the body."""
        self._add(Fault(path, times, method="GET", keep=keep))

    def corrupt(self, path: str, times: int = 1) -> None:
        """Flip the last byte of the body, keeping length and ETag."""
        self._add(Fault(path, times, method="GET", corrupt=True))

    def delay(self, path: str, seconds: float, times: int = 1) -> None:
        """Answer late."""
        self._add(Fault(path, times, delay=seconds))

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

"""What Rekor does: a log of signatures that grows, with a promise and a proof for every entry.

Each entry has a tree of its own here, whose only leaf it is, so that its proof is empty. Answers are those of
Rekor's version 1, https://github.com/sigstore/rekor/blob/main/openapi.yaml.
"""

from __future__ import annotations

import base64
import hashlib
import time

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from .authority import public_bytes

ORIGIN = "loopback - 1"


class SignatureLog:
    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.id = hashlib.sha256(public_bytes(self.key)).digest()
        self.entries: list[dict] = []

    def add(self, proposed: dict) -> dict:
        """Log an entry; what Rekor answers."""
        body = rfc8785.dumps(proposed)
        leaf = hashlib.sha256(b"\0" + body).digest()
        entry = {
            "body": base64.b64encode(body).decode(),
            "integratedTime": int(time.time()),
            "logID": self.id.hex(),
            "logIndex": len(self.entries),
        }
        self.entries.append(proposed)
        proof = {
            "checkpoint": self._checkpoint(leaf),
            "hashes": [],
            "logIndex": 0,
            "rootHash": leaf.hex(),
            "treeSize": 1,
        }
        promise = base64.b64encode(self._sign(rfc8785.dumps(entry))).decode()
        verification = {"inclusionProof": proof, "signedEntryTimestamp": promise}
        return {leaf.hex(): {**entry, "verification": verification}}

    def _checkpoint(self, root: bytes) -> str:
        """A signed note: https://github.com/transparency-dev/formats/blob/main/log/README.md."""
        note = f"{ORIGIN}\n1\n{base64.b64encode(root).decode()}\n"
        signature = base64.b64encode(self.id[:4] + self._sign(note.encode())).decode()
        return f"{note}\n\N{EM DASH} {ORIGIN.split()[0]} {signature}\n"

    def _sign(self, content: bytes) -> bytes:
        return self.key.sign(content, ec.ECDSA(hashes.SHA256()))

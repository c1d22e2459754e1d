"""Both behind HTTP on 127.0.0.1, with tokens for identities, and what makes clients trust them."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from .authority import Authority, public_bytes
from .log import SignatureLog

AUDIENCE = "sigstore"


class LoopbackSigstore:
    """An authority, a log, and who vouches for identities. Use it as a context manager."""

    def __init__(self) -> None:
        self.authority, self.log = Authority(), SignatureLog()
        self._secret = secrets.token_bytes(32)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.sigstore = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Where all of it is, and the issuer of the identities."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def token(self, identity: str) -> str:
        """What proves an identity, a URI such as a workflow's, for some minutes."""
        now = int(time.time())
        claims = {"aud": AUDIENCE, "iss": self.url, "sub": identity, "iat": now, "exp": now + 300}
        return jwt.encode(claims, self._secret, algorithm="HS256")

    def write_trusted_root(self, path: Path) -> Path:
        """What a client needs to verify signatures."""
        path.write_text(json.dumps(self._trusted_root()))
        return path

    def write_trust_config(self, path: Path) -> Path:
        """What a client needs to sign."""
        service = {"majorApiVersion": 1, "url": self.url, "operator": "loopback", "validFor": _now()}
        config = {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": self._trusted_root(),
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service],
                "rekorTlogUrls": [service],
                "rekorTlogConfig": {"selector": "ANY"},
            },
        }
        path.write_text(json.dumps(config))
        return path

    def certificate(self, token: str, request: str) -> list[str]:
        """The certificate of a request, and what it goes back to, in PEM.

        Raises:
            jwt.InvalidTokenError: the token is none of ours, or too old.
        """
        claims = jwt.decode(token, self._secret, algorithms=["HS256"], audience=AUDIENCE)
        parsed = x509.load_pem_x509_csr(base64.b64decode(request))
        issued = self.authority.issue(parsed, claims["sub"], claims["iss"])
        return [each.public_bytes(Encoding.PEM).decode() for each in (issued, self.authority.root)]

    def _trusted_root(self) -> dict:
        certificate = base64.b64encode(self.authority.root.public_bytes(Encoding.DER)).decode()
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._log(self.log.key, self.log.id)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "loopback", "commonName": "loopback"},
                    "uri": self.url,
                    "certChain": {"certificates": [{"rawBytes": certificate}]},
                    "validFor": _now(),
                }
            ],
            "ctlogs": [self._log(self.authority.log_key, self.authority.log_id)],
            "timestampAuthorities": [],
        }

    def _log(self, key: ec.EllipticCurvePrivateKey, log_id: bytes) -> dict:
        return {
            "baseUrl": self.url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": base64.b64encode(public_bytes(key)).decode(),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": _now(),
            },
            "logId": {"keyId": base64.b64encode(log_id).decode()},
        }

    def __enter__(self) -> LoopbackSigstore:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    sigstore: LoopbackSigstore


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        sigstore = self.server.sigstore
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/v1/log/entries":
            self._answer(201, sigstore.log.add(body))
        elif self.path == "/api/v2/signingCert":
            token = self.headers["Authorization"].removeprefix("Bearer ")
            try:
                chain = sigstore.certificate(token, body["certificateSigningRequest"])
            except jwt.InvalidTokenError as error:
                self._answer(401, {"message": str(error)})
            else:
                self._answer(200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}})
        else:
            self._answer(404, {"message": f"there is no {self.path}"})

    def _answer(self, status: int, content: dict) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on the terminal."""


def _now() -> dict[str, str]:
    """A range of time around now."""
    now = datetime.now(timezone.utc)
    ends = {"start": now - timedelta(days=1), "end": now + timedelta(days=1)}
    return {name: end.strftime("%Y-%m-%dT%H:%M:%SZ") for name, end in ends.items()}

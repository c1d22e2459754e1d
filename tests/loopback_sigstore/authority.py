"""What Fulcio does: certificates of ten minutes for the identity in a token, each in a log of certificates.

Extensions and their numbers: https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md. The signed
timestamp of a log that is embedded in them: RFC 6962, sections 3.2 and 3.3.
"""

from __future__ import annotations

import hashlib
import struct
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

FULCIO = "1.3.6.1.4.1.57264.1"
ISSUER, ISSUER_V2 = f"{FULCIO}.1", f"{FULCIO}.8"
LIFETIME = timedelta(minutes=10)
DER_UTF8_STRING, DER_OCTET_STRING = b"\x0c", b"\x04"
SHA256, ECDSA = 4, 3  # of TLS 1.2
PRECERTIFICATE = 1


class Authority:
    """A root certificate, the key of a log of certificates, and what they sign."""

    def __init__(self) -> None:
        self._key, self.log_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
        now = datetime.now(timezone.utc)
        self.root = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def log_id(self) -> bytes:
        return hashlib.sha256(public_bytes(self.log_key)).digest()

    def issue(self, request: x509.CertificateSigningRequest, identity: str, issuer: str) -> x509.Certificate:
        """A certificate of the request's key for an identity (a URI) that the issuer vouches for."""
        now = datetime.now(timezone.utc)
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=5))
            .not_valid_after(now + LIFETIME)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(authority_key, critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True
            )
            .add_extension(_extension(ISSUER, issuer.encode()), critical=False)
            .add_extension(_extension(ISSUER_V2, _der(DER_UTF8_STRING, issuer.encode())), critical=False)
        )
        logged = builder.sign(self._key, hashes.SHA256()).tbs_certificate_bytes
        timestamps = _extension(
            ExtensionOID.PRECERT_SIGNED_CERTIFICATE_TIMESTAMPS.dotted_string,
            _der(DER_OCTET_STRING, self._timestamps(logged)),
        )
        return builder.add_extension(timestamps, critical=False).sign(self._key, hashes.SHA256())

    def _timestamps(self, certificate: bytes) -> bytes:
        """The list, of one, that says when a certificate without such a list was logged."""
        milliseconds = int(datetime.now(timezone.utc).timestamp() * 1000)
        issuer_key = hashlib.sha256(public_bytes(self._key)).digest()
        length = struct.pack("!I", len(certificate))[1:]
        entry = struct.pack("!H", PRECERTIFICATE) + issuer_key + length + certificate
        no_extensions = struct.pack("!H", 0)
        signed = struct.pack("!BBQ", 0, 0, milliseconds) + entry + no_extensions
        signature = self.log_key.sign(signed, ec.ECDSA(hashes.SHA256()))
        timestamp = b"".join(
            [
                b"\0",
                self.log_id,
                struct.pack("!Q", milliseconds),
                no_extensions,
                bytes([SHA256, ECDSA]),
                _counted(signature),
            ]
        )
        return _counted(_counted(timestamp))


def public_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half in DER, whose SHA-256 names a log."""
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _key_usage(**uses: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: uses.get(name, False) for name in names})


def _extension(number: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(number), value)


def _counted(content: bytes) -> bytes:
    return struct.pack("!H", len(content)) + content


def _der(tag: bytes, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return tag + bytes([size]) + content
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return tag + bytes([0x80 | len(digits)]) + digits + content

"""A certificate authority of our own, certificates with one fault each, and a TLS server that shows them."""

import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.job.store.s3_faults import FaultyS3, Handler

_NOW = datetime.datetime.now(datetime.UTC)
_DAY = datetime.timedelta(days=1)
_LOCAL = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


class Authority:
    """Makes certificates below a folder; its own is `path`, alone in `folder`."""

    def __init__(self, below: Path) -> None:
        self.folder, self._below = below / "trusted", below
        self.folder.mkdir()
        self.path = self.folder / "authority.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority")
        made = self._build("authority", self._key, x509.DNSName("authority"), is_authority=True)
        self.path.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def certificate(self, kind: str) -> Path:
        """A file with key and certificate: good, self-signed, other-host, expired, or future."""
        key = ec.generate_private_key(ec.SECP256R1())
        host = x509.DNSName("other.example") if kind == "other-host" else _LOCAL
        since, until = {"expired": (-3, -1), "future": (1, 3)}.get(kind, (-1, 1))
        made = self._build(kind, key, host, since=since * _DAY, until=until * _DAY, is_own=kind == "self-signed")
        path = self._below / f"{kind}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + made.public_bytes(serialization.Encoding.PEM)
        )
        return path

    def _build(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        host: x509.GeneralName,
        *,
        since: datetime.timedelta = -_DAY,
        until: datetime.timedelta = _DAY,
        is_authority: bool = False,
        is_own: bool = False,
    ) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(name) if is_own else self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_NOW + since)
            .not_valid_after(_NOW + until)
            .add_extension(x509.SubjectAlternativeName([host]), critical=False)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .sign(key if is_own else self._key, hashes.SHA256())
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients leave in the middle of the handshake: that is what is tested."""


@contextlib.contextmanager
def serve_tls(certificate: Path, *, s3: FaultyS3 | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server's endpoint, and the requests that got through to it; it answers as `s3` does, or with nothing."""
    requests: list[str] = []

    class Silent(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            requests.append(self.path)

    handler = type("Handler", (Handler,), {"state": s3}) if s3 else Silent
    server = _Server(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

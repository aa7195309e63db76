"""Real registries for tests, docker-registry on the loopback device with and without locks.

And what stands between them and a client in the field: a proxy that breaks things.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

#: user "max", password "hunter2" (bcrypt, as htpasswd -B writes it).
HTPASSWD = "max:$2b$04$e4T0vmfUOFCH21jWLOeMkuXpDKcXPp5KeqciTvoheheauULXZarv.\n"
START_TIMEOUT = 30.0


@dataclass
class RunningRegistry:
    port: int
    log: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def requests(self) -> list[str]:
        """The requests so far, "GET /v2/…", without those of the fixture's own."""
        found = []
        for line in self.log:
            method, uri = _value(line, "http.request.method"), _value(line, "http.request.uri")
            if method and 'msg="response completed"' in line:
                found.append(f"{method} {uri}")
        return found


@contextmanager
def running_registry(folder: Path, **settings: Any) -> Iterator[RunningRegistry]:
    """Run docker-registry with its data in *folder*; *settings* are more of its configuration."""
    port = free_port()
    configuration = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"} | settings.pop("http", {}),
        **settings,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yml").write_text(json.dumps(configuration))  # YAML reads JSON
    process = subprocess.Popen(
        ["docker-registry", "serve", folder / "config.yml"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    registry = RunningRegistry(port)
    listening = threading.Event()

    def collect() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            registry.log.append(line)
            if "listening on" in line:
                listening.set()

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    try:
        assert listening.wait(START_TIMEOUT), "".join(registry.log)
        yield registry
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _value(line: str, key: str) -> str:
    """Return a value of logrus' text format: key=value or key="value"."""
    _, found, rest = line.partition(f"{key}=")
    if not found:
        return ""
    return rest[1:].partition('"')[0] if rest.startswith('"') else rest.split()[0]


# Certificates.
@dataclass(frozen=True)
class Certified:
    certificate: Path
    key: Path


def make_certificate(folder: Path) -> Certified:
    """Make a certificate for 127.0.0.1 that is its own CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry of a test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    made = Certified(folder / "tls.crt", folder / "tls.key")
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return made


# Tokens.
@dataclass
class TokenService:
    """Gives tokens to max (or to his refresh token), in the format that docker-registry checks."""

    signer: Certified
    url: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)

    def token(self, scope: str) -> str:
        kind, name, actions = scope.split(":") if scope.count(":") == 2 else ("", "", "")
        now = int(time.time())
        claims = {
            "iss": "issuer",
            "sub": "max",
            "aud": "service",
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": "1",
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        key = serialization.load_pem_private_key(self.signer.key.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate(self.signer.certificate.read_bytes())
        der = certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        signed = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(claims).encode())}"
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def running_token_service(signer: Certified) -> Iterator[TokenService]:
    service = TokenService(signer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = {key: found[0] for key, found in parse_qs(urlsplit(self.path).query).items()}
            expected = "Basic " + base64.b64encode(b"max:hunter2").decode()
            self.answer(asked, self.headers.get("Authorization") == expected)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked = {key: found[0] for key, found in parse_qs(body).items()}
            self.answer(asked, asked.get("refresh_token") == "refresh-max")

        def answer(self, asked: dict[str, str], allowed: bool) -> None:
            service.asked.append(asked)
            data = json.dumps({"token": service.token(asked["scope"])}).encode()
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Length", str(len(data) if allowed else 0))
            self.end_headers()
            if allowed:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with running_server(Handler) as port:
        service.url = f"http://127.0.0.1:{port}/token"
        yield service


@contextmanager
def running_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# Faults.
@dataclass
class Fault:
    """What a proxy does to one connection: answer by itself, or cut after so many bytes down."""

    answer: bytes = b""
    cut_after: int | None = None


@asynccontextmanager
async def faulty_proxy(port: int, faults: list[Fault]) -> AsyncIterator[int]:
    """Stand before *port*; the n-th connection meets the n-th fault, later ones none."""

    async def serve(client: trio.SocketStream) -> None:
        fault = faults.pop(0) if faults else Fault()
        async with client:
            if fault.answer:
                await client.receive_some()
                await client.send_all(fault.answer)
                return
            server = await trio.open_tcp_stream("127.0.0.1", port)
            async with server, trio.open_nursery() as nursery:
                both = nursery.cancel_scope
                nursery.start_soon(_pump, client, server, None, both)
                nursery.start_soon(_pump, server, client, fault.cut_after, both)

    async with trio.open_nursery() as nursery:
        start = partial(trio.serve_tcp, host="127.0.0.1")
        listeners = await nursery.start(start, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _pump(
    source: trio.SocketStream,
    sink: trio.SocketStream,
    limit: int | None,
    both: trio.CancelScope,
) -> None:
    try:
        async for data in source:
            if limit is not None:
                data = data[:limit]
                limit -= len(data)
            await sink.send_all(data)
            if limit == 0:
                break
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    both.cancel()

"""Pulling from real registries, and from behind what breaks on the way."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trio

from swarmlet.images.errors import (
    BlobNotFound,
    ImageNotFound,
    NoPlatform,
    RegistryDenied,
    RegistryError,
    RegistryUnavailable,
)
from swarmlet.images.manifest import OCI_INDEX, Platform
from swarmlet.images.reference import Reference, parse_reference
from swarmlet.images.registry import (
    Credentials,
    Registry,
    RegistryPolicy,
    decode_credentials_untrusted,
    pull,
)
from swarmlet.images.store import ImageStore
from tests.images.making import digest_of, make_image, make_index, oci_archive, tar_of
from tests.images.registries import (
    HTPASSWD,
    Fault,
    RunningRegistry,
    faulty_proxy,
    free_port,
    make_certificate,
    running_registry,
    running_server,
    running_token_service,
)

pytestmark = [
    pytest.mark.level5,
    pytest.mark.skipif(
        not (shutil.which("docker-registry") and shutil.which("skopeo")),
        reason="needs the packages docker-registry and skopeo",
    ),
]

NOISE = random.Random(1).randbytes(3_000_000)
IMAGE = make_image(tar_of(("a", b"1")), tar_of(("noise", NOISE)))
ARM = make_image(tar_of(("a", b"arm")), architecture="arm64")
INDEX = make_index((ARM, "arm64/v8"), (IMAGE, "amd64"))
MAX = Credentials("max", "hunter2")


def push(archive: Path, target: str, *options: str) -> None:
    copy = ["skopeo", "--insecure-policy", "copy", "--all", "--dest-tls-verify=false", *options]
    command = [*copy, f"oci-archive:{archive}", f"docker://{target}"]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("archives")
    (folder / "image.tar").write_bytes(oci_archive(IMAGE))
    (folder / "index.tar").write_bytes(oci_archive(INDEX, media_type=OCI_INDEX))
    return folder / "image.tar", folder / "index.tar"


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, archives: tuple[Path, Path]
) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry") / "plain") as found:
        push(archives[0], f"{found.host}/team/web:1")
        push(archives[1], f"{found.host}/team/multi:1")
        yield found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts."""
    monkeypatch.setattr("swarmlet.images.registry.PAUSE", 0.0)


@pytest.fixture
async def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path / "images", platform=Platform("linux", "amd64"))
    await store.open()
    return store


def named(registry: RunningRegistry | int, rest: str = "team/web:1") -> Reference:
    port = registry if isinstance(registry, int) else registry.port
    return parse_reference(f"127.0.0.1:{port}/{rest}")


async def test_pulled_image_is_the_pushed_one(store: ImageStore, registry: RunningRegistry) -> None:
    image = await pull(store, named(registry))
    assert (image.digest, image.id) == (IMAGE.digest, IMAGE.id)
    assert image.references == (f"{registry.host}/team/web:1",)
    assert store.resolve(f"{registry.host}/team/web@{IMAGE.digest}").id == IMAGE.id
    top, _ = await store.unpack(image.digest)
    assert (top / "noise").read_bytes() == NOISE


async def test_second_pull_asks_for_the_tag_alone(
    store: ImageStore, registry: RunningRegistry
) -> None:
    await pull(store, named(registry))
    before = len(registry.requests())
    await pull(store, named(registry))
    async with Registry(named(registry)) as source:  # the log is behind; this is in it last
        await source.resolve()
    assert set(registry.requests()[before + 1 :]) <= {"HEAD /v2/team/web/manifests/1"}


async def test_pull_by_digest(store: ImageStore, registry: RunningRegistry) -> None:
    image = await pull(store, named(registry, f"team/web@{IMAGE.digest}"))
    assert image.digest == IMAGE.digest
    assert image.references == ()


async def test_index_gives_this_platform(store: ImageStore, registry: RunningRegistry) -> None:
    image = await pull(store, named(registry, "team/multi:1"))
    assert (image.digest, image.id) == (INDEX.digest, IMAGE.id)
    assert not store.has(ARM.digest)


async def test_index_without_this_platform(tmp_path: Path, registry: RunningRegistry) -> None:
    store = ImageStore(tmp_path / "images", platform=Platform("linux", "riscv64"))
    await store.open()
    with pytest.raises(NoPlatform, match="linux/amd64, linux/arm64/v8"):
        await pull(store, named(registry, "team/multi:1"))


async def test_unknown_names_are_not_found(store: ImageStore, registry: RunningRegistry) -> None:
    for rest in ("team/web:2", "team/other:1"):
        with pytest.raises(ImageNotFound, match="check the name and the tag"):
            await pull(store, named(registry, rest))
    missing = f"team/web@{digest_of(b'')}"
    with pytest.raises(BlobNotFound):
        await pull(store, named(registry, missing))


async def test_registry_that_is_away_is_said_to_be(store: ImageStore, impatient: None) -> None:
    with pytest.raises(RegistryUnavailable, match="cannot be reached"):
        await pull(store, named(free_port()))


async def test_peer_gives_what_it_has_and_the_registry_the_rest(
    tmp_path: Path, store: ImageStore, registry: RunningRegistry
) -> None:
    peer = ImageStore(tmp_path / "peer")
    await peer.open()
    await pull(peer, named(registry))
    noise = next(d for d, data in IMAGE.blobs.items() if len(data) > 1_000_000)
    (tmp_path / "peer/blobs/sha256" / noise[7:]).unlink()
    before = len(registry.requests())
    async with Registry(named(registry)) as source:
        await store.fetch(IMAGE.digest, peer, source)
        await source.resolve()
    asked = {line for line in registry.requests()[before:] if "/blobs/" in line}
    assert asked == {f"GET /v2/team/web/blobs/{noise}"}
    assert store.is_complete(IMAGE.digest)


# Locks.
async def test_password(store: ImageStore, tmp_path: Path, archives: tuple[Path, Path]) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}}
    with running_registry(tmp_path / "registry", auth=auth) as registry:
        push(archives[0], f"{registry.host}/team/web:1", "--dest-creds=max:hunter2")
        for credentials in (None, Credentials("max", "wrong")):
            with pytest.raises(RegistryDenied, match="log in"):
                await pull(store, named(registry), credentials=credentials)
        image = await pull(store, named(registry), credentials=MAX)
    assert image.digest == IMAGE.digest


async def test_tokens(store: ImageStore, tmp_path: Path, archives: tuple[Path, Path]) -> None:
    signer = make_certificate(tmp_path)
    with running_token_service(signer) as service:
        token = {"realm": service.url, "service": "service", "issuer": "issuer"}
        auth = {"token": token | {"rootcertbundle": str(signer.certificate)}}
        with running_registry(tmp_path / "registry", auth=auth) as registry:
            push(archives[0], f"{registry.host}/team/web:1", "--dest-creds=max:hunter2")
            with pytest.raises(RegistryDenied, match="log in"):
                await pull(store, named(registry))
            service.asked.clear()
            image = await pull(store, named(registry), credentials=MAX)
            assert image.digest == IMAGE.digest
            assert service.asked == [{"service": "service", "scope": "repository:team/web:pull"}]
            await store.collect([], tagged_too=True)
            refresh = Credentials(identity_token="refresh-max")
            assert (await pull(store, named(registry), credentials=refresh)).id == IMAGE.id
            await store.collect([], tagged_too=True)
            ready = Credentials(registry_token=service.token("repository:team/web:pull"))
            assert (await pull(store, named(registry), credentials=ready)).id == IMAGE.id


@pytest.fixture
def tls_host(
    tmp_path: Path, archives: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningRegistry]:
    """A registry with TLS on a host that does not count as loopback."""
    monkeypatch.setattr("swarmlet.images.registry._is_loopback", lambda host: False)
    made = make_certificate(tmp_path)
    tls = {"certificate": str(made.certificate), "key": str(made.key)}
    port = free_port()
    http = {"addr": f"127.0.0.1:{port}", "tls": tls}
    with running_registry(tmp_path / "registry", http=http) as registry:
        registry.port = port
        push(archives[0], f"{registry.host}/team/web:1")
        yield registry


async def test_certificate_is_checked(
    store: ImageStore, tmp_path: Path, tls_host: RunningRegistry
) -> None:
    with pytest.raises(RegistryError, match="put its CA into the certificates' folder"):
        await pull(store, named(tls_host))
    assert store.images() == ()
    folder = tmp_path / "certs.d" / tls_host.host
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "tls.crt", folder / "ca.crt")
    trusting = RegistryPolicy(certificates=tmp_path / "certs.d")
    assert (await pull(store, named(tls_host), policy=trusting)).id == IMAGE.id


async def test_insecure_registry_has_to_be_named(
    store: ImageStore, tls_host: RunningRegistry
) -> None:
    careless = RegistryPolicy(insecure=frozenset({tls_host.host}))
    assert (await pull(store, named(tls_host), policy=careless)).id == IMAGE.id


async def test_registry_without_tls_is_refused_unless_named(
    store: ImageStore,
    registry: RunningRegistry,
    monkeypatch: pytest.MonkeyPatch,
    impatient: None,
) -> None:
    monkeypatch.setattr("swarmlet.images.registry._is_loopback", lambda host: False)
    with pytest.raises(RegistryError):
        await pull(store, named(registry))
    careless = RegistryPolicy(insecure=frozenset({registry.host}))
    assert (await pull(store, named(registry), policy=careless)).id == IMAGE.id


# Faults.
async def test_broken_download_goes_on(store: ImageStore, registry: RunningRegistry) -> None:
    #: TLS is tried first and meets nobody; then the connection breaks in the large layer, twice.
    faults = [Fault(answer=b"no TLS"), Fault(cut_after=1_000_000), Fault(cut_after=900_000)]
    async with faulty_proxy(registry.port, faults) as port:
        image = await pull(store, named(port), rng=random.Random(0))
    assert image.digest == IMAGE.digest
    assert not faults
    assert store.is_complete(IMAGE.digest)


async def test_busy_registry_is_asked_again(store: ImageStore, registry: RunningRegistry) -> None:
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    faults = [Fault(answer=b"no TLS"), Fault(answer=busy), Fault(answer=busy)]
    async with faulty_proxy(registry.port, faults) as port:
        assert (await pull(store, named(port))).digest == IMAGE.digest
    assert not faults


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Go\r\nLocation: gopher://x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Go\r\nLocation: http://x y/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Go\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n",
        b"\0\1\2\3" * 100,
        b"",
    ],
    ids=lambda answer: repr(answer[:60]),
)
async def test_nonsense_from_a_registry_is_an_error_with_a_reason(
    store: ImageStore, impatient: None, answer: bytes
) -> None:
    async with trio.open_nursery() as nursery:

        async def serve(client: trio.SocketStream) -> None:
            async with client:
                await client.receive_some()
                await client.send_all(answer)

        (listener,) = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), serve, 0)
        port = listener.socket.getsockname()[1]
        with pytest.raises((RegistryError, BlobNotFound)) as caught:
            await pull(store, named(port))
        assert "127.0.0.1" in str(caught.value) or "address" in str(caught.value)
        nursery.cancel_scope.cancel()
    assert store.images() == ()


async def test_redirect_goes_without_credentials(
    store: ImageStore, registry: RunningRegistry
) -> None:
    seen: list[tuple[str, str | None]] = []

    class Front(BaseHTTPRequestHandler):
        """Wants a password, and sends everybody on to the store behind it."""

        def do_GET(self) -> None:
            authorization = self.headers.get("Authorization")
            seen.append((self.path, authorization))
            self.send_response(307 if authorization else 401)
            self.send_header("WWW-Authenticate", 'Basic realm="front"')
            self.send_header("Location", f"http://127.0.0.1:{behind}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Behind(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen_behind.append(self.headers.get("Authorization"))
            self.send_response(307)
            self.send_header("Location", f"http://{registry.host}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    seen_behind: list[str | None] = []
    with running_server(Behind) as behind, running_server(Front) as front:
        image = await pull(store, named(front), credentials=MAX)
    assert image.digest == IMAGE.digest
    assert any(authorization for _, authorization in seen)
    assert seen_behind
    assert set(seen_behind) == {None}


async def test_mirror_is_asked_first(store: ImageStore, registry: RunningRegistry) -> None:
    reference = parse_reference("registry.invalid/team/web:1")
    policy = RegistryPolicy(mirrors={"registry.invalid": (registry.host,)})
    image = await pull(store, reference, policy=policy, credentials=MAX)
    assert image.references == ("registry.invalid/team/web:1",)


async def test_mirror_does_not_get_the_credentials(
    store: ImageStore, registry: RunningRegistry
) -> None:
    seen: list[str | None] = []

    class Curious(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="give"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with running_server(Curious) as curious:
        policy = RegistryPolicy(mirrors={registry.host: (f"127.0.0.1:{curious}",)})
        image = await pull(store, named(registry), policy=policy, credentials=MAX)
    assert image.digest == IMAGE.digest
    assert set(seen) == {None}


def test_credentials_of_a_docker_client() -> None:
    data = {"username": "max", "password": "hunter2", "serveraddress": "x"}
    header = base64.urlsafe_b64encode(json.dumps(data).encode()).decode()
    assert decode_credentials_untrusted(header) == MAX
    assert decode_credentials_untrusted(header.rstrip("=")) == MAX
    assert decode_credentials_untrusted("") is None
    assert decode_credentials_untrusted("e30=") is None
    assert "hunter2" not in repr(MAX)
    for garbage in ("!", "abcde", "AAAA", base64.b64encode(b'{"username":1}').decode()):
        with pytest.raises(RegistryDenied, match="cannot be read"):
            decode_credentials_untrusted(garbage)

"""Pulling from a registry: the OCI distribution API, read only.

Trio. Import it when a registry is needed, not before: TLS and HTTP cost megabytes. A Registry is a
BlobSource for one repository, so all that ImageStore.fetch promises holds: what is here is not
asked for, every byte is verified, and what broke off goes on.

    async with Registry(reference, credentials=..., policy=...) as registry:
        pinned = await registry.resolve()
        await store.fetch(pinned.digest, peer, registry)
"""

from __future__ import annotations

import base64
import logging
import random
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlencode

import trio

from swarmlet.images.catalog import ImageRecord
from swarmlet.images.document import DOCUMENT_BYTES_MAX, read_document
from swarmlet.images.errors import (
    BadManifest,
    BlobNotFound,
    ImageNotFound,
    RegistryDenied,
    RegistryError,
    RegistryUnavailable,
)
from swarmlet.images.http import HttpClient, Origin, Response
from swarmlet.images.manifest import INDEXES, MANIFESTS, Descriptor, decode_manifest_untrusted
from swarmlet.images.reference import (
    DEFAULT_REGISTRY,
    DEFAULT_TAG,
    Digest,
    Reference,
    digest_of,
    is_digest,
)
from swarmlet.images.store import ImageStore
from swarmlet.images.transfer import BlobStream

logger = logging.getLogger(__name__)

#: Docker Hub's name is not its address.
HUB = "registry-1.docker.io"
ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS))
#: A request is tried so often, with pauses that double (seconds), when trying may help.
ATTEMPTS_MAX = 4
#: A blob that breaks off is gone on with so often; then the beginning is kept for another time.
RESUMES_MAX = 8
PAUSE = 0.5
PAUSE_MAX = 30.0
BUSY = frozenset({408, 429, 500, 502, 503, 504})
#: Bytes of a token's or an error's document.
ANSWER_BYTES_MAX = 64 * 1024
#: Seconds that a token is believed to live when its maker does not say.
TOKEN_LIFE = 60
CERTIFICATES = Path("/etc/docker/certs.d")

_CHALLENGE = re.compile(r'(Basic|Bearer)((?:\s*,?\s*[A-Za-z]+="[^"]*")*)', re.IGNORECASE)
_PARAMETER = re.compile(r'([A-Za-z]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Credentials:
    """What `docker login` keeps: a password, or a token in its place."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


def decode_credentials_untrusted(header: str) -> Credentials | None:
    """Return what a client's `X-Registry-Auth` holds, None when it is empty.

    Raises:
        RegistryDenied: It cannot be read.
    """
    try:
        text = header.translate(str.maketrans("-_", "+/")) + "=" * (-len(header) % 4)
        data = base64.b64decode(text, validate=True)
        document = read_document(data or b"{}", what="X-Registry-Auth")
        found = Credentials(
            document["username"].text_or(),
            document["password"].text_or(),
            document["identitytoken"].text_or(),
            document["registrytoken"].text_or(),
        )
    except (ValueError, BadManifest) as error:
        raise RegistryDenied(f"the registry's credentials cannot be read: {error}") from None
    return found if found != Credentials() else None


@dataclass(frozen=True, slots=True)
class RegistryPolicy:
    """What this node's configuration says about registries.

    Attributes:
        insecure: Hosts (with their port) whose certificate is not checked, and that may do without
            TLS. Hosts on the loopback device are so anyway.
        mirrors: For a registry, others that are asked first, such as a cache in the building.
        certificates: A folder per host with CAs (*.crt), as Docker's certs.d.
    """

    insecure: frozenset[str] = frozenset()
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    certificates: Path = CERTIFICATES


class Registry:
    """One repository of one registry. Used by one task; use it in an `async with`."""

    def __init__(
        self,
        reference: Reference,
        *,
        credentials: Credentials | None = None,
        policy: RegistryPolicy | None = None,
        host: str | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """*host* is a mirror that is asked in the place of the reference's registry."""
        self._reference = reference
        self._credentials = credentials or Credentials()
        self._policy = policy or RegistryPolicy()
        name = host or reference.registry
        self._host = HUB if name == DEFAULT_REGISTRY else name
        self._rng = rng or random.Random()
        self._insecure = self._host in self._policy.insecure or _is_loopback(self._host)
        self._scheme = "https"
        self._client = HttpClient(self._tls)
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._authorization = ""
        self._authorized_until = 0.0

    def __str__(self) -> str:
        return f"registry {self._host}"

    async def __aenter__(self) -> Registry:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):  # closing forcefully waits for nobody
            await self._client.aclose()

    async def resolve(self) -> Descriptor:
        """Return what the reference's digest, or else its tag, stands for now.

        The size is 0 when the registry does not say it.

        Raises:
            ImageNotFound: The registry has no such image.
            RegistryDenied, RegistryUnavailable, RegistryError: Why it did not say.
        """
        wanted = self._reference.digest or self._reference.tag or DEFAULT_TAG
        headers = {"accept": ACCEPT}
        async with self._asked("HEAD", f"manifests/{wanted}", headers) as response:
            self._check(response, wanted)
            digest = response.headers.get("docker-content-digest", "")
            kind = response.headers.get("content-type", "").partition(";")[0]
            size = response.headers.get("content-length", "0")
        if is_digest(digest) and self._reference.digest in (None, digest):
            return Descriptor(Digest(digest), int(size) if size.isdecimal() else 0, kind)
        async with self._asked("GET", f"manifests/{wanted}", headers) as response:
            self._check(response, wanted)
            data = await response.read(DOCUMENT_BYTES_MAX)
        try:
            kind = decode_manifest_untrusted(data).media_type
        except BadManifest as error:
            raise RegistryError(f"{self._host} answers {wanted} with no image: {error}") from error
        return Descriptor(digest_of(data), len(data), kind)

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, *, offset: int = 0, media_type: str | None = None
    ) -> AsyncIterator[BlobStream]:
        """See BlobSource. What breaks off is asked for again from there, some times."""
        is_document = media_type is None or media_type in MANIFESTS | INDEXES
        path = f"{'manifests' if is_document else 'blobs'}/{digest}"
        headers = {"accept": ACCEPT} if is_document else {}
        if offset and not is_document:
            headers["range"] = f"bytes={offset}-"
        async with self._asked("GET", path, headers) as response:
            self._check(response, digest)
            start = offset if response.status == 206 else 0
            length = response.headers.get("content-length", "")
            size = start + int(length) if length.isdecimal() else None
            async with aclosing(self._going_on(response, path, start, size)) as chunks:
                yield BlobStream(size, start, chunks)

    async def _going_on(
        self, first: Response, path: str, at: int, size: int | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the body of *first*, and when it breaks off that of further answers."""
        failures = 0
        async with AsyncExitStack() as stack:
            response = first
            while True:
                try:
                    async for chunk in response.chunks:
                        at += len(chunk)
                        yield chunk
                    if size is None or at >= size:
                        return
                    raise RegistryUnavailable(f"{self._host} sent {at} bytes of {size}")
                except RegistryUnavailable:
                    failures += 1
                    if size is None or failures > RESUMES_MAX:
                        raise
                await stack.aclose()
                await self._pause(failures, "")
                again = self._asked("GET", path, {"range": f"bytes={at}-"})
                response = await stack.enter_async_context(again)
                if response.status != 206:
                    raise RegistryUnavailable(f"{self._host} cannot go on in the middle of a blob")

    def _check(self, response: Response, what: str) -> None:
        if response.status in (200, 206):
            return
        name = self._reference.familiar_name
        if response.status == 404:
            if is_digest(what):
                raise BlobNotFound(f"{self._host} has no {what} of {name}")
            raise ImageNotFound(f"{self._host} has no {name}:{what}; check the name and the tag")
        if response.status in (401, 403):
            raise RegistryDenied(
                f"{self._host} does not give {name}: it does not exist there, or wants (other)"
                " credentials; log in and try again"
            )
        raise RegistryError(f"{self._host} answered {response.status} for {name}:{what}")

    # Asking.
    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Response]:
        """Ask the repository, with authorization, and again when that may help."""
        attempt = 0
        is_authorized = False
        async with AsyncExitStack() as stack:
            while True:
                attempt += 1
                retry_after = ""
                try:
                    response = await stack.enter_async_context(self._request(method, path, headers))
                    if response.status == 401 and not is_authorized:
                        is_authorized = True
                        challenge = response.headers.get("www-authenticate", "")
                        await stack.aclose()
                        await self._authorize(challenge)
                        continue
                    if response.status not in BUSY or attempt >= ATTEMPTS_MAX:
                        break
                    retry_after = response.headers.get("retry-after", "")
                    await stack.aclose()
                except RegistryUnavailable:
                    if attempt >= ATTEMPTS_MAX:
                        raise
                await self._pause(attempt, retry_after)
            if response.status in BUSY:
                raise RegistryUnavailable(f"{self._host} is busy ({response.status}); try later")
            yield response

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Response]:
        sent = dict(headers)
        if trio.current_time() < self._authorized_until:
            sent["authorization"] = self._authorization
        target = f"/v2/{self._reference.repository}/{path}"
        async with AsyncExitStack() as stack:
            try:
                url = f"{self._scheme}://{self._host}{target}"
                response = await stack.enter_async_context(self._client.request(method, url, sent))
            except RegistryUnavailable:
                if not self._insecure or self._scheme == "http":
                    raise
                # An insecure registry may speak without TLS; the one that answers is remembered.
                url = f"http://{self._host}{target}"
                response = await stack.enter_async_context(self._client.request(method, url, sent))
                self._scheme = "http"
            yield response

    async def _pause(self, attempt: int, retry_after: str) -> None:
        pause = min(PAUSE * 2**attempt, PAUSE_MAX) * self._rng.uniform(0.5, 1.0)
        if retry_after.isdecimal():
            pause = max(pause, min(int(retry_after), PAUSE_MAX))
        logger.info("registry busy host=%s pause=%.1f attempt=%d", self._host, pause, attempt)
        await trio.sleep(pause)

    # Authorization.
    async def _authorize(self, challenge: str) -> None:
        """Answer a 401, or leave things as they are, so that the next answer is final."""
        challenges = {
            match[1].lower(): dict(_PARAMETER.findall(match[2]))
            for match in _CHALLENGE.finditer(challenge[:ANSWER_BYTES_MAX])
        }
        if self._credentials.registry_token:
            self._use(f"Bearer {self._credentials.registry_token}", float("inf"))
        elif "bearer" in challenges:
            await self._take_token(challenges["bearer"])
        elif "basic" in challenges and self._credentials.username:
            self._use(self._basic(), float("inf"))

    async def _take_token(self, challenge: Mapping[str, str]) -> None:
        """Exchange the credentials, or nobody's, for a token (the distribution project's spec)."""
        realm = challenge.get("realm", "")
        if not realm.startswith("https://") and not self._insecure:
            raise RegistryError(f"{self._host} wants its credentials sent without TLS to {realm!r}")
        scope = challenge.get("scope") or f"repository:{self._reference.repository}:pull"
        asked = {"service": challenge.get("service", ""), "scope": scope}
        headers: dict[str, str] = {}
        if self._credentials.identity_token:
            asked |= {"grant_type": "refresh_token", "client_id": "swarmlet"}
            asked["refresh_token"] = self._credentials.identity_token
            headers["content-type"] = "application/x-www-form-urlencoded"
            request = self._client.request("POST", realm, headers, urlencode(asked).encode())
        else:
            if self._credentials.username:
                headers["authorization"] = self._basic()
            separator = "&" if "?" in realm else "?"
            request = self._client.request("GET", realm + separator + urlencode(asked), headers)
        async with request as response:
            data = await response.read(ANSWER_BYTES_MAX)
            if response.status in (400, 401, 403):
                raise RegistryDenied(
                    f"{self._host} does not accept the credentials; log in and try again"
                )
            if response.status != 200:
                raise RegistryUnavailable(f"{realm} gave no token ({response.status})")
        try:
            document = read_document(data, what="the token")
            token = document["token"].text_or() or document["access_token"].text()
            life = document["expires_in"].number_or(TOKEN_LIFE)
        except BadManifest as error:
            raise RegistryError(f"{realm} gave no token: {error}") from None
        self._use(f"Bearer {token}", trio.current_time() + 0.9 * max(life, TOKEN_LIFE))

    def _basic(self) -> str:
        pair = f"{self._credentials.username}:{self._credentials.password}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _use(self, authorization: str, until: float) -> None:
        if not authorization.isascii() or not authorization.isprintable():
            raise RegistryDenied(f"{self._host}: the token has characters that no header may have")
        self._authorization, self._authorized_until = authorization, until

    def _tls(self, origin: Origin) -> ssl.SSLContext:
        name = str(origin).partition("://")[2]
        if name in self._contexts:
            return self._contexts[name]
        context = self._contexts[name] = ssl.create_default_context()
        for file in sorted((self._policy.certificates / name).glob("*.crt")):
            context.load_verify_locations(file)
        if self._insecure and name == self._host:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


async def pull(
    store: ImageStore,
    reference: Reference,
    *,
    credentials: Credentials | None = None,
    policy: RegistryPolicy | None = None,
    rng: random.Random | None = None,
) -> ImageRecord:
    """Bring *reference* from its registry, or from a mirror of that, and give it its name.

    Raises:
        ImageNotFound, RegistryDenied, RegistryUnavailable, RegistryError: As the registry says.
        What ImageStore.fetch raises.
    """
    policy = policy or RegistryPolicy()
    async with AsyncExitStack() as stack:
        sources = []
        for host in (*policy.mirrors.get(reference.registry, ()), None):
            # Credentials are for the registry; a mirror has to do without.
            given = None if host else credentials
            source = Registry(reference, credentials=given, policy=policy, host=host, rng=rng)
            sources.append(await stack.enter_async_context(source))
        pinned = await _resolve_by_first(sources)
        image = await store.fetch(pinned.digest, *sources, reference=str(reference))
        if reference.tag:
            await store.tag(pinned.digest, str(reference.tagged))
    return store.find(image.digest)


async def _resolve_by_first(sources: list[Registry]) -> Descriptor:
    for source in sources[:-1]:
        try:
            return await source.resolve()
        except (ImageNotFound, RegistryError) as error:
            logger.info("mirror skipped source=%s reason=%s", source, error)
    return await sources[-1].resolve()


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if re.search(r":[0-9]+\Z", host) else host
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"

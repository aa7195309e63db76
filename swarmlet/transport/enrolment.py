"""sl-ca/1: how a host becomes a node, and how a node gets its next certificate.

The joiner trusts one thing, the digest in its token. So it first asks for the roots over TLS that
verifies nothing and says nothing; holds them against the digest; and connects again, verified
against just those roots, before it sends token and request. Whoever sits in between learns that
somebody wants to join, and nothing else.
"""

from __future__ import annotations

import logging
import typing

import trio

from swarmlet import wire
from swarmlet.codec import BadMessage
from swarmlet.identity import (
    BadCertificate,
    BadRequest,
    Credentials,
    InvalidToken,
    Issued,
    JoinFacts,
    JoinFault,
    JoinPending,
    JoinRefused,
    JoinRequest,
    KeyPair,
    MistypedToken,
    NodeCertificate,
    RenewRequest,
    Role,
    Token,
    TrustAnswer,
    TrustBundle,
    TrustRequest,
    UntrustedBundle,
    accept,
    check_request_untrusted,
    joining_context,
    parse_token,
    pinned_untrusted,
)
from swarmlet.transport.dial import dial
from swarmlet.transport.errors import (
    ConnectFailed,
    EndOfStream,
    StreamBroken,
    Unreachable,
    WrongPeer,
)
from swarmlet.transport.frames import Codec, FrameStream
from swarmlet.transport.limits import Buckets, TokenBucket
from swarmlet.transport.protocols import CONNECT_TIMEOUT, Peer, Protocol, format_address

logger = logging.getLogger(__name__)

#: Seconds that a joiner waits for an answer: the leader may just be elected.
ANSWER_TIMEOUT = 30.0
#: Questions that one connection may ask: trust, join, and a retry of each.
QUESTIONS_MAX = 8
#: Wrong tokens from one address: five at once, then five a minute.
FAILURES_BURST = 5.0
FAILURES_RATE = 5 / 60
#: Certificates that a manager signs, each about 3 ms with its handshake.
ISSUES_RATE = 20.0
ISSUES_BURST = 40.0

NAME_LENGTH_MAX = 63
ADDRESS_LENGTH_MAX = 260
FACTS_MAX = 32
FACT_LENGTH_MAX = 256


class EnrolmentRefused(Exception):
    """The cluster does not take us; the text is a manager's and says what to do."""

    def __init__(self, fault: JoinFault, text: str) -> None:
        super().__init__(text)
        self.fault = fault
        self.text = text


class EnrolmentUnavailable(Exception):
    """This manager cannot decide now (no leader, no quorum): ask again, or another one."""


class Enrolment(typing.Protocol):
    """What a manager decides about who wants to join or renew."""

    def trust(self) -> TrustAnswer:
        """Return the cluster's id and its roots."""

    async def join(
        self, token: Token, public_key: bytes, request: JoinRequest, address: str
    ) -> Issued | JoinPending | JoinRefused:
        """Verify *token*, write the node into the store and sign, in one transaction.

        *public_key* (SPKI) is proven to be the caller's. A node that the store knows by this same
        key is not a second node and takes no second use off the token: its answer was lost.
        A manager that does not lead hands *request* on and returns the leader's answer, whatever
        it is.

        Raises:
            InvalidToken, EnrolmentUnavailable.
        """

    async def renew(self, certificate: NodeCertificate, public_key: bytes) -> Issued:
        """Sign *public_key* for the node of *certificate*, in its present role, and keep both
        keys (keys_after_renewal).

        Raises:
            EnrolmentUnavailable, EnrolmentRefused.
        """


# The joiner's side:


async def fetch_trust(
    address: tuple[str, int], pin: str, *, codec: Codec = wire, within: float = CONNECT_TIMEOUT
) -> TrustAnswer:
    """Return the cluster at *address* with its roots, which the digest *pin* (hex) vouches for.

    Raises:
        ConnectFailed: nobody answered, or (WrongPeer) another cluster than the pin's.
    """
    context = joining_context(Protocol.CA, None)
    stream, certificate = await dial(
        address, context, Protocol.CA, check=lambda certificate: None, within=within
    )
    async with _framed(stream, address, certificate, codec) as frames:
        answer = await _ask(frames, TrustRequest(), address)
    if not isinstance(answer, TrustAnswer):
        raise _not_understood(address, answer)
    try:
        pinned_untrusted(answer.bundle, pin)
    except UntrustedBundle as exc:
        raise WrongPeer(
            f"{format_address(address)} belongs to another cluster than the token ({exc}): check "
            "that address and token are of the same cluster; nothing was sent to it"
        ) from exc
    return answer


async def enrol(
    address: tuple[str, int],
    token: Token,
    key: KeyPair,
    facts: JoinFacts,
    *,
    codec: Codec = wire,
    within: float = CONNECT_TIMEOUT,
) -> Issued | JoinPending:
    """Ask the manager at *address* to make this host a node, and return what it issued.

    Call it again with the same *key* after an error or JoinPending: the same node comes of it.

    Raises:
        ConnectFailed: no manager of the token's cluster could be asked.
        EnrolmentRefused: it was asked, and refused.
    """
    trusted = await fetch_trust(address, token.digest, codec=codec, within=within)

    def check(certificate: NodeCertificate) -> None:
        accept(certificate, floor=0.0, cluster=trusted.cluster, role=Role.MANAGER)

    context = joining_context(Protocol.CA, trusted.bundle)
    stream, certificate = await dial(address, context, Protocol.CA, check=check, within=within)
    async with _framed(stream, address, certificate, codec) as frames:
        request = JoinRequest(token=str(token), csr=key.request(), facts=facts)
        answer = await _ask(frames, request, address)
    match answer:
        case Issued():
            return _checked(answer, key, trusted.bundle, token.digest, address)
        case JoinPending():
            return answer
        case JoinRefused(fault=fault, text=text):
            raise EnrolmentRefused(fault, text)
        case _:
            raise _not_understood(address, answer)


async def renew(stream: FrameStream, key: KeyPair) -> Issued:
    """Ask over *stream*, a connection to sl-ca/1 under the old certificate, to sign *key*.

    Raises:
        StreamBroken, EnrolmentRefused.
    """
    answer = await _ask(stream, RenewRequest(csr=key.request()), stream.peer.address)
    match answer:
        case Issued():
            return answer
        case JoinRefused(fault=fault, text=text):
            raise EnrolmentRefused(fault, text)
        case _:
            raise _not_understood(stream.peer.address, answer)


def _framed(
    stream: trio.abc.Stream,
    address: tuple[str, int],
    certificate: NodeCertificate,
    codec: Codec,
) -> FrameStream:
    peer = Peer(protocol=Protocol.CA, address=address, node=certificate.node)
    return FrameStream(stream, peer, codec, idle_timeout=ANSWER_TIMEOUT)


async def _ask(stream: FrameStream, question: object, address: tuple[str, int]) -> object:
    try:
        await stream.send(question)
        answer: object = await stream.receive()
    except BadMessage as exc:
        raise _not_understood(address, exc) from exc
    except (EndOfStream, StreamBroken) as exc:
        raise Unreachable(
            f"{format_address(address)} hung up before it answered ({exc}): try again, or ask "
            "another manager"
        ) from exc
    return answer


def _not_understood(address: tuple[str, int], answer: object) -> ConnectFailed:
    words = answer if isinstance(answer, Exception) else type(answer).__name__
    return Unreachable(
        f"the answer of {format_address(address)} is not understood ({words}): it runs another "
        "version of swarmlet; update the older of the two"
    )


def _checked(
    issued: Issued, key: KeyPair, trust: TrustBundle, pin: str, address: tuple[str, int]
) -> Issued:
    """Return *issued* if we can live with it: for our key, of these roots, of this pin."""
    try:
        pinned_untrusted(issued.bundle, pin)
        credentials = Credentials(key, issued.chain, issued.bundle)
        if not (trust.vouches(issued.chain[0]) or issued.bundle.vouches(issued.chain[0])):
            raise BadCertificate("no root of the cluster signed it")
        if credentials.node != issued.node:
            raise BadCertificate("it is for another node")
    except (BadCertificate, UntrustedBundle, IndexError) as exc:
        raise WrongPeer(
            f"{format_address(address)} issued a certificate that is of no use ({exc}): report "
            "this, the manager there is damaged"
        ) from exc
    return issued


# The manager's side:


class CertificateAuthorityService:
    """Answers on sl-ca/1. Everything that a stranger may do costs it more than us."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment
        self._failures = Buckets(rate=FAILURES_RATE, burst=FAILURES_BURST)
        self._issues = TokenBucket(ISSUES_RATE, ISSUES_BURST, ISSUES_BURST, trio.current_time())

    async def serve(self, stream: FrameStream) -> None:
        """Answer the questions of one connection: the handler for Protocol.CA."""
        for _ in range(QUESTIONS_MAX):
            try:
                question = await stream.receive()
            except EndOfStream:
                return
            await stream.send(await self._answer(stream.peer, question))

    async def _answer(self, peer: Peer, question: object) -> object:
        match question:
            case TrustRequest():
                return self._enrolment.trust()
            case JoinRequest():
                return await self._join(peer, question)
            case RenewRequest(csr=csr):
                return await self._renew(peer, csr)
            case _:
                raise BadMessage(f"a {type(question).__name__} is no question to the CA")

    async def _join(self, peer: Peer, request: JoinRequest) -> object:
        now = trio.current_time()
        failures = self._failures.of(peer.address[0], now)
        # A manager hands on what others asked it, and has counted their failures itself.
        if peer.role is not Role.MANAGER and not failures.has(now):
            return _refused(
                JoinFault.BUSY,
                "too many wrong tokens came from this address: wait a minute, then try again with "
                "a token that `swarmlet token worker` on a manager prints",
            )
        if not self._issues.take(now):
            return _refused(JoinFault.BUSY, "many nodes join just now: try again in some seconds")
        try:
            token = parse_token(request.token)
            public_key = check_request_untrusted(request.csr)
            check_facts_untrusted(request.facts)
            answer = await self._enrolment.join(token, public_key, request, peer.address[0])
        except (MistypedToken, InvalidToken) as exc:
            failures.take(now)
            logger.warning("join refused address=%s reason=%s", peer.address[0], exc)
            return _refused(JoinFault.TOKEN, str(exc))
        except BadRequest as exc:
            failures.take(now)
            return _refused(JoinFault.REQUEST, f"the certificate request is no good: {exc}")
        except EnrolmentUnavailable as exc:
            return _refused(JoinFault.UNAVAILABLE, str(exc))
        except EnrolmentRefused as exc:
            return _refused(exc.fault, exc.text)
        if isinstance(answer, JoinRefused) and answer.fault is JoinFault.TOKEN:
            failures.take(now)
        if isinstance(answer, Issued):
            logger.info("node joined node=%s address=%s", answer.node, peer.address[0])
        return answer

    async def _renew(self, peer: Peer, csr: bytes) -> object:
        if peer.certificate is None:
            return _refused(
                JoinFault.RIGHTS, "only a node renews its certificate: join with a token first"
            )
        if not self._issues.take(trio.current_time()):
            return _refused(JoinFault.BUSY, "many nodes renew just now: try again in some seconds")
        try:
            public_key = check_request_untrusted(csr)
            issued = await self._enrolment.renew(peer.certificate, public_key)
        except BadRequest as exc:
            return _refused(JoinFault.REQUEST, f"the certificate request is no good: {exc}")
        except EnrolmentUnavailable as exc:
            return _refused(JoinFault.UNAVAILABLE, str(exc))
        except EnrolmentRefused as exc:
            return _refused(exc.fault, exc.text)
        logger.info("certificate renewed node=%s", issued.node)
        return issued


def _refused(fault: JoinFault, text: str) -> JoinRefused:
    return JoinRefused(fault=fault, text=text)


def check_facts_untrusted(facts: JoinFacts) -> None:
    """Raise BadRequest if a joiner says more about itself than anybody wants to keep."""
    fits = (
        0 < len(facts.name) <= NAME_LENGTH_MAX
        and facts.name.isprintable()
        and len(facts.address) <= ADDRESS_LENGTH_MAX
        and len(facts.version) <= FACT_LENGTH_MAX
        and len(facts.facts) <= FACTS_MAX
        and all(len(k) + len(v) <= FACT_LENGTH_MAX for k, v in facts.facts.items())
    )
    if not fits:
        raise BadRequest(
            f"a node's name has 1 to {NAME_LENGTH_MAX} printable characters, and its facts are "
            f"{FACTS_MAX} at most: give it another name with --name"
        )

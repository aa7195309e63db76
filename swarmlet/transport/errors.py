"""What can go wrong with a connection, as a caller may tell it apart.

All are OSErrors: the world failed. What the peer itself says wrongly is a BadMessage.
"""

from __future__ import annotations

import errno
import socket
import ssl

import trio

from swarmlet.transport.protocols import format_address


class EndOfStream(EOFError):
    """The peer has said all that it wanted to say, and closed."""


class StreamBroken(OSError):
    """The connection is lost or unusable; whether the last messages arrived is not known."""


class ConnectFailed(OSError):
    """No connection came about; the text says why and what to do."""


class Unreachable(ConnectFailed):
    """Nobody answered, or what answered is no swarmlet."""


class WrongPeer(ConnectFailed):
    """Somebody answered who is not who was meant. Nothing was said to it."""


class PeerRefused(ConnectFailed):
    """The peer is the right one and refused us; the text is its own."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


#: OpenSSL's verify results that mean: no root of ours (x509_vfy.h).
_FOREIGN_ROOTS = frozenset({18, 19, 20, 21})
#: Reasons with which OpenSSL says that what it read is no TLS.
_NOT_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_MESSAGE"}
    | {"BAD_PACKET_LENGTH", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING"}
    | {"HTTPS_PROXY_REQUEST", "BAD_RECORD_TYPE", "UNKNOWN_PROTOCOL"}
)


def tls_error_of(error: BaseException) -> ssl.SSLError | None:
    """Return the ssl module's error behind a trio.BrokenResourceError, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def explain_tcp(address: tuple[str, int], error: OSError) -> Unreachable:
    """Return what the caller should know of a connection that TCP did not make."""
    where = format_address(address)
    cause = _first_cause(error)
    if isinstance(cause, socket.gaierror):
        text = f"the name {address[0]} has no address: check its spelling, or give the IP address"
    elif isinstance(cause, ConnectionRefusedError):
        text = (
            f"nothing listens at {where}: check the address and the port, and that the swarmlet "
            "daemon runs there"
        )
    elif cause.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN):
        text = f"no way leads to {where} ({cause.strerror}): check the network of this host"
    else:
        text = f"cannot connect to {where}: {cause}"
    return Unreachable(text)


def _first_cause(error: OSError) -> OSError:
    """trio.open_tcp_stream tries every address of a name and raises one error over all."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause if isinstance(cause, OSError) else error


def explain_tls(address: tuple[str, int], error: BaseException) -> ConnectFailed:
    """Return what the caller should know of a TLS handshake that failed on its side."""
    where = format_address(address)
    tls = tls_error_of(error)
    if isinstance(tls, ssl.SSLCertVerificationError):
        if tls.verify_code in _FOREIGN_ROOTS:
            return WrongPeer(
                f"what answers at {where} belongs to another cluster: no root that this node "
                "trusts has signed its certificate; check the address"
            )
        return WrongPeer(
            f"the certificate of what answers at {where} is not valid: {tls.verify_message}"
        )
    if tls is None or tls.reason in (None, "UNEXPECTED_EOF_WHILE_READING"):
        return Unreachable(
            f"{where} hung up at once: either it is not swarmlet (check the address and the port) "
            "or it is too busy (try again in a moment)"
        )
    if tls.reason in _NOT_TLS:
        return Unreachable(
            f"what answers at {where} is not swarmlet: check the address and the port"
        )
    return Unreachable(f"TLS with {where} failed: {_words(tls)}")


def explain_silence(address: tuple[str, int], error: BaseException) -> ConnectFailed:
    """Return what the caller should know if the peer hung up where its verdict should stand."""
    where = format_address(address)
    tls = tls_error_of(error)
    reason = (tls.reason or "") if tls is not None else ""
    if "ALERT" in reason and "UNKNOWN_CA" not in reason:
        return PeerRefused(
            "certificate", f"{where} does not take this node's certificate: {_words(tls)}"
        )
    # Our handshake was done, so it hung up over what it saw then: our certificate. (trio does not
    # send the alert of a handshake that fails, so there is no more to go by.)
    return PeerRefused(
        "foreign",
        f"{where} hung up when it saw this node's certificate: it does not trust the root that "
        "signed it, so it belongs to another cluster or that root was taken out of use; check the "
        "address, else join again with a new token (if it was just stopping, this goes away)",
    )


def explain_timeout(address: tuple[str, int], seconds: float) -> Unreachable:
    return Unreachable(
        f"no answer from {format_address(address)} within {seconds:g} s: check the address, and "
        f"that no firewall drops TCP to port {address[1]}"
    )


def explain_handshake(error: BaseException) -> tuple[str, str]:
    """Return kind and words of a handshake that failed on the serving side."""
    tls = tls_error_of(error)
    if tls is None or tls.reason == "UNEXPECTED_EOF_WHILE_READING":
        return "hung-up", "hung up during the handshake"
    if isinstance(tls, ssl.SSLCertVerificationError):
        if tls.verify_code in _FOREIGN_ROOTS:
            return "foreign", "shows a certificate of another cluster"
        return "certificate", f"shows a certificate that is not valid: {tls.verify_message}"
    match tls.reason or "":
        case "HTTP_REQUEST":
            return "http", "speaks plain HTTP"
        case reason if reason in _NOT_TLS:
            return "not-tls", "speaks no TLS"
        case "UNSUPPORTED_PROTOCOL" | "NO_SHARED_CIPHER" | "VERSION_TOO_LOW":
            return "tls-version", "speaks an old TLS; only 1.3 is spoken here"
        case reason if "ALERT" in reason:
            return "alert", f"does not take our certificate ({_words(tls)})"
    return "tls", f"failed in TLS ({_words(tls)})"


def _words(error: ssl.SSLError | None) -> str:
    reason = (error.reason or str(error)) if error is not None else ""
    return reason.lower().replace("_", " ")


#: What a stream of trio raises when the world fails under it.
BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)

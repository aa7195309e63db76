"""The node's next certificate, in time and without a moment in which it has none.

A renewal has a new key each time. It becomes the current one only after a manager has admitted
it, and until then the old one stays in use (swarmlet/identity/vault.py has the two slots).
Every step may be the last before a crash: the next run begins where the disk says it stopped.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from swarmlet.codec import BadMessage
from swarmlet.identity import (
    BadCertificate,
    Credentials,
    Issued,
    JoinFault,
    KeyPair,
    NodeCertificate,
    Vault,
)
from swarmlet.transport.endpoint import Transport
from swarmlet.transport.enrolment import EnrolmentRefused, renew
from swarmlet.transport.errors import ConnectFailed, PeerRefused, StreamBroken
from swarmlet.transport.protocols import Protocol, format_address

logger = logging.getLogger(__name__)

#: A renewal falls at a random point of this part of the certificate's life (swarmkit's rule): the
#: nodes of a cluster that was set up in one afternoon do not all come at once.
SHARE_MIN, SHARE_MAX = 0.5, 0.8
#: Seconds between tries, doubled each time, with up to a half more at random.
RETRY_MIN, RETRY_MAX = 60.0, 3600.0
#: Seconds after which the wall clock is looked at again: it may have been set meanwhile.
LOOK_PERIOD = 600.0

#: Refusals that another manager, or a later hour, may not give.
_PASSING = frozenset({JoinFault.BUSY, JoinFault.UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class ManagerAddress:
    """A manager that may be asked."""

    address: tuple[str, int]
    node: str | None = None


@dataclass(frozen=True, slots=True)
class RenewalStatus:
    due_at: float
    ends_at: float
    failures: int  # in a row
    last_failure: str = ""


def due_at(certificate: NodeCertificate) -> float:
    """Return when *certificate* is to be renewed: random, and the same at each start.

    The serial number is random, so it serves as the dice.
    """
    share = SHARE_MIN + (SHARE_MAX - SHARE_MIN) * (certificate.serial % (1 << 32)) / (1 << 32)
    return certificate.not_before + share * (certificate.not_after - certificate.not_before)


def retry_pause(failures: int, rng: random.Random) -> float:
    """Return the seconds to wait after so many *failures* in a row."""
    doublings = min(failures - 1, 16)  # far beyond RETRY_MAX, and no float overflows
    return min(RETRY_MIN * 2.0**doublings, RETRY_MAX) * rng.uniform(1, 1.5)


class Renewer:
    """Keeps a node's credentials fresh.

    *adopt* is called with each new credentials, from which moment they are the ones that
    *credentials* returns. *managers* returns the managers known now, the leader first if possible.
    """

    def __init__(
        self,
        vault: Vault,
        transport: Transport,
        *,
        credentials: Callable[[], Credentials],
        adopt: Callable[[Credentials], None],
        managers: Callable[[], Sequence[ManagerAddress]],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._vault = vault
        self._transport = transport
        self._credentials = credentials
        self._adopt = adopt
        self._managers = managers
        self._now = now
        self._rng = rng
        self._hurry = trio.Event()
        self._failures = 0
        self._last_failure = ""

    def hurry(self) -> None:
        """Renew now: the node was promoted or demoted, or the root is being rotated."""
        self._hurry.set()

    def status(self) -> RenewalStatus:
        certificate = self._credentials().certificate
        return RenewalStatus(
            due_at=due_at(certificate),
            ends_at=certificate.not_after,
            failures=self._failures,
            last_failure=self._last_failure,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew whenever it is time, until cancelled. First finishes what a crash left open."""
        task_status.started()
        if await trio.to_thread.run_sync(self._vault.load_pending) is not None:
            await self.renew_once()
        while True:
            await self._wait_due()
            self._hurry = trio.Event()
            while not await self.renew_once():
                with trio.move_on_after(retry_pause(self._failures, self._rng)):
                    await self._hurry.wait()
                    self._hurry = trio.Event()

    async def _wait_due(self) -> None:
        while not self._hurry.is_set():
            left = due_at(self._credentials().certificate) - self._now()
            if left <= 0:
                return
            with trio.move_on_after(min(left, LOOK_PERIOD)):
                await self._hurry.wait()

    async def renew_once(self) -> bool:
        """Go as far as possible, and return whether new credentials came into use."""
        try:
            pending = await trio.to_thread.run_sync(self._vault.load_pending)
            if pending is None or not await self._works(pending):
                pending = await self._obtain()
                if not await self._works(pending):
                    raise _Postponed("the new certificate was not admitted yet by any manager")
            current = await trio.to_thread.run_sync(self._vault.promote_pending)
        except _Postponed as exc:
            self._failures += 1
            self._last_failure = str(exc)
            ends = self._credentials().certificate.not_after
            logger.warning(
                "renewal failed node=%s failures=%d certificate_ends_in=%.0fs: %s",
                self._credentials().node,
                self._failures,
                ends - self._now(),
                exc,
            )
            return False
        self._failures, self._last_failure = 0, ""
        self._adopt(current)
        logger.info(
            "certificate renewed node=%s role=%s ends_in=%.0fs",
            current.node,
            current.role,
            current.certificate.not_after - self._now(),
        )
        return True

    async def _obtain(self) -> Credentials:
        """Ask the managers one after another to sign the pending key; keep what one issued."""
        key = await trio.to_thread.run_sync(self._vault.pending_key)
        reasons = []
        for manager in self._managers():
            try:
                issued = await self._ask(manager, key)
                return await trio.to_thread.run_sync(
                    self._vault.store_pending, issued.chain, issued.bundle
                )
            except (ConnectFailed, StreamBroken, BadMessage, BadCertificate) as exc:
                reasons.append(f"{format_address(manager.address)}: {exc}")
            except EnrolmentRefused as exc:
                reasons.append(f"{format_address(manager.address)}: {exc.text}")
                if exc.fault not in _PASSING:
                    break
        raise _Postponed("; ".join(reasons) or "no manager is known")

    async def _ask(self, manager: ManagerAddress, key: KeyPair) -> Issued:
        stream = await self._transport.connect(manager.address, Protocol.CA, node=manager.node)
        async with stream:
            issued = await renew(stream, key)
        if issued.node != self._credentials().node:
            raise BadCertificate(f"the certificate is for node {issued.node}, not for this one")
        return issued

    async def _works(self, credentials: Credentials) -> bool:
        """Whether some manager admits *credentials*. A manager that is behind says no at first."""
        for manager in self._managers():
            try:
                stream = await self._transport.connect(
                    manager.address, Protocol.CA, node=manager.node, credentials=credentials
                )
            except PeerRefused as exc:
                logger.debug("new certificate not admitted address=%s: %s", manager.address, exc)
            except ConnectFailed as exc:
                logger.debug("manager not reached address=%s: %s", manager.address, exc)
            else:
                await stream.aclose()
                return True
        return False


class _Postponed(Exception):
    """Nothing is lost: the credentials in use stay, and the next try goes on from here."""

"""Neighbours: gossip on this node, what it makes of the others, and whether one can be reached.

A shell around swarmlet.swim. Gossip begins with the first keys, which an assignment brings. What it
says is evidence: a suspect is confirmed by the leader, a dead host's backends are only masked.
"""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio

from swarmlet import wire
from swarmlet.agent.journal import Journal
from swarmlet.daemon.facts import own_facts
from swarmlet.model import NodeId, Role
from swarmlet.session import NodeView, Reach
from swarmlet.swim.config import LAN, Config, configure_from_text
from swarmlet.swim.gossip import Gossip
from swarmlet.swim.messages import Address, MemberId, Ping, State, SyncDigest, UserEvent
from swarmlet.swim.sealing import Keyring
from swarmlet.swim.views import MemberView, Reachability, Statistics, Transition
from swarmlet.transport import ConnectFailed, FrameStream, PeerRefused, Protocol, Transport

logger = logging.getLogger(__name__)

#: Seconds for a stream of anti-entropy to come about.
DIAL_WITHIN = 5.0
#: Seconds of one try to reach a node for a confirmation.
REACH_WITHIN = 0.8
#: Members that a start asks for all others.
JOIN_AT = 5
#: Seconds between two calls for keys that this node lacks: anybody can send packets that name some.
KEYS_EVERY = 10.0

News: TypeAlias = Transition | UserEvent


class _GossipCodec:
    def encode(self, messages: object, /) -> bytes:
        return wire.encode_many(messages)  # type: ignore[arg-type]

    def decode_untrusted(self, payload: bytes, /) -> list[object]:
        return wire.decode_many_untrusted(payload)


class _GossipStreams:
    """Gossip's anti-entropy over sl-sync/1."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def open(self, member: MemberId | None, address: Address) -> FrameStream:
        return await self._transport.connect(
            address, Protocol.SYNC, node=member, within=DIAL_WITHIN
        )


class Neighbours:
    """What this node knows of the others by itself."""

    def __init__(
        self,
        *,
        node: NodeId,
        address: Callable[[], Address],
        is_manager: bool,
        journal: Journal,
        transport: Transport,
        suspect: Callable[[NodeId], None],
        returned: Callable[[NodeId], None],
        mask: Callable[[Iterable[NodeId]], None],
        want_keys: Callable[[], None],
        rng: random.Random,
    ) -> None:
        """*suspect* is told of doubts, *returned* of who is alive again, *mask* of all that are
        dead together with their hosts; *want_keys* is called when others speak under newer keys."""
        self._node = node
        self._address = address
        self._is_manager = is_manager
        self._journal = journal
        self._transport = transport
        self._suspect = suspect
        self._returned = returned
        self._mask_dead = mask
        self._want_keys = want_keys
        self._rng = rng
        self._gossip: Gossip | None = None
        self._config = LAN
        self._has_joined = False
        self._begun = trio.Event()
        self._ended = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._without_daemon: set[NodeId] = set()  # dead for gossip, but the host answers

    @property
    def members(self) -> Mapping[MemberId, MemberView]:
        return self._gossip.members if self._gossip is not None else {}

    def configure(self, keyring: Keyring, preset: str, knobs: Mapping[str, str]) -> None:
        """Speak under these keys and with these settings; the first ones begin it."""
        config = _config(preset, knobs)
        if self._gossip is not None:
            self._gossip.set_keys(keyring)
            if config != self._config:
                self._gossip.configure(config)
                logger.info("gossip configured preset=%s knobs=%s", preset, dict(knobs))
            self._config = config
            return
        self._config = config
        self._gossip = Gossip(
            member=MemberId(self._node),
            address=self._address(),
            facts=own_facts(is_manager=self._is_manager),
            boot=self._journal.next_boot(),
            config=config,
            keyring=keyring,
            codec=_GossipCodec(),  # type: ignore[arg-type]
            streams=_GossipStreams(self._transport),
            rng=self._rng,
            boot_changed=lambda boot: self._journal.set_number("boot", boot),
        )
        self._begun.set()

    def set_known(self, nodes: Iterable[NodeView]) -> None:
        """These are the cluster's nodes, whatever gossip thinks of them."""
        if self._gossip is None:
            return
        others = [node for node in nodes if node.address and node.id != self._node]
        self._gossip.set_known({MemberId(n.id): (n.address, n.port) for n in others})
        if others and not self._has_joined:
            # Known members are pinged at a low rate only; at the start nobody wants to wait.
            self._has_joined = True
            others.sort(key=lambda node: node.role is not Role.MANAGER)
            self._gossip.join([(node.address, node.port) for node in others[:JOIN_AT]])

    def moved(self) -> None:
        """This node has another address now."""
        if self._gossip is not None:
            self._gossip.set_address(self._address())

    async def run(self, datagrams: trio.socket.SocketType) -> None:
        """Gossip over *datagrams*, as soon as there are keys, until cancelled."""
        await self._begun.wait()
        assert self._gossip is not None
        try:
            with self._gossip.subscribe() as transitions:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    await nursery.start(self._gossip.run, datagrams)
                    nursery.start_soon(self._call_for_keys, self._gossip)
                    async for transition in transitions:
                        self._on_transition(transition)
        finally:
            self._ended.set()

    async def _call_for_keys(self, gossip: Gossip) -> None:
        while True:
            await gossip.wait_key_missing()
            logger.info("gossip key missing: others have a newer one; asking the managers for it")
            self._want_keys()
            await trio.sleep(KEYS_EVERY)

    # What is shown of it.

    @property
    def statistics(self) -> Statistics | None:
        return self._gossip.statistics() if self._gossip is not None else None

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[trio.MemoryReceiveChannel[News]]:
        """Yield a channel of all that gossip tells from now on, once it has begun; to its end."""
        await self._begun.wait()
        assert self._gossip is not None
        send, receive = trio.open_memory_channel[News](0)

        async def pass_on(news: trio.MemoryReceiveChannel[News]) -> None:
            async for one in news:
                await send.send(one)

        async def pass_all_on() -> None:
            with send:
                async with trio.open_nursery() as both:
                    both.start_soon(pass_on, changes)
                    both.start_soon(pass_on, events)
                    await self._ended.wait()
                    both.cancel_scope.cancel()

        with self._gossip.subscribe() as changes, self._gossip.subscribe_user_events() as events:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pass_all_on)
                with receive:
                    yield receive
                nursery.cancel_scope.cancel()

    def broadcast(self, name: str, payload: bytes) -> bool:
        """Tell every node; False while there is no gossip. Raises ValueError if it is too long."""
        if self._gossip is None:
            return False
        self._gossip.broadcast(name, payload)
        return True

    async def leave(self) -> None:
        if self._gossip is not None:
            await self._gossip.leave()

    async def serve_sync(self, stream: FrameStream, first: Ping | SyncDigest) -> None:
        if self._gossip is not None:
            await self._gossip.serve_sync(stream, first)

    def _on_transition(self, transition: Transition) -> None:
        node = NodeId(transition.member)
        if transition.after in (State.SUSPECT, State.DEAD):
            self._suspect(node)
        elif transition.after is State.ALIVE:
            self._returned(node)
        self._mask()
        if transition.after is State.DEAD and self._nursery is not None:
            self._nursery.start_soon(self._unmask_if_refused, node, transition.address)

    def _mask(self) -> None:
        """Take dead hosts out of the load balancers."""
        dead = {NodeId(m) for m, view in self.members.items() if view.state is State.DEAD}
        self._without_daemon &= dead
        self._mask_dead(dead - self._without_daemon)

    async def _unmask_if_refused(self, node: NodeId, address: Address) -> None:
        """A host that answers, and only its daemon is gone, still serves: put it back."""
        if await self.reach(node, *address) is Reach.REFUSED:
            self._without_daemon.add(node)
            self._mask()

    async def reach(self, node: NodeId, address: str, port: int) -> Reach:
        """Try to reach *node* from here: by gossip's ping, and by a connection that proves it."""
        verdicts: list[Reach] = []
        async with trio.open_nursery() as nursery:

            async def by_ping() -> None:
                if self._gossip is None:
                    return
                outcome = await self._gossip.confirm(
                    MemberId(node), (address, port), timeout=REACH_WITHIN
                )
                take(
                    {
                        Reachability.ALIVE: Reach.ALIVE,
                        Reachability.REFUSED: Reach.REFUSED,
                        Reachability.SILENT: Reach.SILENT,
                    }[outcome]
                )

            async def by_connection() -> None:
                take(await self._connect_to(node, address, port))

            def take(verdict: Reach) -> None:
                verdicts.append(verdict)
                if verdict is Reach.ALIVE:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(by_ping)
            nursery.start_soon(by_connection)
        for verdict in (Reach.ALIVE, Reach.REFUSED):
            if verdict in verdicts:
                break
        else:
            verdict = Reach.SILENT
        # Whoever asks has a reason: a session that closed or fell silent. So gossip looks as well.
        if (verdict is Reach.ALIVE) is not self._is_alive(node):
            self.look_at(node)
        return verdict

    def look_at(self, node: NodeId) -> None:
        """Have gossip ask *node* at once: there is a sign that it is gone, or back."""
        if self._gossip is not None:
            self._gossip.doubt(MemberId(node))

    def _is_alive(self, node: NodeId) -> bool:
        view = self.members.get(MemberId(node))
        return view is not None and view.state is State.ALIVE

    async def _connect_to(self, node: NodeId, address: str, port: int) -> Reach:
        try:
            stream = await self._transport.connect(
                (address, port), Protocol.SYNC, node=node, within=REACH_WITHIN
            )
        except PeerRefused:
            return Reach.ALIVE
        except ConnectFailed as exc:
            cause = exc.__cause__
            refused = isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED
            return Reach.REFUSED if refused else Reach.SILENT
        await stream.aclose()
        return Reach.ALIVE


def _config(preset: str, knobs: Mapping[str, str]) -> Config:
    try:
        return configure_from_text(preset, knobs)
    except ValueError as exc:
        # The leader checks them; one of a newer version may know more presets and knobs.
        logger.warning("gossip settings not understood, lan's taken instead reason=%s", exc)
        return LAN

"""A whole Raft cluster in one thread: no clock, no socket, one seed (STYLE B10).

Cores are the real ones, and so are the WAL and the snapshots, on disks in memory that lose power
in the middle of a write. The driver here is the plain form of raft/driver.py: one append job
that takes all that waits, an apply job, messages that leave at once or after the sync. Time is
in milliseconds. A run is a function of (seed, mode), so every failure replays.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from raft import boot
from raft.appending import Work, work_of
from raft.config import Config
from raft.core import ProposalDropped, Raft
from raft.membership import Change
from raft.messages import (
    CHANGE,
    Configuration,
    Entry,
    InstallSnapshot,
    Message,
    Role,
    ServerId,
    SnapshotMeta,
    Stored,
)
from raft.snapshots import SnapshotStore, snapshot_name
from raft.trace import BecameLeader, Trace
from tests.raft.checkers import Checkers
from tests.raft.disks import MemoryDisk, PowerCut
from tests.raft.linearizability import (
    APPEND,
    CAS,
    GET,
    PUT,
    History,
    Operation,
    State,
    Value,
    apply,
)

KEY = bytes(range(32))
CLUSTER = b"cluster-of-world"
SEGMENT = 16 << 10
TICK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How bad the world is; a mode of the simulation draws them from its seed."""

    loss: float = 0.0  # probability that a message never arrives
    duplication: float = 0.0  # probability that it arrives twice
    delay_max: int = 10  # a message takes 1 to so many ms
    disk_max: int = 5  # a write takes 1 to so many ms
    report_loss: float = 0.0  # probability that nobody hears how a snapshot fared
    snapshot_entries: int = 20
    trailing_entries: int = 5


class Server:
    """One server: a core while it runs, and a disk that stays."""

    def __init__(self, world: World, server: ServerId, disk: MemoryDisk) -> None:
        self.world = world
        self.server = server
        self.disk = disk
        self.raft: Raft | None = None
        self.life = 0
        self.commands: list[bytes] = []
        self.values: dict[str, State] = {}

    # Life.
    def start(self) -> None:
        self.life += 1
        booted = boot.load(self.disk, KEY, CLUSTER, segment_bytes=SEGMENT)
        assert booted.server == self.server
        self._wal, self._snapshots = booted.wal, booted.snapshots
        self._storage = booted.storage
        self._hard_state = self._durable = booted.hard_state
        self.commands, self.values = [], {}
        self.applied = 0
        configuration = Configuration()
        if booted.snapshot is not None:
            assert booted.state is not None
            self._restore_state(booted.snapshot, booted.state)
            configuration = booted.snapshot.configuration
        self._snapshot_index = self._older_index = self.applied
        self._queue: list[Work] = []
        self._writing: list[Work] = []
        self._applying: list[tuple[Entry, ...] | Stored] = []
        self._proposed: dict[int, tuple[int, bytes, Operation | None]] = {}
        self._reads: dict[bytes, tuple[int, Operation]] = {}
        self._reading: list[tuple[int, Operation]] = []
        self._entries_seen = 0
        self.raft = Raft(
            self.world.config,
            self.server,
            booted.storage,
            hard_state=booted.hard_state,
            configuration=configuration,
            applied=self.applied,
            rng=random.Random(self.world.rng.random()),
            trace=self._trace,
        )
        self._later(self.world.rng.randint(1, TICK), self._tick)
        self.turn()

    def crash(self) -> None:
        """Lose power: a write under way is on the disk in part, or whole, or not at all."""
        if self.raft is None:
            return
        self.raft = None
        if self._writing and self.world.rng.random() < 0.7:
            self.disk.cut_at = self.disk.operations + self.world.rng.randint(0, 3)
            with suppress(PowerCut):
                self._append(self._writing)
        self.disk = MemoryDisk(self.disk.survivor(self.world.rng))

    @property
    def running(self) -> bool:
        return self.raft is not None

    def _later(self, delay: int, call: Callable[[], None]) -> None:
        life = self.life

        def in_this_life() -> None:
            if self.life == life and self.raft is not None:
                call()

        self.world.at(delay, in_this_life)

    def _trace(self, event: Trace) -> None:
        if isinstance(event, BecameLeader) and self.raft is not None:
            self.world.checkers.became_leader(self.server, event.term, self.raft.log)

    # Events.
    def _tick(self) -> None:
        assert self.raft
        self.raft.tick()
        self.turn()
        self._later(TICK, self._tick)

    def receive(self, sender: ServerId, message: Message, state: bytes | None) -> None:
        if self.raft is None:
            return
        if isinstance(message, InstallSnapshot):
            assert state is not None
            self._snapshots.write(message.snapshot, state)
        with suppress(ProposalDropped):
            self.raft.step(sender, message)
        self.turn()

    def propose(self, data: bytes) -> bool:
        """Propose *data*; False if it was dropped."""
        if self.raft is None:
            return False
        operation = self.world.asked(data)
        try:
            index = self.raft.propose(data)
        except ProposalDropped:
            if operation is not None:
                self.world.history.never(operation)
            return False
        self._proposed[index] = (self.raft.term, data, operation)
        self.turn()
        return True

    def change(self, change: Change) -> None:
        if self.raft is not None and self.raft.role is Role.LEADER:
            try:
                self.raft.propose_change(change)
            except ProposalDropped:
                return
            self.turn()

    def read(self) -> None:
        if self.raft is not None:
            context = self.world.unique().to_bytes(8, "big")
            operation = self.world.history.call(self.world.draw_key(), GET)
            self._reads[context] = (self.world.checkers.highest_acknowledged, operation)
            self.raft.read_index(context)
            self.turn()

    # The driver.
    def turn(self) -> None:
        raft = self.raft
        assert raft
        while raft.has_ready():
            ready = raft.ready()
            for to, message in ready.messages:
                self._send(to, message)
            work = work_of(ready)
            if work is not None:
                self._submit(work)
            if ready.committed:
                self._apply_later(ready.committed)
            if ready.snapshot_wanted:
                self._take_snapshot()
            for read in ready.read_states:
                asked = self._reads.pop(read.context, None)
                if asked is not None:
                    least, operation = asked
                    self.world.checkers.read(self.server, read.index, least)
                    self._reading.append((read.index, operation))
                    self._answer_reads()

    def _send(self, to: ServerId, message: Message) -> None:
        self.world.checkers.sent(self.server, to, message)
        if not isinstance(message, InstallSnapshot):
            self.world.transmit(self.server, to, message)
            return
        state = self._snapshots.open(snapshot_name(message.snapshot)).state()
        arrives = self.world.transmit(self.server, to, message, state)
        if self.world.rng.random() >= self.world.faults.report_loss:
            self._later(self.world.faults.delay_max, partial(self._report, to, arrives))

    def _report(self, to: ServerId, delivered: bool) -> None:
        assert self.raft
        self.raft.report_snapshot(to, delivered=delivered)
        self.turn()

    def _submit(self, work: Work) -> None:
        if work.hard_state is not None:
            self._hard_state = work.hard_state
        idle = not self._queue and not self._writing
        if idle and work.write is None and not work.must_sync:
            self._finish([work])
            return
        self._queue.append(work)
        if not self._writing:
            self._write()

    def _write(self) -> None:
        self._writing, self._queue = self._queue, []
        self._hard_state_now = self._hard_state
        self._later(self.world.rng.randint(1, self.world.faults.disk_max), self._written)

    def _append(self, works: list[Work]) -> None:
        writes = [work.write for work in works if work.write is not None]
        if writes or any(work.must_sync for work in works):
            self._wal.append(self._hard_state_now, writes)

    def _written(self) -> None:
        works, self._writing = self._writing, []
        self._append(works)
        for work in works:
            if work.write is None:
                continue
            if work.write.snapshot is not None:
                self._storage.restore(work.write.snapshot)
            if work.write.entries:
                before = self._storage.term(work.write.entries[0].index - 1)
                self.world.checkers.stored(before, work.write.entries)
                self._storage.append(work.write.entries)
        self._finish(works)
        if self._queue and not self._writing:
            self._write()
        self.turn()

    def _finish(self, works: list[Work]) -> None:
        raft = self.raft
        assert raft
        for work in works:
            for to, message in work.after_sync:
                if to == self.server:
                    self._later(0, partial(self.receive, to, message, None))
                else:
                    self._send(to, message)
            if work.stored is None:
                continue
            if work.stored.snapshot is None:
                raft.stored(work.stored)
            else:
                self._apply_later(work.stored)

    # Applying.
    def _apply_later(self, item: tuple[Entry, ...] | Stored) -> None:
        self._applying.append(item)
        self._later(self.world.rng.randint(0, 3), self._apply)

    def _apply(self) -> None:
        raft = self.raft
        assert raft
        item = self._applying.pop(0)
        if isinstance(item, Stored):
            assert item.snapshot
            state = self._snapshots.open(snapshot_name(item.snapshot)).state()
            self._restore_state(item.snapshot, state)
            self._older_index, self._snapshot_index = self._snapshot_index, self.applied
            raft.stored(item)
        else:
            for entry in item:
                self._apply_entry(entry)
            raft.applied(item)
            if self.applied - self._snapshot_index >= self.world.faults.snapshot_entries:
                self._take_snapshot()
        self.turn()

    def _apply_entry(self, entry: Entry) -> None:
        assert self.raft
        assert entry.index == self.applied + 1
        self.world.checkers.apply(self.server, entry)
        self.applied = entry.index
        if entry.kind == CHANGE:
            self.raft.apply_change(entry.index, entry.data)
        result: Value = None
        if entry.kind != CHANGE and entry.data:
            self.commands.append(entry.data)
            result = apply_command(self.values, entry.data)
            self.world.took_effect(entry)
        term, data, operation = self._proposed.pop(entry.index, (0, b"", None))
        if term == entry.term:
            self.world.checkers.acknowledge(entry.index, data)
            if operation is not None:
                self.world.history.answer(operation, result)
        elif operation is not None:
            self.world.history.never(operation)  # another leader's entry took its place
        self._answer_reads()

    def _answer_reads(self) -> None:
        """Answer the reads whose index is applied."""
        ready = [read for read in self._reading if read[0] <= self.applied]
        self._reading = [read for read in self._reading if read[0] > self.applied]
        for _, operation in ready:
            operation.hint = self.applied + 0.5  # behind what is applied, before the next
            self.world.history.answer(operation, self.values.get(operation.key))

    def _restore_state(self, snapshot: SnapshotMeta, state: bytes) -> None:
        self.commands = state.split(b"\n") if state else []
        self.values = {}
        for command in self.commands:
            apply_command(self.values, command)
        self.applied = snapshot.index

    def _take_snapshot(self) -> None:
        raft = self.raft
        assert raft
        if self.applied < max(raft.configuration_index, 1) or self._applying:
            return
        term = self._storage.term(self.applied)
        if term is None:
            return
        snapshot = SnapshotMeta(self.applied, term, raft.configuration)
        self._snapshots.write(snapshot, b"\n".join(self.commands))
        self._snapshots.retain(())
        if snapshot.index > self._snapshot_index:
            self._older_index, self._snapshot_index = self._snapshot_index, snapshot.index
        self._storage.note_snapshot(snapshot)
        trailing = self.world.faults.trailing_entries
        self._storage.compact(max(self._older_index, snapshot.index - trailing))
        self._wal.compact(self._older_index)


#: What clients use: two registers and a list.
LIST: Final = "list"
KEYS: Final = ("x", "y", LIST)


def parse_command(command: bytes) -> tuple[str, str, Value] | None:
    """Return key, kind and argument."""
    words = command.decode().split(" ")
    if len(words) < 3:
        return None
    key, kind, value = words[0], words[1], words[2].encode()
    return key, kind, ((words[3].encode() or None, value) if kind == CAS else value)


def apply_command(values: dict[str, State], command: bytes) -> Value:
    """Do what *command* asks; return the answer."""
    parsed = parse_command(command)
    if parsed is None:
        return None
    key = parsed[0]
    result, values[key] = apply(values.get(key), Operation(*parsed, 0))
    return result


class World:
    """Servers, a network, and a heap of what happens next."""

    def __init__(self, *, seed: int, servers: int, faults: Faults, config: Config) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.config = config
        self.now = 0
        self.checkers = Checkers()
        self.history = History()
        self.written: dict[str, str] = {}  # what was last asked for
        self._asked: dict[bytes, Operation] = {}
        self.cut: set[tuple[ServerId, ServerId]] = set()
        self.servers: dict[ServerId, Server] = {}
        #: Called with each message; True drops it. Modes use it to choose their victims.
        self.drop: Callable[[ServerId, ServerId, Message], bool] = lambda *_: False
        self.sends = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._tickets = itertools.count()
        voters = [ServerId(n) for n in range(1, servers + 1)]
        configuration = Configuration(voters=tuple(voters))
        for server in voters:
            self.add(server, configuration)

    def add(self, server: ServerId, configuration: Configuration | None = None) -> Server:
        """Make a server with an empty log, or one that starts from *configuration*."""
        disk = MemoryDisk()
        boot.create_on(disk, KEY, CLUSTER, server=server, segment_bytes=SEGMENT)
        if configuration is not None:
            store = SnapshotStore(disk, KEY, cluster=CLUSTER)
            store.write(SnapshotMeta(1, 1, configuration), b"")
        made = self.servers[server] = Server(self, server, disk)
        made.start()
        return made

    def unique(self) -> int:
        return next(self._tickets)

    # What clients do. Drawn from how much has happened, not from the seed, so that it does not
    # change what else happens.
    def draw_key(self) -> str:
        return KEYS[self.unique() % len(KEYS)]

    def draw_command(self, padding: int = 0) -> bytes:
        """Return a command that puts, compares and sets, or appends a value of its own."""
        number = self.unique()
        key = KEYS[number % len(KEYS)]
        value = f"v{number}"
        if key == LIST:
            words = [key, APPEND, value]
        elif number % 4:
            words = [key, PUT, value]
        else:
            expected = self.written.get(key, "")
            words = [key, CAS, value, expected]
        self.written[key] = value
        return " ".join([*words, "." * padding]).encode()

    def asked(self, command: bytes) -> Operation | None:
        """Note that a client asks for *command*; None if it is none of draw_command()'s."""
        parsed = parse_command(command)
        if parsed is None:
            return None
        operation = self._asked[command] = self.history.call(*parsed)
        return operation

    def took_effect(self, entry: Entry) -> None:
        """Note where in the order of all commands an operation stands."""
        operation = self._asked.get(entry.data)
        if operation is not None:
            operation.hint = entry.index

    def at(self, delay: int, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._tickets), call))

    def run(self, duration: int) -> None:
        end = self.now + duration
        while self._events and self._events[0][0] <= end:
            self.now, _, call = heapq.heappop(self._events)
            call()
        self.now = end

    def transmit(
        self, sender: ServerId, to: ServerId, message: Message, state: bytes | None = None
    ) -> bool:
        """Put a message on its way; say if it will arrive."""
        self.sends += 1
        lost = (sender, to) in self.cut or self.drop(sender, to, message)
        if lost or self.rng.random() < self.faults.loss:
            return False
        for _ in range(1 + (self.rng.random() < self.faults.duplication)):
            self.at(
                self.rng.randint(1, self.faults.delay_max),
                partial(self._arrive, sender, to, message, state),
            )
        return True

    def _arrive(
        self, sender: ServerId, to: ServerId, message: Message, state: bytes | None
    ) -> None:
        if to in self.servers and (sender, to) not in self.cut:
            self.servers[to].receive(sender, message, state)

    # Who is who.
    def leader(self) -> Server | None:
        """The running leader of the newest term, if there is one."""
        leading = [
            s for s in self.servers.values() if s.raft is not None and s.raft.role is Role.LEADER
        ]
        return max(leading, key=lambda s: s.raft.term if s.raft else 0, default=None)

    def isolate(self, server: ServerId) -> None:
        for other in self.servers:
            self.cut |= {(server, other), (other, server)}

    def heal(self) -> None:
        """End all faults: from here on the cluster must come to rest."""
        self.cut = set()
        self.drop = lambda *_: False
        self.faults = Faults(snapshot_entries=self.faults.snapshot_entries)
        for server in self.servers.values():
            if not server.running:
                server.start()

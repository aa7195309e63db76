"""etcd-raft's interaction environment: a small cluster driven by the commands of its scripts."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from raft.config import UNLIMITED, Compat, Config
from raft.core import ProposalDropped, Raft
from raft.log import MemoryStorage
from raft.membership import Change, ChangeKind, ServerChange, Transition
from raft.messages import (
    CHANGE,
    REPLIES,
    Configuration,
    Entry,
    HardState,
    InstallSnapshot,
    Message,
    Ready,
    Role,
    ServerId,
    SnapshotMeta,
    Stored,
)
from raft.trace import Trace
from tests.raft.datadriven import Directive, parse_directive
from tests.raft.etcd_log import Level, render
from tests.raft.etcd_text import (
    APPEND_THREAD,
    APPLY_THREAD,
    LETTERS,
    ROLES,
    V1,
    Applied,
    InFlight,
    StorageAppend,
    StorageApply,
    describe_entries,
    describe_message,
    describe_progress,
    describe_ready,
    message_type,
)

DROPPED = "raft proposal dropped"
UNKNOWN_PEER = "raft: cannot step as peer not found"
KINDS = {letter: kind for kind, letter in LETTERS.items()}
TRANSITIONS = {
    "auto": Transition.AUTO,
    "implicit": Transition.JOINT_IMPLICIT,
    "explicit": Transition.JOINT_EXPLICIT,
}


class CommandFailed(Exception):
    """What a command answers in place of its output."""


def varint_bytes(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)


def protobuf_bytes(entry: Entry) -> int:
    """The size of *entry* as etcd encodes it: its limits count that."""
    size = 2 + 1 + varint_bytes(entry.term) + 1 + varint_bytes(entry.index)
    if entry.data:
        size += 1 + varint_bytes(len(entry.data)) + len(entry.data)
    return size


class ScriptStorage(MemoryStorage):
    """Gives out the newest state that its server applied, whatever the log was cut to."""

    def __init__(self, history: list[SnapshotMeta]) -> None:
        super().__init__(history[0])
        self._history = history

    def snapshot(self) -> SnapshotMeta | None:
        return self._history[-1]


@dataclass
class Node:
    server: ServerId
    raft: Raft
    storage: MemoryStorage
    history: list[SnapshotMeta]
    asynchronous: bool
    append_work: list[InFlight] = field(default_factory=list)
    apply_work: list[InFlight] = field(default_factory=list)


class Environment:
    """Executes the commands of one script."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.in_flight: list[InFlight] = []
        self.level = Level.DEBUG
        self._out: list[str] = []
        self._commands: dict[str, Callable[[Directive], None]] = {
            "_breakpoint": lambda _: None,
            "add-nodes": self._add_nodes,
            "campaign": lambda d: self._node(d).raft.campaign(),
            "compact": self._compact,
            "deliver-msgs": self._deliver_msgs,
            "process-ready": lambda d: self._each(d, "handling Ready", self._process_ready),
            "process-append-thread": lambda d: self._each(
                d, "processing append thread", self._process_append
            ),
            "process-apply-thread": lambda d: self._each(
                d, "processing apply thread", self._process_apply
            ),
            "log-level": lambda d: self._set_level(d.arguments[0].key),
            "raft-log": lambda d: self._raft_log(self._node(d)),
            "raft-state": self._raft_state,
            "set-randomized-election-timeout": self._set_election_timeout,
            "stabilize": self._stabilize,
            "status": self._status,
            "tick-election": lambda d: self._tick(d, self._node(d).raft.config.election_ticks),
            "tick-heartbeat": lambda d: self._tick(d, self._node(d).raft.config.heartbeat_ticks),
            "transfer-leadership": self._transfer,
            "forget-leader": lambda d: self._node(d).raft.forget_leader(),
            "send-snapshot": self._send_snapshot,
            "propose": self._propose,
            "propose-conf-change": self._propose_change,
            "report-unreachable": self._report_unreachable,
        }

    def execute(self, directive: Directive) -> str:
        self._out = []
        self._run(directive)
        # Newer scripts put further commands into the input of the first.
        if directive.command != "propose-conf-change":
            for line in directive.input.splitlines():
                self._run(parse_directive(line, ""))
        return "".join(self._out) or "ok"

    def _run(self, directive: Directive) -> None:
        command = self._commands.get(directive.command)
        try:
            if command is None:
                raise CommandFailed("unknown command")
            command(directive)
        except ProposalDropped:
            self._out.append(DROPPED)
        except CommandFailed as failure:
            self._out.append(str(failure))

    # Output.
    def _write(self, text: str) -> None:
        if self.level is not Level.NONE:
            self._out.append(text)

    def _set_level(self, name: str) -> None:
        self.level = Level[name.upper()]

    @contextmanager
    def _indented(self) -> Iterator[None]:
        outer, self._out = self._out, []
        try:
            yield
        finally:
            inner, self._out = "".join(self._out), outer
            self._out += [f"  {line}\n" for line in inner.splitlines()]

    def _listener(self, server: ServerId) -> Callable[[Trace], None]:
        def listen(event: Trace) -> None:
            line = render(server, event)
            if line is not None and line[0] >= self.level:
                self._write(f"{line[0].name} {line[1]}\n")

        return listen

    # Nodes.
    def _node(self, directive: Directive) -> Node:
        return self.nodes[int(directive.arguments[0].key) - 1]

    def _each(self, directive: Directive, title: str, work: Callable[[Node], None]) -> None:
        numbers = directive.numbers
        for number in numbers:
            if len(numbers) == 1:
                work(self.nodes[number - 1])
            else:
                self._write(f"> {number} {title}\n")
                with self._indented():
                    work(self.nodes[number - 1])

    def _add_nodes(self, d: Directive) -> None:
        snapshot = SnapshotMeta(
            int(d.value("index", "0")),
            0,
            Configuration(
                voters=tuple(ServerId(int(v)) for v in d.values("voters")),
                learners=tuple(ServerId(int(v)) for v in d.values("learners")),
            ),
        )
        if snapshot != SnapshotMeta(0, 0, Configuration()):
            if snapshot.index <= 1:
                raise CommandFailed("index must be specified as > 1 due to bootstrap")
            snapshot = dataclasses.replace(snapshot, term=1)
        asynchronous = d.flag("async-storage-writes")
        config = Config(
            heartbeat_ticks=1,
            election_ticks=3,
            pre_vote=d.flag("prevote"),
            check_quorum=d.flag("checkquorum"),
            lease_reads=d.value("read-only", "safe") == "lease-based",
            forward_proposals=True,
            message_bytes_max=UNLIMITED,
            in_flight_messages_max=int(d.value("inflight", str(1 << 31))),
            in_flight_bytes_max=UNLIMITED,
            uncommitted_bytes_max=UNLIMITED,
            applying_bytes_max=int(d.value("max-committed-size-per-ready", str(UNLIMITED))),
            compat=Compat(
                step_down_on_removal=d.flag("step-down-on-removal"),
                apply_unstable=not asynchronous,
                unchecked_changes=d.flag("disable-conf-change-validation"),
                entry_bytes=protobuf_bytes,
            ),
        )
        for _ in range(d.numbers[0]):
            server = ServerId(len(self.nodes) + 1)
            history = [snapshot]
            storage = ScriptStorage(history)
            raft = Raft(
                config,
                server,
                storage,
                hard_state=HardState(),
                configuration=snapshot.configuration,
                applied=snapshot.index,
                rng=random.Random(server),
                trace=self._listener(server),
            )
            self.nodes.append(Node(server, raft, storage, history, asynchronous))

    # Commands.
    def _compact(self, d: Directive) -> None:
        node = self._node(d)
        node.storage.compact(int(d.arguments[1].key))
        self._raft_log(node)

    def _raft_log(self, node: Node) -> None:
        first, last = node.storage.first_index, node.storage.last_index
        if last < first:
            self._write(f"log is empty: first index={first}, last index={last}")
        else:
            self._write(describe_entries(node.storage.entries(first, last + 1)))

    def _raft_state(self, _: Directive) -> None:
        for node in self.nodes:
            raft = node.raft
            voter = node.server in raft.configuration.all_voters()
            self._write(
                f"{node.server}: {ROLES[raft.role]} {'(Voter)' if voter else '(Non-Voter)'} "
                f"Term:{raft.term} Lead:{raft.leader}\n"
            )

    def _status(self, d: Directive) -> None:
        raft = self._node(d).raft
        if raft.role is Role.LEADER:
            for server, progress in raft.progress.items():
                self._write(f"{server}: {describe_progress(progress.status(server))}\n")

    def _tick(self, d: Directive, ticks: int) -> None:
        for _ in range(ticks):
            self._node(d).raft.tick()

    def _set_election_timeout(self, d: Directive) -> None:
        self._node(d).raft._election_timeout = int(d.value("timeout", "0"))

    def _transfer(self, d: Directive) -> None:
        leader = self.nodes[int(d.value("from", "0")) - 1]
        leader.raft.transfer(ServerId(int(d.value("to", "0"))))

    def _report_unreachable(self, d: Directive) -> None:
        reporter, unreachable = d.numbers
        self.nodes[reporter - 1].raft.report_unreachable(ServerId(unreachable))

    def _send_snapshot(self, d: Directive) -> None:
        sender, to = d.numbers
        node = self.nodes[sender - 1]
        install = InstallSnapshot(node.raft.term, node.history[-1])
        message = InFlight(node.server, ServerId(to), install)
        self.in_flight.append(message)
        self._write(describe_message(message))

    def _propose(self, d: Directive) -> None:
        self._node(d).raft.propose(d.arguments[1].key.encode())

    def _propose_change(self, d: Directive) -> None:
        transition = TRANSITIONS[d.value("transition", "auto")]
        context = V1 if d.flag("v1") else b""
        changes = tuple(parse_change(word, context) for word in d.input.split())
        if context and (len(changes) > 1 or transition is not Transition.AUTO):
            raise CommandFailed("v1 conf change can only have one operation and no transition")
        self._node(d).raft.propose_change(Change(changes, transition))

    # The network.
    def _deliver_msgs(self, d: Directive) -> None:
        wanted = d.value("type", "")
        recipients = [(ServerId(number), False) for number in d.numbers]
        recipients += [(ServerId(int(v)), True) for v in d.values("drop")]
        if not sum(self._deliver(to, drop=drop, wanted=wanted) for to, drop in recipients):
            self._write("no messages\n")

    def _waiting(self, to: ServerId, *, drop: bool = False, wanted: str = "") -> list[InFlight]:
        return [
            m
            for m in self.in_flight
            if m.to == to
            and not (drop and m.local)
            and (not wanted or message_type(m.message) == wanted)
        ]

    def _deliver(self, to: ServerId, *, drop: bool = False, wanted: str = "") -> int:
        messages = self._waiting(to, drop=drop, wanted=wanted)
        self.in_flight = [m for m in self.in_flight if m not in messages]
        for m in messages:
            self._write(("dropped: " if drop else "") + describe_message(m) + "\n")
            if not drop:
                self._step(self.nodes[to - 1].raft, m)
        return len(messages)

    def _step(self, raft: Raft, m: InFlight) -> None:
        message = m.message
        if isinstance(message, Stored):
            raft.stored(message)
        elif isinstance(message, Applied):
            raft.applied(message.entries)
        elif isinstance(message, REPLIES) and m.sender not in raft.progress:
            self._write(UNKNOWN_PEER + "\n")
        else:
            try:
                raft.step(m.sender, message)
            except ProposalDropped:
                self._write(DROPPED + "\n")

    # Ready.
    def _process_ready(self, node: Node) -> None:
        ready = node.raft.ready()
        me = node.server
        messages = [InFlight(me, to, message) for to, message in ready.messages]
        after_sync = [InFlight(me, to, message) for to, message in ready.after_sync]
        if node.asynchronous:
            append, apply = _storage_work(node, ready, after_sync)
            node.append_work += append
            node.apply_work += apply
            self._write(describe_ready(ready, [*messages, *append, *apply]))
            self.in_flight += messages
            return
        messages += [m for m in after_sync if m.to != me]
        self._write(describe_ready(ready, messages))
        _store(node, ready.hard_state, ready.entries, ready.snapshot)
        self._apply(node, ready.committed)
        self.in_flight += messages
        for m in after_sync:
            if m.to == me:
                node.raft.step(me, m.message)
        if ready.stored:
            node.raft.stored(ready.stored)
        if ready.committed:
            node.raft.applied(ready.committed)

    def _process_append(self, node: Node) -> None:
        if not node.append_work:
            self._write("no append work to perform")
            return
        m = node.append_work.pop(0)
        work: StorageAppend = m.message
        self._report_work(m)
        _store(node, work.hard_state, work.entries, work.snapshot)
        self._respond(work.responses)

    def _process_apply(self, node: Node) -> None:
        if not node.apply_work:
            self._write("no apply work to perform")
            return
        m = node.apply_work.pop(0)
        work: StorageApply = m.message
        self._report_work(m)
        self._apply(node, work.entries)
        self._respond(work.responses)

    def _report_work(self, m: InFlight) -> None:
        self._write("Processing:\n" + describe_message(m, responses=False) + "\n")

    def _respond(self, responses: Sequence[InFlight]) -> None:
        self._write("Responses:\n" + "".join(describe_message(m) + "\n" for m in responses))
        self.in_flight += responses

    def _apply(self, node: Node, entries: Sequence[Entry]) -> None:
        for entry in entries:
            configuration = node.history[-1].configuration
            if entry.kind == CHANGE:
                configuration = node.raft.apply_change(entry.index, entry.data)
            node.history.append(SnapshotMeta(entry.index, entry.term, configuration))

    def _stabilize(self, d: Directive) -> None:
        level = self.level
        if d.values("log-level"):
            self._set_level(d.value("log-level", ""))
        nodes = [self.nodes[number - 1] for number in d.numbers] or self.nodes
        while self._stabilize_once(nodes):
            pass
        self.level = level

    def _stabilize_once(self, nodes: Sequence[Node]) -> bool:
        busy = False
        for node in nodes:
            if node.raft.has_ready():
                busy = True
                self._write(f"> {node.server} handling Ready\n")
                with self._indented():
                    self._process_ready(node)
        for node in nodes:
            if self._waiting(node.server):
                busy = True
                self._write(f"> {node.server} receiving messages\n")
                with self._indented():
                    self._deliver(node.server)
        for title, queue, work in (
            ("append", "append_work", self._process_append),
            ("apply", "apply_work", self._process_apply),
        ):
            for node in nodes:
                if getattr(node, queue):
                    busy = True
                    self._write(f"> {node.server} processing {title} thread\n")
                    while getattr(node, queue):
                        with self._indented():
                            work(node)
        return busy


def parse_change(word: str, context: bytes = b"") -> ServerChange:
    """Read "v1" (voter), "l2" (learner), "r3" (remove) or "u4" (update)."""
    kind: ChangeKind | None = KINDS.get(word[0])
    if kind is None:
        raise CommandFailed(f"unknown input: {word}")
    return ServerChange(kind, ServerId(int(word[1:])), context)


def _storage_work(
    node: Node, ready: Ready, after_sync: list[InFlight]
) -> tuple[list[InFlight], list[InFlight]]:
    me = node.server
    append, apply = [], []
    if ready.entries or ready.hard_state or ready.snapshot or after_sync:
        responses = list(after_sync)
        if ready.stored:
            responses.append(InFlight(APPEND_THREAD, me, ready.stored))
        work = StorageAppend(ready.hard_state, ready.entries, ready.snapshot, tuple(responses))
        append.append(InFlight(me, APPEND_THREAD, work))
    if ready.committed:
        response = InFlight(APPLY_THREAD, me, Applied(ready.committed))
        apply.append(InFlight(me, APPLY_THREAD, StorageApply(ready.committed, (response,))))
    return append, apply


def _store(
    node: Node,
    hard_state: HardState | None,
    entries: Sequence[Entry],
    snapshot: SnapshotMeta | None,
) -> None:
    del hard_state  # scripts never restart a server
    if snapshot is not None:
        if entries:
            raise CommandFailed("can't apply snapshot and entries at the same time")
        node.storage.restore(snapshot)
    else:
        node.storage.append(entries)


__all__ = ["CommandFailed", "Environment", "Message", "parse_change"]

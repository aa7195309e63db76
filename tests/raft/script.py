"""Golden scripts of raft: a few servers, told what to do line by line.

    servers 1 2 3 [key=value]    make voters; keys are those of Config
    spare 4                      make a server that belongs to nothing yet
    campaign 1                   ask 1 to become leader
    tick 1 5                     5 ticks pass for server 1 (or "all")
    propose 1 a b                propose commands at 1
    read 1                       ask 1 for a linearizable read
    change 1 voter 4, remove 2   propose a change ("learner", "update"; "" leaves a joint one)
    transfer 1 2                 ask leader 1 to hand over to 2
    settle [1 2]                 deliver messages among all (these) until none is left
    round                        deliver just those messages that are in flight now
    hold 1 2 | release           set messages from 1 to 2 aside | put them back
    cut 1 2 | heal               1 and 2 reach nobody but each other | everybody reaches all
    crash 1 | start 1            lose what is not synced | come back
    disk 1 slow | disk 1 synced  nothing is synced any more | all is, from here on
    disk 1 once                  what waits is synced, what follows is not
    snapshot 1                   snapshot and compact 1's log
    lose                         drop all messages in flight
    show [1]                     print role, term, vote and log of all (of 1)

The output tells transitions, applied commands, answers; "show" prints logs as term:command, with
a bar behind what is committed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from raft import trace as t
from raft.config import Config
from raft.core import ProposalDropped, Raft
from raft.log import MemoryStorage
from raft.membership import Change, ChangeKind, ServerChange
from raft.messages import (
    CHANGE,
    Configuration,
    Entry,
    HardState,
    Message,
    Ready,
    ServerId,
    SnapshotMeta,
)

KINDS = {
    "voter": ChangeKind.ADD_VOTER,
    "learner": ChangeKind.ADD_LEARNER,
    "remove": ChangeKind.REMOVE,
    "update": ChangeKind.UPDATE,
}


class Node:
    """A server of a script: it stores and applies at once, unless its disk is slow."""

    def __init__(self, script: Script, server: ServerId, configuration: Configuration) -> None:
        self.script = script
        self.server = server
        first = SnapshotMeta(1, 1, configuration) if configuration.voters else None
        self.durable = MemoryStorage(first)
        self.hard_state = HardState()
        self.commands: list[str] = []
        self.snapshot_commands: list[str] = []
        self.slow = False
        self.raft: Raft | None = None

    def start(self) -> None:
        snapshot = self.durable.snapshot()
        applied = snapshot.index if snapshot else 0
        self.commands = list(self.snapshot_commands)
        hard_state = self.hard_state
        if hard_state != HardState():
            hard_state = replace(hard_state, commit_index=max(applied, hard_state.commit_index))
        self.waiting: list[Ready] = []
        self.raft = Raft(
            self.script.config,
            self.server,
            self.durable,
            hard_state=hard_state,
            configuration=snapshot.configuration if snapshot else Configuration(),
            applied=applied,
            rng=random.Random(self.server),
            trace=self._trace,
        )
        self.turn()

    def _trace(self, event: t.Trace) -> None:
        say = self.script.say
        match event:
            case t.BecameLeader(term):
                say(f"{self.server} leads term {term}")
            case t.BecameCandidate(term):
                say(f"{self.server} asks for votes in term {term}")
            case t.BecamePreCandidate():
                say(f"{self.server} asks if it could win")
            case t.QuorumLost():
                say(f"{self.server} has lost its majority")
            case t.VoteRefused(candidate=candidate, request=request):
                say(f"{self.server} refuses {candidate} in term {request.term}")
            case t.VoteIgnored(candidate=candidate):
                say(f"{self.server} ignores {candidate}: its leader lives")
            case t.ConfigurationSwitched(configuration):
                say(f"{self.server} has {show_configuration(configuration)}")
            case t.ChangeInvalid(refusal=refusal):
                say(f"{self.server} ignores a change: {refusal.value}")
            case t.ChangeIgnored(reason=reason):
                say(f"{self.server} proposes nothing: {reason.value}")
            case t.SnapshotSent(progress=progress):
                say(f"{self.server} sends a snapshot to {progress.server}")
            case t.SnapshotTimedOut(progress):
                say(f"{self.server} takes the snapshot to {progress.server} for lost")
            case t.SnapshotRestored(index=index):
                say(f"{self.server} restores a snapshot of entry {index}")
            case t.ConflictFound(index):
                say(f"{self.server} replaces its log from entry {index}")
            case t.TimeoutNowReceived():
                say(f"{self.server} is asked to take over")

    def turn(self) -> None:
        raft = self.raft
        assert raft
        while raft.has_ready():
            ready = raft.ready()
            self.script.flying += [(self.server, to, message) for to, message in ready.messages]
            for read in ready.read_states:
                self.script.say(f"{self.server} may read at {read.index}")
            if ready.snapshot_wanted:
                self.snapshot()
            if self.slow:
                self.waiting.append(ready)
            else:
                self._store(ready)
            self._apply(ready)

    def sync(self, *, slow: bool) -> None:
        self.slow = slow
        waiting, self.waiting = self.waiting, []
        for ready in waiting:
            self._store(ready)
        self.turn()

    def _store(self, ready: Ready) -> None:
        raft = self.raft
        assert raft
        self.hard_state = ready.hard_state or self.hard_state
        if ready.snapshot is not None:
            self.durable.restore(ready.snapshot)
            self.snapshot_commands = self.script.snapshots[ready.snapshot.index]
            self.commands = list(self.snapshot_commands)
        self.durable.append(ready.entries)
        for to, message in ready.after_sync:
            if to == self.server:
                raft.step(to, message)
            else:
                self.script.flying.append((self.server, to, message))
        if ready.stored:
            raft.stored(ready.stored)

    def _apply(self, ready: Ready) -> None:
        raft = self.raft
        assert raft
        for entry in ready.committed:
            if entry.kind == CHANGE:
                raft.apply_change(entry.index, entry.data)
            elif entry.data:
                self.commands.append(entry.data.decode())
                self.script.say(f"{self.server} applies {entry.data.decode()}")
        if ready.committed:
            raft.applied(ready.committed)

    def snapshot(self) -> None:
        raft = self.raft
        assert raft
        index = raft.log.applied
        term = raft.log.term(index)
        assert term is not None
        self.snapshot_commands = list(self.commands)
        self.script.snapshots[index] = self.snapshot_commands
        self.durable.note_snapshot(SnapshotMeta(index, term, raft.configuration))
        self.durable.compact(index)

    def show(self) -> str:
        raft = self.raft
        if raft is None:
            return f"{self.server} is down"
        log = raft.log
        shown = [
            show_entry(entry) + (" |" if entry.index == log.committed else "")
            for entry in log.entries(log.first_index, 1 << 30) or ()
        ]
        vote = f" voted for {raft.voted_for}" if raft.voted_for else ""
        text = f"{self.server} {raft.role.value} term {raft.term}{vote}: {' '.join(shown)}"
        return text.rstrip()


def show_entry(entry: Entry) -> str:
    if entry.kind == CHANGE:
        return f"{entry.term}:change"
    return f"{entry.term}:{entry.data.decode() or '-'}"


def show_configuration(c: Configuration) -> str:
    text = "voters " + ",".join(map(str, c.voters))
    if c.outgoing:
        text += " and still " + ",".join(map(str, c.outgoing))
    if c.learners:
        text += " learners " + ",".join(map(str, c.learners))
    return text


class Script:
    """Executes the lines of one script."""

    def __init__(self) -> None:
        self.config = Config(pre_vote=False, check_quorum=False)
        self.nodes: dict[ServerId, Node] = {}
        self.flying: list[tuple[ServerId, ServerId, Message]] = []
        self.snapshots: dict[int, list[str]] = {}
        self._held: list[tuple[ServerId, ServerId, Message]] = []
        self._groups: list[set[ServerId]] = []
        self._out: list[str] = []
        self._reads = 0
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "servers": self._servers,
            "spare": lambda a: self._add(ServerId(int(a[0])), Configuration()),
            "campaign": lambda a: self._on(a[0], lambda r: r.campaign()),
            "tick": self._tick,
            "propose": self._propose,
            "read": self._read,
            "change": self._change,
            "transfer": lambda a: self._on(a[0], lambda r: r.transfer(ServerId(int(a[1])))),
            "settle": self._settle,
            "round": self._deliver_round,
            "hold": self._hold,
            "release": self._release,
            "cut": lambda a: self._groups.append({ServerId(int(x)) for x in a}),
            "heal": lambda _: self._groups.clear(),
            "crash": self._crash,
            "start": lambda a: self._node(a[0]).start(),
            "disk": self._disk,
            "snapshot": lambda a: self._node(a[0]).snapshot(),
            "lose": lambda _: self.flying.clear(),
            "show": self._show,
        }

    def execute(self, line: str) -> list[str]:
        self._out = []
        command, *arguments = line.split()
        self._commands[command](arguments)
        return self._out

    def say(self, line: str) -> None:
        self._out.append(line)

    def _node(self, name: str) -> Node:
        return self.nodes[ServerId(int(name))]

    def _on(self, name: str, call: Callable[[Raft], None]) -> None:
        node = self._node(name)
        assert node.raft
        call(node.raft)
        node.turn()

    def _servers(self, arguments: list[str]) -> None:
        settings = dict(a.split("=") for a in arguments if "=" in a)
        typed: dict[str, Any] = {
            key: type(getattr(self.config, key))(int(value)) for key, value in settings.items()
        }
        self.config = replace(self.config, **typed)
        voters = tuple(ServerId(int(a)) for a in arguments if "=" not in a)
        for server in voters:
            self._add(server, Configuration(voters=voters))
        self._out = []

    def _add(self, server: ServerId, configuration: Configuration) -> None:
        self.nodes[server] = Node(self, server, configuration)
        self.nodes[server].start()
        self._out = []

    def _tick(self, arguments: list[str]) -> None:
        names = [str(s) for s in self.nodes] if arguments[0] == "all" else arguments[:1]
        for _ in range(int(arguments[1])):
            for name in names:
                if self._node(name).raft:
                    self._on(name, lambda r: r.tick())

    def _propose(self, arguments: list[str]) -> None:
        for command in arguments[1:]:
            try:
                self._on(arguments[0], lambda r, c=command: r.propose(c.encode()))  # type: ignore[misc]
            except ProposalDropped as dropped:
                self.say(f"{command} was dropped: {dropped.reason}")

    def _read(self, arguments: list[str]) -> None:
        self._reads += 1
        self._on(arguments[0], lambda r: r.read_index(b"%d" % self._reads))

    def _change(self, arguments: list[str]) -> None:
        words = [part.split() for part in " ".join(arguments[1:]).split(",") if part]
        changes = tuple(ServerChange(KINDS[kind], ServerId(int(s))) for kind, s in words)

        def change(raft: Raft) -> None:
            raft.propose_change(Change(changes))

        try:
            self._on(arguments[0], change)
        except ProposalDropped as dropped:
            self.say(f"the change was dropped: {dropped.reason}")

    def _reaches(self, sender: ServerId, to: ServerId) -> bool:
        return all((sender in group) == (to in group) for group in self._groups)

    def _settle(self, arguments: list[str]) -> None:
        among = {ServerId(int(a)) for a in arguments} or set(self.nodes)
        for _ in range(10_000):
            if not self._round(among):
                return
        raise AssertionError("it never settles")

    def _round(self, among: set[ServerId]) -> bool:
        """Deliver what is in flight among these; say if anything was."""
        flying, self.flying = self.flying, []
        kept = []
        busy = False
        for sender, to, message in flying:
            if sender not in among or to not in among:
                kept.append((sender, to, message))
                continue
            node = self.nodes[to]
            if self._reaches(sender, to) and node.raft:
                busy = True
                node.raft.step(sender, message)
                node.turn()
        self.flying = [*kept, *self.flying]
        return busy

    def _deliver_round(self, _: list[str]) -> None:
        self._round(set(self.nodes))

    def _hold(self, arguments: list[str]) -> None:
        sender, to = (ServerId(int(a)) for a in arguments)
        self._held += [m for m in self.flying if m[:2] == (sender, to)]
        self.flying = [m for m in self.flying if m[:2] != (sender, to)]

    def _release(self, _: list[str]) -> None:
        self.flying += self._held
        self._held = []

    def _crash(self, arguments: list[str]) -> None:
        node = self._node(arguments[0])
        node.raft = None
        node.slow = False

    def _disk(self, arguments: list[str]) -> None:
        node = self._node(arguments[0])
        if arguments[1] == "slow":
            node.slow = True
        else:
            node.sync(slow=arguments[1] == "once")

    def _show(self, arguments: list[str]) -> None:
        for name in arguments or [str(s) for s in self.nodes]:
            self.say(self._node(name).show())

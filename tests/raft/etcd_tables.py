"""etcd-raft's tables: votes and commit indexes of quorums, changes of configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raft import quorum
from raft.membership import (
    Change,
    Changed,
    InvalidChange,
    Transition,
    enter_joint,
    leave_joint,
    simple_change,
)
from raft.messages import Configuration, ServerId
from raft.progress import Progress, Window
from raft.quorum import EVERYTHING, Vote
from tests.raft.datadriven import Directive
from tests.raft.etcd_env import parse_change
from tests.raft.etcd_text import REFUSALS, describe_configuration, describe_progress

VOTES = {Vote.PENDING: "VotePending", Vote.LOST: "VoteLost", Vote.WON: "VoteWon"}


def index_text(index: int) -> str:
    return "∞" if index == EVERYTHING else str(index)


def _servers(values: Sequence[str]) -> list[ServerId]:
    return [ServerId(int(v)) for v in values if v != "zero"]


def _by_server(
    voters: Sequence[ServerId], outgoing: Sequence[ServerId], values: Sequence[str]
) -> dict[ServerId, str]:
    order = list(dict.fromkeys([*voters, *outgoing]))
    assert len(order) == len(values), f"{len(values)} values for {len(order)} voters"
    return {server: v for server, v in zip(order, values, strict=True) if v != "_"}


def execute_quorum(d: Directive) -> str:
    voters, outgoing = _servers(d.values("cfg")), _servers(d.values("cfgj"))
    joint = bool(d.values("cfgj"))
    if d.command == "vote":
        answers = _by_server(voters, outgoing, d.values("votes"))
        return _vote(voters, outgoing, {s: v == "y" for s, v in answers.items()}, joint=joint)
    indexes = _by_server(voters, outgoing, d.values("idx"))
    return _committed(voters, outgoing, {s: int(v) for s, v in indexes.items()}, joint=joint)


def _vote(
    voters: Sequence[ServerId],
    outgoing: Sequence[ServerId],
    votes: Mapping[ServerId, bool],
    *,
    joint: bool,
) -> str:
    if not joint:
        return VOTES[quorum.vote_result(voters, votes)] + "\n"
    result = quorum.joint_vote_result(voters, outgoing, votes)
    mirrored = quorum.joint_vote_result(outgoing, voters, votes)
    text = "" if mirrored is result else f"{VOTES[mirrored]} <-- via symmetry\n"
    return f"{text}{VOTES[result]}\n"


def _committed(
    voters: Sequence[ServerId],
    outgoing: Sequence[ServerId],
    indexes: Mapping[ServerId, int],
    *,
    joint: bool,
) -> str:
    if joint:
        index = quorum.joint_committed_index(voters, outgoing, indexes)
        text = _bars(sorted({*voters, *outgoing}), indexes)
        mirrored = quorum.joint_committed_index(outgoing, voters, indexes)
        if mirrored != index:
            text += f"{index_text(mirrored)} <-- via symmetry\n"
        return f"{text}{index_text(index)}\n"
    index = quorum.committed_index(voters, indexes)
    text = _bars(sorted(voters), indexes)
    for other, name in (((), "zero-joint"), (voters, "self-joint")):
        same = quorum.joint_committed_index(voters, other, indexes)
        if same != index:
            text += f"{index_text(same)} <-- via {name} quorum\n"
    # What lies below the commit index must not matter.
    for server, own in indexes.items():
        for lower in (own - 1, 0):
            changed = quorum.committed_index(voters, {**indexes, server: lower})
            if own < index and changed != index:
                text += f"{index_text(changed)} <-- overlaying {server}->{lower}"
    return f"{text}{index_text(index)}\n"


def _bars(servers: Sequence[ServerId], indexes: Mapping[ServerId, int]) -> str:
    count = len(servers)
    if not count:
        return "<empty majority quorum>"
    ordered = sorted((indexes.get(server, 0), server) for server in servers)
    bars = dict.fromkeys(servers, 0)
    for position in range(1, count):
        (below, neighbour), (index, server) = ordered[position - 1], ordered[position]
        bars[server] = position if below < index else bars[neighbour]
    lines = [" " * count + "    idx\n"]
    for server in servers:
        bar = bars[server]
        shown = "x" * bar + ">" + " " * (count - bar) if server in indexes else "?" + " " * count
        lines.append(f"{shown} {indexes.get(server, 0):>5}    (id={server})\n")
    return "".join(lines)


class ConfigurationTable:
    """Executes one file of changes; progress shows which command made it."""

    def __init__(self) -> None:
        self.configuration = Configuration()
        self.progress: dict[ServerId, Progress] = {}
        self.last_index = 0

    def execute(self, d: Directive) -> str:
        changes = tuple(parse_change(word) for word in d.input.split())
        try:
            match d.command:
                case "simple":
                    changed = simple_change(self.configuration, changes)
                case "enter-joint":
                    changed = enter_joint(
                        self.configuration, changes, auto_leave=d.flag("autoleave")
                    )
                case "leave-joint":
                    if changes:
                        return "this command takes no input\n"
                    changed = leave_joint(self.configuration)
                case _:
                    return "unknown command"
        except InvalidChange as invalid:
            return REFUSALS[invalid.refusal] + "\n"
        else:
            self._install(changed)
        finally:
            self.last_index += 1
        lines = [
            f"{server}: {describe_progress(progress.status(server))}\n"
            for server, progress in self.progress.items()
        ]
        return f"{describe_configuration(self.configuration)}\n{''.join(lines)}"

    def _install(self, changed: Changed) -> None:
        old, self.progress = self.progress, {}
        self.configuration = changed.configuration
        for server in changed.configuration.servers():
            learner = server in changed.configuration.learners
            progress = None if server in changed.fresh else old.get(server)
            if progress is None:
                progress = Progress(
                    next_index=max(self.last_index, 1), learner=learner, window=Window(10, 1 << 62)
                )
                progress.recent_active = True
            progress.learner = learner
            self.progress[server] = progress


__all__ = ["Change", "ConfigurationTable", "Transition", "execute_quorum"]

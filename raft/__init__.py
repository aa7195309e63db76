"""Raft: one log on several servers, of which a majority must live.

The problem: some servers keep the same state by applying the same commands in the same order,
and must not lose, reorder or invent one, whatever crashes, is cut off or loses power. The
papers: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" ("paper"),
and Ongaro's dissertation ("thesis"); comments cite their sections. The model of the core is
etcd-raft's, whose data files are our conformance tests.

This package knows nothing of what the commands mean. It needs a StateMachine, a Transport and a
directory, and gives a Replica.

The life of a command
    1.  Replica.propose() puts it into a queue. The core's job takes all that wait in one turn
        and makes them one entry: Python's cost is per entry, not per byte.
    2.  The core appends the entry and gives out a Ready: AppendEntries for the followers leave
        at once, while the leader's own disk writes the same entry (thesis 10.2.1).
    3.  The append job takes everything that waits, from any number of Readys, as one frame, one
        write and one sync, in a worker thread.
    4.  Followers do the same, and only then does their AppendReply leave. The leader's own
        acknowledgement waits for its own disk.
    5.  A majority has it: the commit index moves, followers hear of it with the next append, or
        after 5 ms if there is none.
    6.  The entry goes to the state machine, on every server, and the proposer gets the result
        of its command.

The files, from the inside out
    messages quorum membership progress reads log trace config   the vocabulary and its rules
    replication elections core                                   the core: pure, no clock, no I/O
    frames records                                               what the disk holds, as bytes
    disk wal scan snapshots boot repair                          the disk, for one worker thread
    proposals appending applying transfers offload telling       the shell, under Trio, ...
    driver replica                                               ... and what callers see of it
    machine                                                      what the outside must provide

What always holds (paper, figure 3), and where it is made so
    -   One leader a term: a vote is on disk before it is sent (Ready.after_sync), and a server
        is its log: who loses the log is a new server.
    -   A leader never changes its own entries; a follower's are replaced only where they
        conflict, and never below its commit index (asserted).
    -   Equal index and term, equal log before it: AppendEntries names the entry before.
    -   A leader has everything that was ever committed: votes go to logs at least as good, and
        only entries of the leader's own term are counted (figure 8).
    -   The same command at the same index on every state machine.
    -   What was answered as Committed survives: it was synced by a majority.

The disk
    A write that a power cut interrupted is cut off; anything else that cannot be read is never
    cut off, since it may have been acknowledged (frames.py tells the two apart). Such a server
    begins its log anew with what is good, and recovers: it replicates, but it neither votes nor
    counts, until a leader has named an index that covers all it may ever have acknowledged, and
    it holds that. If the end of the log is gone, and a vote with it, or if there are no others,
    it refuses to start and says why. A full disk is not a failed one: nothing is answered until
    there is room, and leadership moves on. A failed sync ends the process. A server that has
    nothing to do writes nothing, not even its commit index.

Where we differ from etcd-raft, on purpose (Config.compat turns these off for the conformance
tests, and nothing else may)
    1.  apply_change() has the entry's index, and ignores a change that is older than the
        configuration a snapshot has brought.
    2.  A leader that was removed does not step down: it is lame, takes no proposals, and offers
        leadership to the others until one of them takes it. Else two voters, of whom the
        removed one has the longer log, could never elect anybody.
    3.  A snapshot about whose fate nothing is heard counts as lost after a minute.
    4.  A committed change that makes no sense does nothing, on every server alike, where etcd
        panics. It is also checked against the current configuration when it is proposed.
    5.  A learner is promoted only when it has caught up (Replica.promote).
    6.  Leaving a joint configuration is retried by tick, not only with the next entry.
    7.  Reads wait for an entry of the leader's term even if it is the only voter: our commit
        index is written lazily, so a restarted server may not know yet what it had committed.

What is left out
    Forwarding of proposals: Dropped names the leader, and the caller goes there. Resuming a
    snapshot transfer in the middle; a transfer that breaks starts again. Changing the key that
    seals the files. A configuration counts once it is applied, not once it is in the log: until
    a follower has heard that a change is committed, it goes by the old one (as in etcd-raft).

What the transport must keep
    Messages from one server to another may get lost, but those of an earlier life of its must
    not arrive after those of a later one: an old acknowledgement would then speak for a disk
    that has lost what it acknowledged. Streams that end with the process keep this.

Example
    Replica.bootstrap(directory, key, cluster)          # once, on the first server
    replica = Replica(directory=directory, key=key, cluster=cluster, machine=machine,
                      transport=transport, rng=random.Random(seed))
    await nursery.start(replica.run)                     # recovered
    match await replica.propose(b"x = 1", timeout=5):
        case Committed(index, _, _, result): ...
        case Dropped(reason, leader): ...                # never: try again, at the leader
        case Unknown(reason): ...                        # maybe: look at the state
"""

from raft.boot import bootstrap, create
from raft.config import EDGE, LAN, WAN, Config
from raft.disk import DirectoryLocked, DiskFull
from raft.frames import WrongKey
from raft.machine import (
    ChangeRefused,
    Committed,
    Dropped,
    NotLeader,
    Outcome,
    ReadTimedOut,
    ReplicaStatus,
    StateMachine,
    TransferFailed,
    Transport,
    Unknown,
)
from raft.membership import Change, ChangeKind, ServerChange, Transition
from raft.messages import Configuration, Member, Message, Role, ServerId, SnapshotMeta
from raft.progress import ProgressStatus
from raft.replica import Replica
from raft.scan import LogDamaged, LogMissing
from raft.snapshots import SnapshotDamaged, SnapshotHeader
from raft.transfers import SnapshotRefused

__all__ = [
    "EDGE",
    "LAN",
    "WAN",
    "Change",
    "ChangeKind",
    "ChangeRefused",
    "Committed",
    "Config",
    "Configuration",
    "DirectoryLocked",
    "DiskFull",
    "Dropped",
    "LogDamaged",
    "LogMissing",
    "Member",
    "Message",
    "NotLeader",
    "Outcome",
    "ProgressStatus",
    "ReadTimedOut",
    "Replica",
    "ReplicaStatus",
    "Role",
    "ServerChange",
    "ServerId",
    "SnapshotDamaged",
    "SnapshotHeader",
    "SnapshotMeta",
    "SnapshotRefused",
    "StateMachine",
    "TransferFailed",
    "Transition",
    "Transport",
    "Unknown",
    "WrongKey",
    "bootstrap",
    "create",
]

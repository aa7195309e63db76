"""What can be set about a server, with the reason for each value.

Pure. Cores count ticks; only the shell knows how long a tick is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raft.log import ENTRY_OVERHEAD_BYTES
from raft.messages import Entry

UNLIMITED = 1 << 62


def entry_bytes(entry: Entry) -> int:
    """What *entry* counts against limits."""
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Compat:
    """etcd-raft's ways where ours differ on purpose; only the conformance tests set it.

    Its presence alone turns the corrections off that "Where we differ" in the package's essay
    lists.
    """

    #: A leader that was removed steps down at once.
    step_down_on_removal: bool = False
    #: Committed entries may be applied before this server has them on disk.
    apply_unstable: bool = False
    #: A change of the configuration is not checked when it is proposed.
    unchecked_changes: bool = False
    entry_bytes: Callable[[Entry], int] = entry_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The knobs. LAN is the default, EDGE and WAN stand below.

    An election takes place after *election_ticks* to twice that without a leader: a few
    heartbeats may be lost or late before anyone suspects. Heartbeats are what an idle cluster
    costs: each is a message and its answer to every follower, about a millisecond of processor
    time at the leader and half of one at the follower.
    """

    tick: float = 0.1  # seconds, for the shell
    heartbeat_ticks: int = 1
    election_ticks: int = 10
    #: Ask before raising the term, so that a server that was cut off disturbs nobody (9.6).
    pre_vote: bool = True
    #: A leader that hears from no majority for an election timeout steps down (6.2).
    check_quorum: bool = True
    #: Serve reads without asking a majority: right only while clocks run alike (6.4.1).
    lease_reads: bool = False
    #: Followers send proposals on; off, they answer with who leads.
    forward_proposals: bool = False
    message_bytes_max: int = 1 << 20
    in_flight_messages_max: int = 256
    in_flight_bytes_max: int = 4 << 20
    #: Beyond it proposals are dropped: the disk or the majority cannot keep up.
    uncommitted_bytes_max: int = 16 << 20
    #: Committed entries handed to the state machine and not applied yet.
    applying_bytes_max: int = 4 << 20
    #: Reads waiting for a heartbeat round; more are dropped and asked again.
    reads_max: int = 10_000
    #: A snapshot about which nobody reports for so many heartbeats is taken for lost (60 s).
    snapshot_ticks_max: int = 600
    #: What a snapshot that is sent may take of the link, whatever else is on it: a quarter of a
    #: gigabit.
    snapshot_bytes_per_second: int = 32 << 20
    compat: Compat | None = None

    def __post_init__(self) -> None:
        assert 0 < self.heartbeat_ticks < self.election_ticks
        assert self.in_flight_messages_max > 0
        assert self.in_flight_bytes_max >= self.message_bytes_max
        assert self.snapshot_bytes_per_second > 0
        assert self.check_quorum or not self.lease_reads, "lease reads need check_quorum"


#: Three heartbeats before anyone suspects. They come over TCP: what is lost comes late, and what
#: comes from a process that is gone is refused, which tells the follower at once.
LAN = Config(heartbeat_ticks=3, snapshot_ticks_max=200)
#: Small boxes with slow cards: fewer wake-ups still, and the patience that an fsync of half a
#: second needs.
EDGE = Config(
    tick=0.25,
    heartbeat_ticks=2,
    snapshot_ticks_max=120,
    message_bytes_max=256 << 10,
    snapshot_bytes_per_second=3 << 20,
)
#: Voters in several places: three times the patience, small messages on slow links.
WAN = Config(
    tick=0.3,
    snapshot_ticks_max=200,
    message_bytes_max=64 << 10,
    snapshot_bytes_per_second=3 << 20,
)

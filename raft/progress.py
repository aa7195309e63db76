"""What a leader knows about each server it sends the log to, and how fast it may send.

Pure. A progress probes (one append a heartbeat, until the logs are known to meet), replicates
(appends flow without waiting for answers, within the window of what is in flight) or waits for
a snapshot to arrive.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from raft.messages import ServerId


class Pace(enum.Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class ProgressStatus:
    """A frozen look at a Progress, for traces and for people."""

    server: ServerId
    match_index: int
    next_index: int
    pace: Pace
    learner: bool
    paused: bool
    pending_snapshot: int
    recent_active: bool
    in_flight: int
    window_full: bool
    recovering: bool


class Window:
    """The appends in flight, oldest first; full at *messages_max* or *bytes_max*."""

    __slots__ = ("_bytes", "_bytes_max", "_messages_max", "_sent")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._sent: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def full(self) -> bool:
        return len(self._sent) >= self._messages_max or self._bytes >= self._bytes_max

    def add(self, last_index: int, size: int) -> None:
        """Note an append whose last entry is *last_index*."""
        assert not self.full
        self._sent.append((last_index, size))
        self._bytes += size

    def free_to(self, index: int) -> None:
        """Forget the appends that end at or before *index*."""
        sent = self._sent
        while sent and sent[0][0] <= index:
            self._bytes -= sent.popleft()[1]

    def clear(self) -> None:
        self._sent.clear()
        self._bytes = 0


class Progress:
    """Invariants: match_index < next_index; while a snapshot is pending, next follows it.

    *sent_commit* is the highest commit index sent to the server. *recovering*: its disk lost
    something, so what it holds counts for nothing until it is whole.
    """

    __slots__ = (
        "learner",
        "match_index",
        "next_index",
        "pace",
        "paused_probe",
        "pending_snapshot",
        "recent_active",
        "recovering",
        "sent_commit",
        "snapshot_ticks",
        "window",
    )

    def __init__(self, *, next_index: int, learner: bool, window: Window) -> None:
        self.match_index = 0
        self.next_index = next_index
        self.sent_commit = 0
        self.pace = Pace.PROBE
        self.pending_snapshot = 0
        self.snapshot_ticks = 0
        self.recent_active = False
        self.paused_probe = False
        self.window = window
        self.learner = learner
        self.recovering = False

    @property
    def paused(self) -> bool:
        """Nothing may be sent now; a heartbeat's answer or an acknowledgement lifts it."""
        return self.paused_probe or self.pace is Pace.SNAPSHOT

    def probe(self) -> None:
        """Find out again where the logs meet; after a snapshot, just behind it."""
        after = self.pending_snapshot if self.pace is Pace.SNAPSHOT else 0
        self._enter(Pace.PROBE)
        self.next_index = max(self.match_index, after) + 1
        self.sent_commit = min(self.sent_commit, self.next_index - 1)

    def replicate(self) -> None:
        self._enter(Pace.REPLICATE)
        self.next_index = self.match_index + 1

    def await_snapshot(self, index: int) -> None:
        self._enter(Pace.SNAPSHOT)
        self.pending_snapshot = index
        self.next_index = index + 1
        self.sent_commit = index

    def _enter(self, pace: Pace) -> None:
        self.pace = pace
        self.paused_probe = False
        self.pending_snapshot = 0
        self.snapshot_ticks = 0
        self.window.clear()

    def sent_entries(self, count: int, size: int) -> None:
        """Note an append of *count* entries from next_index on."""
        if self.pace is Pace.REPLICATE:
            if count:
                self.next_index += count
                self.window.add(self.next_index - 1, size)
            # An append that fills the window is a probe: the next waits for news.
            self.paused_probe = self.window.full
        elif count:
            self.paused_probe = True

    def may_raise_commit(self, commit_index: int) -> bool:
        """Say if sending *commit_index* can teach the server anything it was not sent."""
        return commit_index > self.sent_commit < self.next_index - 1

    def acknowledge(self, index: int) -> bool:
        """Note that the log matches up to *index*; False if that was known."""
        if index <= self.match_index:
            return False
        self.match_index = index
        if self.next_index <= index:
            self.next_index = index + 1
        self.paused_probe = False
        return True

    def reject(self, rejected_index: int, hint_index: int) -> bool:
        """Step back to where the logs may meet; False if the rejection is an old one."""
        if self.pace is Pace.REPLICATE:
            if rejected_index <= self.match_index:
                return False
            self.next_index = self.match_index + 1
            self.sent_commit = min(self.sent_commit, self.next_index - 1)
            return True
        # Probes go out one at a time: a rejection of anything else is late.
        if self.next_index - 1 != rejected_index:
            return False
        self.next_index = max(min(rejected_index, hint_index + 1), self.match_index + 1)
        self.sent_commit = min(self.sent_commit, self.next_index - 1)
        self.paused_probe = False
        return True

    def status(self, server: ServerId) -> ProgressStatus:
        return ProgressStatus(
            server=server,
            match_index=self.match_index,
            next_index=self.next_index,
            pace=self.pace,
            learner=self.learner,
            paused=self.paused,
            pending_snapshot=self.pending_snapshot,
            recent_active=self.recent_active,
            in_flight=len(self.window),
            window_full=self.window.full,
            recovering=self.recovering,
        )

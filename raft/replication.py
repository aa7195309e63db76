"""Getting one log onto every server: appends, acknowledgements, commit, snapshots, reads.

Pure. This is the half of the core that speaks of logs (paper sections 5.3, 5.4.2 and 7, thesis
chapters 5 and 6); core.py adds terms, roles, elections and membership on top. Everything is sent
through _send() and _send_after_sync(): the second holds what a message promises until it is on
disk.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from raft import quorum
from raft.config import Config, entry_bytes
from raft.log import Log, Storage
from raft.messages import (
    NOBODY,
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    Envelope,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadReply,
    ReadRequest,
    ReadState,
    Role,
    ServerId,
    SnapshotMeta,
    TimeoutNow,
)
from raft.progress import Pace, Progress, Window
from raft.reads import Reads
from raft.trace import (
    AppendRejected,
    LossNoticed,
    PeerUnreachable,
    ProgressDecreased,
    Recovered,
    RejectionReceived,
    ReplicationPaused,
    SnapshotArrived,
    SnapshotFastForwarded,
    SnapshotHandled,
    SnapshotReported,
    SnapshotRestored,
    SnapshotSent,
    SnapshotTimedOut,
    SnapshotToInactive,
    SnapshotUnavailable,
    SnapshotWhileLeading,
    SnapshotWithoutUs,
    Trace,
    TransferCaughtUp,
    UncommittedFull,
)

#: The context of the read by which a server learns what it must hold; callers use longer ones.
RECOVERY = b""


class Replication:
    """The state that both halves share, and what is done about logs.

    Args:
        config: the knobs.
        server: this server.
        storage: the stable log.
        rng: source of every random choice, so that a seed replays a run.
        trace: hears what happens.
    """

    def __init__(
        self,
        config: Config,
        server: ServerId,
        storage: Storage,
        *,
        rng: random.Random,
        trace: Callable[[Trace], None],
    ) -> None:
        assert server != NOBODY
        self.config = config
        self.server = server
        self.compat = config.compat
        self._rng = rng
        self._trace = trace
        self.log = Log(
            storage,
            applying_bytes_max=config.applying_bytes_max,
            apply_unstable=self.compat is not None and self.compat.apply_unstable,
            entry_bytes=self.compat.entry_bytes if self.compat else entry_bytes,
            trace=trace,
        )
        self.term = 0
        self.voted_for = NOBODY
        self.role = Role.FOLLOWER
        self.leader = NOBODY
        self.configuration = Configuration()
        #: The entry or snapshot that the configuration came from.
        self.configuration_index = 0
        #: Sorted by server, so that the same seed gives the same run.
        self.progress: dict[ServerId, Progress] = {}
        #: Who the leader is handing over to.
        self.transferee = NOBODY
        #: No change of the configuration is proposed before this entry is applied.
        self.pending_change_index = 0
        self._uncommitted_bytes = 0
        self._election_elapsed = 0
        self._reads = Reads()
        #: This server's disk has lost something: it follows, and promises nothing.
        self.recovering = False
        #: What it must hold before it is trusted again; None until a leader has said.
        self.recovery_index: int | None = None
        self._read_states: list[ReadState] = []
        self._snapshot_wanted = False
        self._messages: list[Envelope] = []
        self._after_sync: list[Envelope] = []

    @property
    def lame(self) -> bool:
        """Leads without a vote: it was removed, and nobody has taken over yet."""
        return self.role is Role.LEADER and self.server not in self.configuration.all_voters()

    # Sending.
    def _send(self, to: ServerId, message: Message) -> None:
        self._messages.append((to, message))

    def _send_after_sync(self, to: ServerId, message: Message) -> None:
        """Send once everything that is unstable now is on disk (thesis section 3.8).

        Rejections wait too: what they are based on may not be on disk yet.
        """
        self._after_sync.append((to, message))

    def _new_progress(self, *, next_index: int, learner: bool) -> Progress:
        config = self.config
        window = Window(config.in_flight_messages_max, config.in_flight_bytes_max)
        return Progress(next_index=next_index, learner=learner, window=window)

    # The leader's side.
    def _append_entries(self, entries: Sequence[tuple[int, bytes]]) -> bool:
        """Give (kind, data) pairs their place in the leader's log; False if it is too full."""
        size = sum(len(data) for _, data in entries)
        limit = self.config.uncommitted_bytes_max
        # Entries without data, no-ops and the leaving of a joint configuration, always fit.
        if self._uncommitted_bytes and size and self._uncommitted_bytes + size > limit:
            self._trace(UncommittedFull())
            return False
        self._uncommitted_bytes += size
        index = self.log.last_index
        last = self.log.append(
            [
                Entry(index + position, self.term, kind, data)
                for position, (kind, data) in enumerate(entries, start=1)
            ]
        )
        # The leader acknowledges to itself, when its own disk has them (thesis 10.2.1).
        self._send_after_sync(self.server, AppendReply(self.term, last))
        return True

    def _broadcast_append(self) -> None:
        for server, progress in self.progress.items():
            if server != self.server:
                self._send_append(server, progress)

    def _send_append(self, to: ServerId, progress: Progress, *, even_if_empty: bool = True) -> bool:
        """Send *to* what it lacks, or the snapshot it needs; say if anything was sent."""
        if progress.paused:
            return False
        log = self.log
        previous_index = progress.next_index - 1
        previous_term = log.term(previous_index)
        if previous_term is None:
            return self._send_snapshot(to, progress)
        entries: tuple[Entry, ...] | None = ()
        # A full window still lets empty appends through: if all that is in flight was lost, the
        # answer to one of them is what tells us so.
        if progress.pace is not Pace.REPLICATE or not progress.window.full:
            entries = log.entries(progress.next_index, self.config.message_bytes_max)
        if not entries and not even_if_empty:
            return False
        if entries is None:
            return self._send_snapshot(to, progress)
        committed = log.committed
        self._send(to, AppendEntries(self.term, previous_index, previous_term, committed, entries))
        progress.sent_entries(len(entries), sum([len(entry.data) for entry in entries]))
        progress.sent_commit = committed
        return True

    def _send_snapshot(self, to: ServerId, progress: Progress) -> bool:
        if not progress.recent_active:
            self._trace(SnapshotToInactive(to))
            return False
        snapshot = self.log.snapshot or self.log.storage.snapshot()
        # One from before *to* joined is of no use: a server refuses a state that it is not in.
        if snapshot is None or not (self.compat or to in snapshot.configuration):
            self._snapshot_wanted = True
            self._trace(SnapshotUnavailable(to))
            return False
        log = self.log
        self._trace(
            SnapshotSent(
                log.first_index,
                log.committed,
                snapshot.index,
                snapshot.term,
                progress.status(to),
            )
        )
        progress.await_snapshot(snapshot.index)
        self._trace(ReplicationPaused(progress.status(to)))
        self._send(to, InstallSnapshot(self.term, snapshot))
        return True

    def _broadcast_heartbeat(self) -> None:
        read, committed = self._reads.latest, self.log.committed
        for server, progress in self.progress.items():
            if server != self.server:
                # Never beyond what the server is known to have: it might hold something else.
                commit = min(progress.match_index, committed)
                self._send(server, Heartbeat(self.term, commit, read))
                progress.sent_commit = commit

    def _receive_append_reply(self, sender: ServerId, reply: AppendReply) -> None:
        progress = self.progress[sender]
        progress.recent_active = True
        whole_again = progress.recovering and not reply.recovering
        lost_more = reply.recovering and reply.rejected and reply.index <= progress.match_index
        if reply.recovering != progress.recovering or lost_more:
            self._set_recovering(sender, progress, reply)
        if reply.rejected:
            self._step_back(sender, progress, reply)
            return
        advanced = progress.acknowledge(reply.index)
        # A known index still shows a probing server to be caught up.
        meets = progress.match_index == reply.index and progress.pace is Pace.PROBE
        if not (advanced or meets or whole_again):
            return
        if progress.pace is Pace.PROBE:
            progress.replicate()
        elif progress.pace is Pace.SNAPSHOT:
            # Which snapshot arrived does not matter, if the log can take over from there.
            if progress.match_index + 1 >= self.log.first_index:
                self._trace(SnapshotArrived(progress.status(sender)))
                progress.probe()
                progress.replicate()
        else:
            progress.window.free_to(reply.index)
        if self._advance_commit():
            self._release_early_reads()
            self._broadcast_append()
        elif sender != self.server and progress.may_raise_commit(self.log.committed):
            self._send_append(sender, progress)
        if sender == self.server:
            return
        # The window may have room for more than one append now.
        while self._send_append(sender, progress, even_if_empty=False):
            pass
        if sender == self.transferee and progress.match_index == self.log.last_index:
            self._trace(TransferCaughtUp(sender))
            self._send(sender, TimeoutNow(self.term))

    def _step_back(self, sender: ServerId, progress: Progress, reply: AppendReply) -> None:
        """Look for the place where the logs meet, at most one probe a term (paper 5.3)."""
        self._trace(RejectionReceived(reply.hint_index, reply.hint_term, sender, reply.index))
        hint = reply.hint_index
        if reply.hint_term:
            # Whatever here has a higher term than the hint cannot be what the follower has.
            hint, _ = self.log.hint(hint, reply.hint_term)
        if progress.reject(reply.index, hint):
            self._trace(ProgressDecreased(progress.status(sender)))
            if progress.pace is Pace.REPLICATE:
                progress.probe()
            self._send_append(sender, progress)

    def _set_recovering(self, server: ServerId, progress: Progress, reply: AppendReply) -> None:
        """Stop, or start again, to count a server whose disk lost something.

        What it acknowledged before it noticed may be gone, so the match index falls: the one
        place where it may.
        """
        progress.recovering = reply.recovering
        if reply.recovering:
            progress.match_index = 0
            progress.probe()
            progress.next_index = (reply.hint_index if reply.rejected else reply.index) + 1
            if reply.rejected:
                self._send_append(server, progress)

    def _advance_commit(self) -> bool:
        """Commit what a majority has on disk, if it is of this term (paper section 5.4.2)."""
        configuration = self.configuration
        acknowledged = {
            server: 0 if progress.recovering else progress.match_index
            for server, progress in self.progress.items()
        }
        index = quorum.joint_committed_index(
            configuration.voters, configuration.outgoing, acknowledged
        )
        return self.log.try_commit(index, self.term)

    def _receive_heartbeat_reply(self, sender: ServerId, reply: HeartbeatReply) -> None:
        progress = self.progress[sender]
        progress.recent_active = True
        progress.paused_probe = False
        # Lets a paused window and a probe go on, with an empty append if need be.
        behind = progress.match_index < self.log.last_index or progress.pace is Pace.PROBE
        if behind or reply.recovering:
            self._send_append(sender, progress)
        if reply.read and not reply.recovering and not self.config.lease_reads:
            self._reads.echo(sender, reply.read)
            for read in self._reads.take_confirmed(self.configuration):
                self._answer_read(read.requester, read.context, read.index)

    def report_unreachable(self, server: ServerId) -> None:
        """Note that a message to *server* was probably lost."""
        progress = self.progress.get(server)
        if self.role is not Role.LEADER or progress is None:
            return
        if progress.pace is Pace.REPLICATE:
            progress.probe()
        self._trace(PeerUnreachable(progress.status(server)))

    def report_snapshot(self, server: ServerId, *, delivered: bool) -> None:
        """Note how the sending of a snapshot to *server* ended; the shell must always say."""
        progress = self.progress.get(server)
        if self.role is not Role.LEADER or progress is None or progress.pace is not Pace.SNAPSHOT:
            return
        if not delivered:
            progress.pending_snapshot = 0  # else the probe would start behind it
        progress.probe()
        self._trace(SnapshotReported(delivered, progress.status(server)))
        # Delivered: its acknowledgement comes first. Failed: wait for a heartbeat's answer.
        progress.paused_probe = True

    def _tick_snapshots(self) -> None:
        """Take a snapshot that nobody reports on for lost, so that its server is not forgotten."""
        for server, progress in self.progress.items():
            if progress.pace is Pace.SNAPSHOT:
                progress.snapshot_ticks += 1
                if progress.snapshot_ticks >= self.config.snapshot_ticks_max:
                    progress.pending_snapshot = 0
                    progress.probe()
                    self._trace(SnapshotTimedOut(progress.status(server)))

    # Reads at the leader.
    def _lead_read(self, requester: ServerId, request: ReadRequest) -> None:
        """Find the index that a read of *requester* must wait for."""
        if len(self._reads) >= self.config.reads_max or self.lame:
            return  # asked again, if it is still wanted
        progress = self.progress.get(requester)
        if request.recovering and progress is not None and not progress.recovering:
            # From here on its old acknowledgements commit nothing, so that the index which it
            # is told covers everything that they ever did.
            progress.recovering = True
            progress.match_index = 0
            if progress.pace is not Pace.SNAPSHOT:
                progress.probe()
                progress.next_index = self.log.last_index + 1
        # Until an entry of this term is committed, the leader may not know of older ones.
        if not self._committed_in_term:
            self._reads.early.append((requester, request.context))
            return
        self._start_read(requester, request.context)

    @property
    def _committed_in_term(self) -> bool:
        return self.log.term(self.log.committed) == self.term

    def _start_read(self, requester: ServerId, context: bytes) -> None:
        committed = self.log.committed
        configuration = self.configuration
        alone = not configuration.joint and configuration.voters == (self.server,)
        if alone or self.config.lease_reads:
            self._answer_read(requester, context, committed)
            return
        self._reads.add(self.server, requester, context, committed)
        self._broadcast_heartbeat()

    def _release_early_reads(self) -> None:
        if self._reads.early and self._committed_in_term:
            early, self._reads.early = self._reads.early, []
            for requester, context in early:
                self._start_read(requester, context)

    def _answer_read(self, requester: ServerId, context: bytes, index: int) -> None:
        if requester == self.server:
            self._read_states.append(ReadState(index, context))
        else:
            self._send(requester, ReadReply(self.term, index, context))

    # The follower's side.
    def _receive_append(self, leader: ServerId, append: AppendEntries) -> None:
        log = self.log
        if append.previous_index < log.committed:
            # Late: what it holds is committed here already.
            self._send_after_sync(leader, self._append_reply(log.committed))
            return
        last = log.try_append(
            append.previous_index, append.previous_term, append.commit_index, append.entries
        )
        if last is not None:
            self._send_after_sync(leader, self._append_reply(last))
            return
        index, term = append.previous_index, append.previous_term
        self._trace(AppendRejected(log.term(index) or 0, index, term, leader))
        hint_index, hint_term = log.hint(min(index, log.last_index), term)
        self._send_after_sync(
            leader,
            AppendReply(
                self.term,
                index,
                rejected=True,
                hint_index=hint_index,
                hint_term=hint_term,
                recovering=self.recovering,
            ),
        )

    def _append_reply(self, index: int) -> AppendReply:
        return AppendReply(self.term, index, recovering=self.recovering)

    def _receive_heartbeat(self, leader: ServerId, heartbeat: Heartbeat) -> None:
        commit_index = heartbeat.commit_index
        if self.compat is None and commit_index > self.log.last_index:
            self._notice_loss(commit_index)
        if self.recovering:
            # What the leader believes to match may have been lost with what came after it, so
            # only appends, which look at the entry before, may commit here.
            self._recover(leader)
        else:
            self.log.commit_to(commit_index)
        self._send(leader, HeartbeatReply(self.term, heartbeat.read, self.recovering))

    # A disk that has lost something (FAST 2018, protocol-aware recovery).
    def _notice_loss(self, acknowledged: int) -> None:
        """The leader counts on entries up to *acknowledged*, and they are not here."""
        if not self.recovering:
            self._trace(LossNoticed(acknowledged, self.log.last_index))
            self.recovering, self.recovery_index = True, None

    def _recover(self, leader: ServerId) -> None:
        """Ask what must be here, and go back to normal once it is.

        What this server acknowledged before the loss was committed at most up to the index that
        a leader names now. It has no vote until it holds all of that on disk.
        """
        if self.recovery_index is None:
            self._send(leader, ReadRequest(RECOVERY, recovering=True))
        elif self.log.snapshot is None:
            whole = min(self.log.committed, self.log.offset - 1)
            if whole >= self.recovery_index:
                self._trace(Recovered(self.recovery_index))
                self.recovering = False

    def _receive_snapshot(self, leader: ServerId, install: InstallSnapshot) -> None:
        snapshot = install.snapshot
        restored = self._restore(snapshot)
        committed = self.log.committed
        self._trace(SnapshotHandled(restored, committed, snapshot.index, snapshot.term))
        index = self.log.last_index if restored else committed
        self._send_after_sync(leader, self._append_reply(index))

    def _restore(self, snapshot: SnapshotMeta) -> bool:
        """Replace log and configuration by *snapshot*, unless the log is as good already."""
        log = self.log
        if snapshot.index <= log.committed:
            return False
        if self.role is not Role.FOLLOWER:
            self._trace(SnapshotWhileLeading())
            return False
        if self.server not in snapshot.configuration:
            self._trace(SnapshotWithoutUs(snapshot.configuration))
            return False
        if log.matches(snapshot.index, snapshot.term):
            self._trace(
                SnapshotFastForwarded(
                    log.committed, log.last_index, log.last_term, snapshot.index, snapshot.term
                )
            )
            log.commit_to(snapshot.index)
            return False
        log.restore(snapshot)
        self.progress = {}
        self._install_configuration(snapshot.configuration, frozenset(), snapshot.index)
        self._trace(
            SnapshotRestored(
                log.committed, log.last_index, log.last_term, snapshot.index, snapshot.term
            )
        )
        return True

    def _install_configuration(
        self, configuration: Configuration, fresh: frozenset[ServerId], index: int
    ) -> None:
        raise NotImplementedError  # core.py: it may end a leadership

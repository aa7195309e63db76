"""Bugs made by hand, to see that the tests bite.

    python -m tests.raft.mutants                 every bug must be caught by the means named here
    python -m tests.raft.mutants vote_twice      just this one
    python -m tests.raft.mutants --explore NAME  what would catch it

Each mutant replaces one piece of text in one file of a copy of the repository. It is caught when
one of its means fails there: a test, by its name, or a mode of the simulation with its seeds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
#: Seconds after which a mutant that hangs counts as caught: a run takes a small part of it.
PATIENCE = 120
SCRIPTS = "test_scripts"
CONFORMANCE = "test_conformance"


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    #: "test_file -k words" or "mode first_seed last_seed"
    caught_by: str


MUTANTS = [
    Mutant(
        "vote_without_log_check",
        "elections.py",
        "good = log.up_to_date(request.last_index, request.last_term)",
        "good = True",
        f"{SCRIPTS} -k shorter_log",
    ),
    Mutant(
        "vote_twice",
        "elections.py",
        "(self.voted_for == NOBODY and self.leader == NOBODY)",
        "True",
        f"{SCRIPTS} -k one_vote",
    ),
    Mutant(
        "vote_kept_over_terms",
        "elections.py",
        "            self.voted_for = NOBODY\n        self.leader = NOBODY",
        "            pass\n        self.leader = NOBODY",
        f"{CONFORMANCE}",
    ),
    Mutant(
        "vote_sent_before_it_is_stored",
        "elections.py",
        "self._send_after_sync(candidate, VoteReply(request.term, request.pre))",
        "self._send(candidate, VoteReply(request.term, request.pre))",
        f"{SCRIPTS} -k not_on_disk",
    ),
    Mutant(
        "pre_vote_raises_the_term",
        "elections.py",
        "            if message.pre:\n                return True",
        "            if message.pre and False:\n                return True",
        f"{CONFORMANCE} -k prevote",
    ),
    Mutant(
        "lease_ignored",
        "elections.py",
        "self.leader != NOBODY\n                and self._election_elapsed",
        "False\n                and self._election_elapsed",
        "partial_cut 0 30",
    ),
    Mutant(
        "no_step_down_without_quorum",
        "core.py",
        "            self._trace(QuorumLost())\n            self._become_follower",
        "            self._trace(QuorumLost())\n            id(self._become_follower)\n"
        "        if False:\n            self._become_follower",
        f"{SCRIPTS} -k without_a_majority",
    ),
    Mutant(
        "election_timeout_not_random",
        "elections.py",
        "ticks + self._rng.randrange(ticks)",
        "ticks",
        "test_core -k spread",
    ),
    Mutant(
        "no_op_missing",
        "elections.py",
        'appended = self._append_entries([(COMMANDS, b"")])',
        "appended = True",
        f"{SCRIPTS} -k figure_8",
    ),
    Mutant(
        "figure_8",
        "log.py",
        "if index > self.committed and term and self.term(index) == term:",
        "if index > self.committed:",
        f"{SCRIPTS} -k figure_8",
    ),
    Mutant(
        "campaign_with_unapplied_change",
        "elections.py",
        "elif self.log.has_unapplied_change(CHANGE):",
        "elif False:",
        "test_core -k unapplied_change",
    ),
    Mutant(
        "rejections_not_counted",
        "quorum.py",
        "    return Vote.LOST\n\n\ndef joint_vote_result",
        "    return Vote.PENDING\n\n\ndef joint_vote_result",
        f"{CONFORMANCE}",
    ),
    Mutant(
        "quorum_off_by_one",
        "quorum.py",
        "return count // 2 + 1",
        "return (count + 1) // 2",
        f"{CONFORMANCE} -k quorum",
    ),
    Mutant(
        "old_half_of_joint_quorum_ignored",
        "quorum.py",
        "return min(committed_index(voters, acknowledged), committed_index(outgoing, "
        "acknowledged))",
        "return committed_index(voters, acknowledged)",
        f"{SCRIPTS} -k old_half",
    ),
    Mutant(
        "heartbeat_commit_not_clamped",
        "replication.py",
        "commit = min(progress.match_index, committed)",
        "commit = committed",
        "chaos 0 30",
    ),
    Mutant(
        "previous_entry_not_checked",
        "log.py",
        "        if not self.matches(previous_index, previous_term):\n            return None\n",
        "        if previous_index > self.last_index:\n            return None\n",
        "chaos 0 60",
    ),
    Mutant(
        "conflicts_not_replaced",
        "log.py",
        "            if mine != entry.term:",
        "            if mine is None:",
        f"{SCRIPTS} -k divergent",
    ),
    Mutant(
        "late_append_truncates",
        "log.py",
        "        conflict = self._find_conflict(entries)\n",
        "        conflict = previous_index + 1 if entries else 0\n",
        "chaos 0 60",
    ),
    Mutant(
        "append_acknowledged_before_it_is_stored",
        "replication.py",
        "self._send_after_sync(leader, self._append_reply(last))",
        "self._send(leader, self._append_reply(last))",
        "power_cut_all 0 60",
    ),
    Mutant(
        "follower_commit_not_bounded",
        "log.py",
        "self.commit_to(min(commit_index, last))",
        "self.commit_to(min(commit_index, self.last_index))",
        "test_log -k no_further",
    ),
    Mutant(
        "hint_ignored",
        "replication.py",
        "        hint = reply.hint_index\n",
        "        hint = max(0, reply.index - 1)\n",
        f"{CONFORMANCE} -k probe",
    ),
    Mutant(
        "probe_not_paused",
        "progress.py",
        "        elif count:\n            self.paused_probe = True",
        "        elif count:\n            pass",
        f"{CONFORMANCE}",
    ),
    Mutant(
        "window_never_freed",
        "progress.py",
        "            self._bytes -= sent.popleft()[1]",
        "            break",
        f"{CONFORMANCE} -k pause",
    ),
    Mutant(
        "stored_counts_in_a_later_term",
        "core.py",
        "        if stored.term < self.term:",
        "        if False:",
        "test_core -k earlier_term",
    ),
    Mutant(
        "unstable_entries_applied",
        "log.py",
        "return self.committed if self._apply_unstable else min(self.committed, self.offset - 1)",
        "return self.committed",
        f"{SCRIPTS} -k own_disk_is_slow",
    ),
    Mutant(
        "two_changes_at_once",
        "core.py",
        "        if pending > applied:\n",
        "        if False:\n",
        f"{SCRIPTS} -k one_after",
    ),
    Mutant(
        "proposals_during_transfer",
        "core.py",
        "        if self.transferee != NOBODY:\n            self._trace(Proposal",
        "        if False:\n            self._trace(Proposal",
        f"{SCRIPTS} -k handed",
    ),
    Mutant(
        "snapshot_to_inactive",
        "replication.py",
        "        if not progress.recent_active:",
        "        if False:",
        "test_core -k silent",
    ),
    Mutant(
        "restored_snapshot_keeps_the_log",
        "log.py",
        "        self._base_index, self._base_term = snapshot.index, snapshot.term\n"
        "        self._entries = []\n\n    def note",
        "        if snapshot.index > self.last_index:\n"
        "            self._base_index, self._base_term = snapshot.index, snapshot.term\n"
        "            self._entries = []\n\n    def note",
        "stale 0 60",
    ),
    Mutant(
        "change_older_than_the_configuration_applied",
        "core.py",
        "if corrected and index <= self.configuration_index:",
        "if False:",
        "test_core -k older_than",
    ),
    Mutant(
        "removed_leader_steps_down",
        "core.py",
        "if self.compat and self.compat.step_down_on_removal:",
        "if True:",
        f"{SCRIPTS} -k lame",
    ),
    Mutant(
        "lost_snapshot_waited_for_for_ever",
        "replication.py",
        "if progress.snapshot_ticks >= self.config.snapshot_ticks_max:",
        "if False:",
        f"{SCRIPTS} -k nobody_reports",
    ),
    Mutant(
        "leaving_joint_not_retried",
        "core.py",
        "        self._tick_snapshots()\n        self._leave_joint_if_due()",
        "        self._tick_snapshots()",
        f"{SCRIPTS} -k retried",
    ),
    Mutant(
        "snapshot_without_its_receiver",
        "replication.py",
        "if snapshot is None or not (self.compat or to in snapshot.configuration):",
        "if snapshot is None:",
        "test_members -k late_server",
    ),
    Mutant(
        "read_before_an_entry_of_the_term",
        "replication.py",
        "        if not self._committed_in_term:\n            self._reads.early",
        "        if False:\n            self._reads.early",
        f"{SCRIPTS} -k read",
    ),
    Mutant(
        "read_index_before_the_read",
        "reads.py",
        "self._pending.append(PendingRead(self.number, requester, context, index))",
        "self._pending.append(PendingRead(self.number, requester, context, index - 1))",
        "slow_disk 0 10",
    ),
    Mutant(
        "read_without_a_majority",
        "replication.py",
        "if alone or self.config.lease_reads:",
        "if True:",
        "stale 0 60",
    ),
    Mutant(
        "recovering_server_votes",
        "elections.py",
        "        if self.recovering:\n            return",
        "        if False:\n            return",
        "rot 0 100",
    ),
    Mutant(
        "recovering_server_counts",
        "replication.py",
        "server: 0 if progress.recovering else progress.match_index",
        "server: progress.match_index",
        "test_core -k recovering",
    ),
    Mutant(
        "recovering_server_believes_heartbeats",
        "replication.py",
        "        if self.recovering:\n            # What",
        "        self.log.commit_to(min(commit_index, self.log.last_index))\n"
        "        if self.recovering:\n            # What",
        "test_core -k heartbeat",
    ),
    Mutant(
        "damaged_log_taken_for_whole",
        "boot.py",
        "commit_index, recovering=True)",
        "commit_index, recovering=False)",
        "test_snapshots -k recovers",
    ),
    Mutant(
        "forgotten_vote_forgiven",
        "scan.py",
        "    if state is None or last_kind is Kind.CLOSE:\n        return None",
        "    if state is None or last_kind is Kind.CLOSE:\n        return state or HardState()",
        "test_snapshots -k forgotten",
    ),
    Mutant(
        "log_not_synced",
        "wal.py",
        "        self._file.write(self._offset, frame)\n        self._file.sync()",
        "        self._file.write(self._offset, frame)",
        "test_wal -k power_cut",
    ),
    Mutant(
        "rot_cut_off",
        "frames.py",
        "return Verdict.TORN if _has_unwritten_piece(data, offset, end) else Verdict.ROT",
        "return Verdict.TORN",
        "test_wal -k rot_of_any",
    ),
    Mutant(
        "later_frames_prove_nothing",
        "frames.py",
        "    if _later_frame(data, offset + 8, used, number):",
        "    if False:",
        "test_wal -k zeroed",
    ),
    Mutant(
        "torn_tail_taken_for_rot",
        "frames.py",
        "        if not any(data[piece:sector_end]):",
        "        if False:",
        "test_wal -k power_cut",
    ),
    Mutant(
        "seal_across_sectors",
        "frames.py",
        "        if offset % SECTOR_BYTES > SECTOR_BYTES - FRAME_HEADER_BYTES:",
        "        if False:",
        "test_wal -k half",
    ),
    Mutant(
        "half_a_header_taken_for_rot",
        "frames.py",
        "end = max((used + 7) // 8 * 8, offset + frame_bytes(0))",
        "end = (used + 7) // 8 * 8",
        "test_wal -k half",
    ),
    Mutant(
        "nonce_counted",
        "wal.py",
        "self._write(self._chain.data(body, os.urandom(NONCE_BYTES)))",
        "self._write(self._chain.data(body, self._chain.number.to_bytes(NONCE_BYTES)))",
        "test_wal -k nonce",
    ),
    Mutant(
        "segment_closed_before_the_next_exists",
        "wal.py",
        "        chain = self._chain\n        header = replace(",
        "        chain = self._chain\n"
        "        self._file.write(self._offset, chain.close(os.urandom(NONCE_BYTES)))\n"
        "        self._file.sync()\n"
        "        header = replace(",
        "test_wal -k power_cut",
    ),
    Mutant(
        "segments_removed_too_early",
        "wal.py",
        "            if name == self._name or self._highest[name] > index:",
        "            if name == self._name:",
        "test_wal -k segments",
    ),
]


def copy_with(mutant: Mutant | None, place: Path) -> None:
    """Copy the repository's raft and its tests to *place*, with the bug in it."""
    (place / "tests").mkdir(parents=True)
    for folder in ("raft", "tests/raft"):
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("*.pyc"))
    for file in ("tests/golden.py", "tests/seeds.py", "tests/conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / file, place / file)
    data = ROOT.parent / "shared"
    if data.is_dir() and not (place.parent / "shared").exists():
        (place.parent / "shared").symlink_to(data)
    if mutant is None:
        return
    path = place / "raft" / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.name}: {text.count(mutant.old)} places fit"
    path.write_text(text.replace(mutant.old, mutant.new))


def is_caught(means: str, place: Path) -> bool:
    """Run *means* in *place*; say if it fails."""
    words = means.split()
    if words[0].startswith("test_"):
        command = ["-m", "pytest", "-q", "-x", f"tests/raft/{words[0]}.py", *words[1:]]
    else:
        command = ["-m", "tests.raft.test_simulation", *words]
    try:
        run = subprocess.run(
            [sys.executable, *command], cwd=place, capture_output=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return True
    assert run.returncode in (0, 1), run.stdout.decode() + run.stderr.decode()
    return run.returncode == 1


def explore(mutant: Mutant, place: Path) -> None:
    from tests.raft.modes import MODES

    tests = sorted(path.stem for path in (ROOT / "tests" / "raft").glob("test_*.py"))
    tests = [name for name in tests if name != "test_simulation"]
    for means in [*tests, *(f"{mode} 0 60" for mode in MODES)]:
        print(f"  {means}: {'caught' if is_caught(means, place) else '-'}", flush=True)


def main(arguments: list[str]) -> int:
    exploring = "--explore" in arguments
    names = [a for a in arguments if not a.startswith("--")]
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        # Without a bug nothing is caught, or else nothing below would mean anything.
        place = Path(folder) / "repository"
        copy_with(None, place)
        for means in (SCRIPTS, "chaos 0 1"):
            assert not is_caught(means, place), f"{means} fails without a bug"
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "repository"
            copy_with(mutant, place)
            if exploring:
                print(mutant.name)
                explore(mutant, place)
                continue
            caught = is_caught(mutant.caught_by, place)
            print(f"{mutant.name}: {'caught' if caught else 'MISSED'} {mutant.caught_by}")
            if not caught:
                missed.append(mutant.name)
    if missed:
        print(f"{len(missed)} missed: {', '.join(missed)}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

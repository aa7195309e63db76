"""When a service has converged, and what is shown until then. Pure.

Convergence looks at what the API says, again and again, and answers each time with a Look: the
lines to show, whether it is over, and why it failed if it did. It follows the docker client
(all tasks run, then they are watched for a while) and goes beyond it in one thing: a service that
cannot start is given up with the reason, where the docker client waits for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Document: TypeAlias = Mapping[str, Any]

#: Docker's states of a task in their order; what comes after running is the end of it.
STATES = (
    "new", "allocated", "pending", "assigned", "accepted", "preparing", "ready", "starting",
    "running", "complete", "shutdown", "failed", "rejected", "remove", "orphaned",
)  # fmt: skip
ORDER = {state: number for number, state in enumerate(STATES, 1)}
RUNNING = ORDER["running"]
#: Bars beyond this number tell nobody anything (the docker client draws as many).
BARS_MAX = 20
BAR_CHARACTERS = 50
ERROR_CHARACTERS = 200
MONITOR_SECONDS = 5.0
#: A slot whose tasks failed so often, and that never ran, will not run by itself.
FAILURES_MAX = 3


@dataclass(frozen=True, slots=True)
class Line:
    """*key* stays the same while *text* changes: on a terminal the line is redrawn in place."""

    key: str
    text: str
    is_error: bool = False
    #: Worth a line of its own where nothing can be redrawn.
    is_news: bool = True

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


@dataclass(frozen=True, slots=True)
class Look:
    lines: tuple[Line, ...]
    done: bool = False
    error: str = ""


class Convergence:
    """Mutable: one watcher steps it.

    *old_failures* counts what had failed before the change (count_failures); *wants_rollback*
    says that going back is what was asked for, and no failure.
    """

    def __init__(
        self,
        name: str,
        *,
        old_failures: Mapping[str, int] | None = None,
        wants_rollback: bool = False,
    ) -> None:
        self._name = name
        self._failures = 0
        self._wants_rollback = wants_rollback
        self._old_failures = old_failures or {}
        self._stable_since: float | None = None
        self._was_stable = False

    def step(
        self,
        service: Document,
        tasks: Sequence[Document],
        nodes: Sequence[Document],
        now: float,
    ) -> Look:
        """Look once. *tasks* are those of the current spec; *now* is a monotonic clock."""
        status = service.get("UpdateStatus") or {}
        state, message = status.get("State", ""), status.get("Message", "")
        if state == "paused":
            return Look((), error=f"the update of {self._name} paused: {message}")
        if state == "rollback_paused":
            return Look((), error=f"the rollback of {self._name} paused: {message}")
        rolls_back = state in ("rollback_started", "rollback_completed")
        up = {node["ID"] for node in nodes if node["Status"]["State"] != "down"}
        current = _current(tasks, up, service)
        wanted = _wanted(service, current)
        running = sum(_is_running(task) or _is_finished(task, service) for task in current.values())
        word = "rolling back update: " if rolls_back else ""
        progress = f"{word}{running} out of {wanted} tasks"
        if running > wanted:
            progress = f"{word}{running} tasks run, {wanted} are wanted"
        if _is_global(service) and not current:
            progress = "waiting for new tasks"
        lines = [Line("overall progress", progress)]
        if rolls_back and message:
            lines.append(Line("rollback", message))
        lines += _task_lines(self._name, current, wanted, nodes)
        failures = self._count_new(tasks)
        # A node starts a task again by itself, and between two looks it runs: only the count tells.
        has_failed_since, self._failures = failures > self._failures, failures
        is_stable = running == wanted and not (_is_global(service) and not current)
        if is_stable and not (has_failed_since and self._stable_since is not None):
            return self._verify(service, lines, state, now)
        if self._stable_since is not None:
            lines.append(Line("verify", "Detected task failure", is_error=True))
        self._stable_since = None
        return Look(tuple(lines), error=self._hopeless(service, tasks, current))

    def _verify(self, service: Document, lines: list[Line], state: str, now: float) -> Look:
        if self._stable_since is None:
            self._stable_since = now
        monitor = _monitor(service)
        left = monitor - (now - self._stable_since)
        if left > 0:
            seconds = math.ceil(left)
            news = not self._was_stable
            self._was_stable = True
            text = (
                f"Waiting {seconds} second{'s' * (seconds != 1)} to verify that tasks are stable..."
            )
            return Look((*lines, Line("verify", text, is_news=news)))
        verified = (*lines, Line("verify", f"Service {self._name} converged"))
        if state == "rollback_completed" and not self._wants_rollback:
            reason = (service.get("UpdateStatus") or {}).get("Message", "")
            return Look(verified, done=True, error=f"{self._name} was rolled back: {reason}")
        return Look(verified, done=True)

    def _hopeless(
        self, service: Document, tasks: Sequence[Document], current: Mapping[str, Document]
    ) -> str:
        """Why waiting longer is of no use; "" while there is hope."""
        failures: dict[str, list[Document]] = {}
        for task in tasks:
            if self._new_failures_of(task):
                failures.setdefault(_place(task), []).append(task)
        policy = service["Spec"]["TaskTemplate"].get("RestartPolicy") or {}
        for place, failed in sorted(failures.items()):
            live = current.get(place)
            count = self._count_new(failed)
            if live is not None and _is_running(live) and live not in failed:
                continue
            ends = live is None or ORDER.get(live["Status"]["State"], 0) > RUNNING
            gives_up = policy.get("Condition") == "none" or (
                0 < policy.get("MaxAttempts", 0) < count
            )
            if count >= FAILURES_MAX or (gives_up and ends):
                return self._explain(failed, count, ends and gives_up)
        return ""

    def _new_failures_of(self, task: Document) -> int:
        return _failures_of(task) - self._old_failures.get(task["ID"], 0)

    def _count_new(self, tasks: Sequence[Document]) -> int:
        return sum(self._new_failures_of(task) for task in tasks)

    def _explain(self, failed: Sequence[Document], count: int, for_good: bool) -> str:
        last = max(failed, key=lambda task: str(task["CreatedAt"]))
        slot = last.get("Slot") or last.get("NodeID", "")[:12]
        times = "failed" if count == 1 else f"failed {count} times"
        why = _one_line(last["Status"].get("Err") or last["Status"].get("Message", ""))
        after = (
            "Its restart policy starts it no more"
            if for_good
            else "The swarm goes on trying, but this command waits no longer"
        )
        return (
            f"{self._name}.{slot} {times}: {why}. {after}; see `swarmlet service ps --no-trunc "
            f"{self._name}` and `swarmlet service logs {self._name}`, then correct it with "
            f"`swarmlet service update`, or remove it with `swarmlet service rm {self._name}`"
        )


def count_failures(tasks: Sequence[Document]) -> dict[str, int]:
    """How often each task has failed so far."""
    return {task["ID"]: count for task in tasks if (count := _failures_of(task))}


def _failures_of(task: Document) -> int:
    """Its own end, and the times that its node started it again before that."""
    ended = task["Status"]["State"] in ("failed", "rejected")
    return int(task["Status"].get("Attempt", 0)) + ended


def _current(tasks: Sequence[Document], up: set[str], service: Document) -> dict[str, Document]:
    """The one task that counts in each place: lowest desired state, then lowest observed."""
    chosen: dict[str, Document] = {}
    for task in tasks:
        node = task.get("NodeID", "")
        if node and node not in up:
            continue
        place = _place(task)
        other = chosen.get(place)
        if other is None or _rank(task) < _rank(other):
            chosen[place] = task
    return chosen


def _rank(task: Document) -> tuple[int, int, str]:
    # Of two that have ended the younger one counts, so its creation is taken backwards.
    observed = ORDER.get(task["Status"]["State"], 0)
    age = "".join(chr(0x10FFFF - ord(c)) for c in str(task["CreatedAt"]))
    return (ORDER.get(task["DesiredState"], 0), min(observed, RUNNING + 1), age)


def _place(task: Document) -> str:
    return f"{task['Slot']:09d}" if task.get("Slot") else task.get("NodeID", "")


def _wanted(service: Document, current: Mapping[str, Document]) -> int:
    if _is_global(service):
        return len(current)
    return int(service["Spec"]["Mode"]["Replicated"]["Replicas"])


def _is_global(service: Document) -> bool:
    return "Global" in service["Spec"]["Mode"]


def _is_running(task: Document) -> bool:
    wanted = ORDER.get(task["DesiredState"], 0) <= RUNNING
    return wanted and task["Status"]["State"] == "running"


def _is_finished(task: Document, service: Document) -> bool:
    """It ended well and is not started again: nothing more will come."""
    policy = service["Spec"]["TaskTemplate"].get("RestartPolicy") or {}
    return task["Status"]["State"] == "complete" and policy.get("Condition") in (
        "none",
        "on-failure",
    )


def _monitor(service: Document) -> float:
    config = service["Spec"].get("UpdateConfig") or {}
    return (config.get("Monitor") or 0) / 1e9 or MONITOR_SECONDS


def _task_lines(
    name: str, current: Mapping[str, Document], wanted: int, nodes: Sequence[Document]
) -> list[Line]:
    if wanted > BARS_MAX:
        return []
    hostnames = {node["ID"]: node["Description"]["Hostname"] for node in nodes}
    lines = []
    for number, (_, task) in enumerate(sorted(current.items()), 1):
        place = hostnames.get(task.get("NodeID", ""), "?")
        key = f"{number}/{wanted}" if task.get("Slot") else place
        state = task["Status"]["State"]
        if error := task["Status"].get("Err"):
            lines.append(Line(key, _one_line(error)[:ERROR_CHARACTERS], is_error=True))
        elif ORDER.get(state, 99) <= RUNNING:
            lines.append(Line(key, f"{state:<9} {_bar(ORDER[state])}", is_news=False))
        else:
            lines.append(Line(key, state, is_news=False))
    return lines


def _bar(step: int) -> str:
    filled = BAR_CHARACTERS * step // RUNNING
    if filled >= BAR_CHARACTERS:
        return f"[{'=' * BAR_CHARACTERS}>]"
    return f"[{'=' * filled}>{' ' * (BAR_CHARACTERS - filled)}]"


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())

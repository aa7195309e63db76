"""Convergence: when a create or update is over, and when it is hopeless."""

from __future__ import annotations

from typing import Any

import pytest

from swarmlet.cli.progress import BARS_MAX, FAILURES_MAX, Convergence, Look, count_failures

NODES = [
    {"ID": f"n{n}", "Status": {"State": "ready"}, "Description": {"Hostname": f"h{n}"}}
    for n in (1, 2, 3)
]


def service(replicas: int | None = 2, **changes: Any) -> dict[str, Any]:
    mode: dict[str, Any] = {"Global": {}} if replicas is None else {}
    mode = mode or {"Replicated": {"Replicas": replicas}}
    policy = changes.pop("policy", {"Condition": "any", "MaxAttempts": 0})
    monitor = int(changes.pop("monitor", 5.0) * 1e9)
    spec = {
        "Name": "web",
        "Mode": mode,
        "UpdateConfig": {"Monitor": monitor},
        "TaskTemplate": {"RestartPolicy": policy},
    }
    return {"ID": "s", "Spec": spec, **changes}


def task(
    slot: int, state: str = "running", *, id_: str = "", desired: str = "", error: str = ""
) -> dict[str, Any]:
    ended = state in ("complete", "shutdown", "failed", "rejected")
    status = {"State": state, "Message": "", **({"Err": error} if error else {})}
    return {
        "ID": id_ or f"t{slot}",
        "Slot": slot,
        "NodeID": f"n{slot}",
        "DesiredState": desired or ("shutdown" if ended else "running"),
        "Status": status,
        "CreatedAt": id_ or f"t{slot}",
    }


def texts(look: Look) -> list[str]:
    return [str(line) for line in look.lines]


def test_service_has_converged_when_all_ran_for_the_monitors_time() -> None:
    core = Convergence("web")
    look = core.step(service(), [task(1), task(2, "preparing")], NODES, 0.0)
    assert texts(look)[0] == "overall progress: 1 out of 2 tasks"
    assert not look.done
    look = core.step(service(), [task(1), task(2)], NODES, 1.0)
    assert texts(look)[-1] == "verify: Waiting 5 seconds to verify that tasks are stable..."
    look = core.step(service(), [task(1), task(2)], NODES, 5.9)
    assert (texts(look)[-1], look.done) == (
        "verify: Waiting 1 second to verify that tasks are stable...",
        False,
    )
    look = core.step(service(), [task(1), task(2)], NODES, 6.0)
    assert (texts(look)[-1], look.done, look.error) == (
        "verify: Service web converged",
        True,
        "",
    )


def test_failure_while_watching_starts_the_watch_again() -> None:
    core = Convergence("web")
    both = [task(1), task(2)]
    core.step(service(), both, NODES, 0.0)
    look = core.step(service(), [task(1), task(2, "failed")], NODES, 3.0)
    assert texts(look)[-1] == "verify: Detected task failure"
    assert not core.step(service(), both, NODES, 4.0).done
    assert not core.step(service(), both, NODES, 8.9).done
    assert core.step(service(), both, NODES, 9.0).done


def test_no_replicas_converge_at_once() -> None:
    core = Convergence("web")
    assert not core.step(service(0), [], NODES, 0.0).done
    assert core.step(service(0), [], NODES, 5.0).done


def test_task_on_a_lost_node_does_not_count() -> None:
    nodes = [{**NODES[0]}, {**NODES[1], "Status": {"State": "down"}}]
    look = Convergence("web").step(service(), [task(1), task(2)], nodes, 0.0)
    assert texts(look)[0] == "overall progress: 1 out of 2 tasks"


def test_old_task_of_a_slot_gives_way_to_the_one_that_is_wanted() -> None:
    old = task(1, "running", id_="a", desired="shutdown")
    new = task(1, "starting", id_="b")
    look = Convergence("web").step(service(1), [old, new], NODES, 0.0)
    assert texts(look)[0] == "overall progress: 0 out of 1 tasks"
    assert "1/1: starting" in texts(look)[1]


def test_global_service_waits_for_its_first_tasks() -> None:
    core = Convergence("web")
    assert texts(core.step(service(None), [], NODES, 0.0)) == [
        "overall progress: waiting for new tasks"
    ]
    assert not core.step(service(None), [], NODES, 99.0).done
    tasks = [{**task(n), "Slot": 0} for n in (1, 2, 3)]
    look = core.step(service(None), tasks, NODES, 100.0)
    assert texts(look)[0] == "overall progress: 3 out of 3 tasks"
    assert texts(look)[1].startswith("h1: running")


def test_pending_task_shows_why_and_is_waited_for() -> None:
    core = Convergence("web")
    pending = {**task(1, "pending", error="no suitable node (3 nodes down)"), "NodeID": ""}
    for now in (0.0, 1000.0):
        look = core.step(service(1), [pending], NODES, now)
        assert texts(look)[1] == "1/1: no suitable node (3 nodes down)"
        assert not look.error


def test_slot_that_fails_again_and_again_is_given_up_with_the_reason() -> None:
    core = Convergence("web")
    failed = [
        task(1, "failed", id_=f"t{n}", error="exit code 127: no\x1b such\nfile")
        for n in range(FAILURES_MAX)
    ]
    waiting = task(1, "ready", id_="t9")
    look = core.step(service(1), [*failed[:-1], waiting], NODES, 0.0)
    assert not look.error
    look = core.step(service(1), [*failed, waiting], NODES, 1.0)
    assert look.error.startswith(
        "web.1 failed 3 times: exit code 127: no such file. The swarm goes on trying"
    )
    assert "swarmlet service logs web" in look.error
    # A task that runs in the slot is hope, whatever came before.
    assert not Convergence("web").step(service(1), [*failed, task(1)], NODES, 0.0).error


@pytest.mark.parametrize(
    ("policy", "failures", "gives_up"),
    [
        ({"Condition": "none"}, 1, True),
        ({"Condition": "on-failure", "MaxAttempts": 1}, 1, False),
        ({"Condition": "on-failure", "MaxAttempts": 1}, 2, True),
        ({"Condition": "any"}, 2, False),
    ],
)
def test_restart_policy_that_is_used_up_ends_the_wait(
    policy: dict[str, Any], failures: int, gives_up: bool
) -> None:
    failed = [task(1, "failed", id_=f"t{n}", error="exit code 1") for n in range(failures)]
    look = Convergence("web").step(service(1, policy=policy), failed, NODES, 0.0)
    assert bool(look.error) is gives_up
    if gives_up:
        assert "Its restart policy starts it no more" in look.error


def test_task_that_its_node_starts_again_and_again_never_counts_as_stable() -> None:
    """Between two looks it always runs: only the count of its attempts tells."""

    def attempt(number: int) -> dict[str, Any]:
        looks = task(1)
        looks["Status"] |= {"Attempt": number, "Err": "task: non-zero exit (3)"}
        return looks

    core = Convergence("web")
    assert not core.step(service(1), [attempt(0)], NODES, 0.0).done
    look = core.step(service(1), [attempt(1)], NODES, 4.0)
    assert texts(look)[-1] == "verify: Detected task failure"
    core.step(service(1), [attempt(1)], NODES, 5.0)
    assert not core.step(service(1), [attempt(2)], NODES, 9.0).done
    core.step(service(1), [attempt(2)], NODES, 9.1)
    look = core.step(service(1), [attempt(3)], NODES, 11.0)
    assert look.error.startswith("web.1 failed 3 times: task: non-zero exit (3). The swarm goes on")
    # Attempts of before the change are forgiven, and one that settles down has converged.
    core = Convergence("web", old_failures=count_failures([attempt(3)]))
    core.step(service(1), [attempt(3)], NODES, 0.0)
    assert core.step(service(1), [attempt(3)], NODES, 5.0).done


def test_surplus_tasks_are_told_apart() -> None:
    look = Convergence("web").step(service(1), [task(1), task(2), task(3)], NODES, 0.0)
    assert texts(look)[0] == "overall progress: 3 tasks run, 1 are wanted"


def test_failures_of_before_are_forgiven() -> None:
    failed = [task(1, "failed", id_=f"t{n}") for n in range(FAILURES_MAX)]
    core = Convergence("web", old_failures=count_failures(failed))
    assert not core.step(service(1), failed, NODES, 0.0).error


def test_task_that_ended_well_and_is_not_started_again_is_done() -> None:
    for condition, done in (("none", True), ("on-failure", True), ("any", False)):
        core = Convergence("web")
        policy = {"Condition": condition}
        complete = task(1, "complete")
        core.step(service(1, policy=policy), [complete], NODES, 0.0)
        assert core.step(service(1, policy=policy), [complete], NODES, 9.0).done is done


def test_paused_and_rolled_back_updates_are_failures() -> None:
    def status(state: str) -> dict[str, Any]:
        return {"UpdateStatus": {"State": state, "Message": "task t1 failed"}}

    look = Convergence("web").step(service(**status("paused")), [], NODES, 0.0)
    assert look.error == "the update of web paused: task t1 failed"
    look = Convergence("web").step(service(**status("rollback_paused")), [], NODES, 0.0)
    assert look.error == "the rollback of web paused: task t1 failed"
    both = [task(1), task(2)]
    core = Convergence("web")
    look = core.step(service(**status("rollback_started")), both, NODES, 0.0)
    assert texts(look)[0] == "overall progress: rolling back update: 2 out of 2 tasks"
    look = core.step(service(**status("rollback_completed")), both, NODES, 5.0)
    assert (look.done, look.error) == (True, "web was rolled back: task t1 failed")
    core = Convergence("web", wants_rollback=True)
    core.step(service(**status("rollback_started")), both, NODES, 0.0)
    look = core.step(service(**status("rollback_completed")), both, NODES, 5.0)
    assert (look.done, look.error) == (True, "")


def test_many_tasks_have_no_bars() -> None:
    count = BARS_MAX + 1
    tasks = [{**task(1), "Slot": n, "ID": str(n)} for n in range(1, count + 1)]
    look = Convergence("web").step(service(count), tasks, NODES, 0.0)
    assert len(look.lines) == 2

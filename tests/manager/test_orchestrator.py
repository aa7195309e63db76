"""Orchestrator, updater, scheduler and reaper together, told as stories."""

from __future__ import annotations

import dataclasses
import itertools

from swarmlet.model import (
    Availability,
    Desired,
    FailureAction,
    Global,
    NodeId,
    NodeSpec,
    OfflinePolicy,
    Placement,
    Replicated,
    Resources,
    RestartCondition,
    RestartPolicy,
    Role,
    TaskState,
    UpdateConfig,
    UpdateOrder,
    UpdatePhase,
)
from swarmlet.state import Draft
from tests.manager.world import World, service_spec, with_task


def test_replicas_spread_over_the_nodes() -> None:
    world = World(3)
    web = world.add_service(service_spec(replicas=3))
    world.tick(5)
    assert world.nodes_of(web) == ["n1", "n2", "n3"]


def test_a_settled_cluster_writes_nothing() -> None:
    world = World(3)
    world.add_service(service_spec(replicas=3))
    world.tick(10)
    before = world.changes
    world.tick(3600)
    assert world.changes == before


def test_scaling_down_takes_the_fullest_node_and_forgets_the_task() -> None:
    world = World(2)
    web = world.add_service(service_spec(replicas=3))
    world.tick(5)
    world.update(web, service_spec(replicas=2))
    world.tick(5)
    assert world.nodes_of(web) == ["n1", "n2"]
    assert len(world.tasks(web)) == 2


def test_scaling_down_takes_what_does_not_run_first() -> None:
    world = World(1)
    spec = with_task(service_spec(replicas=3), placement=Placement(max_replicas_per_node=2))
    web = world.add_service(spec)
    world.tick(5)
    running = {task.id for task in world.running(web)}
    world.update(web, dataclasses.replace(spec, mode=Replicated(2)))
    world.tick(3)
    assert {task.id for task in world.tasks(web)} == running


def test_scaling_changes_no_task_that_stays() -> None:
    world = World(3)
    web = world.add_service(service_spec(replicas=2))
    world.tick(5)
    before = {task.id for task in world.running(web)}
    world.update(web, service_spec(replicas=5))
    world.tick(5)
    assert before < {task.id for task in world.running(web)}


def test_a_lost_nodes_tasks_run_elsewhere() -> None:
    world = World(3)
    web = world.add_service(service_spec(replicas=3))
    world.tick(5)
    world.lose("n3")
    world.tick(5)
    assert len(world.nodes_of(web)) == 3
    assert "n3" not in world.nodes_of(web)


def test_a_node_back_before_the_replacement_runs_keeps_its_task() -> None:
    world = World(3, start_ticks=10)
    web = world.add_service(service_spec(replicas=3))
    world.tick(15)
    (mine,) = [task.id for task in world.running(web) if task.node == "n3"]
    world.lose("n3")
    world.tick(3)
    world.find_again("n3")
    world.tick(15)
    assert mine in {task.id for task in world.running(web)}
    assert len(world.running(web)) == 3


def test_a_node_back_after_the_replacement_runs_stops_the_surplus_copy() -> None:
    world = World(3)
    web = world.add_service(service_spec(replicas=3))
    world.tick(5)
    world.lose("n3")
    world.tick(8)
    survivors = {task.id for task in world.running(web)}
    world.find_again("n3")
    world.tick(5)
    assert {task.id for task in world.running(web)} == survivors


def test_a_pinned_service_waits_for_its_node() -> None:
    world = World(3)
    web = world.add_service(dataclasses.replace(service_spec(), offline=OfflinePolicy.PIN))
    world.tick(5)
    before = {task.id for task in world.running(web)}
    world.lose("n3")
    world.tick(600)
    assert len(world.running(web)) == 2
    world.find_again("n3")
    world.tick(2)
    assert {task.id for task in world.running(web)} == before


def test_replacement_waits_for_replace_after() -> None:
    world = World(3)
    web = world.add_service(dataclasses.replace(service_spec(), replace_after=60.0))
    world.tick(5)
    world.lose("n3")
    world.tick(59)
    assert len(world.tasks(web)) == 3
    world.tick(6)
    assert len(world.running(web)) == 3


def test_a_drained_node_loses_its_tasks_one_stopping_before_the_next_starts() -> None:
    world = World(3)
    web = world.add_service(service_spec(replicas=3))
    world.tick(5)
    world.drain("n1")
    world.look()
    (new,) = [t for t in world.tasks(web) if t.desired is Desired.READY]
    (old,) = [t for t in world.tasks(web) if t.node == "n1"]
    assert (old.desired, old.slot) == (Desired.SHUTDOWN, new.slot)
    world.tick(6)
    assert "n1" not in world.nodes_of(web)
    assert len(world.running(web)) == 3


def test_a_paused_node_keeps_its_tasks_and_gets_no_new_ones() -> None:
    world = World(2)
    web = world.add_service(service_spec(replicas=2))
    world.tick(5)
    world.drain("n1", Availability.PAUSE)
    world.update(web, service_spec(replicas=4))
    world.tick(5)
    assert world.nodes_of(web) == ["n1", "n2", "n2", "n2"]


def test_removing_a_service_stops_and_forgets_its_tasks() -> None:
    world = World(2)
    web = world.add_service(service_spec(replicas=2))
    world.tick(5)
    world.remove_service(web)
    world.tick(3)
    assert world.tasks(web) == []


def test_tasks_of_a_removed_node_are_orphaned_and_replaced() -> None:
    world = World(2)
    web = world.add_service(service_spec(replicas=2))
    world.tick(5)
    (mine,) = [task for task in world.running(web) if task.node == "n2"]
    world.silent.add(NodeId("n2"))
    draft = Draft(world.state)
    draft.delete(world.state.nodes[NodeId("n2")])
    assert world.commit(draft.change())
    world.tick(4)
    orphan = world.state.tasks[mine.id].outcome
    assert orphan
    assert orphan.state is TaskState.ORPHANED
    assert world.nodes_of(web) == ["n1", "n1"]


def test_a_failing_task_is_tried_again_later_and_later() -> None:
    world = World(1)
    world.broken.add("busybox:1")
    web = world.add_service(service_spec(replicas=1))
    world.tick(60)
    starts = [task.created_at for task in world.tasks(web)]
    assert 3 <= len(starts) <= 6
    attempts = [task.attempt for task in world.tasks(web)]
    assert attempts == sorted(attempts)
    waits = [task.not_before - task.created_at for task in world.tasks(web)][1:]
    assert waits == sorted(waits)


def test_a_task_that_nodes_reject_goes_to_another_at_once_and_then_waits() -> None:
    world = World(2)
    web = world.add_service(service_spec(replicas=1))
    rejected: list[float] = []
    for _ in range(60):
        world.tick(1)
        for task in world.tasks(web):
            if task.outcome is None and task.node:
                rejected.append(world.now)
                world.observe(task.id, TaskState.REJECTED, error="no such mount")
    waits = [after - before for before, after in itertools.pairwise(rejected)]
    assert waits[:2] == [1, 1]
    assert waits[2] >= 5
    assert waits[3] >= 2 * 5
    assert len(rejected) <= 6


def test_a_task_that_held_is_tried_again_as_if_for_the_first_time() -> None:
    world = World(1)
    web = world.add_service(service_spec(replicas=1))
    for _ in range(5):
        world.tick(400)
        (task,) = world.running(web)
        world.fail(task.id)
    world.tick(8)
    assert world.running(web)


def test_max_attempts_ends_the_tries() -> None:
    world = World(1)
    world.broken.add("busybox:1")
    policy = RestartPolicy(delay=0.0, max_attempts=2)
    web = world.add_service(with_task(service_spec(replicas=1), restart=policy))
    world.tick(60)
    assert [task.attempt for task in world.tasks(web)] == [0, 1, 2]


def test_restart_condition_none_lets_an_ended_task_rest() -> None:
    world = World(1)
    policy = RestartPolicy(condition=RestartCondition.NONE)
    web = world.add_service(with_task(service_spec(replicas=1), restart=policy))
    world.tick(5)
    (task,) = world.running(web)
    world.fail(task.id)
    world.tick(60)
    assert len(world.tasks(web)) == 1


def test_restart_on_failure_leaves_a_completed_task() -> None:
    world = World(1)
    policy = RestartPolicy(condition=RestartCondition.ON_FAILURE, delay=1.0)
    web = world.add_service(with_task(service_spec(replicas=1), restart=policy))
    world.tick(5)
    (task,) = world.running(web)
    world.observe(task.id, TaskState.COMPLETE, exit_code=0)
    world.tick(60)
    assert len(world.tasks(web)) == 1


def test_history_is_kept_short_and_addresses_are_free_again() -> None:
    world = World(1)
    web = world.add_service(with_task(service_spec(replicas=1), restart=RestartPolicy(delay=0.0)))
    for _ in range(20):
        world.tick(6)
        for task in world.running(web):
            world.fail(task.id)
    assert len(world.tasks(web)) <= 6


def test_a_global_service_runs_once_on_each_node_and_on_new_ones() -> None:
    world = World(2)
    web = world.add_service(dataclasses.replace(service_spec(), mode=Global()))
    world.tick(5)
    assert world.nodes_of(web) == ["n1", "n2"]
    world.write(world._node("n3"))
    world.tick(5)
    assert world.nodes_of(web) == ["n1", "n2", "n3"]
    world.drain("n2")
    world.tick(5)
    assert world.nodes_of(web) == ["n1", "n3"]
    world.drain("n2", Availability.ACTIVE)
    world.tick(6)
    assert world.nodes_of(web) == ["n1", "n2", "n3"]


def test_a_global_services_task_survives_the_absence_of_its_node() -> None:
    world = World(2)
    web = world.add_service(dataclasses.replace(service_spec(), mode=Global()))
    world.tick(5)
    before = {task.id for task in world.running(web)}
    world.lose("n2")
    world.tick(60)
    world.find_again("n2")
    world.tick(3)
    assert {task.id for task in world.running(web)} == before


def test_constraints_decide_where_and_moving_a_label_moves_the_task() -> None:
    world = World(3)
    for name, zone in (("n1", "north"), ("n2", "south"), ("n3", "south")):
        world.edit_node(name, spec=NodeSpec(role=Role.WORKER, labels={"zone": zone}))
    placement = Placement(constraints=("node.labels.zone == south",))
    web = world.add_service(with_task(service_spec(replicas=2), placement=placement))
    world.tick(5)
    assert world.nodes_of(web) == ["n2", "n3"]
    world.edit_node("n3", spec=NodeSpec(role=Role.WORKER, labels={"zone": "north"}))
    world.tick(6)
    assert world.nodes_of(web) == ["n2", "n2"]


def test_a_pending_task_says_why() -> None:
    world = World(3)
    world.drain("n2")
    spec = with_task(
        service_spec(replicas=1),
        reservations=Resources(memory_bytes=8 << 30),
        placement=Placement(constraints=("node.hostname != n1",)),
    )
    web = world.add_service(spec)
    world.tick(2)
    (task,) = world.tasks(web)
    seen = world.view.status_of(task)
    assert seen.state is TaskState.PENDING
    assert seen.error == (
        "no suitable node (availability drain on 1 node, constraint node.hostname!=n1 on 1 node, "
        "insufficient memory on 1 node)"
    )


def test_reservations_are_never_exceeded() -> None:
    world = World(2)
    spec = with_task(service_spec(replicas=5), reservations=Resources(memory_bytes=400 << 20))
    web = world.add_service(spec)
    world.tick(5)
    assert world.nodes_of(web) == ["n1", "n1", "n2", "n2"]


def rolling(**config: object) -> UpdateConfig:
    return UpdateConfig(monitor=2.0, **config)  # type: ignore[arg-type]


def test_a_rolling_update_never_misses_more_than_its_parallelism() -> None:
    world = World(3)
    spec = dataclasses.replace(service_spec(replicas=6), update=rolling(parallelism=2))
    web = world.add_service(spec)
    world.tick(6)
    new = dataclasses.replace(service_spec(replicas=6, image="busybox:2"), update=spec.update)
    world.update(web, new)
    least = 6
    for _ in range(60):
        world.tick()
        least = min(least, len(world.running(web)))
    assert least == 4
    assert world.images(web) == ["busybox:2"] * 6
    status = world.state.services[web].update
    assert status
    assert status.phase is UpdatePhase.COMPLETED
    assert not world.state.revisions or len(world.state.revisions) == 1


def test_start_first_never_misses_any() -> None:
    world = World(3)
    config = rolling(order=UpdateOrder.START_FIRST)
    web = world.add_service(dataclasses.replace(service_spec(), update=config))
    world.tick(6)
    world.update(web, dataclasses.replace(service_spec(image="busybox:2"), update=config))
    for _ in range(60):
        world.tick()
        assert len(world.running(web)) >= 3
    assert world.images(web) == ["busybox:2"] * 3


def test_an_update_to_a_broken_image_pauses_and_says_why() -> None:
    world = World(3)
    world.broken.add("busybox:2")
    web = world.add_service(dataclasses.replace(service_spec(), update=rolling()))
    world.tick(6)
    world.update(web, dataclasses.replace(service_spec(image="busybox:2"), update=rolling()))
    world.tick(60)
    status = world.state.services[web].update
    assert status
    assert status.phase is UpdatePhase.PAUSED
    assert "non-zero exit (1)" in status.message
    assert world.images(web) == ["busybox:1"] * 2


def test_any_update_of_a_service_resumes_its_paused_update() -> None:
    world = World(3)
    world.broken.add("busybox:2")
    web = world.add_service(dataclasses.replace(service_spec(), update=rolling()))
    world.tick(6)
    wanted = dataclasses.replace(service_spec(image="busybox:2"), update=rolling())
    world.update(web, wanted)
    world.tick(60)
    world.broken.clear()
    world.update(web, dataclasses.replace(wanted, mode=Replicated(4)))  # a scale is one
    world.tick(60)
    status = world.state.services[web].update
    assert status
    assert status.phase is UpdatePhase.COMPLETED
    assert world.images(web) == ["busybox:2"] * 4


def test_a_node_that_returns_after_a_paused_update_runs_one_task_a_slot() -> None:
    world = World(2)
    world.broken.add("busybox:2")
    web = world.add_service(dataclasses.replace(service_spec(replicas=2), update=rolling()))
    world.tick(6)
    wanted = dataclasses.replace(service_spec(image="busybox:2", replicas=2), update=rolling())
    world.update(web, wanted)
    world.tick(60)
    (old,) = (t for t in world.running(web) if t.spec_version == 1)
    world.drain(next(name for name in world.state.nodes if name != old.node))
    world.lose(old.node)
    world.tick(10)
    assert [t.node for t in world.tasks(web) if t.slot == old.slot] == [old.node, ""]
    world.broken.clear()
    world.find_again(old.node)
    world.tick(60)
    assert sorted(t.slot for t in world.running(web)) == [1, 2]


def test_a_failed_update_rolls_back_by_itself_when_told_so() -> None:
    world = World(3)
    world.broken.add("busybox:2")
    config = rolling(failure_action=FailureAction.ROLLBACK)
    old = dataclasses.replace(service_spec(), update=config, rollback=rolling())
    web = world.add_service(old)
    world.tick(6)
    world.update(web, dataclasses.replace(old, task=service_spec(image="busybox:2").task))
    world.tick(90)
    status = world.state.services[web].update
    assert status
    assert status.phase is UpdatePhase.ROLLBACK_COMPLETED
    assert world.images(web) == ["busybox:1"] * 3


def test_an_update_that_may_fail_goes_on() -> None:
    world = World(3)
    world.broken.add("busybox:2")
    config = rolling(failure_action=FailureAction.CONTINUE)
    web = world.add_service(dataclasses.replace(service_spec(), update=config))
    world.tick(6)
    world.update(web, dataclasses.replace(service_spec(image="busybox:2"), update=config))
    world.tick(60)
    assert world.images(web) == []


def test_a_change_of_scale_forgets_an_update_that_is_over_and_no_other() -> None:
    world = World(3)
    spec = dataclasses.replace(service_spec(replicas=3), update=rolling())
    web = world.add_service(spec)
    world.tick(6)
    new = dataclasses.replace(service_spec(replicas=3, image="busybox:2"), update=rolling())
    world.update(web, new)
    world.tick(3)
    world.update(web, dataclasses.replace(new, mode=Replicated(4)))
    assert world.state.services[web].update, "it is under way: the rest is still to be replaced"
    world.tick(60)
    assert world.images(web) == ["busybox:2"] * 4
    world.update(web, dataclasses.replace(new, mode=Replicated(5)))
    assert world.state.services[web].update is None


def test_force_update_replaces_every_task() -> None:
    world = World(3)
    web = world.add_service(dataclasses.replace(service_spec(), update=rolling()))
    world.tick(6)
    before = {task.id for task in world.running(web)}
    world.update(
        web, with_task(dataclasses.replace(service_spec(), update=rolling()), force_update=1)
    )
    world.tick(60)
    assert before.isdisjoint(task.id for task in world.running(web))
    assert len(world.running(web)) == 3

"""What follows the end of a run, and the daemon's start: Docker's restart policies, as laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.agent.local.lifecycle import (
    PAUSE_MAX,
    PAUSE_MIN,
    STEADY,
    Again,
    Follows,
    Remove,
    Rest,
    Streak,
    after_boot,
    after_exit,
)
from swarmlet.agent.local.records import Restart, RestartPolicy

ALWAYS, UNLESS = RestartPolicy(Restart.ALWAYS), RestartPolicy(Restart.UNLESS_STOPPED)
NO, ON_FAILURE = RestartPolicy(), RestartPolicy(Restart.ON_FAILURE)

policies = st.builds(RestartPolicy, st.sampled_from(Restart), st.integers(0, 5))
pauses = st.just(0.0) | st.floats(PAUSE_MIN, PAUSE_MAX)
streaks = st.builds(Streak, st.integers(0, 1000), pauses)


def ended(
    policy: RestartPolicy,
    streak: Streak = Streak(),  # noqa: B008 (frozen)
    *,
    code: int = 1,
    ran: float = 0.0,
    stopped: bool = False,
    auto_remove: bool = False,
) -> Follows:
    return after_exit(
        policy, streak, code=code, ran_seconds=ran, stopped=stopped, auto_remove=auto_remove
    )


def booted(policy: RestartPolicy, **changes: bool | int) -> Follows:
    facts = {
        "code": 255,
        "restarts": 0,
        "was_running": True,
        "was_started": True,
        "stopped": False,
        "auto_remove": False,
    }
    return after_boot(policy, **(facts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [
        (NO, 1, False),
        (NO, 0, False),
        (ON_FAILURE, 1, True),
        (ON_FAILURE, 0, False),
        (ALWAYS, 0, True),
        (UNLESS, 0, True),
    ],
)
def test_a_policy_says_which_exit_is_followed_by_another_start(
    policy: RestartPolicy, code: int, again: bool
) -> None:
    assert isinstance(ended(policy, code=code), Again) is again


def test_the_pause_doubles_up_to_a_minute_and_a_steady_run_begins_anew() -> None:
    streak, pauses = Streak(), []
    for _ in range(12):
        follows = ended(ALWAYS, streak)
        assert isinstance(follows, Again)
        streak = follows.streak
        pauses.append(streak.pause)
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == PAUSE_MAX
    again = ended(ALWAYS, streak, ran=STEADY)
    assert again == Again(Streak(13, PAUSE_MIN))


def test_on_failure_gives_up_after_so_many_restarts() -> None:
    policy = RestartPolicy(Restart.ON_FAILURE, 3)
    assert isinstance(ended(policy, Streak(2, 0.2)), Again)
    assert ended(policy, Streak(3, 0.4)) == Rest()


@given(policies, streaks, st.integers(0, 255), st.floats(0, 1e6), st.booleans())
def test_what_was_stopped_by_hand_never_starts_by_itself(
    policy: RestartPolicy, streak: Streak, code: int, ran: float, auto_remove: bool
) -> None:
    follows = ended(policy, streak, code=code, ran=ran, stopped=True, auto_remove=auto_remove)
    assert follows == (Remove() if auto_remove else Rest())


@given(policies, streaks, st.integers(0, 255), st.floats(0, 1e6), st.booleans())
def test_a_pause_is_bounded_and_each_restart_is_counted(
    policy: RestartPolicy, streak: Streak, code: int, ran: float, auto_remove: bool
) -> None:
    match ended(policy, streak, code=code, ran=ran, auto_remove=auto_remove):
        case Again(after):
            assert PAUSE_MIN <= after.pause <= PAUSE_MAX
            assert after.restarts == streak.restarts + 1
            if policy.name is Restart.ON_FAILURE and policy.attempts_max:
                assert after.restarts <= policy.attempts_max
        case Remove():
            assert auto_remove
        case Rest():
            assert not auto_remove


def test_after_a_reboot_the_policy_decides_who_comes_back() -> None:
    back = Again(Streak())
    assert booted(ALWAYS) == back
    assert booted(ALWAYS, stopped=True) == back
    assert booted(UNLESS) == back
    assert booted(UNLESS, stopped=True) == Rest()
    assert booted(NO) == Rest()
    assert booted(ON_FAILURE) == Again(Streak(1, PAUSE_MIN))
    assert booted(ON_FAILURE, was_running=False) == Rest()
    assert booted(RestartPolicy(Restart.ON_FAILURE, 2), restarts=2) == Rest()


@given(policies, st.booleans(), st.booleans(), st.integers(0, 255), st.integers(0, 9))
def test_what_never_ran_is_left_alone_and_rm_leaves_nothing(
    policy: RestartPolicy, was_running: bool, stopped: bool, code: int, restarts: int
) -> None:
    facts = {"was_running": was_running, "stopped": stopped, "code": code, "restarts": restarts}
    assert booted(policy, was_started=False, **facts) == Rest()
    assert booted(policy, auto_remove=True, **facts) == Remove()

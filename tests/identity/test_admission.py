"""The matrix of clocks, certificates and store: who gets in, who may renew, who stays out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.identity import (
    Admitted,
    CertificateAuthority,
    KnownNode,
    NodeCertificate,
    Reason,
    Refused,
    Rights,
    Role,
    accept,
    admit,
    admit_unlisted,
    keys_after_renewal,
)
from swarmlet.identity.admission import SKEW
from tests.identity.makers import DAY, NOW, YEAR, Cluster, key_pair

CLUSTER = Cluster()
A, B = key_pair("a"), key_pair("b")
CERTIFICATE = CLUSTER.certificate(A, Role.MANAGER)  # NOW - 1 h to NOW + 90 d
KNOWN = KnownNode(role=Role.MANAGER, public_keys=(A.public_key,))
END = CERTIFICATE.not_after


def ask(
    certificate: NodeCertificate = CERTIFICATE,
    *,
    now: float = NOW,
    floor: float = 0.0,
    known: KnownNode | None = KNOWN,
    renew_within: float | None = None,
) -> Admitted:
    return admit(
        certificate,
        now=now,
        floor=floor,
        known=known,
        trust=CLUSTER.trust,
        cluster=CLUSTER.id,
        renew_within=renew_within,
    )


@pytest.mark.parametrize(
    ("clock", "floor", "rights", "skewed"),
    [
        (NOW, 0.0, Rights.FULL, False),
        (END, 0.0, Rights.FULL, False),
        (END + SKEW, 0.0, Rights.FULL, False),
        (END + SKEW + 1, 0.0, Rights.RENEW_ONLY, False),
        (NOW + 2 * YEAR, 0.0, Rights.RENEW_ONLY, False),  # it was off for two years
        (0.0, 0.0, Rights.FULL, True),  # our clock says 1970
        (0.0, NOW, Rights.FULL, False),  # and we know better
        (0.0, END + SKEW + 1, Rights.RENEW_ONLY, False),
        (NOW - 3600 - SKEW, 0.0, Rights.FULL, False),
        (NOW - 3600 - SKEW - 1, 0.0, Rights.FULL, True),
    ],
)
def test_clock_decides_between_full_rights_and_renewal(
    clock: float, floor: float, rights: Rights, skewed: bool
) -> None:
    assert ask(now=clock, floor=floor) == Admitted(rights, Role.MANAGER, skewed=skewed)


@pytest.mark.parametrize(
    ("certified", "stored", "effective"),
    [
        (Role.MANAGER, Role.MANAGER, Role.MANAGER),
        (Role.MANAGER, Role.WORKER, Role.WORKER),  # demoted: at once
        (Role.WORKER, Role.MANAGER, Role.WORKER),  # promoted: with the next certificate
        (Role.WORKER, Role.WORKER, Role.WORKER),
    ],
)
def test_role_is_the_lesser_of_certificate_and_store(
    certified: Role, stored: Role, effective: Role
) -> None:
    certificate = CLUSTER.certificate(A, certified)
    assert ask(certificate, known=replace(KNOWN, role=stored)).role is effective


@pytest.mark.parametrize(
    ("known", "reason", "advice"),
    [
        (None, Reason.UNKNOWN_NODE, "join with a new token"),
        (replace(KNOWN, revoked=True), Reason.REVOKED, "join with a new token"),
        (
            KnownNode(role=Role.MANAGER, public_keys=(B.public_key,)),
            Reason.UNKNOWN_KEY,
            "a copy of another machine's or an old backup",
        ),
    ],
)
def test_store_refuses(known: KnownNode | None, reason: Reason, advice: str) -> None:
    with pytest.raises(Refused, match=advice) as refusal:
        ask(known=known)
    assert refusal.value.reason is reason
    # An end that lies in the past opens no door that the store has shut.
    with pytest.raises(Refused):
        ask(known=known, now=END + YEAR)


def test_policy_ends_the_right_to_renew() -> None:
    late = END + 30 * DAY
    assert ask(now=late).rights is Rights.RENEW_ONLY
    assert ask(now=late, renew_within=31 * DAY).rights is Rights.RENEW_ONLY
    with pytest.raises(Refused, match="node readmit") as refusal:
        ask(now=late, renew_within=29 * DAY)
    assert refusal.value.reason is Reason.OFFLINE_TOO_LONG


def test_other_cluster_and_other_root_are_foreign() -> None:
    other = Cluster()
    with pytest.raises(Refused, match="belongs to cluster") as refusal:
        ask(other.certificate(A, Role.MANAGER))
    assert refusal.value.reason is Reason.FOREIGN
    # A root that calls itself by our name is not ours.
    impostor = CertificateAuthority.create(CLUSTER.id, now=NOW)
    der = impostor.issue(A.public_key, node=A.node_id, role=Role.MANAGER, now=NOW)
    with pytest.raises(Refused, match="root that signed") as refusal:
        ask(NodeCertificate.from_der_untrusted(der))
    assert refusal.value.reason is Reason.FOREIGN


def test_node_of_a_retired_root_may_renew_and_nothing_else() -> None:
    new = CertificateAuthority.create(CLUSTER.id, now=NOW)
    cross = CLUSTER.authority.cross_sign(new.certificate, now=NOW)
    both = CLUSTER.trust.with_root(new.certificate, crosses=(cross,))
    retired = both.without_root(CLUSTER.authority.certificate, compromised=False)
    burnt = both.without_root(CLUSTER.authority.certificate, compromised=True)

    def rights(trust: object) -> Rights:
        return admit(
            CERTIFICATE,
            now=NOW,
            floor=0.0,
            known=KNOWN,
            trust=trust,  # type: ignore[arg-type]
            cluster=CLUSTER.id,
        ).rights

    assert rights(both) is Rights.FULL
    assert rights(retired) is Rights.RENEW_ONLY
    with pytest.raises(Refused, match="root that signed"):
        rights(burnt)


def test_worker_without_a_list_goes_by_the_certificate() -> None:
    def ask_worker(now: float) -> Admitted:
        return admit_unlisted(
            CERTIFICATE, now=now, floor=0.0, trust=CLUSTER.trust, cluster=CLUSTER.id
        )

    assert ask_worker(NOW) == Admitted(Rights.FULL, Role.MANAGER)
    with pytest.raises(Refused, match="renews by itself") as refusal:
        ask_worker(END + SKEW + 1)
    assert refusal.value.reason is Reason.ENDED


@pytest.mark.parametrize("floor", [0.0, NOW, END])
def test_caller_accepts_a_manager_whatever_its_own_clock_says(floor: float) -> None:
    accept(CERTIFICATE, floor=floor, cluster=CLUSTER.id, node=A.node_id, role=Role.MANAGER)


def test_caller_refuses_an_old_stolen_key() -> None:
    """The floor only rises, so what ended before it has ended for certain."""
    with pytest.raises(Refused, match="ended in the past") as refusal:
        accept(CERTIFICATE, floor=END + 1, cluster=CLUSTER.id)
    assert refusal.value.reason is Reason.ENDED


def test_caller_refuses_another_node_role_or_cluster() -> None:
    with pytest.raises(Refused, match="the address has another owner") as refusal:
        accept(CERTIFICATE, floor=0.0, cluster=CLUSTER.id, node=B.node_id)
    assert refusal.value.reason is Reason.WRONG_NODE
    worker = CLUSTER.certificate(A, Role.WORKER)
    with pytest.raises(Refused, match="give the address of a manager") as refusal:
        accept(worker, floor=0.0, cluster=CLUSTER.id, role=Role.MANAGER)
    assert refusal.value.reason is Reason.WRONG_ROLE
    with pytest.raises(Refused) as refusal:
        accept(CERTIFICATE, floor=0.0, cluster="z" * 26)
    assert refusal.value.reason is Reason.FOREIGN


times = st.floats(0, NOW + 30 * YEAR)


@given(times, times)
def test_a_higher_floor_never_gives_more_rights(clock: float, floor: float) -> None:
    lower, higher = ask(now=clock, floor=0.0), ask(now=clock, floor=floor)
    assert not (lower.rights is Rights.RENEW_ONLY and higher.rights is Rights.FULL)
    assert ask(now=floor, floor=clock) == higher  # only the later of the two counts


@given(times)
def test_a_known_node_can_always_come_back(clock: float) -> None:
    """Whatever our clock says: full rights, or at least the right to renew."""
    assert ask(now=clock).rights in (Rights.FULL, Rights.RENEW_ONLY)


def test_wherever_a_renewal_stops_the_key_on_disk_is_known() -> None:
    """The node may stop before or after its new key became current, and renew again."""
    first, second, third = b"1", b"2", b"3"
    after = keys_after_renewal(asked_with=first, asked_for=second)
    assert {first, second} == set(after)  # stopped before the rename: 1; after: 2
    again = keys_after_renewal(asked_with=first, asked_for=second)  # the answer was lost
    assert again == after
    assert set(keys_after_renewal(asked_with=second, asked_for=third)) == {second, third}
    assert keys_after_renewal(asked_with=second, asked_for=second) == (second,)

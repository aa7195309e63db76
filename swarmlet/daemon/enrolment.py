"""Enrolment: the leader lets nodes join and renew. Other managers send them to it.

A shell around tokens and the CA: verify, write the node into the store and sign, in one change.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable

import trio

from swarmlet.codec import BadMessage
from swarmlet.identity import (
    CertificateAuthority,
    Grant,
    Issued,
    JoinFacts,
    JoinFault,
    JoinPending,
    JoinRefused,
    JoinRequest,
    KeyPair,
    NodeCertificate,
    Token,
    TrustAnswer,
    TrustBundle,
    keys_after_renewal,
    node_id_of,
    verify_token,
)
from swarmlet.identity import Role as CertificateRole
from swarmlet.manager.assignments import managers_of
from swarmlet.manager.leadership import Leadership
from swarmlet.model import Availability, Cluster, Node, NodeFacts, NodeId, NodeSpec, NodeState, Role
from swarmlet.state import Draft
from swarmlet.store import ChangeConflict, NotLeader, OutcomeUnknown, Store
from swarmlet.transport import (
    EndOfStream,
    EnrolmentRefused,
    EnrolmentUnavailable,
    FrameStream,
)

logger = logging.getLogger(__name__)

ATTEMPTS_MAX = 5
#: Seconds that the leader may take over a join that was handed on.
HANDED_ON_PATIENCE = 20.0


def authority_of(cluster: Cluster) -> CertificateAuthority:
    key = KeyPair.from_pem_untrusted(cluster.ca_key)
    return CertificateAuthority(cluster.ca_certificate, key)


def trust_of(cluster: Cluster) -> TrustBundle:
    return TrustBundle(roots=(cluster.ca_certificate,))


class ManagerEnrolment:
    """swarmlet.transport.Enrolment on a manager; *leadership* is None while it does not lead.

    A joiner has one address and need not know which manager leads, so its request is handed on. A
    renewal is not: it counts by the certificate of who asks, and a node knows all managers.
    """

    def __init__(
        self,
        store: Store,
        leadership: Callable[[], Leadership | None],
        dial_leader: Callable[[], Awaitable[FrameStream]],
    ) -> None:
        self._store = store
        self._leadership = leadership
        self._dial_leader = dial_leader

    def trust(self) -> TrustAnswer:
        cluster = self._cluster()
        return TrustAnswer(cluster=cluster.id, bundle=trust_of(cluster))

    async def join(
        self, token: Token, public_key: bytes, request: JoinRequest, address: str
    ) -> Issued | JoinPending | JoinRefused:
        leadership = self._leadership()
        if leadership is None:
            return await self._hand_on(request)
        for _ in range(ATTEMPTS_MAX):
            async with leadership.writing:
                state = leadership.store.state
                cluster = self._cluster()
                node_id = NodeId(node_id_of(public_key))
                existing = state.nodes.get(node_id)
                if existing is not None and public_key in existing.public_keys:
                    # The answer to an earlier try was lost: the same node, no second use.
                    return self._issue(leadership, cluster, existing, public_key)
                grant = verify_token(
                    token,
                    roots=trust_of(cluster).digests(),
                    key=cluster.token_key,
                    generations=_generations(cluster),
                    find_issued=state.join_tokens.get,
                    now=leadership.now(),
                )
                draft = Draft(state)
                node = _new_node(node_id, public_key, request.facts, grant, leadership)
                draft.put(node)
                if grant.issued:
                    row = state.join_tokens[token.id]
                    draft.put(dataclasses.replace(row, uses_left=row.uses_left - 1))
                try:
                    await leadership.commit(draft)
                except ChangeConflict:
                    continue
                except (NotLeader, OutcomeUnknown) as exc:
                    raise EnrolmentUnavailable(f"no quorum of managers: {exc}") from exc
                return self._issue(leadership, cluster, node, public_key)
        raise EnrolmentUnavailable("too many nodes join at once: try again")

    async def renew(self, certificate: NodeCertificate, public_key: bytes) -> Issued:
        leadership = self._leading()
        for _ in range(ATTEMPTS_MAX):
            async with leadership.writing:
                state = leadership.store.state
                node = state.nodes.get(NodeId(certificate.node))
                if node is None:
                    raise EnrolmentRefused(
                        JoinFault.RIGHTS,
                        f"node {certificate.node} is not a member of this cluster: join it again",
                    )
                keys = keys_after_renewal(asked_with=certificate.public_key, asked_for=public_key)
                if keys == node.public_keys:
                    return self._issue(leadership, self._cluster(), node, public_key)
                draft = Draft(state)
                draft.put(dataclasses.replace(node, public_keys=keys, updated_at=leadership.now()))
                try:
                    await leadership.commit(draft)
                except ChangeConflict:
                    continue
                except (NotLeader, OutcomeUnknown) as exc:
                    raise EnrolmentUnavailable(f"no quorum of managers: {exc}") from exc
                return self._issue(leadership, self._cluster(), node, public_key)
        raise EnrolmentUnavailable("the node changes all the time: try again")

    async def _hand_on(self, request: JoinRequest) -> Issued | JoinPending | JoinRefused:
        try:
            with trio.fail_after(HANDED_ON_PATIENCE):
                leader = await self._dial_leader()
                async with leader:
                    await leader.send(request)
                    answer = await leader.receive()
        except (OSError, EndOfStream, BadMessage, trio.TooSlowError) as exc:
            raise EnrolmentUnavailable(
                f"the leader could not be asked ({exc}): try again in a moment"
            ) from exc
        if not isinstance(answer, Issued | JoinPending | JoinRefused):
            raise EnrolmentUnavailable(f"the leader answered with a {type(answer).__name__}")
        return answer

    def _issue(
        self, leadership: Leadership, cluster: Cluster, node: Node, public_key: bytes
    ) -> Issued:
        now = leadership.now()
        certificate = authority_of(cluster).issue(
            public_key,
            node=node.id,
            role=CertificateRole(node.present_role.value),
            now=now,
            lifetime=cluster.spec.certificate_life,
        )
        managers = managers_of(leadership.view)
        return Issued(
            node=node.id,
            chain=(certificate,),
            bundle=trust_of(cluster),
            managers=tuple(f"{m.address}:{m.port}" for m in managers),
            clock=now,
        )

    def _leading(self) -> Leadership:
        leadership = self._leadership()
        if leadership is None:
            raise EnrolmentUnavailable(
                "this manager does not lead just now: ask another manager, or try again"
            )
        return leadership

    def _cluster(self) -> Cluster:
        cluster = self._store.state.cluster
        if cluster is None:
            raise EnrolmentUnavailable("this manager has not caught up yet: ask another one")
        return cluster


def _generations(cluster: Cluster) -> dict[str, int]:
    return {role.value: cluster.token_generation.get(role.value, 1) for role in Role}


def _new_node(
    id_: NodeId, public_key: bytes, facts: JoinFacts, grant: Grant, leadership: Leadership
) -> Node:
    now = leadership.now()
    wanted = facts.facts.get("availability", "")
    known = [availability for availability in Availability if availability.value == wanted]
    host, _, port = facts.address.rpartition(":")
    return Node(
        id=id_,
        spec=NodeSpec(
            role=Role(grant.role.value),
            labels=dict(grant.labels),
            availability=known[0] if known else Availability.ACTIVE,
        ),
        facts=NodeFacts(
            hostname=facts.name,
            address=host,
            port=int(port) if port.isdigit() else 0,
            engine_version=facts.version,
        ),
        public_keys=(public_key,),
        state=NodeState.DOWN,  # until its session opens
        state_since=now,
        created_at=now,
        updated_at=now,
    )

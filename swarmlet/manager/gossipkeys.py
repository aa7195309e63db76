"""The group keys of gossip: how a new one takes the place of the old one without a gap.

Pure. A rotation is three steps in the log, each waiting until the nodes have made the one before
their own; so at any moment every node can open what any other seals.

    hand out    current, next            all seal with current, and can open next
    switch      current, next            all seal with next; what is under way still opens
    retire      current, next, new       one rotation later: the oldest goes with the next switch

A node that was removed knows the keys. Then the same steps follow each other at once, with little
patience for whoever does not answer, and every key that the removed node knows goes at the end.

A node that was away for it (cut off from the managers, switched off) hears gossip that it cannot
open, and gets the keys with its next session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from swarmlet.manager.view import View
from swarmlet.model import Cluster, GossipKey, NodeState

KEY_BYTES = 32
#: Previous, current, next: what swim's Keyring holds.
KEYS_MAX = 3
#: Seconds that a step waits for nodes that are READY and have not acknowledged the one before.
#: swarmkit waits for none, DISTRIBUTED B2 says two minutes. A node that only the managers cannot
#: hear is READY, too, and would lose its neighbours: nothing presses, so it gets longer.
PATIENCE = 600.0
#: The same while somebody who was removed knows the keys.
PATIENCE_REVOKED = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """*cluster*: what the record is to be; None: nothing to do before *wake_at*, if that is given.

    A change of the state or of an acknowledgement may bring the next step earlier.
    """

    cluster: Cluster | None = None
    wake_at: float | None = None
    did: str = ""


def next_step(view: View, new_key: Callable[[], bytes]) -> Step:
    """Return the step that is due, one at a time."""
    cluster = view.state.cluster
    if cluster is None or not cluster.gossip_keys:
        return Step()
    newest = cluster.gossip_keys[-1].epoch
    if newest != cluster.gossip_epoch:
        return _when_known(view, cluster, _switched(cluster, view.now), "switched")
    if cluster.gossip_keys[0].epoch < cluster.gossip_revoked:
        return _when_known(view, cluster, _retired(cluster, view.now), "retired")
    life = cluster.spec.gossip_key_life
    if not life:
        return Step()
    due = cluster.gossip_keys[-1].made_at + life
    if view.now < due:
        return Step(wake_at=due)
    return Step(rotated(cluster, view.now, new_key), did="handed out")


def rotated(cluster: Cluster, now: float, new_key: Callable[[], bytes]) -> Cluster:
    """Begin a rotation; *cluster* as it is when one is under way."""
    if cluster.gossip_keys and cluster.gossip_keys[-1].epoch != cluster.gossip_epoch:
        return cluster
    return _with_next(cluster, now, new_key)


def revoked(cluster: Cluster, now: float, new_key: Callable[[], bytes]) -> Cluster:
    """Begin the end of all keys so far: somebody knows them who is to be no member any more."""
    # A next key that is being handed out goes: nobody has sealed with it yet.
    used = tuple(key for key in cluster.gossip_keys if key.epoch <= cluster.gossip_epoch)
    changed = _with_next(dataclasses.replace(cluster, gossip_keys=used), now, new_key, cluster)
    return dataclasses.replace(changed, gossip_revoked=changed.gossip_keys[-1].epoch)


def first_key(now: float, new_key: Callable[[], bytes]) -> GossipKey:
    return GossipKey(epoch=1, key=new_key(), made_at=now)


def _with_next(
    cluster: Cluster, now: float, new_key: Callable[[], bytes], known: Cluster | None = None
) -> Cluster:
    """Put a key behind those of *cluster*, with an epoch above all that *known* has."""
    epochs = [key.epoch for key in (known or cluster).gossip_keys]
    fresh = GossipKey(epoch=max(epochs, default=0) + 1, key=new_key(), made_at=now)
    older = cluster.gossip_keys[-(KEYS_MAX - 1) :]
    return dataclasses.replace(cluster, gossip_keys=(*older, fresh), gossip_step_at=now)


def _switched(cluster: Cluster, now: float) -> Cluster:
    return dataclasses.replace(
        cluster,
        # The one before the last was sealed with until now; an older one by nobody.
        gossip_keys=cluster.gossip_keys[-2:],
        gossip_epoch=cluster.gossip_keys[-1].epoch,
        gossip_step_at=now,
    )


def _retired(cluster: Cluster, now: float) -> Cluster:
    keys = tuple(key for key in cluster.gossip_keys if key.epoch >= cluster.gossip_revoked)
    return dataclasses.replace(cluster, gossip_keys=keys, gossip_step_at=now)


def _when_known(view: View, cluster: Cluster, changed: Cluster, did: str) -> Step:
    """Return the step to *changed* if every node has what the record says now."""
    is_urgent = cluster.gossip_keys[0].epoch < cluster.gossip_revoked
    until = cluster.gossip_step_at + (PATIENCE_REVOKED if is_urgent else PATIENCE)
    if view.now < until and not _all_know(view, cluster):
        return Step(wake_at=until)
    return Step(dataclasses.replace(changed, updated_at=view.now), did=did)


def _all_know(view: View, cluster: Cluster) -> bool:
    return all(
        view.acknowledged.get(node.id, 0) >= cluster.version
        for node in view.state.nodes.values()
        if node.state is NodeState.READY
    )

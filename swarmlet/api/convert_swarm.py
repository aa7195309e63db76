"""The swarm itself: init and join requests, its settings, and its record as JSON.

Pure.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from swarmlet.api.backend import InitRequest, JoinRequest
from swarmlet.api.fields import Fields, nanoseconds, timestamp
from swarmlet.model import Availability, Cluster, ClusterSpec
from swarmlet.model.validation import SpecError

#: What the docker client sends when no address was given: the daemon's own choice holds.
LISTEN_DEFAULTS = ("", "0.0.0.0:2377", "0.0.0.0")
#: Docker's settings of its Raft. Ours has others, so these cannot be changed and are only shown.
RAFT = {
    "SnapshotInterval": 10000,
    "KeepOldSnapshots": 0,
    "LogEntriesForSlowFollowers": 500,
    "ElectionTick": 10,
    "HeartbeatTick": 1,
}
ADDRESSES_MAX = 16


def read_init(body: Any) -> InitRequest:
    """Raises SpecError."""
    fields = Fields(body)
    listen = fields.text("ListenAddr")
    request = InitRequest(
        advertise=fields.text("AdvertiseAddr"),
        listen="" if listen in LISTEN_DEFAULTS else listen,
        data_path_port=_port(fields, "DataPathPort"),
        availability=fields.choice("Availability", Availability, Availability.ACTIVE),
        spec=_read_init_spec(fields),
    )
    fields.refuse("DataPathAddr", "one address carries all traffic here; leave it out")
    fields.refuse("ForceNewCluster", "recovery from a lost quorum is not built yet")
    fields.refuse("AutoLockManagers", "autolock is not built yet; leave it out")
    fields.done()
    return request


def _read_init_spec(fields: Fields) -> ClusterSpec:
    given = fields.child("Spec")
    spec = ClusterSpec() if given is None else _read_spec(given, ClusterSpec())
    pools, bits = fields.texts("DefaultAddrPool"), fields.integer("SubnetSize", least=0)
    return dataclasses.replace(
        spec, pools=pools or spec.pools, subnet_bits=bits or spec.subnet_bits
    )


def read_join(body: Any) -> JoinRequest:
    """Raises SpecError."""
    fields = Fields(body)
    listen = fields.text("ListenAddr")
    request = JoinRequest(
        addresses=fields.texts("RemoteAddrs"),
        token=fields.text("JoinToken"),
        advertise=fields.text("AdvertiseAddr"),
        listen="" if listen in LISTEN_DEFAULTS else listen,
        availability=fields.choice("Availability", Availability, Availability.ACTIVE),
    )
    fields.refuse("DataPathAddr", "one address carries all traffic here; leave it out")
    fields.done()
    if not request.addresses:
        raise SpecError("RemoteAddrs", "give the address of a manager, such as 10.0.0.1")
    if len(request.addresses) > ADDRESSES_MAX:
        raise SpecError("RemoteAddrs", f"more than {ADDRESSES_MAX} addresses")
    if not request.token:
        raise SpecError("JoinToken", "is missing; a manager shows it: swarmlet token worker")
    return request


def read_cluster_spec(body: Any, current: ClusterSpec) -> ClusterSpec:
    """Return the settings that *body* asks for; what it leaves out stays. Raises SpecError."""
    return _read_spec(Fields(body), current)


def _read_spec(fields: Fields, current: ClusterSpec) -> ClusterSpec:
    name = fields.text("Name", "default")
    if name not in ("", "default"):
        raise SpecError(fields.at("Name"), f"{name!r}: a cluster's name is always 'default'")
    changes: dict[str, Any] = {}
    if fields.has("Labels"):
        changes["labels"] = fields.text_map("Labels")
    if (orchestration := fields.child("Orchestration")) is not None:
        limit = orchestration.integer("TaskHistoryRetentionLimit", current.task_history, least=0)
        changes["task_history"] = limit
        orchestration.done()
    if (dispatcher := fields.child("Dispatcher")) is not None:
        changes["heartbeat"] = dispatcher.seconds("HeartbeatPeriod") or current.heartbeat
        dispatcher.done()
    if (authority := fields.child("CAConfig")) is not None:
        life = authority.seconds("NodeCertExpiry") or current.certificate_life
        changes["certificate_life"] = life
        for option in ("ExternalCAs", "SigningCACert", "SigningCAKey", "ForceRotate"):
            authority.refuse(option, "changing the certificate authority is not built yet")
        authority.done()
    if (raft := fields.child("Raft")) is not None:
        for option, shown in RAFT.items():
            if raft.integer(option, shown) not in (0, shown):
                raise SpecError(raft.at(option), "cannot be set here; leave it out")
        raft.done()
    if (defaults := fields.child("TaskDefaults")) is not None:
        defaults.refuse("LogDriver", "not built yet; give --log-driver with each service")
        defaults.done()
    if (encryption := fields.child("EncryptionConfig")) is not None:
        encryption.refuse("AutoLockManagers", "autolock is not built yet; leave it out")
        encryption.done()
    if (extension := fields.child("Swarmlet")) is not None:
        changes["gossip_preset"] = extension.text("GossipPreset", current.gossip_preset)
        changes["gossip_key_life"] = extension.seconds("GossipKeyLife", current.gossip_key_life)
        if extension.has("GossipKnobs"):
            changes["gossip_knobs"] = extension.text_map("GossipKnobs")
        extension.done()
    fields.done()
    return dataclasses.replace(current, **changes)


def write_cluster_spec(spec: ClusterSpec) -> dict[str, Any]:
    return {
        "Name": "default",
        "Labels": dict(spec.labels),
        "Orchestration": {"TaskHistoryRetentionLimit": spec.task_history},
        "Raft": dict(RAFT),
        "Dispatcher": {"HeartbeatPeriod": nanoseconds(spec.heartbeat)},
        "CAConfig": {"NodeCertExpiry": nanoseconds(spec.certificate_life)},
        "TaskDefaults": {},
        "EncryptionConfig": {"AutoLockManagers": False},
        "Swarmlet": {
            "GossipPreset": spec.gossip_preset,
            "GossipKnobs": dict(spec.gossip_knobs),
            "GossipKeyLife": nanoseconds(spec.gossip_key_life),
        },
    }


def write_cluster(cluster: Cluster) -> dict[str, Any]:
    """What all may see: no key, no token."""
    return {
        "ID": cluster.id,
        "Version": {"Index": cluster.version},
        "CreatedAt": timestamp(cluster.created_at),
        "UpdatedAt": timestamp(cluster.updated_at),
        "Spec": write_cluster_spec(cluster.spec),
        "TLSInfo": {"TrustRoot": cluster.ca_certificate.decode("ascii", "replace")},
        "RootRotationInProgress": False,
        "DefaultAddrPool": list(cluster.spec.pools),
        "SubnetSize": cluster.spec.subnet_bits,
        "DataPathPort": cluster.data_path_port,
    }


def _port(fields: Fields, name: str) -> int:
    port = fields.integer(name, least=0)
    if port > 65_535:
        raise SpecError(fields.at(name), f"{port} is no port")
    return port

"""Nodes: Docker's JSON to a NodeSpec, and the record of a Node as JSON.

Pure.
"""

from __future__ import annotations

from typing import Any

from swarmlet.api.fields import Fields, timestamp
from swarmlet.manager.view import View
from swarmlet.model import Availability, Connection, Node, NodeId, NodeSpec, NodeState, Role
from swarmlet.model.validation import SpecError

#: OCI's names of architectures to uname's, which Docker shows for nodes.
MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "arm": "armv7l", "386": "i686"}


def read_node_spec(body: Any) -> NodeSpec:
    """Raises SpecError with the path to the first field that cannot be."""
    fields = Fields(body)
    role = fields.text("Role")
    if role not in set(Role):
        raise SpecError("Role", f"{role!r} is not worker or manager")
    spec = NodeSpec(
        role=Role(role),
        name=fields.text("Name"),
        labels=fields.text_map("Labels"),
        availability=fields.choice("Availability", Availability, Availability.ACTIVE),
    )
    fields.done()
    return spec


def write_node_spec(spec: NodeSpec) -> dict[str, Any]:
    named = {"Name": spec.name} if spec.name else {}
    return {
        **named,
        "Labels": dict(spec.labels),
        "Role": str(spec.role),
        "Availability": str(spec.availability),
    }


def write_node(node: Node, view: View, leader: NodeId) -> dict[str, Any]:
    facts = node.facts
    document: dict[str, Any] = {
        "ID": node.id,
        "Version": {"Index": node.version},
        "CreatedAt": timestamp(node.created_at),
        "UpdatedAt": timestamp(node.updated_at),
        "Spec": write_node_spec(node.spec),
        "Description": {
            "Hostname": facts.hostname,
            "Platform": {
                "Architecture": MACHINES.get(facts.architecture, facts.architecture),
                "OS": facts.os,
            },
            "Resources": {"NanoCPUs": facts.nano_cpus, "MemoryBytes": facts.memory_bytes},
            "Engine": {
                "EngineVersion": facts.engine_version,
                "Labels": dict(facts.engine_labels),
            },
            "TLSInfo": {},
        },
        "Status": {"State": node_state(node, view), "Addr": facts.address},
    }
    if node.role is Role.MANAGER:
        document["ManagerStatus"] = _write_manager(node, view, leader)
    return document


def node_state(node: Node, view: View) -> str:
    """Docker's four words: ready, down, disconnected, unknown."""
    if node.state is NodeState.DOWN:
        return "down"
    return str(view.connections.get(node.id, Connection.UNKNOWN))


def node_name(node: Node | None, fallback: NodeId) -> str:
    if node is None:
        return fallback
    return node.facts.hostname or node.spec.name or node.id


def _write_manager(node: Node, view: View, leader: NodeId) -> dict[str, Any]:
    state = node_state(node, view)
    reachability = {"ready": "reachable", "unknown": "unknown"}.get(state, "unreachable")
    status: dict[str, Any] = {
        "Reachability": "reachable" if node.id == leader else reachability,
        "Addr": f"{node.facts.address}:{node.facts.port}",
    }
    if node.id == leader:
        status["Leader"] = True
    return status

"""Whether a node may run a task of a template: constraints, availability, platform.

Pure. What depends on the other tasks (resources, ports, spreading) is the scheduler's.
"""

from __future__ import annotations

import fnmatch
import functools
import ipaddress
from dataclasses import dataclass

from swarmlet.model import Availability, Node, NodeState, TaskTemplate
from swarmlet.model.validation import CONSTRAINT


@dataclass(frozen=True, slots=True)
class Constraint:
    key: str
    wanted: bool  # == or !=
    value: str
    text: str


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Constraint:
    match = CONSTRAINT.match(text)
    assert match, f"{text!r} passed validation but is no constraint"
    key, operator, value = match.groups()
    return Constraint(key, operator == "==", value, f"{key}{operator}{value}")


def is_met(constraint: Constraint, node: Node) -> bool:
    """Docker's rules: a label that is missing equals nothing; values compare without case."""
    key = constraint.key
    if key == "node.ip":
        return _address_matches(constraint.value, node.facts.address) is constraint.wanted
    value = attribute(node, key)
    matches = value is not None and fnmatch.fnmatchcase(value.lower(), constraint.value.lower())
    return matches is constraint.wanted


def attribute(node: Node, key: str) -> str | None:
    """The value of *key* (node.labels.x, node.hostname, ...) on *node*; None without one."""
    match key.split(".", 2):
        case ["node", "id"]:
            return node.id
        case ["node", "hostname"]:
            return node.facts.hostname
        case ["node", "role"]:
            return node.role.value
        case ["node", "platform", "os"]:
            return node.facts.os
        case ["node", "platform", "arch"]:
            return node.facts.architecture
        case ["node", "labels", name]:
            return node.spec.labels.get(name)
        case ["engine", "labels", name]:
            return node.facts.engine_labels.get(name)
    return None


def _address_matches(pattern: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return False


def unmet_constraint(template: TaskTemplate, node: Node) -> Constraint | None:
    """The first constraint of *template* that *node* does not meet."""
    for text in template.placement.constraints:
        constraint = parse(text)
        if not is_met(constraint, node):
            return constraint
    return None


def may_keep(template: TaskTemplate, node: Node) -> bool:
    """Whether a task that is on *node* may stay there."""
    return node.spec.availability is not Availability.DRAIN and not unmet_constraint(template, node)


def may_start(template: TaskTemplate, node: Node) -> bool:
    """Whether *node* may be given a new task, its free resources aside."""
    return (
        node.state is NodeState.READY
        and node.spec.availability is Availability.ACTIVE
        and not unmet_constraint(template, node)
    )

"""The difference between the wanted and the actual kernel, as ordered operations. Pure."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import TypeAlias

from overlay.resources import (
    BUILD_ORDER,
    NEVER_DELETED,
    REPLACED_IN_PLACE,
    Bridge,
    Key,
    Namespace,
    Resource,
    Sysctl,
    Veth,
    Vxlan,
)

_POSITION = {kind: position for position, kind in enumerate(BUILD_ORDER)}
_LINKS = (Bridge, Vxlan, Veth)


@dataclass(frozen=True, slots=True)
class Create:
    """Make it so: create the resource, or set it where it exists with another value."""

    resource: Resource


@dataclass(frozen=True, slots=True)
class Delete:
    resource: Resource


Operation: TypeAlias = Create | Delete


def plan(desired: Set[Resource], actual: Set[Resource]) -> list[Operation]:
    """Return the operations that turn *actual* into *desired*; none when they agree.

    What is stale goes first, in reverse order of building. What goes with something larger
    (addresses with their link, rules with their namespace) is not deleted by itself.
    """
    missing = desired - actual
    replaced = {resource.key for resource in missing if isinstance(resource, REPLACED_IN_PLACE)}
    stale = [
        resource
        for resource in actual - desired
        if not isinstance(resource, NEVER_DELETED) and resource.key not in replaced
    ]
    gone = {resource.key for resource in stale if isinstance(resource, (Namespace, *_LINKS))}
    deletions = [resource for resource in stale if not _goes_with_another(resource, gone)]
    return [
        *(Delete(r) for r in sorted(deletions, key=_position, reverse=True)),
        *(Create(r) for r in sorted(missing, key=_position)),
    ]


def _goes_with_another(resource: Resource, gone: set[Key]) -> bool:
    """Whether the kernel drops *resource* because what it stands on is deleted.

    Links are deleted even when their namespace is: the namespace may live on in a process,
    and a VNI is free for its next user only when its device is gone.
    """
    if isinstance(resource, (Namespace, *_LINKS)):
        return False
    if ("namespace", resource.namespace) in gone:
        return True
    link = getattr(resource, "link", None)
    return link is not None and ("link", resource.namespace, link) in gone


def _position(resource: Resource) -> tuple[int, bool, str, str]:
    # The sysctls of one interface can be set when it is there, and before it is up.
    late = isinstance(resource, Sysctl) and bool(resource.link)
    kind = Veth if late else type(resource)
    return _POSITION[kind], late, resource.namespace, repr(resource.key)

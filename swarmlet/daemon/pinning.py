"""A tag becomes a digest once, when a service is created: by this node, the cluster, a registry.

The cluster's own stores come first, so no node ever needs a registry that is away.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from swarmlet.images.errors import BadReference, ImageError, ImageNotFound
from swarmlet.images.reference import Reference, parse_reference
from swarmlet.images.store import ImageStore
from swarmlet.manager.errors import ControlError
from swarmlet.manager.leadership import Leadership
from swarmlet.model import NodeId
from swarmlet.model.validation import SpecError

IMAGE_PATH = "task_template.container_spec.image"


#: Seconds that a registry has to say what a tag means.
REGISTRY_PATIENCE = 10.0


class NoSuchImage(ControlError):
    status = 404


class ImagePinner:
    def __init__(self, store: ImageStore, leadership: Callable[[], Leadership | None]) -> None:
        self._store = store
        self._leadership = leadership

    async def pin(self, image: str) -> str:
        """Return *image* with its digest.

        Raises:
            SpecError: it is no name of an image.
            ControlError: nobody has it; the text says what to do.
        """
        try:
            reference = parse_reference(image)
        except BadReference as exc:
            raise SpecError(IMAGE_PATH, str(exc)) from exc
        if reference.digest is not None:
            return reference.familiar
        digest = self._here(image) or self._elsewhere(reference)
        if digest is None:
            digest = await self._at_the_registry(reference)
        return f"{reference.tagged.familiar}@{digest}"

    async def _at_the_registry(self, reference: Reference) -> str:
        # Imported late: most clusters at the edge never speak to a registry.
        from swarmlet.images.registry import Registry

        reason = f"its registry did not answer in {REGISTRY_PATIENCE:g} s"
        with trio.move_on_after(REGISTRY_PATIENCE):
            try:
                async with Registry(reference) as registry:
                    return (await registry.resolve()).digest
            except (ImageError, OSError) as exc:
                reason = str(exc)
        raise NoSuchImage(
            f"image {reference.familiar}: no node of this cluster has it, and its registry does "
            f"not give it ({reason}). Load it on any node with `swarmlet image load` or "
            "`swarmlet image import`, or correct the name"
        )

    def _here(self, image: str) -> str | None:
        try:
            return self._store.resolve(image).digest
        except ImageNotFound:
            return None
        except ImageError as exc:
            raise ControlError(str(exc)) from exc

    def _elsewhere(self, reference: Reference) -> str | None:
        leadership = self._leadership()
        if leadership is None:
            return None
        name = reference.tagged.familiar
        found = leadership.observations.digests_named(name) or _used_by_services(leadership, name)
        if len(found) > 1:
            where = "; ".join(
                f"{digest[:19]} on {len(nodes)} node(s)" for digest, nodes in found.items()
            )
            raise ControlError(
                f"image {reference.familiar} means different images on different nodes ({where}): "
                "name one by its digest, or load the right one on this manager"
            )
        return next(iter(found), None)


def _used_by_services(leadership: Leadership, name: str) -> dict[str, list[NodeId]]:
    """What *name* means to services that run already, where a node still has it.

    The node on which it was loaded may be gone; those that run it have its content by digest.
    """
    holders = leadership.observations.holders
    found: dict[str, list[NodeId]] = {}
    for service in leadership.store.state.services.values():
        tagged, _, digest = service.spec.task.container.image.partition("@")
        if tagged == name and digest in holders:
            found[digest] = sorted(holders[digest])
    return found

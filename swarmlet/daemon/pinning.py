"""A tag becomes a digest once, when a service is created: by this node, the cluster, a registry.

The cluster's own stores come first, so no node ever needs a registry that is away.
"""

from __future__ import annotations

from collections.abc import Callable

from swarmlet.images.errors import BadReference, ImageError, ImageNotFound
from swarmlet.images.reference import Reference, parse_reference
from swarmlet.images.store import ImageStore
from swarmlet.manager.errors import ControlError, NotFound
from swarmlet.manager.leadership import Leadership
from swarmlet.model import NodeId
from swarmlet.model.validation import SpecError

IMAGE_PATH = "task_template.container_spec.image"


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
            raise NotFound(
                "image",
                f"{reference.familiar}: no node of this cluster has it. Load it on any node "
                "(`swarmlet image load` or `swarmlet image import`), or correct the name; it was",
            )
        return f"{reference.tagged.familiar}@{digest}"

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

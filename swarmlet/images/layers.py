"""Unpacked layers by chain id, each a lower directory for overlayfs.

Sync: call it in a worker thread, but for `find`, which touches no disk.

    layers/NAME/fs          the directory; NAME is the first half of the chain id (the mount options
                            of a deep image must fit into one page of 4096 bytes)
    layers/NAME/layer.json  what it is, and in which boot of the kernel it was unpacked
    layers/NAME/settled     there when all of it is known to be on the disk
    layers/new-…, old-…     coming and going; thrown away at the next start

Unpacking ends with one rename, so a crash of the daemon leaves nothing half done. A power cut is
another matter: the rename may be on the disk when the files are not. To wait for the disk would
make the first start on a new node wait too (an SD card writes 10 MB/s), so a layer is used at once
and settled later by one syncfs for all; a layer that is not settled in a boot that did not unpack
it is thrown away and unpacked again from its blob.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmlet.images.document import read_document
from swarmlet.images.errors import BadManifest, DigestMismatch
from swarmlet.images.files import boot_id, sync_file_system
from swarmlet.images.placing import Limits
from swarmlet.images.reference import Digest, is_digest
from swarmlet.images.unpack import Readable, remove_tree, unpack_layer

logger = logging.getLogger(__name__)

FORMAT = 1
#: Hex digits of a chain id in a directory's name: 128 bits.
NAME_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Layer:
    """An unpacked layer: *path* is the lower directory, *size* the bytes of its files."""

    chain_id: Digest
    path: Path
    size: int
    entries: int


class Layers:
    def __init__(self, root: Path, limits: Limits, *, boot: str | None = None) -> None:
        self._folder = root / "layers"
        self._limits = limits
        self._boot = boot or boot_id()
        self._lock = threading.Lock()
        self._layers: dict[Digest, Layer] = {}
        self._unsettled: set[Digest] = set()
        self._names = itertools.count()

    def recover(self) -> None:
        """Throw away what a crash or a power cut left, and learn what is here."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in sorted(self._folder.iterdir()):
            layer, boot = _read_layer(folder)
            settled = (folder / "settled").exists()
            if layer is None or not (settled or boot == self._boot):
                if not folder.name.startswith(("new-", "old-")):
                    logger.warning("image layer dropped name=%s reason=unsettled", folder.name)
                remove_tree(folder)
                continue
            self._layers[layer.chain_id] = layer
            if not settled:
                self._unsettled.add(layer.chain_id)

    def find(self, chain_id: Digest) -> Layer | None:
        return self._layers.get(chain_id)

    def unpack(
        self,
        source: Readable,
        chain_id: Digest,
        diff_id: Digest,
        parents: Sequence[Path],
        pulse: Callable[[], None],
    ) -> Layer:
        """Unpack the blob *source*; *parents* are the layers below, topmost first.

        The caller sees to it that no two unpack the same chain id at once.

        Raises:
            BadLayer, NoSpace: As unpack_layer.
            DigestMismatch: The tar is not what the image's configuration promised.
        """
        work = self._folder / f"new-{os.getpid()}-{next(self._names)}"
        try:
            (work / "fs").mkdir(parents=True, mode=0o755)
            os.chmod(work / "fs", 0o755)  # mkdir heeds the umask
            facts = unpack_layer(source, work / "fs", parents, self._limits, pulse)
            if facts.diff_id != diff_id:
                raise DigestMismatch(
                    f"a layer unpacks to {facts.diff_id}, but its image promised {diff_id}"
                )
            layer = Layer(chain_id, self._path(chain_id) / "fs", facts.size, facts.entries)
            document: dict[str, Any] = {
                "version": FORMAT,
                "chain_id": chain_id,
                "size": facts.size,
                "entries": facts.entries,
                "boot": self._boot,
            }
            (work / "layer.json").write_text(json.dumps(document))
            with self._lock:
                os.rename(work, self._path(chain_id))
                self._layers[chain_id] = layer
                self._unsettled.add(chain_id)
        except BaseException:
            remove_tree(work)
            raise
        logger.info(
            "image layer unpacked chain=%s entries=%d bytes=%d left_out=%d",
            chain_id[:19],
            facts.entries,
            facts.size,
            facts.left_out,
        )
        return layer

    @property
    def total_bytes(self) -> int:
        return sum(layer.size for layer in self._layers.values())

    @property
    def is_settled(self) -> bool:
        return not self._unsettled

    def settle(self) -> None:
        """Make all layers durable that were unpacked before this call."""
        with self._lock:
            waiting = [self._layers[chain_id] for chain_id in self._unsettled]
        if not waiting:
            return
        sync_file_system(self._folder)
        for layer in waiting:
            # A layer that was discarded meanwhile has no folder any more.
            with self._lock, contextlib.suppress(FileNotFoundError):
                if layer.chain_id in self._layers:
                    (layer.path.parent / "settled").touch(mode=0o600)
                self._unsettled.discard(layer.chain_id)

    def discard(self, keep: Collection[Digest]) -> tuple[list[Path], int]:
        """Take all layers but *keep* out of use; return what is left to remove, and its bytes."""
        doomed, freed = [], 0
        with self._lock:
            for chain_id in self._layers.keys() - set(keep):
                layer = self._layers.pop(chain_id)
                self._unsettled.discard(chain_id)
                path = self._folder / f"old-{os.getpid()}-{next(self._names)}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(layer.path.parent, path)
                    doomed.append(path)
                    freed += layer.size
        return doomed, freed

    def _path(self, chain_id: Digest) -> Path:
        return self._folder / chain_id.removeprefix("sha256:")[:NAME_LENGTH]


def _read_layer(folder: Path) -> tuple[Layer | None, str]:
    """Return the layer in *folder* and its boot; None when there is none to rely on."""
    try:
        document = read_document((folder / "layer.json").read_bytes(), what="a layer's record")
        document["version"].number(least=FORMAT, most=FORMAT)
        chain_id = document["chain_id"].text()
        if not is_digest(chain_id) or chain_id[7:][:NAME_LENGTH] != folder.name:
            return None, ""
        size, entries = document["size"].number(), document["entries"].number()
        return Layer(Digest(chain_id), folder / "fs", size, entries), document["boot"].text()
    except (OSError, BadManifest):
        return None, ""

"""The configuration of an image: how its process starts, and what its layers must be.

Pure. The digest of this document is the image's id, so one that was read is kept as bytes and never
written again; encode_config is for images that are made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from swarmlet.images.document import Field, read_document, write_document
from swarmlet.images.manifest import LAYERS_MAX, Platform
from swarmlet.images.reference import Digest, is_digest

#: Entries of the history: one an instruction, with and without a layer.
HISTORY_MAX = 5_000


@dataclass(frozen=True, slots=True)
class Healthcheck:
    """How to ask a container whether it is well. Durations are nanoseconds; 0 is the default."""

    test: tuple[str, ...]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class History:
    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What the image's maker said; the user's spec may override all but the platform.

    *diff_ids* are the digests of the uncompressed layers, bottom first. For *entrypoint*, *cmd* and
    *shell* None is "not said" and () is "nothing".
    """

    architecture: str
    os: str = "linux"
    variant: str = ""
    created: str = ""
    author: str = ""
    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck: Healthcheck | None = None
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] | None = None
    diff_ids: tuple[Digest, ...] = ()
    history: tuple[History, ...] = ()

    @property
    def platform(self) -> Platform:
        return Platform(self.os, self.architecture, self.variant)

    @property
    def argv(self) -> tuple[str, ...]:
        """What runs when the user says nothing else: entry point, then command."""
        return (*(self.entrypoint or ()), *(self.cmd or ()))

    @property
    def created_at(self) -> float:
        """Seconds since 1970; 0.0 where the maker gave no time, or none that can be read."""
        try:
            return datetime.fromisoformat(self.created).timestamp()
        except (ValueError, OverflowError, OSError):
            return 0.0


def decode_config_untrusted(data: bytes) -> ImageConfig:
    """Return the configuration that *data* is, or raise BadManifest with the path."""
    document = read_document(data, what="an image's configuration")
    inner = document["config"]
    if not inner.exists:
        inner = Field({}, "config")
    health = inner["Healthcheck"]
    return ImageConfig(
        architecture=document["architecture"].text_or(),
        os=document["os"].text_or("linux"),
        variant=document["variant"].text_or(),
        created=document["created"].text_or(),
        author=document["author"].text_or(),
        user=inner["User"].text_or(),
        env=_read_env(inner["Env"]),
        entrypoint=inner["Entrypoint"].texts_or_none(),
        cmd=inner["Cmd"].texts_or_none(),
        working_dir=inner["WorkingDir"].text_or(),
        labels=inner["Labels"].text_map(),
        exposed_ports=inner["ExposedPorts"].keys(),
        volumes=inner["Volumes"].keys(),
        stop_signal=inner["StopSignal"].text_or(),
        healthcheck=_read_healthcheck(health) if health.exists else None,
        on_build=inner["OnBuild"].texts(),
        shell=inner["Shell"].texts_or_none(),
        diff_ids=_read_diff_ids(document["rootfs"]),
        history=_read_history(document["history"]),
    )


def _read_env(entry: Field) -> tuple[str, ...]:
    for variable in entry.items() if entry.exists else ():
        if variable.text().startswith("="):
            raise variable.fail("a variable without a name")
    return entry.texts()


def _read_healthcheck(entry: Field) -> Healthcheck:
    return Healthcheck(
        entry["Test"].texts(),
        entry["Interval"].number_or(),
        entry["Timeout"].number_or(),
        entry["StartPeriod"].number_or(),
        entry["StartInterval"].number_or(),
        entry["Retries"].number_or(),
    )


def _read_diff_ids(rootfs: Field) -> tuple[Digest, ...]:
    kind = rootfs["type"].text_or("layers")
    if kind != "layers":
        raise rootfs["type"].fail(f"{kind!r} is not made of layers")
    found = []
    for entry in rootfs["diff_ids"].items(most=LAYERS_MAX) if rootfs["diff_ids"].exists else ():
        if not is_digest(entry.text()):
            raise entry.fail(f"{entry.text()[:80]!r} is no SHA-256 digest")
        found.append(Digest(entry.text()))
    return tuple(found)


def _read_history(history: Field) -> tuple[History, ...]:
    if not history.exists:
        return ()
    return tuple(
        History(
            entry["created"].text_or(),
            entry["created_by"].text_or(),
            entry["author"].text_or(),
            entry["comment"].text_or(),
            entry["empty_layer"].value is True,
        )
        for entry in history.items(most=HISTORY_MAX)
    )


def encode_config(config: ImageConfig) -> bytes:
    """Return the document of *config*, without what was not said; decoding gives it back."""
    health = config.healthcheck
    process: dict[str, Any] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": list(config.env),
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "Healthcheck": _write_healthcheck(health) if health else None,
        "Volumes": {volume: {} for volume in config.volumes},
        "WorkingDir": config.working_dir,
        "OnBuild": list(config.on_build),
        "Labels": dict(config.labels),
        "StopSignal": config.stop_signal,
        "Shell": config.shell,
    }
    document: dict[str, Any] = {
        "created": config.created,
        "author": config.author,
        "architecture": config.architecture,
        "os": config.os,
        "variant": config.variant,
        "config": _said(process),
        "rootfs": {"type": "layers", "diff_ids": list(config.diff_ids)},
        "history": [_write_history(entry) for entry in config.history],
    }
    # The architecture, the system and the layers must stand there even when they are empty.
    required = {key: document[key] for key in ("architecture", "os", "config", "rootfs")}
    return write_document(_said(document) | required)


def _write_healthcheck(health: Healthcheck) -> dict[str, Any]:
    return {
        "Test": list(health.test),
        **_said(
            {
                "Interval": health.interval,
                "Timeout": health.timeout,
                "StartPeriod": health.start_period,
                "StartInterval": health.start_interval,
                "Retries": health.retries,
            }
        ),
    }


def _write_history(entry: History) -> dict[str, Any]:
    return _said(
        {
            "created": entry.created,
            "created_by": entry.created_by,
            "author": entry.author,
            "comment": entry.comment,
            "empty_layer": entry.empty_layer,
        }
    )


def _said(members: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not said; an empty tuple was (Entrypoint, Cmd, Shell)."""
    return {key: value for key, value in members.items() if value or value == ()}

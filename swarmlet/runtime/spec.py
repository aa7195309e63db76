"""What a container shall be: one frozen value, its file form, and what is nonsense in it.

Pure. `ContainerSpec` is what a caller writes, of the parts in parts.py; `from_json` and `to_json`
are its file form, and `validate` (validation.py) says what is nonsense in it, by path:
`SpecError("process.args: must not be empty")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from swarmlet.runtime import defaults, validation
from swarmlet.runtime.decoding import SpecError, decode, encode
from swarmlet.runtime.parts import (
    Capabilities,
    Device,
    DeviceRule,
    File,
    HugetlbLimit,
    IdMapping,
    IoLimit,
    LogConfig,
    Mount,
    Namespace,
    Namespaces,
    Process,
    Resources,
    Rlimit,
    Root,
    Seccomp,
    User,
)
from swarmlet.runtime.validation import (
    CONTAINER_ID,
    FILES_BYTES_MAX,
    RLIMITS,
    signal_number,
    validate_process,
    validate_resources,
)
from swarmlet.runtime.values import field, named_value

__all__ = [
    "CONTAINER_ID",
    "FILES_BYTES_MAX",
    "RLIMITS",
    "Capabilities",
    "ContainerSpec",
    "Device",
    "DeviceRule",
    "File",
    "HugetlbLimit",
    "IdMapping",
    "IoLimit",
    "LogConfig",
    "Mount",
    "Namespace",
    "Namespaces",
    "Process",
    "Resources",
    "Rlimit",
    "Root",
    "Seccomp",
    "SpecError",
    "User",
    "signal_number",
    "validate",
    "validate_process",
    "validate_resources",
]


@named_value
class ContainerSpec:
    process: Process
    root: Root
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    files: tuple[File, ...] = ()
    hosts: str | None = None  # the text of /etc/hosts; None leaves the image's
    resolv_conf: str | None = None
    namespaces: Namespaces = Namespaces()
    #: of a private user namespace; without any the supervisor picks a free range
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    resources: Resources = Resources()
    devices: tuple[Device, ...] = ()
    device_rules: tuple[DeviceRule, ...] = ()  # after the defaults, the last that fits decides
    sysctls: Mapping[str, str] = field(default_factory=dict)
    seccomp: Seccomp = Seccomp()
    masked_paths: tuple[str, ...] = defaults.MASKED_PATHS
    readonly_paths: tuple[str, ...] = defaults.READONLY_PATHS
    shm_bytes: int = defaults.SHM_BYTES
    stop_signal: str = defaults.STOP_SIGNAL
    stop_grace: float = defaults.STOP_GRACE
    log: LogConfig = LogConfig()
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object) -> ContainerSpec:
        """Build and validate a spec from what json.loads returned."""
        spec = decode(cls, value)
        validate(spec)
        return spec

    def to_json(self) -> Any:
        return encode(self)

    @property
    def own_users(self) -> bool:
        """Whether the container is in another user namespace than the host."""
        return self.namespaces.user != "host"

    def host_uid(self, uid: int) -> int:
        """Return the host's number of the container's user *uid*; itself where nothing is said."""
        return _outside(self.uid_mappings, uid)

    def host_gid(self, gid: int) -> int:
        return _outside(self.gid_mappings, gid)

    def maps_group(self, gid: int) -> bool:
        """Whether the container has a group of that number."""
        mappings = self.gid_mappings
        return not mappings or any(0 <= gid - m.container_id < m.size for m in mappings)

    def with_resources(self, resources: Resources) -> ContainerSpec:
        return replace(self, resources=resources)

    def without_secrets(self) -> ContainerSpec:
        """Return the spec as it may be written to a disk: the files' contents are left out."""
        return replace(self, files=tuple(replace(file, content=b"") for file in self.files))


def _outside(mappings: tuple[IdMapping, ...], number: int) -> int:
    found = (m for m in mappings if 0 <= number - m.container_id < m.size)
    mapping = next(found, None)
    return number if mapping is None else mapping.host_id + number - mapping.container_id


def validate(spec: ContainerSpec) -> None:
    """Raise SpecError for the first thing in *spec* that cannot be meant."""
    validate_process(spec.process)
    validation.validate_root(spec.root)
    for path, name in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        validation.require(
            len(name.encode()) <= 64 and "\0" not in name, path, "is longer than 64 bytes"
        )
    for index, mount in enumerate(spec.mounts):
        validation.validate_mount(f"mounts[{index}]", mount)
    validation.validate_files(spec.files)
    validation.validate_namespaces(spec.namespaces)
    for name in ("uid_mappings", "gid_mappings"):
        validation.validate_mappings(name, spec.namespaces, getattr(spec, name))
    validate_resources(spec.resources)
    for index, device in enumerate(spec.devices):
        validation.absolute(f"devices[{index}].path", device.path)
        validation.validate_access(f"devices[{index}].access", device.access)
    for index, rule in enumerate(spec.device_rules):
        validation.validate_access(f"device_rules[{index}].access", rule.access)
    validation.validate_sysctls(spec.sysctls, spec.namespaces)
    for path in ("masked_paths", "readonly_paths"):
        for index, value in enumerate(getattr(spec, path)):
            validation.absolute(f"{path}[{index}]", value)
    validation.require(spec.shm_bytes > 0, "shm_bytes", "must be above 0")
    signal_number(spec.stop_signal)
    validation.require(spec.stop_grace >= 0, "stop_grace", "must not be negative")
    validation.require(
        spec.log.file_bytes_max >= 4096, "log.file_bytes_max", "must be at least 4096"
    )
    validation.require(1 <= spec.log.files_max <= 100, "log.files_max", "must be 1 to 100")
    validation.require(
        (spec.seccomp.profile == "custom") == bool(spec.seccomp.document),
        "seccomp.document",
        "goes with the profile custom, and only with it",
    )

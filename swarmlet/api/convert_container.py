"""ContainerSpec: Docker's JSON to a ContainerTemplate and back.

Pure. What reads and what writes stand side by side, field by field in the same order.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from swarmlet.api.fields import Fields, nanoseconds, without_empty
from swarmlet.model import ContainerTemplate, Healthcheck, Mount, MountType, Ulimit
from swarmlet.model.validation import SpecError

#: Docker's default for StopGracePeriod, which its client leaves out.
STOP_GRACE_DEFAULT = 10.0
UNCONFINED = "unconfined"


def read_container(fields: Fields) -> ContainerTemplate:
    container = ContainerTemplate(
        image=fields.text("Image"),
        command=fields.texts("Command"),
        args=fields.texts("Args"),
        env=fields.texts("Env"),
        hostname=fields.text("Hostname"),
        directory=fields.text("Dir"),
        user=fields.text("User"),
        groups=fields.texts("Groups"),
        labels=fields.text_map("Labels"),
        tty=fields.flag("TTY"),
        open_stdin=fields.flag("OpenStdin"),
        read_only=fields.flag("ReadOnly"),
        mounts=tuple(_read_mount(mount) for mount in fields.children("Mounts")),
        stop_signal=fields.text("StopSignal"),
        stop_grace=fields.seconds("StopGracePeriod", STOP_GRACE_DEFAULT),
        healthcheck=read_healthcheck(fields.child("Healthcheck")),
        hosts=fields.texts("Hosts"),
        **_read_dns(fields.child("DNSConfig")),
        init=fields.flag("Init"),
        sysctls=fields.text_map("Sysctls"),
        capabilities_add=fields.texts("CapabilityAdd"),
        capabilities_drop=fields.texts("CapabilityDrop"),
        ulimits=tuple(_read_ulimit(limit) for limit in fields.children("Ulimits")),
        oom_score_adj=fields.integer("OomScoreAdj"),
        seccomp=_read_privileges(fields.child("Privileges")),
    )
    isolation = fields.text("Isolation")
    if isolation not in ("", "default"):
        raise SpecError(fields.at("Isolation"), f"{isolation!r} exists on Windows only")
    fields.refuse("Secrets", "secrets are not built yet; use a bind mount or an image of your own")
    fields.refuse("Configs", "configs are not built yet; use a bind mount or an image of your own")
    fields.done()
    return container


def write_container(container: ContainerTemplate) -> dict[str, Any]:
    dns = {
        "Nameservers": list(container.dns_servers),
        "Search": list(container.dns_search),
        "Options": list(container.dns_options),
    }
    shown = {
        "Image": container.image,
        "Labels": dict(container.labels),
        "Command": list(container.command),
        "Args": list(container.args),
        "Hostname": container.hostname,
        "Env": list(container.env),
        "Dir": container.directory,
        "User": container.user,
        "Groups": list(container.groups),
        "TTY": container.tty,
        "OpenStdin": container.open_stdin,
        "ReadOnly": container.read_only,
        "Mounts": [_write_mount(mount) for mount in container.mounts],
        "StopSignal": container.stop_signal,
        "Hosts": list(container.hosts),
        "DNSConfig": without_empty(dns),
        "Init": container.init,
        "Sysctls": dict(container.sysctls),
        "CapabilityAdd": list(container.capabilities_add),
        "CapabilityDrop": list(container.capabilities_drop),
        "Ulimits": [{"Name": u.name, "Soft": u.soft, "Hard": u.hard} for u in container.ulimits],
        "OomScoreAdj": container.oom_score_adj,
    }
    document = without_empty(shown)
    document.setdefault("Image", "")
    document["StopGracePeriod"] = nanoseconds(container.stop_grace)
    if container.healthcheck is not None:
        document["Healthcheck"] = _write_healthcheck(container.healthcheck)
    if container.seccomp:
        document["Privileges"] = {"Seccomp": _write_seccomp(container.seccomp)}
    document["Isolation"] = "default"
    return document


def _read_mount(fields: Fields) -> Mount:
    type_text = fields.text("Type", MountType.BIND)
    if type_text not in set(MountType):
        known = ", ".join(MountType)
        raise SpecError(fields.at("Type"), f"{type_text!r} is not one of {known}")
    type_ = MountType(type_text)
    propagation, labels, driver, options = "", {}, "", {}
    no_copy, tmpfs_bytes, tmpfs_mode = False, 0, 0
    if (bind := fields.child("BindOptions")) is not None:
        propagation = bind.text("Propagation")
        bind.refuse("NonRecursive", "every bind mount is recursive here; leave it out")
        bind.refuse("CreateMountpoint", "not built yet; make the folder on each node")
        bind.refuse("ReadOnlyNonRecursive", "not built yet; leave it out")
        bind.refuse("ReadOnlyForceRecursive", "not built yet; leave it out")
        bind.done()
    if (volume := fields.child("VolumeOptions")) is not None:
        no_copy = volume.flag("NoCopy")
        labels = volume.text_map("Labels")
        volume.refuse("Subpath", "not built yet; mount the whole volume")
        if (config := volume.child("DriverConfig")) is not None:
            driver = config.text("Name")
            options = config.text_map("Options")
            config.done()
        volume.done()
    if (tmpfs := fields.child("TmpfsOptions")) is not None:
        tmpfs_bytes = tmpfs.integer("SizeBytes", least=0)
        tmpfs_mode = tmpfs.integer("Mode", least=0)
        tmpfs.refuse("Options", "not built yet; only size and mode can be given")
        tmpfs.done()
    fields.refuse("ImageOptions", "image mounts are not built yet")
    fields.refuse("ClusterOptions", "cluster volumes are not built yet")
    fields.refuse("Consistency", "has a meaning on macOS only; leave it out")
    mount = Mount(
        type=type_,
        target=fields.text("Target"),
        source=fields.text("Source"),
        read_only=fields.flag("ReadOnly"),
        propagation=propagation,
        tmpfs_bytes=tmpfs_bytes,
        tmpfs_mode=tmpfs_mode,
        no_copy=no_copy,
        labels=labels,
        driver=driver,
        driver_options=options,
    )
    fields.done()
    return mount


def _write_mount(mount: Mount) -> dict[str, Any]:
    config = without_empty({"Name": mount.driver, "Options": dict(mount.driver_options)})
    volume = {"NoCopy": mount.no_copy, "Labels": dict(mount.labels), "DriverConfig": config}
    tmpfs = {"SizeBytes": mount.tmpfs_bytes, "Mode": mount.tmpfs_mode}
    shown = {
        "Source": mount.source,
        "Target": mount.target,
        "ReadOnly": mount.read_only,
        "BindOptions": without_empty({"Propagation": mount.propagation}),
        "VolumeOptions": without_empty(volume),
        "TmpfsOptions": without_empty(tmpfs),
    }
    return {"Type": str(mount.type), **without_empty(shown)}


def read_healthcheck(fields: Fields | None) -> Healthcheck | None:
    if fields is None:
        return None
    healthcheck = Healthcheck(
        test=fields.texts("Test"),
        interval=fields.seconds("Interval"),
        timeout=fields.seconds("Timeout"),
        retries=fields.integer("Retries", least=0),
        start_period=fields.seconds("StartPeriod"),
        start_interval=fields.seconds("StartInterval"),
    )
    fields.done()
    return healthcheck


def _write_healthcheck(check: Healthcheck) -> dict[str, Any]:
    return without_empty(
        {
            "Test": list(check.test),
            "Interval": nanoseconds(check.interval),
            "Timeout": nanoseconds(check.timeout),
            "Retries": check.retries,
            "StartPeriod": nanoseconds(check.start_period),
            "StartInterval": nanoseconds(check.start_interval),
        }
    )


def _read_dns(fields: Fields | None) -> dict[str, Any]:
    if fields is None:
        return {}
    dns = {
        "dns_servers": fields.texts("Nameservers"),
        "dns_search": fields.texts("Search"),
        "dns_options": fields.texts("Options"),
    }
    fields.done()
    return dns


def _read_ulimit(fields: Fields) -> Ulimit:
    # -1 is "no limit", as in the client's --ulimit.
    limit = Ulimit(
        fields.text("Name"), fields.integer("Soft", least=-1), fields.integer("Hard", least=-1)
    )
    fields.done()
    return limit


def _read_privileges(fields: Fields | None) -> str:
    """Return the seccomp profile: the one privilege that a template knows."""
    if fields is None:
        return ""
    fields.refuse("CredentialSpec", "exists on Windows only")
    fields.refuse("SELinuxContext", "SELinux is not built yet")
    fields.ignore("NoNewPrivileges")  # always on here, whatever is asked
    if (apparmor := fields.child("AppArmor")) is not None:
        mode = apparmor.text("Mode", "default")
        if mode not in ("default", "disabled"):
            raise SpecError(apparmor.at("Mode"), f"{mode!r}: AppArmor is not built yet")
        apparmor.done()
    seccomp = fields.child("Seccomp")
    fields.done()
    return "" if seccomp is None else _read_seccomp(seccomp)


def _read_seccomp(fields: Fields) -> str:
    mode = fields.text("Mode", "default")
    profile = fields.blob("Profile")
    fields.done()
    if mode == "custom":
        try:
            json.loads(profile)
            return profile.decode()
        except (ValueError, RecursionError):
            raise SpecError(fields.at("Profile"), "is not a seccomp profile in JSON") from None
    if profile:
        raise SpecError(fields.at("Profile"), "goes with the mode custom only")
    if mode not in ("default", UNCONFINED):
        raise SpecError(fields.at("Mode"), f"{mode!r} is not default, unconfined or custom")
    return UNCONFINED if mode == UNCONFINED else ""


def _write_seccomp(seccomp: str) -> dict[str, str]:
    if seccomp == UNCONFINED:
        return {"Mode": UNCONFINED}
    return {"Mode": "custom", "Profile": base64.b64encode(seccomp.encode()).decode()}

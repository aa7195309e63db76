"""What users write in flags, as the JSON of the Docker API: ports, mounts, sizes, durations.

Pure. Raises ValueError with what is wrong and what it should look like; options.py turns that
into a usage error with the name of the flag.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

NANOSECONDS = 1_000_000_000
#: Go's units of durations, in nanoseconds.
DURATION_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": NANOSECONDS,
    "m": 60 * NANOSECONDS,
    "h": 3600 * NANOSECONDS,
}
DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE)
SIZE_UNITS = {unit: 1024**power for power, unit in enumerate(("", "k", "m", "g", "t", "p"))}
PORT_MAX = 65_535
#: A range as wide as all ports would make 65,535 entries of one flag.
PORT_RANGE_MAX = 1000


def parse_duration(text: str) -> int:
    """`1h30m`, `1.5s`, `200ms` to nanoseconds."""
    if text == "0":
        return 0
    found = list(DURATION.finditer(text))
    if not found or "".join(match.group() for match in found) != text:
        raise ValueError(f"{text!r} is no duration; write for example 30s, 1m30s or 500ms")
    return sum(int(Decimal(match[1]) * DURATION_UNITS[match[2]]) for match in found)


def parse_size(text: str) -> int:
    """`64m`, `1.5GiB`, `4096` to bytes; all units are powers of 1024, as Docker's."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write for example 64m or 1.5g")
    return int(Decimal(match[1]) * SIZE_UNITS[match[2].lower()])


def parse_cpus(text: str) -> int:
    """`0.5` to billionths of a cpu."""
    try:
        nano = Decimal(text) * NANOSECONDS
    except InvalidOperation:
        raise ValueError(f"{text!r} is no number of cpus; write for example 0.5") from None
    if not nano.is_finite() or nano < 0 or nano != int(nano):
        raise ValueError(f"{text!r} is no number of cpus; write for example 0.5")
    return int(nano)


def parse_pair(text: str) -> tuple[str, str]:
    """`key=value`; a key alone has the empty value."""
    key, _, value = text.partition("=")
    if not key:
        raise ValueError(f"{text!r} has no key; write key=value")
    return key, value


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    return dict(parse_pair(text) for text in texts)


def parse_env_file(lines: Iterable[str], environment: dict[str, str]) -> list[str]:
    """Lines of `KEY=value`, comments and blank lines; a key alone is taken from *environment*."""
    found = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            found += complete_env(line, environment)
        except ValueError as exc:
            raise ValueError(f"line {number}: {exc}") from None
    return found


def complete_env(text: str, environment: dict[str, str]) -> list[str]:
    """`KEY=value` as it is; `KEY` alone with its value here, or nothing if it has none."""
    key, separator, _ = text.partition("=")
    if not key or any(mark in key for mark in " \t"):
        raise ValueError(f"{text!r} names no variable; write KEY=value")
    if separator:
        return [text]
    return [f"{key}={environment[key]}"] if key in environment else []


def parse_publish(text: str) -> list[dict[str, Any]]:
    """A published port, in the short or the long form, as PortConfig objects.

    `8080:80`, `127.0.0.1:8080:80/udp`, `8000-8010:8000-8010`, `80`, or
    `published=8080,target=80,protocol=tcp,mode=host,ip=10.0.0.1,iface=eth0`.
    The keys IP and Interface are swarmlet's own and travel apart (service_options.py).
    """
    return [_parse_long_port(text)] if "=" in text else _parse_short_ports(text)


def _parse_long_port(text: str) -> dict[str, Any]:
    port: dict[str, Any] = {"Protocol": "tcp", "PublishMode": "ingress"}
    names = {
        "target": "TargetPort",
        "published": "PublishedPort",
        "protocol": "Protocol",
        "mode": "PublishMode",
        "ip": "IP",
        "iface": "Interface",
        "name": "Name",
    }
    for key, value in _fields(text):
        if key not in names:
            raise ValueError(f"{key!r} is not known in {text!r}; known are {', '.join(names)}")
        is_number = key in ("target", "published")
        port[names[key]] = _port_number(value) if is_number else value
    if not port.get("TargetPort"):
        raise ValueError(f"{text!r} has no target; write published=8080,target=80")
    if port["Protocol"] not in ("tcp", "udp", "sctp"):
        raise ValueError(f"{port['Protocol']!r} is no protocol; write tcp or udp")
    if port["PublishMode"] not in ("ingress", "host"):
        raise ValueError(f"{port['PublishMode']!r} is no mode; write ingress or host")
    return port


def _parse_short_ports(text: str) -> list[dict[str, Any]]:
    ports, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise ValueError(f"{protocol!r} is no protocol; write 8080:80/udp, for example")
    address = ""
    if ports.startswith("["):  # [::1]:8080:80
        address, _, ports = ports[1:].partition("]:")
    parts = ports.split(":")
    if len(parts) == 3:
        address, *parts = parts
    if not 1 <= len(parts) <= 2:
        raise ValueError(f"{text!r} is no published port; write 8080:80")
    targets = _port_range(parts[-1])
    published = _port_range(parts[0]) if len(parts) == 2 and parts[0] else [0] * len(targets)
    if len(published) != len(targets):
        raise ValueError(f"{text!r}: the two ranges are not of the same length")
    found = []
    for target, port in zip(targets, published, strict=True):
        config = {
            "Protocol": protocol,
            "TargetPort": target,
            "PublishedPort": port,
            "PublishMode": "ingress",
        }
        found.append({**config, "IP": address} if address else config)
    return found


def _port_range(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    low = _port_number(first)
    high = _port_number(last) if dash else low
    if high < low or high - low >= PORT_RANGE_MAX:
        raise ValueError(f"{text!r} is no range of at most {PORT_RANGE_MAX} ports")
    return list(range(low, high + 1))


def _port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= PORT_MAX):
        raise ValueError(f"{text!r} is no port; a port is a number up to {PORT_MAX}")
    return int(text)


def parse_mount(text: str) -> dict[str, Any]:
    """`type=bind,source=/srv,target=/data,readonly` and the like, as a Mount object."""
    mount: dict[str, Any] = {"Type": "volume"}
    volume: dict[str, Any] = {}
    tmpfs: dict[str, Any] = {}
    for key, value in _fields(text):
        match key:
            case "type":
                mount["Type"] = value.lower()
            case "source" | "src":
                mount["Source"] = value
            case "target" | "dst" | "destination":
                mount["Target"] = value
            case "readonly" | "ro":
                mount["ReadOnly"] = _truth(value)
            case "bind-propagation":
                mount["BindOptions"] = {"Propagation": value.lower()}
            case "volume-nocopy":
                volume["NoCopy"] = _truth(value)
            case "volume-label":
                volume.setdefault("Labels", {}).update([parse_pair(value)])
            case "volume-driver":
                volume.setdefault("DriverConfig", {})["Name"] = value
            case "volume-opt":
                options = volume.setdefault("DriverConfig", {}).setdefault("Options", {})
                options.update([parse_pair(value)])
            case "tmpfs-size":
                tmpfs["SizeBytes"] = parse_size(value)
            case "tmpfs-mode":
                tmpfs["Mode"] = _octal(value)
            case _:
                raise ValueError(
                    f"{key!r} is not known in {text!r}; known are type, source, target, readonly, "
                    "bind-propagation, volume-nocopy, volume-label, volume-driver, volume-opt, "
                    "tmpfs-size and tmpfs-mode"
                )
    if mount["Type"] not in ("bind", "volume", "tmpfs"):
        raise ValueError(f"{mount['Type']!r} is no type of mount; write bind, volume or tmpfs")
    if not mount.get("Target"):
        raise ValueError(f"{text!r} has no target; add target=/path/in/the/container")
    if volume:
        mount["VolumeOptions"] = volume
    if tmpfs:
        mount["TmpfsOptions"] = tmpfs
    return mount


def parse_network(text: str) -> dict[str, Any]:
    """`shop`, or `name=shop,alias=front`."""
    if "=" not in text:
        return {"Target": text}
    network: dict[str, Any] = {}
    for key, value in _fields(text):
        if key == "name":
            network["Target"] = value
        elif key == "alias":
            network.setdefault("Aliases", []).append(value)
        else:
            raise ValueError(f"{key!r} is not known in {text!r}; known are name and alias")
    if not network.get("Target"):
        raise ValueError(f"{text!r} names no network; write name=shop,alias=front")
    return network


def parse_host(text: str) -> str:
    """`name:address` to the line of /etc/hosts that the API takes."""
    name, separator, address = text.partition(":")
    if not (name and separator and address):
        raise ValueError(f"{text!r} is no host; write name:10.0.0.5")
    return f"{address} {name}"


def parse_ulimit(text: str) -> dict[str, Any]:
    """`nofile=1024:2048`, `nproc=512`."""
    name, _, limits = text.partition("=")
    soft, _, hard = limits.partition(":")
    try:
        return {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}
    except ValueError:
        raise ValueError(f"{text!r} is no ulimit; write nofile=1024:2048") from None


def parse_binding(text: str) -> list[tuple[str, dict[str, str]]]:
    """A port of the host that leads to a container's: ("80/tcp", {"HostIp": ..., "HostPort": ...}).

    As `-p` of Docker's run: a range of the host's for one of the container's is any of it.
    """
    ports, _, protocol = text.partition("/")
    head, colon, target = ports.rpartition(":")
    host, _, first = head.rpartition(":")
    if colon and "-" in first and target.isdigit():
        _port_range(first)
        return [(f"{target}/{protocol or 'tcp'}", {"HostIp": host.strip("[]"), "HostPort": first})]
    return [
        (
            f"{port['TargetPort']}/{port['Protocol']}",
            {"HostIp": port.get("IP", ""), "HostPort": str(port["PublishedPort"] or "")},
        )
        for port in _parse_short_ports(text)
    ]


def parse_endpoint(text: str) -> tuple[str, dict[str, Any]]:
    """`yard`, or `name=yard,alias=front,ip=10.0.0.9,mac-address=...`: name and what is asked."""
    if "=" not in text:
        return text, {}
    name, endpoint = "", dict[str, Any]()
    for key, value in _fields(text):
        match key:
            case "name":
                name = value
            case "alias":
                endpoint.setdefault("Aliases", []).append(value)
            case "ip":
                endpoint.setdefault("IPAMConfig", {})["IPv4Address"] = value
            case "mac-address":
                endpoint["MacAddress"] = value
            case _:
                known = "name, alias, ip and mac-address"
                raise ValueError(f"{key!r} is not known in {text!r}; known are {known}")
    if not name:
        raise ValueError(f"{text!r} names no network; write name=yard,alias=front")
    return name, endpoint


def parse_device(text: str) -> dict[str, str]:
    """`/dev/x[:/dev/y[:rwm]]`."""
    parts = text.split(":")
    if len(parts) == 2 and set(parts[1]) <= set("rwm"):
        parts = [parts[0], parts[0], parts[1]]
    if not 1 <= len(parts) <= 3 or not all(part for part in parts):
        raise ValueError(f"{text!r} is no device; write /dev/x or /dev/x:/dev/y:rwm")
    source, target, access = (*parts, *[""] * 2)[:3]
    return {
        "PathOnHost": source,
        "PathInContainer": target or source,
        "CgroupPermissions": access or "rwm",
    }


def parse_rate(text: str) -> dict[str, Any]:
    """`/dev/sda:1mb`, `/dev/sda:1000`."""
    path, separator, rate = text.rpartition(":")
    if not separator or not path.startswith("/"):
        raise ValueError(f"{text!r} is no limit of a device; write /dev/sda:1mb")
    return {"Path": path, "Rate": parse_size(rate)}


def parse_restart(text: str) -> dict[str, Any]:
    """`no`, `always`, `unless-stopped`, `on-failure[:3]`."""
    name, separator, count = text.partition(":")
    if separator and not count.isdigit():
        raise ValueError(f"{text!r}: maximum retry count must be an integer")
    return {"Name": name, "MaximumRetryCount": int(count or 0)}


def parse_swap(text: str) -> int:
    """A size, or -1 for no limit."""
    return -1 if text == "-1" else parse_size(text)


#: ctrl- with the characters from @ to _, as a terminal makes them.
CONTROLS = "@abcdefghijklmnopqrstuvwxyz[\\]^_"


def parse_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` as the bytes that a terminal sends."""
    keys = bytearray()
    for word in (text or "ctrl-p,ctrl-q").split(","):
        lower = word.lower()
        if len(word) == 1 and word.isascii():
            keys += word.encode()
        elif lower.startswith("ctrl-") and len(lower) == 6 and lower[5] in CONTROLS:
            keys.append(CONTROLS.index(lower[5]))
        else:
            raise ValueError(f"{word[:20]!r} is no key; write ctrl-p,ctrl-q, for example")
    return bytes(keys)


def parse_spread(text: str) -> dict[str, Any]:
    strategy, separator, descriptor = text.partition("=")
    if strategy != "spread" or not separator or not descriptor:
        raise ValueError(f"{text!r} is no preference; write spread=node.labels.zone")
    return {"Spread": {"SpreadDescriptor": descriptor}}


def _fields(text: str) -> list[tuple[str, str]]:
    """`a=b,c,"d=e,f"` as pairs, with quotes as in CSV; a key alone has the value ""."""
    try:
        (row,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError):
        raise ValueError(f"{text!r} cannot be read; its quotes do not match") from None
    pairs = (field.partition("=") for field in row)
    return [(key.strip().lower(), value) for key, _, value in pairs]


def _truth(text: str) -> bool:
    if text.lower() in ("", "1", "true"):
        return True
    if text.lower() in ("0", "false"):
        return False
    raise ValueError(f"{text!r} is not true or false")


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise ValueError(f"{text!r} is no mode; write it in octal, such as 1777") from None

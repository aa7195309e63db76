"""What users write in flags: what it means, and that nonsense is a ValueError that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.cli import parsing
from swarmlet.cli.parsing import (
    complete_env,
    parse_cpus,
    parse_duration,
    parse_env_file,
    parse_host,
    parse_mount,
    parse_network,
    parse_publish,
    parse_size,
    parse_spread,
    parse_ulimit,
)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("5s", 5_000_000_000),
        ("1m30s", 90_000_000_000),
        ("1.5h", 5_400_000_000_000),
        ("200ms", 200_000_000),
        ("1us2ns", 1002),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("100", 100), ("4k", 4096), ("64m", 64 << 20), ("1.5GiB", 3 << 29), ("2GB", 2 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_cpus() -> None:
    assert parse_cpus("0.5") == 500_000_000
    assert parse_cpus("2") == 2_000_000_000


def port(target: int, published: int, **more: Any) -> dict[str, Any]:
    return {
        "TargetPort": target,
        "PublishedPort": published,
        "Protocol": "tcp",
        "PublishMode": "ingress",
        **more,
    }


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [port(80, 0)]),
        ("8080:80", [port(80, 8080)]),
        ("53:53/udp", [port(53, 53, Protocol="udp")]),
        ("127.0.0.1:8080:80", [port(80, 8080, IP="127.0.0.1")]),
        ("[::1]:8080:80", [port(80, 8080, IP="::1")]),
        ("8000-8001:80-81", [port(80, 8000), port(81, 8001)]),
        ("published=8080,target=80,mode=host", [port(80, 8080, PublishMode="host")]),
        (
            "published=1,target=2,protocol=udp,ip=10.0.0.0/8,iface=eth0",
            [port(2, 1, Protocol="udp", IP="10.0.0.0/8", Interface="eth0")],
        ),
    ],
)
def test_published_ports(text: str, ports: list[dict[str, Any]]) -> None:
    assert parse_publish(text) == ports


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        (
            "type=bind,source=/a,target=/b,readonly,bind-propagation=rslave",
            {
                "Type": "bind",
                "Source": "/a",
                "Target": "/b",
                "ReadOnly": True,
                "BindOptions": {"Propagation": "rslave"},
            },
        ),
        (
            "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1777",
            {
                "Type": "tmpfs",
                "Target": "/t",
                "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1777},
            },
        ),
        (
            'source=v,target=/v,volume-driver=local,"volume-opt=o=addr=1,rw",volume-opt=type=nfs',
            {
                "Type": "volume",
                "Source": "v",
                "Target": "/v",
                "VolumeOptions": {
                    "DriverConfig": {
                        "Name": "local",
                        "Options": {"o": "addr=1,rw", "type": "nfs"},
                    }
                },
            },
        ),
    ],
)
def test_mounts(text: str, mount: dict[str, Any]) -> None:
    assert parse_mount(text) == mount


def test_the_rest() -> None:
    assert parse_network("shop") == {"Target": "shop"}
    assert parse_network("name=shop,alias=a,alias=b") == {"Target": "shop", "Aliases": ["a", "b"]}
    assert parse_host("db:10.0.0.5") == "10.0.0.5 db"
    assert parse_host("db:fe80::1") == "fe80::1 db"
    assert parse_ulimit("nofile=1:2") == {"Name": "nofile", "Soft": 1, "Hard": 2}
    assert parse_ulimit("nproc=5") == {"Name": "nproc", "Soft": 5, "Hard": 5}
    assert parse_spread("spread=node.labels.zone") == {
        "Spread": {"SpreadDescriptor": "node.labels.zone"}
    }


def test_variables_come_from_files_and_from_here() -> None:
    here = {"HOME": "/root"}
    assert complete_env("A=b=c", here) == ["A=b=c"]
    assert complete_env("HOME", here) == ["HOME=/root"]
    assert complete_env("NONE", here) == []
    lines = ["# comment", "", " A=1 ", "HOME", "B=two words"]
    assert parse_env_file(lines, here) == ["A=1", "HOME=/root", "B=two words"]
    with pytest.raises(ValueError, match=r"line 2: .* names no variable"):
        parse_env_file(["A=1", "=x"], here)


PARSERS: list[Callable[[str], Any]] = [
    parse_duration,
    parse_size,
    parse_cpus,
    parse_publish,
    parse_mount,
    parse_network,
    parse_host,
    parse_ulimit,
    parse_spread,
    parsing.parse_pair,
]


@given(st.sampled_from(PARSERS), st.text("0123456789=,:.-/\"'abkmstype ²٣", max_size=20))
def test_any_text_is_a_value_or_a_value_error(parse: Callable[[str], Any], text: str) -> None:
    try:
        parse(text)
    except ValueError as exc:
        message = str(exc)
    else:
        return
    assert message


@given(st.integers(0, 10**15))
def test_every_count_of_nanoseconds_can_be_written(nanoseconds: int) -> None:
    assert parse_duration(f"{nanoseconds}ns") == nanoseconds

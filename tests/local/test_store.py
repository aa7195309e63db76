"""Records on the disk: whole or old, private, and refused with words when damaged."""

from __future__ import annotations

import random
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.agent.local.names import generate, is_name, new_id
from swarmlet.agent.local.records import (
    Attachment,
    ContainerConfig,
    ContainerRecord,
    Ended,
    Limits,
    MountKind,
    MountPoint,
    PortRequest,
    Restart,
    RestartPolicy,
)
from swarmlet.agent.local.store import DamagedRecord, read_record, write_record
from swarmlet.model import Healthcheck, Ulimit

RECORD = ContainerRecord(
    id="ab" * 32,
    name="web",
    created_at=1_700_000_000.5,
    config=ContainerConfig(
        image="busybox",
        entrypoint=("sh",),
        command=None,
        env=("A=1",),
        labels={"k": "v"},
        stop_grace=3.0,
        healthcheck=Healthcheck(test=("CMD", "true"), interval=1.0),
        mounts=(MountPoint(kind=MountKind.VOLUME, target="/data", source="v"),),
        attachments=(Attachment(network="bridge", aliases=("web",)),),
        ports=(PortRequest(target=80, first=8080, last=8080),),
        restart=RestartPolicy(Restart.ON_FAILURE, 3),
        ulimits=(Ulimit("nofile", 10, 20),),
        limits=Limits(memory_bytes=1 << 26),
        masked_paths=(),
    ),
    image="sha256:" + "0" * 64,
    image_id="sha256:" + "1" * 64,
    ended=Ended(code=3, at=1.0),
)


def test_a_record_comes_back_as_it_was_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record"
    write_record(path, RECORD)
    assert read_record(path, ContainerRecord) == RECORD
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    write_record(path, RECORD.changed(name="other"))
    assert read_record(path, ContainerRecord) == replace(RECORD, name="other")
    assert [p.name for p in path.parent.iterdir()] == ["record"]


def test_no_record_is_none_and_a_half_written_one_is_not_looked_at(tmp_path: Path) -> None:
    assert read_record(tmp_path / "record", ContainerRecord) is None
    (tmp_path / "record.new").write_bytes(b"SWLL\x01half")
    assert read_record(tmp_path / "record", ContainerRecord) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no record"),
        (b"other", "no record"),
        (b"SWLL\x02", "newer release"),
        (b"SWLL\x01\xc1", "is damaged"),
        (b"SWLL\x01\x93\x01", "is damaged"),
    ],
)
def test_damage_is_named_with_what_to_do(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "record").write_bytes(data)
    with pytest.raises(DamagedRecord, match=words):
        read_record(tmp_path / "record", ContainerRecord)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_it_is_a_record_or_a_damaged_one(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(b"SWLL\x01" + data)
        file.flush()
        try:
            found = read_record(Path(file.name), ContainerRecord)
        except DamagedRecord:
            return
        assert isinstance(found, ContainerRecord)


@given(st.integers(0, 2**32))
def test_a_generated_name_is_a_name_and_not_taken(seed: int) -> None:
    rng, taken = random.Random(seed), set[str]()
    for _ in range(30):
        name = generate(taken, rng)
        assert is_name(name)
        assert name not in taken
        taken.add(name)
    assert generate({"a"}, random.Random(seed)) == generate({"a"}, random.Random(seed))


def test_ids_are_64_hexadecimal_digits() -> None:
    rng = random.Random(1)
    ids = {new_id(rng) for _ in range(100)}
    assert len(ids) == 100
    assert all(len(id_) == 64 and int(id_, 16) >= 0 for id_ in ids)


@pytest.mark.parametrize("text", ["", "a", "-a", ".x", "a b", "ä1", "a/b", "x" * 129])
def test_what_is_no_name(text: str) -> None:
    assert not is_name(text)

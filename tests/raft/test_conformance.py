"""etcd-raft's own data files, replayed byte for byte (DISTRIBUTED.md C.4).

They lie beside the repository, not in it. Where they are absent these tests are skipped, aloud.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.raft.datadriven import replay
from tests.raft.etcd_env import Environment
from tests.raft.etcd_tables import ConfigurationTable, execute_quorum

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "etcd-raft"
#: What the part of the set that we have holds at least.
FILES_MIN = {"interaction": 22, "quorum": 3, "confchange": 8}

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="etcd-raft's data files are not at ../shared/etcd-raft"
)


def files(folder: str) -> list[Path]:
    return sorted((DATA / folder).glob("*.txt"))


def name(path: Path) -> str:
    return path.stem


@needs_data
@pytest.mark.parametrize("folder", FILES_MIN)
def test_the_set_is_there(folder: str) -> None:
    assert len(files(folder)) >= FILES_MIN[folder]


@needs_data
@pytest.mark.parametrize("path", files("interaction"), ids=name)
def test_interaction(path: Path) -> None:
    text = path.read_text()
    assert replay(text, Environment().execute) == text


@needs_data
@pytest.mark.parametrize("path", files("quorum"), ids=name)
def test_quorum(path: Path) -> None:
    text = path.read_text()
    assert replay(text, execute_quorum) == text


@needs_data
@pytest.mark.parametrize("path", files("confchange"), ids=name)
def test_configuration_changes(path: Path) -> None:
    text = path.read_text()
    assert replay(text, ConfigurationTable().execute) == text

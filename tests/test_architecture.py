"""The rules of the architecture that a machine can check. Each is one table row."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES_MAX = 600

#: package or module -> those of ours that it may import; the longest prefix decides.
MAY_IMPORT: dict[str, set[str]] = {
    "raft": set(),
    "overlay": set(),
    "swarmlet": set(),  # __init__.py: the essay
    "swarmlet.codec": set(),
    "swarmlet.nft": set(),
    "swarmlet.sdnotify": set(),
    "swarmlet.install": set(),
    "swarmlet.uninstall": {"swarmlet.install", "swarmlet.nft"},
    "swarmlet.doctor": {"swarmlet.nft"},
    "swarmlet.waiting": set(),
    "swarmlet.swim": set(),
    "swarmlet.runtime": set(),
    "swarmlet.images": set(),
    "swarmlet.model": set(),
    "swarmlet.identity": set(),
    "swarmlet.state": {"swarmlet.model", "swarmlet.codec"},
    "swarmlet.session": {"swarmlet.model"},
    "swarmlet.stack": {"swarmlet.model"},
    "swarmlet.wire": {
        "raft",
        "swarmlet.identity",
        "swarmlet.swim",
        "swarmlet.session",
        "swarmlet.model",
        "swarmlet.state",
        "swarmlet.codec",
    },
    "swarmlet.transport": {"swarmlet.wire", "swarmlet.identity", "swarmlet.codec"},
    "swarmlet.store": {"raft", "swarmlet.state", "swarmlet.model", "swarmlet.codec"},
}
VOCABULARY = {
    "swarmlet.codec",
    "swarmlet.model",
    "swarmlet.session",
    "swarmlet.state",
    "swarmlet.wire",
    "swarmlet.transport",
    "swarmlet.waiting",
}
MAY_IMPORT |= {
    "swarmlet.manager": VOCABULARY | {"swarmlet.store", "swarmlet.identity"},
    "swarmlet.agent": VOCABULARY | {"swarmlet.runtime", "swarmlet.images", "overlay"},
    "swarmlet.api": VOCABULARY
    | {"swarmlet.manager", "swarmlet.agent", "swarmlet.images", "swarmlet.runtime"},
    "swarmlet.api.client": {"swarmlet.model"},
    "swarmlet.cli": {
        "swarmlet.api.client",
        "swarmlet.model",
        "swarmlet.doctor",
        "swarmlet.install",
        "swarmlet.uninstall",
        "swarmlet.daemon",  # `swarmlet daemon` runs it
    },
}
MAY_IMPORT["swarmlet.daemon"] = set(MAY_IMPORT)  # composition sees everything

#: pure modules decide, so they see neither clock nor chance nor kernel.
PURE = {
    "raft/messages.py",
    "raft/log.py",
    "raft/quorum.py",
    "raft/membership.py",
    "raft/config.py",
    "raft/progress.py",
    "raft/reads.py",
    "raft/trace.py",
    "raft/elections.py",
    "raft/core.py",
    "raft/replication.py",
    "overlay/topology.py",
    "overlay/naming.py",
    "overlay/tables.py",
    "overlay/retirement.py",
    "overlay/names.py",
    "overlay/dns.py",
    "overlay/rulesets.py",
    "overlay/resources.py",
    "overlay/desired.py",
    "overlay/plan.py",
    "overlay/balancing.py",
    "swarmlet/codec.py",
    "swarmlet/session.py",
    "swarmlet/model/__init__.py",
    "swarmlet/model/specs.py",
    "swarmlet/model/objects.py",
    "swarmlet/model/status.py",
    "swarmlet/model/validation.py",
    "swarmlet/state.py",
    "swarmlet/wire.py",
    "swarmlet/agent/assignment.py",
    "swarmlet/daemon/facts.py",
    "swarmlet/agent/container.py",
    "swarmlet/agent/lifecycle.py",
    "swarmlet/agent/local/lifecycle.py",
    "swarmlet/agent/local/names.py",
    "swarmlet/agent/local/networks.py",
    "swarmlet/agent/local/owners.py",
    "swarmlet/agent/local/records.py",
    "swarmlet/agent/local/specs.py",
    "swarmlet/agent/local/uses.py",
    "swarmlet/agent/topology.py",
    "swarmlet/swim/messages.py",
    "swarmlet/swim/config.py",
    "swarmlet/swim/events.py",
    "swarmlet/swim/members.py",
    "swarmlet/swim/membership.py",
    "swarmlet/swim/awareness.py",
    "swarmlet/swim/suspicion.py",
    "swarmlet/swim/dissemination.py",
    "swarmlet/swim/antientropy.py",
    "swarmlet/swim/probing.py",
    "swarmlet/swim/contacts.py",
    "swarmlet/swim/moves.py",
    "swarmlet/swim/userevents.py",
    "swarmlet/swim/core.py",
    "swarmlet/manager/view.py",
    "swarmlet/manager/orchestrator.py",
    "swarmlet/manager/updater.py",
    "swarmlet/manager/scheduler.py",
    "swarmlet/manager/allocator.py",
    "swarmlet/manager/assignments.py",
    "swarmlet/manager/liveness.py",
    "swarmlet/manager/membership.py",
    "swarmlet/manager/changes.py",
    "swarmlet/manager/gossipkeys.py",
    "swarmlet/manager/decisions.py",
    "swarmlet/manager/placement.py",
    "swarmlet/manager/reaper.py",
    "swarmlet/runtime/bpf.py",
    "swarmlet/runtime/decoding.py",
    "swarmlet/runtime/defaults.py",
    "swarmlet/runtime/devices.py",
    "swarmlet/runtime/seccomp_default.py",
    "swarmlet/runtime/spec.py",
    "swarmlet/runtime/statistics.py",
    "swarmlet/runtime/steps.py",
    "swarmlet/runtime/plan.py",
    "swarmlet/runtime/parts.py",
    "swarmlet/runtime/rootfs.py",
    "swarmlet/runtime/validation.py",
    "swarmlet/runtime/values.py",
    "swarmlet/runtime/audit/outside.py",
    "swarmlet/runtime/oci/arguments.py",
    "swarmlet/runtime/oci/bundleplan.py",
    "swarmlet/runtime/oci/config.py",
    "swarmlet/runtime/oci/mounts.py",
    "swarmlet/runtime/oci/processes.py",
    "swarmlet/runtime/oci/reader.py",
    "swarmlet/runtime/oci/reports.py",
    "swarmlet/runtime/oci/resources.py",
    "swarmlet/runtime/oci/steps.py",
    "swarmlet/images/reference.py",
    "swarmlet/images/manifest.py",
    "swarmlet/images/document.py",
    "swarmlet/images/config.py",
    "swarmlet/images/changes.py",
    "swarmlet/images/catalog.py",
    "swarmlet/images/table.py",
    "swarmlet/images/tarstream.py",
    "swarmlet/images/compression.py",
    "swarmlet/api/convert_container.py",
    "swarmlet/api/convert_containers.py",
    "swarmlet/api/convert_create.py",
    "swarmlet/api/convert_local.py",
    "swarmlet/api/convert_local_network.py",
    "swarmlet/api/convert_mounts.py",
    "swarmlet/api/convert_network.py",
    "swarmlet/api/convert_node.py",
    "swarmlet/api/convert_service.py",
    "swarmlet/api/convert_stats.py",
    "swarmlet/api/convert_swarm.py",
    "swarmlet/api/convert_task.py",
    "swarmlet/api/detachkeys.py",
    "swarmlet/api/fields.py",
    "swarmlet/api/filters.py",
    "swarmlet/api/frames.py",
    "swarmlet/api/logoptions.py",
    "swarmlet/api/lookup.py",
    "swarmlet/api/masking.py",
    "swarmlet/api/rights.py",
    "swarmlet/cli/frames.py",
    "swarmlet/cli/parsing.py",
    "swarmlet/cli/progress.py",
    "swarmlet/cli/template.py",
}
IMPURE = {
    "trio",
    "time",
    "socket",
    "os",
    "subprocess",
    "threading",
    "logging",
    "pyroute2",
    "secrets",
}

SOURCES = [p for package in ("raft", "overlay", "swarmlet") for p in (ROOT / package).rglob("*.py")]
TESTS = list((ROOT / "tests").rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            assert node.module
            if node.module == "swarmlet":  # `from swarmlet import wire` imports a module
                yield from (f"swarmlet.{alias.name}" for alias in node.names)
            else:
                yield node.module


def package_of(module: str) -> str | None:
    names = [key for key in MAY_IMPORT if f"{module}.".startswith(f"{key}.")]
    return max(names, key=len, default=None)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def relative_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative_name)
def test_imports_point_down(path: Path) -> None:
    mine = package_of(module_name(path))
    assert mine is not None
    for module in imports_of(path):
        theirs = package_of(module)
        assert theirs in (None, mine) or theirs in MAY_IMPORT[mine], f"{mine} imports {module}"
        if relative_name(path) in PURE:
            assert module.partition(".")[0] not in IMPURE, f"a pure module imports {module}"


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=relative_name)
def test_file_fits_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_MAX


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=relative_name)
def test_no_file_names_a_machine(path: Path) -> None:
    """Nothing committed knows the machine it was written on."""
    if path.name == "test_architecture.py":
        return
    text = path.read_text()
    assert not [word for word in ("/work/", "/farm/") if word in text]

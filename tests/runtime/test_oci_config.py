"""config.json to a plan: what is wrong is said by its path, what is right becomes steps."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.runtime import cgroups
from swarmlet.runtime import steps as common
from swarmlet.runtime import syscalls as linux
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.oci import arguments, bundleplan, steps
from swarmlet.runtime.oci.bundlechild import BundleChild
from swarmlet.runtime.oci.config import Config, read_config
from swarmlet.runtime.oci.reports import template
from swarmlet.runtime.parts import DeviceRule, HugetlbLimit, IoLimit
from tests.runtime.bundles import DOCUMENT, document
from tests.runtime.recorder import HYBRID, UNIFIED, Recorder, kinds


def read(**changes: Any) -> Config:
    """Read the document with fields changed, named with "__" for a dot."""
    made = copy.deepcopy(DOCUMENT)
    for name, value in changes.items():
        place: Any = made
        *parents, last = name.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return read_config(made, "/bundle")


def test_the_document_says_what_is_wanted() -> None:
    config = read(
        linux__resources={
            "memory": {"limit": 1 << 26, "swap": 1 << 27, "reservation": 1 << 25},
            "cpu": {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0-1"},
            "pids": {"limit": 20},
            "blockIO": {
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 4_000_000}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 100}],
            },
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 22}],
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            ],
        },
        process__user={"uid": 5, "gid": 6, "additionalGids": [7], "umask": 0o77},
    )
    assert config.root == "/bundle/rootfs"
    assert config.process is not None
    user = config.process.user
    assert (user.user, user.group, user.additional_groups, user.umask) == ("5", "6", ("7",), 0o77)
    resources = config.resources
    assert (resources.memory_bytes, resources.memory_swap_bytes) == (1 << 26, 1 << 27)
    assert (resources.cpu_quota_us, resources.cpu_shares, resources.pids_max) == (50_000, 512, 20)
    limit = IoLimit(device="8:0", read_bytes_per_second=4_000_000, write_operations_per_second=100)
    assert resources.io == (limit,)
    assert resources.hugetlb == (HugetlbLimit(page_size="2MB", limit_bytes=1 << 22),)
    assert config.device_rules == (
        DeviceRule(allow=False),
        DeviceRule(allow=True, type="c", major=10, minor=229, access="rw"),
    )


#: (field, value, what the error begins with). Each is one thing that an engine may get wrong.
MALFORMED = [
    ("ociVersion", None, "ociVersion: is required"),
    ("ociVersion", 1, "ociVersion: must be text, not a whole number"),
    ("ociVersion", "2.0.0", "ociVersion: '2.0.0' is not supported"),
    ("root", None, "root.path: is required"),
    ("root", [], "root: must be an object, not a list"),
    ("root__path", "", "root.path: must not be empty"),
    ("root__readonly", "yes", "root.readonly: must be true or false, not text"),
    ("hostname", 7, "hostname: must be text"),
    ("process", "sh", "process: must be an object, not text"),
    ("process__args", "sh", "process.args: must be a list, not text"),
    ("process__args", ["a", 1], "process.args[1]: must be text"),
    ("process__args", ["a\0b"], "process.args[0]: holds a NUL byte"),
    ("process__args", [], "process.args: must not be empty"),
    ("process__cwd", None, "process.cwd: is required"),
    ("process__cwd", "tmp", "process.cwd: must be an absolute path"),
    ("process__env", ["PATH"], "process.env[0]: must be NAME=VALUE"),
    ("process__terminal", 1, "process.terminal: must be true or false"),
    ("process__user__uid", -1, "process.user.uid: must be 0 to"),
    ("process__user__uid", "root", "process.user.uid: must be a whole number"),
    ("process__user__gid", 2**32 - 1, "process.user.gid: must be 0 to"),
    ("process__user__umask", 0o1000, "process.user.umask: must be 0 to"),
    ("process__user__additionalGids", [True], "process.user.additionalGids[0]: must be a whole"),
    ("process__capabilities__bounding", ["CAP_ALL"], "process.capabilities.bounding[0]: there is"),
    ("process__capabilities__ambient", "x", "process.capabilities.ambient: must be a list"),
    ("process__rlimits", [{}], "process.rlimits[0].type: is required"),
    ("process__rlimits", [{"type": "RLIMIT_X"}], "process.rlimits[0].type: there is no"),
    (
        "process__rlimits",
        [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}],
        "process.rlimits[0]: the soft limit 2 is above",
    ),
    (
        "process__rlimits",
        [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2,
        "process.rlimits[1].type: RLIMIT_CPU is there twice",
    ),
    ("process__oomScoreAdj", 2000, "process.oomScoreAdj: must be -1000 to 1000"),
    ("process__apparmorProfile", "p", "process.apparmorProfile: this kernel has no"),
    ("process__selinuxLabel", "l", "process.selinuxLabel: this kernel has no"),
    ("process__scheduler", {"policy": "SCHED_FIFO"}, "process.scheduler: is not supported"),
    ("mounts", {}, "mounts: must be a list, not an object"),
    ("mounts", [{}], "mounts[0].destination: is required"),
    ("mounts", [{"destination": "/x"}], "mounts[0].type: is required of a mount that is no bind"),
    (
        "mounts",
        [{"destination": "/x", "type": "bind"}],
        "mounts[0].source: is required of a bind mount",
    ),
    (
        "mounts",
        [{"destination": "/x", "type": "bind", "source": "/", "options": ["size=1"]}],
        "mounts[0].options: a bind mount has no option 'size=1'",
    ),
    (
        "mounts",
        [{"destination": "/x", "type": "bind", "source": "/", "options": ["idmap"]}],
        "mounts[0].options[0]: mapped mounts are not supported",
    ),
    ("hooks", {"prestart": [{}]}, "hooks.prestart[0].path: is required"),
    ("hooks", {"poststop": [{"path": "x"}]}, "hooks.poststop[0].path: must be an absolute"),
    ("hooks", {"poststart": [{"path": "/x", "timeout": 0}]}, "hooks.poststart[0].timeout: must"),
    ("hooks", {"poststart": [{"path": "/x", "env": ["a"]}]}, "hooks.poststart[0].env[0]: must be"),
    ("annotations", {"a": 1}, "annotations.a: must be text"),
    ("linux", None, "linux.namespaces: a mount namespace is required"),
    ("linux__namespaces", [{"type": "mnt"}], "linux.namespaces[0].type: there is no 'mnt'"),
    ("linux__namespaces", [{"type": "pid"}] * 2, "linux.namespaces[1].type: the pid namespace is"),
    ("linux__namespaces", [{"type": "pid", "path": "x"}], "linux.namespaces[0].path: must be an"),
    ("linux__namespaces", [{"type": "user"}, {"type": "mount"}], "linux.uidMappings: a new user"),
    ("linux__uidMappings", [{"containerID": 0}], "linux.uidMappings[0].size: is required"),
    ("linux__resources__memory__limit", "1g", "linux.resources.memory.limit: must be a whole"),
    ("linux__resources__memory__limit", 5, "linux.resources.memory.limit: is below"),
    ("linux__resources__cpu__cpus", "all", "linux.resources.cpu.cpus: must be like"),
    ("linux__resources__cpu__shares", 1, "linux.resources.cpu.shares: must be 2 to"),
    ("linux__resources__cpu__period", 10, "linux.resources.cpu.period: must be 1000 to"),
    ("linux__resources__cpu__realtimeRuntime", 1, "linux.resources.cpu.realtimeRuntime: is not"),
    ("linux__resources__pids__limit", [], "linux.resources.pids.limit: must be a whole number"),
    (
        "linux__resources__blockIO",
        {"throttleReadBpsDevice": [{"major": 8, "rate": 1}]},
        "linux.resources.blockIO.throttleReadBpsDevice[0].minor: is required",
    ),
    (
        "linux__resources__hugepageLimits",
        [{"pageSize": "2M", "limit": 1}],
        "linux.resources.hugepageLimits[0].pageSize: must be like 2MB",
    ),
    ("linux__resources__unified", {"../x": "1"}, "linux.resources.unified: '../x' is no file"),
    (
        "linux__resources__devices",
        [{"allow": True, "type": "d"}],
        "linux.resources.devices[0].type: must be a, b or c",
    ),
    (
        "linux__resources__devices",
        [{"allow": True, "access": "x"}],
        "linux.resources.devices[0].access: must be of the letters",
    ),
    ("linux__devices", [{"path": "/dev/x"}], "linux.devices[0].type: is required"),
    ("linux__devices", [{"path": "x", "type": "c"}], "linux.devices[0].path: must be an absolute"),
    ("linux__devices", [{"path": "/x", "type": "c"}], "linux.devices[0].major: is required"),
    ("linux__sysctl", {"vm.swappiness": "1"}, "linux.sysctl.vm.swappiness: belongs to the whole"),
    ("linux__sysctl", {"../x": "1"}, "linux.sysctl.../x: is no name"),
    ("linux__maskedPaths", ["proc"], "linux.maskedPaths[0]: must be an absolute path"),
    ("linux__readonlyPaths", "/x", "linux.readonlyPaths: must be a list"),
    ("linux__rootfsPropagation", "up", "linux.rootfsPropagation: there is no 'up'"),
    ("linux__cgroupsPath", "/a/../../b", "linux.cgroupsPath: '/a/../../b' leads out"),
    ("linux__seccomp", {"syscalls": []}, "linux.seccomp.defaultAction: is required"),
    (
        "linux__seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [""], "action": "x"}]},
        "linux.seccomp.syscalls[0].names[0]: must not be empty",
    ),
    ("linux__seccomp", {"defaultAction": "x", "listenerPath": "/s"}, "linux.seccomp.listenerPath"),
    ("linux__intelRdt", {}, "linux.intelRdt: is not supported"),
    ("linux__personality", {"domain": "LINUX"}, "linux.personality: is not supported"),
    ("windows", {}, "windows: this is a runtime for Linux"),
]


@pytest.mark.parametrize(("field", "value", "said"), MALFORMED, ids=[m[2] for m in MALFORMED])
def test_each_malformed_field_is_said_by_its_path(field: str, value: Any, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        bundleplan.bundle_plan(
            read(**{field: value}), UNIFIED, cgroups.driver(UNIFIED, "p"), "c", "/s", None
        )
    assert str(refused.value).startswith(said)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    entries: Any = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    for key, inner in entries:
        found += places(inner, (*path, key))
    return found


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(places(template())), value=JSON)
def test_anything_anywhere_is_a_config_or_one_clear_error(
    place: tuple[Any, ...], value: Any
) -> None:
    made: Any = template()
    if place:
        inner = made
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
    else:
        made = value
    with contextlib.suppress(SpecError):
        read_config(made, "/bundle")


def test_systemds_paths_are_understood() -> None:
    assert read(linux__cgroupsPath="a-b.slice:libpod:7").cgroups_path == (
        "a.slice/a-b.slice/libpod-7.scope"
    )
    assert read(linux__cgroupsPath="/k8s//pod/./7").cgroups_path == "k8s/pod/7"


def test_a_limit_that_is_zero_is_none() -> None:
    resources = read(linux__resources={"memory": {"limit": 0}, "pids": {"limit": -1}}).resources
    assert (resources.memory_bytes, resources.memory_swap_bytes, resources.pids_max) == (None,) * 3


# Steps.


def plan_of(config: Config, host: Any = UNIFIED) -> bundleplan.BundlePlan:
    return bundleplan.bundle_plan(config, host, cgroups.driver(host, "p"), "c", "/s", b"x")


def test_each_step_has_a_method_of_the_same_parameters() -> None:
    for kind in (
        steps.Synchronize,
        steps.CallHooks,
        steps.EnsureNode,
        steps.EnsureLink,
        steps.MountCopy,
        steps.CheckCommand,
    ):
        method = getattr(BundleChild, common.wire_name(kind))
        assert [*inspect.signature(method).parameters][1:] == [f.name for f in fields(kind)]


@pytest.mark.parametrize("host", [UNIFIED, HYBRID], ids=["v2", "hybrid"])
def test_a_bundle_is_born_on_the_recording_kernel(host: Any) -> None:
    made = plan_of(read(linux__devices=[{"path": "/dev/x", "type": "c", "major": 1, "minor": 2}]))
    recorder = Recorder({"/bin/true": b""})
    trees = {slot: recorder.open(f"tree {slot}") for slot, _ in made.clone.trees}
    process = BundleChild(
        recorder, SimpleNamespace(), trees=trees, listener=-1, kept_above=3, streams=[0, 1, 2]
    )
    process.synchronize = lambda: None  # type: ignore[method-assign]
    process.report = lambda *failure: pytest.fail(str(failure))  # type: ignore[method-assign]
    process.perform(common.wire(made.birth))
    process.perform(common.wire(made.launch))
    names = recorder.names()
    assert names.count("pivot_root") == 1
    assert names[-1] == "execve"


def test_hooks_come_before_the_pivot_and_nothing_of_the_host_after_it() -> None:
    bind = {"destination": "/b", "type": "bind", "source": "/somewhere", "options": ["rbind"]}
    made = plan_of(read(mounts=[bind], hooks={"createContainer": [{"path": "/h"}]}, hostname="box"))
    names = kinds(made.birth)
    assert names.index("synchronize") < names.index("call_hooks") < names.index("pivot_root")
    after = made.birth[names.index("pivot_root") + 1 :]
    assert "/somewhere" not in repr(common.wire(after))


def test_mounts_are_made_in_the_order_of_the_document() -> None:
    targets = ["/b", "/a/deep", "/a"]
    mounts = [{"destination": path, "type": "tmpfs"} for path in targets]
    made = plan_of(read(mounts=mounts))
    found = [step.target for step in made.birth if isinstance(step, common.Mount)]
    assert found == targets


def test_options_are_mount_8s() -> None:
    options = ["ro", "nosuid", "rw", "rslave", "noatime", "size=1k", "mode=700"]
    (mount,) = read(mounts=[{"destination": "x", "type": "tmpfs", "options": options}]).mounts
    assert mount.target == "/x"
    assert mount.flags == linux.MS_NOSUID | linux.MS_NOATIME
    assert mount.data == "size=1k,mode=700"
    assert mount.propagation == linux.MS_SLAVE | linux.MS_REC


def test_a_new_user_namespace_makes_its_views_before_the_pivot() -> None:
    ids = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
    made = document("true")
    made["linux"] |= {"uidMappings": ids, "gidMappings": ids}
    made["linux"]["namespaces"].append({"type": "user"})
    plan = plan_of(read_config(json.loads(json.dumps(made)), "/bundle"))
    assert plan.clone.uid_map == "0 100000 65536\n"
    names = kinds(plan.birth)
    assert names.index("make_tree") < names.index("become_root") < names.index("pivot_root")
    assert "ensure_node" not in names, "a user namespace can make no node"


# The command line.


def test_flags_are_runcs() -> None:
    flags = {"bundle": "bundle=", "b": "bundle=", "detach": "detach", "env": "env="}
    words = ["-b", "/x", "--detach", "--env=A=1", "--env", "B=2", "name", "--env"]
    options, rest = arguments.parse(words, flags, many=frozenset({"env"}))
    assert options["bundle"] == "/x"
    assert options.flag("detach")
    assert options.all("env") == ["A=1", "B=2"]
    assert rest == ["name", "--env"]
    for bad, said in (
        (["--x"], "there is no option --x"),
        (["--bundle"], "--bundle needs a value"),
    ):
        with pytest.raises(arguments.UsageError, match=said):
            arguments.parse(bad, flags)

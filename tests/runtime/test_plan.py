"""Plans: the order of things, and what the child makes of them on a recording kernel."""

from __future__ import annotations

import inspect
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given, settings

from swarmlet.runtime import cgroups, child, hostside, steps
from swarmlet.runtime import syscalls as linux
from swarmlet.runtime.host import Host
from swarmlet.runtime.launcher import ACCOUNTS_BYTES_MAX, LaunchError
from swarmlet.runtime.plan import exec_plan, removal
from swarmlet.runtime.spec import ContainerSpec, File, Mount, Namespaces, Process, Resources, Root
from swarmlet.runtime.steps import wire, wire_name
from tests.runtime.recorder import (
    FILTER,
    HYBRID,
    PLACE,
    UNIFIED,
    Answers,
    Recorder,
    Reports,
    kinds,
    make,
    perform,
    spec_of,
)
from tests.runtime.specs import container_specs


def test_each_step_of_the_child_has_its_method() -> None:
    """steps.py and child.py name the same steps with the same parameters."""
    for kind in get_args(steps.ChildStep):
        method = getattr(child.Child, wire_name(kind))
        parameters = list(inspect.signature(method).parameters)[1:]
        assert parameters == [field.name for field in fields(kind)], kind


def test_each_step_of_the_host_is_executed() -> None:
    source = inspect.getsource(hostside._execute)
    for kind in get_args(steps.HostStep):
        assert f"case {kind.__name__}(" in source


def test_birth_of_a_plain_container() -> None:
    birth = kinds(make(spec_of(hostname="box"), HYBRID).birth)
    order = [
        "join_cgroup",  # limits before anything is allocated
        "unshare",  # the cgroup namespace's root is the joined group
        "new_session",
        "open_stdio",  # host paths, while there are some
        "set_propagation",  # nothing below reaches the host
        "mount_overlay",
        "pivot_root",
        "make_node",
        "set_hostname",
        "loopback_up",
        "make_readonly",  # each refuses something above
        "mask_paths",
    ]
    places = [birth.index(name) for name in order]
    assert places == sorted(places)


def test_launch_gives_up_rights_in_the_only_order_that_works() -> None:
    launch = kinds(make(spec_of()).launch)
    assert launch == [
        "resolve_user",
        "take_stdio",  # root gives the streams to the user
        "drop_bounding",  # needs CAP_SETPCAP
        "become_user",
        "change_directory",  # the user's rights decide
        "set_capabilities",
        "set_no_new_privileges",
        "load_seccomp",  # allowed by no_new_privs
        "execute",
    ]


def test_filter_comes_early_without_no_new_privileges() -> None:
    process = Process(args=("true",), no_new_privileges=False)
    launch = kinds(make(ContainerSpec(process=process, root=Root(layers=("/a",)))).launch)
    assert launch.index("load_seccomp") < launch.index("become_user")
    assert "set_no_new_privileges" not in launch


def test_only_hierarchies_with_a_limit_are_joined() -> None:
    def joined(resources: Resources) -> list[str]:
        made = make(spec_of(resources=resources), HYBRID)
        return [step.path for step in made.birth if isinstance(step, steps.JoinCgroup)]

    assert joined(Resources()) == ["/cg/memory/swarmlet/c"]
    assert joined(Resources(pids_max=5, cpu_shares=10)) == [
        "/cg/memory/swarmlet/c",
        "/cg/cpu,cpuacct/swarmlet/c",
        "/cg/pids/swarmlet/c",
    ]
    assert not [s for s in make(spec_of()).birth if isinstance(s, steps.JoinCgroup)]


def test_namespaces_become_clone_flags_or_are_entered() -> None:
    made = make(spec_of(namespaces=Namespaces(network="/run/netns/x", pid="/p", uts="host")))
    assert made.clone.flags == linux.CLONE_NEWNS | linux.CLONE_NEWIPC
    assert made.clone.joins == (("pid", "/p"), ("network", "/run/netns/x"))
    assert "loopback_up" not in kinds(made.birth)


def test_shared_mounts_are_cloned_before_the_tree_is_cut_off() -> None:
    mounts = (
        Mount(target="/s", source="/s", propagation="shared"),
        Mount(target="/p", source="/p"),
    )
    birth = make(spec_of(mounts=mounts)).birth
    cut = birth.index(steps.SetPropagation(linux.MS_REC | linux.MS_PRIVATE))
    assert birth.index(steps.CloneTree("mount0", "/s", recursive=True)) < cut
    assert birth.index(steps.CloneTree("mount1", "/p", recursive=True)) > cut


def test_shallow_mounts_come_first_and_the_users_beat_ours() -> None:
    mounts = (
        Mount(target="/a/b/c", source="/deep"),
        Mount(target="/a", source="/shallow"),
        Mount(target="/etc/hosts", source="/my-hosts"),
    )
    birth = make(spec_of(mounts=mounts, hosts="x")).birth
    targets = [(step.slot, step.target) for step in birth if isinstance(step, steps.AttachTree)]
    assert targets == [
        ("mount1", "/a"),
        ("hosts", "/etc/hosts"),
        ("mount2", "/etc/hosts"),
        ("mount0", "/a/b/c"),
    ]


def test_layers_and_upper_are_named_by_descriptor() -> None:
    recorder = Recorder()
    perform(make(spec_of()), recorder)
    opened = [call[0] for name, call in recorder.calls if name == "open"]
    layers = opened.index("/state/containers/c/upper")
    assert opened[layers : layers + 4] == [
        "/state/containers/c/upper",
        "/state/containers/c/work",
        "/b",  # the topmost layer first, as overlayfs wants them
        "/a",
    ]
    (overlay,) = [call for name, call in recorder.calls if name == "mount" and "overlay" in call]
    assert "/a" not in overlay[4]


def test_daemon_without_a_capability_cannot_give_it() -> None:
    host = Host(capabilities=(1 << 41) - 1 & ~1)
    launch = make(spec_of(), host).launch
    (drop,) = [step for step in launch if isinstance(step, steps.DropBounding)]
    (given,) = [step for step in launch if isinstance(step, steps.SetCapabilities)]
    assert not drop.keep & 1
    assert not given.effective & 1


@pytest.mark.parametrize("host", [UNIFIED, HYBRID], ids=["v2", "hybrid"])
@settings(max_examples=50, deadline=None)
@given(spec=container_specs)
def test_any_spec_is_born_on_the_recording_kernel(host: Host, spec: ContainerSpec) -> None:
    """No step fails, the command is executed last, and no descriptor is forgotten."""
    made = make(spec, host)
    accounts = f"{spec.process.user.user}:x:7:8::/home:/bin/sh\n".encode()
    named = (spec.process.user.group, *spec.process.user.additional_groups)
    groups = "".join(f"{name}:x:{number}:\n" for number, name in enumerate(named) if name)
    command = spec.process.args[0]
    recorder = Recorder(
        {
            "/etc/passwd": accounts,
            "/etc/group": groups.encode(),
            "/proc/self/oom_score_adj": b"0\n",
            f"/usr/local/sbin/{command}": b"",
            command: b"",
            "/dev/null": b"",
        }
    )
    process = perform(made, recorder)
    assert recorder.names()[-1] == "execve"
    assert recorder.names().count("pivot_root") == 1
    assert process.uid == 7
    left = set(recorder.open_now.values())
    streams = {"/dev/null", PLACE.stdin, PLACE.stdout, PLACE.stderr, "/dev/pts/0"}
    assert left <= streams, "streams are kept, everything else was closed"


@settings(max_examples=30, deadline=None)
@given(spec=container_specs)
def test_nothing_of_the_host_is_named_after_the_pivot(spec: ContainerSpec) -> None:
    made = make(spec, HYBRID)
    after = made.birth[kinds(made.birth).index("pivot_root") + 1 :]
    for text in (repr(wire(after)), repr(wire(made.launch))):
        assert PLACE.state not in text
        assert PLACE.run not in text


@settings(max_examples=30, deadline=None)
@given(spec=container_specs)
def test_secrets_are_in_the_birth_only(spec: ContainerSpec) -> None:
    made = make(spec)
    secret_steps = [step for step in made.birth if isinstance(step, steps.WriteSecret)]
    assert [step.content for step in secret_steps] == [file.content for file in spec.files]
    assert not [s for s in made.prepare if isinstance(s, steps.WriteSecret)]


def test_files_lie_on_a_tmpfs_that_holds_them() -> None:
    files = (File(path="/run/secrets/a", content=b"x" * 5000),)
    birth = make(spec_of(files=files)).birth
    (tmpfs,) = [s for s in birth if isinstance(s, steps.Mount) and s.target.endswith("/files")]
    size = int(tmpfs.data.rpartition("size=")[2])
    assert size >= 5000 + 4096
    assert birth.index(tmpfs) > kinds(birth).index("set_propagation"), "else the host would see it"


def test_exec_enters_everything_and_is_as_confined() -> None:
    spec = spec_of(resources=Resources(pids_max=5))
    driver = cgroups.driver(HYBRID, "swarmlet")
    birth, launch = exec_plan(spec.process, spec, HYBRID, driver, "c", FILTER)
    assert [step.path for step in birth if isinstance(step, steps.JoinCgroup)] == [
        "/cg/memory/swarmlet/c",
        "/cg/pids/swarmlet/c",
    ]
    (enter,) = [step for step in birth if isinstance(step, steps.EnterContainer)]
    for flag in ("NEWNS", "NEWNET", "NEWIPC", "NEWUTS", "NEWCGROUP"):
        assert enter.flags & getattr(linux, f"CLONE_{flag}")
    assert tuple(launch) == make(spec, HYBRID).launch


def test_removal_needs_no_spec_and_ends_with_the_state() -> None:
    steps_of_removal = removal(cgroups.driver(HYBRID, "swarmlet"), PLACE)
    assert steps_of_removal[0] == steps.KillCgroup("/cg/unified/swarmlet/c")
    assert steps_of_removal[-1] == steps.RemoveTree(PLACE.state)
    removed = {s.path for s in steps_of_removal if isinstance(s, steps.RemoveCgroup)}
    assert {f"{item.path}/swarmlet/c" for item in HYBRID.hierarchies} < removed


# Accounts of the image, which are the image's word.


def resolve(user: str, passwd: bytes, group: bytes = b"", groups: tuple[str, ...] = ()) -> Any:
    recorder = Recorder({"/etc/passwd": passwd, "/etc/group": group})
    process = child.Child(recorder, SimpleNamespace())  # type: ignore[arg-type]
    process.resolve_user(user, "", list(groups))
    return process.uid, process.gid, process.groups, process.home


def test_users_of_the_image() -> None:
    passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/false\n"
    group = b"web:x:33:\nadm:x:4:web,root\nx:x:5:\n"
    assert resolve("web", passwd, group) == (33, 33, [4], "/var/www")
    assert resolve("33", passwd, group) == (33, 33, [4], "/var/www")
    assert resolve("99", passwd, group) == (99, 0, [], "/")
    assert resolve("web", passwd, group, ("x", "1234")) == (33, 33, [4, 5, 1234], "/var/www")


@pytest.mark.parametrize(
    "passwd",
    [
        b"",
        b"web:x:33\n",
        b"web:x:-1:33::/:\n",
        b"web:x:minus:33::/:\n",
        b"\xff\xfe\0web\n" * 1000,
        b"x" * (ACCOUNTS_BYTES_MAX + 1) + b"\nweb:x:33:33::/:\n",
    ],
)
def test_a_broken_passwd_is_a_user_not_found(passwd: bytes) -> None:
    with pytest.raises(LaunchError, match='user "web" not found in the image'):
        resolve("web", passwd)


def test_a_failed_step_is_reported_with_its_index() -> None:
    recorder = Recorder()

    def refuse(*_: Any) -> None:
        raise OSError(2, "no such", "/somewhere")

    Answers.unshare = refuse  # type: ignore[attr-defined]
    try:
        made = make(spec_of())
        with pytest.raises(Reports) as caught:
            perform(made, recorder)
    finally:
        del Answers.unshare  # type: ignore[attr-defined]
    index, code, text, path = caught.value.args
    assert isinstance(made.birth[index], steps.Unshare)
    assert (code, text, path) == (2, "no such", "/somewhere")

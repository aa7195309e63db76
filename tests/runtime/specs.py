"""Specs by hypothesis: valid ones, of every field."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from swarmlet.runtime import defaults
from swarmlet.runtime.spec import (
    RLIMITS,
    Capabilities,
    ContainerSpec,
    Device,
    DeviceRule,
    File,
    IdMapping,
    IoLimit,
    LogConfig,
    Mount,
    Namespaces,
    Process,
    Resources,
    Rlimit,
    Root,
    Seccomp,
    User,
)

words = st.text("abcxyz0123 ._-äß", min_size=1, max_size=8)
names = st.text("abcxyz0123_", min_size=1, max_size=8)
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: "/srv/" + "/".join(parts))
capability_names = st.lists(st.sampled_from(defaults.CAPABILITIES), unique=True).map(tuple)
accesses = st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"])
numbers = st.none() | st.integers(0, 300)
limits = st.none() | st.integers(1, 1 << 40)


def lists(elements: st.SearchStrategy[object], most: int = 3) -> st.SearchStrategy[object]:
    return st.lists(elements, max_size=most).map(tuple)


users = st.builds(User, user=names, group=st.just("") | names, additional_groups=lists(names))
capabilities = st.builds(
    Capabilities, bounding=capability_names, effective=capability_names, permitted=capability_names
)
rlimits = st.builds(
    lambda kind, low, more: Rlimit(type=kind, soft=low, hard=low + more),
    st.sampled_from(sorted(RLIMITS)),
    st.integers(0, 1000),
    st.integers(0, 1000),
)
processes = st.builds(
    Process,
    args=st.lists(words, min_size=1, max_size=4).map(tuple),
    env=lists(st.builds("V{}={}".format, names, words)),
    cwd=paths,
    user=users,
    capabilities=capabilities,
    no_new_privileges=st.booleans(),
    rlimits=lists(rlimits),
    terminal=st.booleans(),
    stdin=st.booleans(),
    oom_score_adj=st.integers(-1000, 1000),
)
roots = st.builds(
    Root,
    layers=st.lists(paths, min_size=1, max_size=4).map(tuple),
    upper=st.none() | paths,
    readonly=st.booleans(),
)
mounts = st.builds(
    Mount,
    target=paths,
    source=paths,
    type=st.sampled_from(["bind", "volume"]),
    readonly=st.booleans(),
    recursive=st.booleans(),
    propagation=st.sampled_from(["private", "slave", "shared"]),
    options=lists(st.sampled_from(["nosuid", "nodev", "noexec"])),
) | st.builds(Mount, target=paths, type=st.just("tmpfs"), size_bytes=st.none() | st.just(4096))
namespace_kinds = st.sampled_from(["private", "host"]) | paths
namespaces = st.builds(
    Namespaces,
    pid=namespace_kinds,
    network=namespace_kinds,
    ipc=namespace_kinds,
    uts=namespace_kinds,
    cgroup=namespace_kinds,
)


@st.composite
def users_of_its_own(draw: st.DrawFn) -> dict[str, object]:
    """Namespaces with a user namespace that is new, and its map."""
    without_pid = draw(namespaces.filter(lambda found: not found.pid.startswith("/")))
    base = draw(st.integers(1 << 16, 1 << 30))
    mapping = IdMapping(container_id=0, host_id=base, size=draw(st.sampled_from([4, 65536])))
    return {
        "namespaces": replace(without_pid, user="private"),
        "uid_mappings": (mapping,),
        "gid_mappings": (mapping,),
    }


users_kinds = st.builds(dict, namespaces=namespaces) | users_of_its_own()
io_limits = st.builds(
    IoLimit,
    device=st.builds("{}:{}".format, st.integers(0, 300), st.integers(0, 20)),
    read_bytes_per_second=limits,
    write_bytes_per_second=limits,
    read_operations_per_second=limits,
    write_operations_per_second=limits,
)
resources = st.builds(
    Resources,
    memory_bytes=st.none() | st.integers(1 << 20, 1 << 34),
    memory_swap_bytes=st.none() | st.just(-1),
    memory_reservation_bytes=limits,
    cpu_quota_us=st.none() | st.integers(1000, 400_000),
    cpu_period_us=st.integers(1000, 1_000_000),
    cpu_shares=st.none() | st.integers(2, 262144),
    cpuset_cpus=st.none() | st.sampled_from(["0", "0-1", "0,1"]),
    pids_max=st.none() | st.integers(1, 1000),
    io=lists(io_limits, 2),
)
device_rules = st.builds(
    DeviceRule,
    allow=st.booleans(),
    type=st.sampled_from(["a", "b", "c"]),
    major=numbers,
    minor=numbers,
    access=accesses,
)
devices = st.builds(
    Device,
    path=names.map("/dev/{}".format),
    type=st.sampled_from(["b", "c"]),
    major=st.integers(0, 300),
    minor=st.integers(0, 300),
    access=accesses,
)
files = st.builds(File, path=paths, content=st.binary(max_size=40), mode=st.just(0o400))
plain_specs = st.builds(
    ContainerSpec,
    process=processes,
    root=roots,
    hostname=st.just("") | names,
    domainname=st.just("") | names,
    mounts=lists(mounts),
    files=lists(files),
    hosts=st.none() | words,
    resolv_conf=st.none() | words,
    resources=resources,
    devices=lists(devices),
    device_rules=lists(device_rules),
    seccomp=st.sampled_from([Seccomp(), Seccomp(profile="unconfined")]),
    shm_bytes=st.integers(1, 1 << 30),
    stop_grace=st.floats(0, 100),
    log=st.builds(LogConfig, driver=st.sampled_from(["json-file", "none"])),
    annotations=st.dictionaries(names, words, max_size=2),
)
container_specs = st.builds(lambda spec, users: replace(spec, **users), plain_specs, users_kinds)

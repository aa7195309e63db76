"""The modes of the simulation: each biased towards bugs that plain chaos misses.

A mode makes faults for some time, then everything heals, and then the cluster must come to rest:
one leader, equal logs, no joint configuration, everything answered is there.
"""

from __future__ import annotations

from collections.abc import Callable

from raft.config import Config
from raft.frames import SEGMENT_HEADER_BYTES, Kind, SegmentHeader, loose_frames
from raft.membership import Change, ChangeKind, ServerChange, Transition
from raft.messages import Message, RequestVote, Role, ServerId
from raft.scan import segment_names
from tests.raft.checkers import Violated
from tests.raft.linearizability import NotLinearizable
from tests.raft.world import KEY, Faults, Server, World

CONFIG = Config(applying_bytes_max=4096, message_bytes_max=2048, in_flight_messages_max=4)
#: Milliseconds until a healed cluster must have a leader, and be at rest.
ELECTION_MS = 20 * 2_000
REST_MS = 70_000


def draw_faults(world_seed: int, *, servers: int) -> World:
    """A world of *servers* whose faults are drawn from the seed too."""
    world = World(seed=world_seed, servers=servers, faults=Faults(), config=CONFIG)
    rng = world.rng
    world.faults = Faults(
        loss=rng.choice([0, 0.02, 0.1, 0.3]),
        duplication=rng.choice([0, 0.05, 0.2]),
        delay_max=rng.choice([5, 20, 80, 300]),
        disk_max=rng.choice([2, 10, 60]),
        report_loss=rng.choice([0, 0.5, 1]),
        snapshot_entries=rng.choice([8, 20, 60]),
        trailing_entries=rng.choice([0, 3, 10]),
    )
    return world


def work(world: World) -> None:
    """Somebody uses the cluster: a few proposals and reads, mostly where the leader is."""
    rng = world.rng
    leader = world.leader()
    for _ in range(rng.randint(0, 4)):
        target = leader if leader and rng.random() < 0.8 else rng.choice(everybody(world))
        target.propose(world.draw_command(rng.choice([0, 0, 40, 400])))
    if rng.random() < 0.4:
        rng.choice(everybody(world)).read()


def everybody(world: World) -> list[Server]:
    return list(world.servers.values())


def rest(world: World, *, quiet: bool = False) -> None:
    """Heal the world and demand that it comes to rest."""
    world.heal()
    deadline = world.now + ELECTION_MS
    while world.leader() is None:
        if world.now > deadline:
            raise Violated("liveness: no leader after the network healed")
        world.run(100)
    if not quiet:
        for _ in range(5):
            work(world)
            world.run(200)
    deadline = world.now + REST_MS
    while not at_rest(world):
        if world.now > deadline:
            raise Violated(f"liveness: not at rest {[describe(s) for s in everybody(world)]}")
        world.run(500)
    leader = world.leader()
    assert leader
    assert leader.raft
    for server in everybody(world):
        if server.server in leader.raft.configuration:
            world.checkers.converged(server.server, server.commands)
            if server.commands != leader.commands:
                raise Violated(f"{server.server} has other commands than {leader.server}")
    try:
        world.history.check()
    except NotLinearizable as failure:
        raise Violated(f"linearizability: {failure}") from failure


def describe(server: Server) -> str:
    raft = server.raft
    if raft is None:
        return f"{server.server} down"
    log = raft.log
    return (
        f"{server.server} {raft.role.value} term={raft.term} last={log.last_index} "
        f"commit={log.committed} applied={server.applied} {raft.configuration}"
    )


def at_rest(world: World) -> bool:
    leader = world.leader()
    if leader is None or leader.raft is None:
        return False
    raft = leader.raft
    if raft.configuration.joint or leader.server not in raft.configuration.voters:
        return False
    last = raft.log.last_index
    return all(
        server.applied == last and server.raft is not None and server.raft.log.last_index == last
        for server in everybody(world)
        if server.server in raft.configuration
    )


def chaos(seed: int) -> World:
    """Everything at once: loss, delay, duplication, cuts, crashes with torn writes."""
    world = draw_faults(seed, servers=3 + 2 * (seed % 2))
    rng = world.rng
    for _ in range(60):
        work(world)
        world.run(rng.randint(20, 400))
        match rng.randrange(10):
            case 0:
                rng.choice(everybody(world)).crash()
            case 1 | 2:
                for server in everybody(world):
                    if not server.running:
                        server.start()
            case 3:
                a, b = rng.sample(sorted(world.servers), 2)
                world.cut.add((a, b))
            case 4:
                world.isolate(rng.choice(sorted(world.servers)))
            case 5 | 6:
                world.cut = set()
    return world


def crash_at_send(seed: int) -> World:
    """Every leader dies with its k-th message: half of what it had to say is out."""
    world = draw_faults(seed, servers=3)
    rng = world.rng
    state = {"left": rng.randint(1, 12)}

    def count(sender: ServerId, to: ServerId, message: Message) -> bool:
        server = world.servers[sender]
        if server.raft is not None and server.raft.role is Role.LEADER:
            state["left"] -= 1
            if state["left"] == 0:
                state["left"] = rng.randint(1, 30)
                world.at(0, server.crash)
                return True
        return False

    world.drop = count
    for _ in range(60):
        work(world)
        world.run(rng.randint(50, 500))
        for server in everybody(world):
            if not server.running and rng.random() < 0.5:
                server.start()
    return world


def stable(seed: int) -> World:
    """One follower is cut off and comes back: neither leader nor term may change."""
    world = World(seed=seed, servers=3, faults=Faults(delay_max=8), config=CONFIG)
    while world.leader() is None:
        world.run(100)
    world.run(1_000)
    leader = world.leader()
    assert leader
    assert leader.raft
    term = leader.raft.term
    rng = world.rng
    follower = rng.choice([s for s in world.servers if s != leader.server])
    for _ in range(4):
        world.isolate(follower)
        for _ in range(rng.randint(1, 10)):
            work(world)
            world.run(rng.randint(100, 2_000))
        world.cut = set()
        world.run(rng.randint(500, 3_000))
        if world.leader() is not leader or leader.raft is None or leader.raft.term != term:
            raise Violated(f"stability: {describe(leader)} after {follower} came back")
    return world


def partial_cut(seed: int) -> World:
    """Only the link between the leader and one follower is cut: nobody else may be disturbed.

    While nothing is written the follower's log is as good as any, and only the lease of the
    others stands in its way.
    """
    world = World(seed=seed, servers=5, faults=Faults(delay_max=8), config=CONFIG)
    while world.leader() is None:
        world.run(100)
    world.run(500)
    leader = world.leader()
    assert leader
    assert leader.raft
    term = leader.raft.term
    rng = world.rng
    follower = rng.choice([s for s in world.servers if s != leader.server])
    world.cut = {(leader.server, follower), (follower, leader.server)}
    for _ in range(20):
        if seed % 2:
            work(world)
        world.run(rng.randint(100, 600))
    if world.leader() is not leader or leader.raft is None or leader.raft.term != term:
        raise Violated(f"stability: {describe(leader)} was disturbed by {follower}")
    return world


def one_way(seed: int) -> World:
    """Links that carry one way only."""
    world = draw_faults(seed, servers=3)
    rng = world.rng
    for _ in range(30):
        world.cut = set()
        for a in sorted(world.servers):
            for b in sorted(world.servers):
                if a != b and rng.random() < 0.25:
                    world.cut.add((a, b))
        for _ in range(rng.randint(1, 6)):
            work(world)
            world.run(rng.randint(50, 400))
    return world


def stale(seed: int) -> World:
    """An isolated leader goes on taking proposals; they must vanish or be committed, not both."""
    world = draw_faults(seed, servers=3 + 2 * (seed % 2))
    rng = world.rng
    for _ in range(8):
        for _ in range(40):
            if world.leader():
                break
            world.run(200)
        leader = world.leader()
        if leader:
            world.isolate(leader.server)
            for _ in range(rng.randint(1, 8)):
                leader.propose(world.draw_command())
                leader.read()
                work(world)
                world.run(rng.randint(50, 600))
        world.cut = set()
        world.run(rng.randint(100, 2_000))
    return world


def power_cut_all(seed: int) -> World:
    """The whole site loses power, again and again."""
    world = draw_faults(seed, servers=3)
    rng = world.rng
    for _ in range(6):
        for _ in range(rng.randint(3, 12)):
            work(world)
            world.run(rng.randint(20, 400))
        for server in everybody(world):
            server.crash()
        for server in everybody(world):
            server.start()
    return world


def membership(seed: int) -> World:
    """Servers join, leave and change places throughout, leaders included."""
    world = draw_faults(seed, servers=3)
    rng = world.rng
    next_server = 4
    for _ in range(60):
        work(world)
        world.run(rng.randint(50, 500))
        leader = world.leader()
        match rng.randrange(8):
            case 0:
                rng.choice(everybody(world)).crash()
            case 1 | 2:
                for server in everybody(world):
                    if not server.running:
                        server.start()
            case 3 if leader and leader.raft:
                leader.raft.transfer(rng.choice(sorted(world.servers)))
                leader.turn()
            case 4 | 5 | 6 if leader and leader.raft:
                if len(world.servers) < 7 and rng.random() < 0.4:
                    world.add(ServerId(next_server))
                    next_server += 1
                leader.change(draw_change(world, leader))
            case 7:
                world.isolate(rng.choice(sorted(world.servers)))
                world.run(rng.randint(100, 1_500))
                world.cut = set()
    return world


def draw_change(world: World, leader: Server) -> Change:
    """A change of one or several servers, sometimes one that makes no sense."""
    assert leader.raft
    raft, rng = leader.raft, world.rng
    configuration = raft.configuration
    if configuration.joint:
        return Change()
    changes = []
    for server in rng.sample(sorted(world.servers), k=rng.choice([1, 1, 1, 2, 3])):
        progress = raft.progress.get(server)
        if server in configuration.voters:
            kind = rng.choice([ChangeKind.REMOVE, ChangeKind.ADD_LEARNER])
        elif progress is not None and progress.match_index + 5 >= raft.log.last_index:
            kind = ChangeKind.ADD_VOTER  # only those who have caught up
        else:
            kind = ChangeKind.ADD_LEARNER
        changes.append(ServerChange(kind, server, b"at %d" % server))
    kept = set(configuration.voters) - {
        c.server for c in changes if c.kind is not ChangeKind.ADD_VOTER
    }
    if len(kept) < 2:
        return Change((ServerChange(ChangeKind.UPDATE, leader.server, b"moved"),))
    transition = rng.choice([Transition.AUTO, Transition.AUTO, Transition.JOINT_IMPLICIT])
    return Change(tuple(changes), transition)


def swizzle(seed: int) -> World:
    """Links are clogged one by one, and opened in another order."""
    world = draw_faults(seed, servers=5)
    rng = world.rng
    for _ in range(5):
        victims = rng.sample(sorted(world.servers), k=rng.randint(2, 4))
        for victim in victims:
            world.isolate(victim)
            work(world)
            world.run(rng.randint(50, 800))
        rng.shuffle(victims)
        for victim in victims:
            world.cut = {pair for pair in world.cut if victim not in pair}
            work(world)
            world.run(rng.randint(50, 800))
    return world


def slow_disk(seed: int) -> World:
    """One server's disk is a hundred times slower: its queue may not grow for ever."""
    world = draw_faults(seed, servers=3)
    world.faults = Faults(disk_max=400, delay_max=10, snapshot_entries=20)
    for _ in range(60):
        work(world)
        world.run(world.rng.randint(10, 150))
    return world


def lost_votes(seed: int) -> World:
    """Elections in which most votes get lost: many candidates, many terms."""
    world = draw_faults(seed, servers=5)
    rng = world.rng
    world.drop = lambda s, t, m: isinstance(m, RequestVote) and rng.random() < 0.6
    for _ in range(40):
        work(world)
        world.run(rng.randint(50, 500))
        leader = world.leader()
        if leader and rng.random() < 0.4:
            leader.crash()
        for server in everybody(world):
            if not server.running and rng.random() < 0.5:
                server.start()
    return world


def rot(seed: int) -> World:
    """Bytes rot on one server's disk at a time, in what may have been acknowledged."""
    world = draw_faults(seed, servers=3 + 2 * (seed % 2))
    rng = world.rng
    for _ in range(12):
        for _ in range(rng.randint(2, 8)):
            work(world)
            world.run(rng.randint(20, 600))
        whole = all(s.raft is not None and not s.raft.recovering for s in everybody(world))
        if whole and world.leader():
            victim = rng.choice(everybody(world))
            victim.crash()
            # What it said before is not under way any more when it comes back.
            world.run(2 * world.faults.delay_max)
            spoil(world, victim)
            victim.start()
    return world


def spoil(world: World, server: Server) -> None:
    """Flip a bit somewhere in *server*'s log, but not in its last frame."""
    disk = server.disk
    name = world.rng.choice(segment_names(disk))
    header = SegmentHeader.unpack(disk.read(name))
    assert header
    frames = loose_frames(disk.read(name), header.cipher(KEY))
    ends = [frame.end for frame in frames if frame.kind is Kind.DATA]
    if len(ends) >= 2:
        position = world.rng.randrange(SEGMENT_HEADER_BYTES, ends[-2])
        disk.files[name].current[position] ^= 1
        disk.files[name].sync()


MODES: dict[str, Callable[[int], World]] = {
    "chaos": chaos,
    "crash_at_send": crash_at_send,
    "stable": stable,
    "partial_cut": partial_cut,
    "one_way": one_way,
    "stale": stale,
    "power_cut_all": power_cut_all,
    "membership": membership,
    "swizzle": swizzle,
    "slow_disk": slow_disk,
    "lost_votes": lost_votes,
    "rot": rot,
}


def simulate(mode: str, seed: int) -> World:
    """Play one schedule; raise Violated if Raft does not hold what it promises."""
    world = MODES[mode](seed)
    rest(world, quiet=seed % 3 == 0)
    return world

"""Gossip: who is there, and who is not, known to every member within seconds.

The protocol is SWIM (Das, Gupta, Motivala: Scalable Weakly-consistent Infection-style Process
Group Membership, 2002) with Lifeguard (Dadgar, Phillips, Currey, 2017, arXiv 1707.00788), as
memberlist and Serf have proved it in the field. Every member probes one other in a period and
tells what it learns on the packets that it sends anyway, so the load of a member is the same in
a group of ten and of ten thousand.

The life of a failure
    1. b's power goes. Within a second or two it is b's turn in somebody's round: a pings it.
    2. No Ack in ack_timeout: a asks three members to ping b, tries a stream, and knocks at b's
       TCP port. Still nothing at the end of the period: a suspects b, and says so.
    3. The rumour rides on every packet. Some who hear it probe b at once; each that fails is an
       accuser more, and with every accuser the timer gets shorter.
    4. If b lives, the next ping tells it that it is suspected. It takes a higher incarnation, and
       its Alive outruns the suspicion.
    5. Else the timer of some member runs out: b is dead, and the rumour of that goes round.
    6. b is pinged for ever at a low rate. When it answers, it learns that it is held for dead,
       and refutes.

If b's daemon alone died, its host refuses the ping. Then the helpers are asked in the same
moment, and if one is refused as well, b has just refused_timeout to object. If b's daemon is
stopped (SIGSTOP, a stalled disk), its kernel still takes the connection: b gets more time.

What holds
    - News has one total order: incarnation, then LEFT > DEAD > SUSPECT > ALIVE. So members that
      heard the same news in any order hold the same.
    - An incarnation is boot << 32 | n. Only the member itself raises its own, and a restarted one
      stands above all that was said of its former lives.
    - Time is a count of ticks. A process that slept counts none, gives up its probes and accuses
      nobody.
    - Nothing is unbounded: packets (1,190 bytes of payload), bytes a second, rumours, probes,
      relays, members, streams. Every bound has a name.
    - A packet is taken once, and only if it is sealed with a key of the group. The key proves the
      group, not the sender: nothing that grants rights or places work may rest on gossip alone.
    - Who was known once is never given up while the store knows it; islands merge by themselves.

Where we differ
    - From SWIM: a dead member may come back, with a higher incarnation. There is no multicast.
    - From memberlist: a suspicion carries all its accusers, so that a rumour that was replaced
      by a newer one loses no confirmation. Members look into suspicions out of turn
      (Config.confirmers). Refused and stalled hosts are told from silent ones. What an exchange
      says of the dead is probed before it is believed, and nobody alive is troubled by it.
      Exchanges compare digests first, run soon after every join and death, and use streams that
      the caller authenticates. Who hears nobody keeps its verdicts to itself.
    - From Lifeguard: pauses are noticed and void what was waited for; the score stretches the
      suspicion timers, too; with nobody left who could confirm, the shortest timer counts.
    - From DISTRIBUTED.md B2: a helper pings only members that it knows, so PING_REQ has no
      address; rumours of keys are not sent, because each packet names its epoch; the header has a
      salt of four bytes (sealing.py says why); lan and fast have shorter suspicion timers, because
      confirmers and evidence carry them (config.py has the figures); two addresses of one member
      are first pinged, and the certificates asked only if both answer.

What is left out
    - Coordinates (Vivaldi): the round trip times of the probes are enough to prefer a near peer.
    - Rings per zone: one ring is meant for 2,000 members. Above that, run one Gossip for each.

Map
    messages, config, events        the words: what is said, what can be set, what happens
    members, antientropy            the table, its order and its digests
    awareness, suspicion            Lifeguard's two formulas
    probing, contacts, moves        asking: whom, when, and what silence means
    membership, dissemination       the rules of news, and the queue of rumours
    userevents                      users' broadcasts
    core                            Swim.step(event) -> actions: all of the above, pure
    sealing, errorqueue, streams    the envelope, refused packets, conversations
    views, reports                  what others get to see
    gossip                          Gossip: the Trio shell. Start reading here, or in core

Use
    gossip = Gossip(member=..., address=..., facts=..., boot=..., config=LAN, keyring=...,
                    codec=..., streams=..., rng=random.Random())
    await nursery.start(gossip.run, udp_socket)
    gossip.join([("10.66.0.1", 7947)])
    with gossip.subscribe() as transitions:
        async for transition in transitions: ...
"""

from swarmlet.swim.config import EDGE, FAST, LAN, PRESETS, TICK, WAN, Config, configure
from swarmlet.swim.events import Conflict, Reason
from swarmlet.swim.gossip import Codec, Gossip
from swarmlet.swim.messages import (
    Address,
    MemberId,
    Message,
    State,
    StreamMessage,
    UserEvent,
)
from swarmlet.swim.sealing import Keyring
from swarmlet.swim.streams import STREAM_ERRORS, FrameStream, Streams
from swarmlet.swim.views import MemberView, Reachability, Statistics, Transition

__all__ = [
    "EDGE",
    "FAST",
    "LAN",
    "PRESETS",
    "STREAM_ERRORS",
    "TICK",
    "WAN",
    "Address",
    "Codec",
    "Config",
    "Conflict",
    "FrameStream",
    "Gossip",
    "Keyring",
    "MemberId",
    "MemberView",
    "Message",
    "Reachability",
    "Reason",
    "State",
    "Statistics",
    "StreamMessage",
    "Streams",
    "Transition",
    "UserEvent",
    "configure",
]

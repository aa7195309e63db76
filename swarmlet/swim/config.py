"""The knobs of the protocol, their formulas and the presets.

Pure. Durations are ticks of TICK seconds. One length of tick serves every preset, so that a
change of settings in a running member does not stretch the timers that are under way.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Seconds in a tick. The shortest wait of any preset is one (fast: gossip_period).
TICK = 0.1

#: IPv6 guarantees 1,280 bytes end to end; less IPv6 40, UDP 8, header 26 and tag 16.
PAYLOAD_BYTES_MAX = 1190
#: What a packet costs beside its payload: IPv4 20, UDP 8, our header 26, AEAD tag 16.
OVERHEAD_BYTES = 70


def ticks(seconds: float) -> int:
    """Return the whole number of ticks next to *seconds*, one at least."""
    return max(1, round(seconds / TICK))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One member's settings. All may be changed in a running member, one member at a time.

    n is the number of members that are alive or suspect, this one included. s is the local
    health score, 0 to awareness_max - 1 (Lifeguard's LHM).

    Probing:
        probe_period: from one probe to the next; times s + 1.
        ack_timeout: wait for the direct answer; times s + 1. The rest of the period is for
            the helpers and the stream.
        helpers: members asked for an indirect probe (SWIM's k).

    Suspicion: a suspect is dead after most - (most - least) log(c + 1) / log(k + 1) ticks, c
    being the confirmations beside the first accuser, at most k:
        suspicion_mult: least = mult * max(1, log10 n) * probe_period * (s + 1).
        suspicion_max_factor: most = factor * mult * max(1, log10 n) * probe_period * (s + 1).
        confirmations: k; with fewer than k + 2 members, all the others that there are.
        confirmers: how many members, on average, probe a suspect out of turn when they hear
            of it. 0 leaves confirmations to chance, as SWIM does.
        stall_factor: the shortest timer is so many times as long for a suspect whose host takes
            connections that nobody serves: a stopped process is no dead one.
        refused_timeout: a suspect whose host answers that nobody listens there, to two
            members at least, is dead after so long: time to refute, no more.

    Dissemination:
        gossip_period, gossip_fanout: every period, rumours go to so many members.
        gossip_to_dead: the dead are told for so long, in case they are not.
        retransmit_mult: a rumour is sent mult * ceil(log10(n + 1)) times by each member.
        rumours_per_packet: no packet carries more, so that a storm slows down and does not
            grow.
        rate_bytes: bytes a second that all our packets together may take. Answers and
            probes come first, rumours get the rest.

    Anti-entropy:
        sync_period: times ceil(log2 n - 5) + 1 above 32 members (memberlist's scale).
        sync_extra: after a join or a death, one exchange more within so many ticks; and the
            least time between two exchanges.

    Others:
        awareness_max: scores go from 0 to this, exclusive.
        pause_least: ticks slept through that make a pause; twice the probe period if that
            is longer.
        heal_period: one member that is not alive is pinged each time, for ever; times
            n / (100 * their number) where that is more than 1.
        leave_timeout: longest time that a leave takes.
        reap_after: the dead and the left are forgotten after it, unless the store knows
            them.
    """

    probe_period: int = ticks(1.0)
    ack_timeout: int = ticks(0.5)
    helpers: int = 3
    suspicion_mult: int = 2
    suspicion_max_factor: int = 12
    confirmations: int = 3
    confirmers: int = 6
    stall_factor: int = 4
    refused_timeout: int = ticks(0.8)
    gossip_period: int = ticks(0.2)
    gossip_fanout: int = 3
    gossip_to_dead: int = ticks(30)
    retransmit_mult: int = 4
    rumours_per_packet: int = 8
    rate_bytes: int = 20_000
    sync_period: int = ticks(30)
    sync_extra: int = ticks(5)
    awareness_max: int = 8
    pause_least: int = ticks(1.0)
    heal_period: int = ticks(10)
    leave_timeout: int = ticks(1.0)
    reap_after: int = ticks(24 * 3600)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in {"helpers", "confirmers", "confirmations"} else 1
            if type(value) is not int or not least <= value < 1 << 40:
                raise ValueError(f"{field.name}: {value!r} is no whole number of at least {least}")
        if self.ack_timeout >= self.probe_period:
            raise ValueError("ack_timeout: must be less than probe_period")
        if self.rate_bytes < RATE_BYTES_LEAST:
            raise ValueError(f"rate_bytes: below {RATE_BYTES_LEAST} probes are not answered")

    @property
    def nack_timeout(self) -> int:
        """Ticks that a helper waits: 80 % of the asker's, so that its word is in time."""
        return max(1, self.ack_timeout * 4 // 5)

    def pause(self) -> int:
        """Return the ticks slept through that count as a pause of this process."""
        return max(self.pause_least, 2 * self.probe_period)

    def suspicion_bounds(self, members: int, score: int) -> tuple[int, int]:
        """Return the least and the most ticks of a suspicion."""
        scale = self.suspicion_mult * max(1.0, math.log10(max(1, members))) * self.probe_period
        least = scale * (score + 1)
        return round(least), round(least * self.suspicion_max_factor)

    def retransmit_limit(self, members: int) -> int:
        return self.retransmit_mult * math.ceil(math.log10(members + 1))

    def sync_ticks(self, members: int) -> int:
        """Return the time between two periodic exchanges."""
        if members <= SYNC_SCALE_THRESHOLD:
            return self.sync_period
        return self.sync_period * (math.ceil(math.log2(members / SYNC_SCALE_THRESHOLD)) + 1)

    def heal_ticks(self, members: int, absent: int) -> int:
        """Return the time between two pings of *absent* members that are not alive.

        One that is absent then hears at most ten a second, however many miss it.
        """
        return self.heal_period * max(1, members // (100 * max(1, absent)))


#: Up to here every member exchanges once a period (memberlist: pushPullScaleThreshold).
SYNC_SCALE_THRESHOLD = 32
#: Probe, ack and their likes at the default period, with room for four times as many.
RATE_BYTES_LEAST = 2_000

#: memberlist's timers are twice as long (mult 4 and 6), because nobody looks into a suspicion.
#: With confirmers and the evidence of a stalled host ours are as safe (simulated, 20 members,
#: seconds from a crash to the last observer, p50; verdicts on the healthy at 30 % loss in 6
#: minutes; on members that were stopped for 8 s at a time, 8 of 50):
#:
#:                  crash    30 % loss    stopped
#:     memberlist     7.0            2       1129
#:     lan            4.4            1          0
#:
#: A mult of 3 at half a second needs the confirmers: without them 15 healthy members of 50 were
#: declared dead at 40 % loss, with them none.
LAN = Config()
FAST = Config(
    probe_period=ticks(0.5),
    ack_timeout=ticks(0.2),
    suspicion_mult=3,
    suspicion_max_factor=8,
    gossip_period=ticks(0.1),
    sync_period=ticks(15),
    rate_bytes=40_000,
)
WAN = Config(
    probe_period=ticks(5),
    ack_timeout=ticks(3),
    suspicion_mult=3,
    refused_timeout=ticks(4),
    gossip_period=ticks(0.5),
    gossip_fanout=4,
    gossip_to_dead=ticks(60),
    sync_period=ticks(60),
    rate_bytes=10_000,
    leave_timeout=ticks(3),
)
EDGE = Config(
    probe_period=ticks(5),
    ack_timeout=ticks(2),
    suspicion_mult=3,
    refused_timeout=ticks(4),
    gossip_period=ticks(1),
    gossip_fanout=2,
    gossip_to_dead=ticks(60),
    sync_period=ticks(120),
    rate_bytes=4_000,
    leave_timeout=ticks(3),
)
PRESETS: Mapping[str, Config] = {"lan": LAN, "fast": FAST, "wan": WAN, "edge": EDGE}

#: Knobs that are times; the others are counts.
DURATIONS = frozenset(
    {
        "probe_period",
        "ack_timeout",
        "refused_timeout",
        "gossip_period",
        "gossip_to_dead",
        "sync_period",
        "sync_extra",
        "pause_least",
        "heal_period",
        "leave_timeout",
        "reap_after",
    }
)
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def configure(preset: str, overrides: Mapping[str, Any]) -> Config:
    """Return *preset* with *overrides* by the names of Config's fields.

    Raises:
        ValueError: no such preset, no such knob, or a value that it cannot take.
    """
    if preset not in PRESETS:
        raise ValueError(f"{preset!r} is none of the presets {', '.join(PRESETS)}")
    unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(Config)})
    if unknown:
        raise ValueError(f"no such knob: {', '.join(unknown)}")
    return dataclasses.replace(PRESETS[preset], **overrides)


def configure_from_text(preset: str, knobs: Mapping[str, str]) -> Config:
    """The same for *knobs* as people write them: "500ms", "2s", "24h", "4".

    Raises:
        ValueError: as configure, and for what is no duration or no number.
    """
    return configure(preset, {name: _read_knob(name, text) for name, text in knobs.items()})


def _read_knob(name: str, text: str) -> int:
    if name not in DURATIONS:
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"{name}: {text!r} is no whole number")
        return int(text[:20])
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{name}: {text!r} is no duration; write for example 500ms, 2s or 24h")
    return ticks(float(match[1]) * _SECONDS[match[2]])

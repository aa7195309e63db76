"""Wire form of every message between nodes: one table of kinds, one codec.

Pure.

    body = msgpack [version, kind, [field, field, ...]]

A body travels in a length-prefixed frame of a stream (swarmlet/transport) or, several together, in
a sealed datagram of the gossip. Kinds are part of the protocol: only append to the table, never
renumber, never reuse. Fields are append-only (swarmlet/codec.py).

What comes from a peer goes through decode_untrusted, which raises BadMessage and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from raft import messages as raft
from raft.snapshots import SnapshotHeader
from swarmlet import session
from swarmlet.codec import PACK_BYTES, BadMessage, decoder_of, encoder_of, plain_untrusted
from swarmlet.identity import messages as identity
from swarmlet.swim import messages as swim

VERSION: Final = 1  #: spoken by this release
VERSION_MIN: Final = 1  #: oldest understood
#: Messages in one datagram; swim's own bound is its bytes.
DATAGRAM_MESSAGES_MAX: Final = 64

TYPES: dict[int, type[Any]] = {
    # raft
    1: raft.AppendEntries,
    2: raft.AppendReply,
    3: raft.Heartbeat,
    4: raft.HeartbeatReply,
    5: raft.RequestVote,
    6: raft.VoteReply,
    7: raft.InstallSnapshot,
    8: raft.TimeoutNow,
    9: raft.TransferLeadership,
    10: raft.ReadRequest,
    11: raft.ReadReply,
    12: raft.Propose,
    13: session.RaftHello,
    14: SnapshotHeader,
    15: session.SnapshotReceipt,
    # swim
    32: swim.Ping,
    33: swim.Ack,
    34: swim.PingReq,
    35: swim.Nack,
    36: swim.Alive,
    37: swim.Suspect,
    38: swim.Dead,
    39: swim.Left,
    40: swim.UserEvent,
    41: swim.SyncDigest,
    42: swim.SyncRecords,
    # sessions
    64: session.Hello,
    65: session.Welcome,
    66: session.Redirect,
    67: session.Assign,
    68: session.Ack,
    69: session.Status,
    70: session.Images,
    71: session.Heartbeat,
    72: session.Probe,
    73: session.Probed,
    74: session.Farewell,
    75: session.BlobRequest,
    76: session.BlobAnswer,
    # the certificate authority
    96: identity.TrustRequest,
    97: identity.TrustAnswer,
    98: identity.JoinRequest,
    99: identity.Issued,
    100: identity.JoinPending,
    101: identity.JoinRefused,
    102: identity.RenewRequest,
}
KINDS: dict[type[Any], int] = {cls: kind for kind, cls in TYPES.items()}
_ENCODERS = {cls: (kind, encoder_of(cls)) for cls, kind in KINDS.items()}
_DECODERS = {kind: decoder_of(cls) for kind, cls in TYPES.items()}


def _plain(message: Any) -> list[Any]:
    kind, encode_fields = _ENCODERS[type(message)]
    return [VERSION, kind, encode_fields(message)]


def _message_untrusted(plain: Any) -> Any:
    if type(plain) is not list or len(plain) < 3:
        raise BadMessage("not [version, kind, fields]")
    version, kind, fields = plain[:3]
    if type(version) is not int or version < VERSION_MIN:
        raise BadMessage(f"version {version!r:.20}; {VERSION_MIN} is the oldest understood here")
    decode_fields = _DECODERS.get(kind) if type(kind) is int else None
    if decode_fields is None:
        raise BadMessage(f"kind {kind!r:.20} is not known here")
    return decode_fields(fields)


def encode(message: Any) -> bytes:
    """Return the body of *message*, an instance of a class in TYPES."""
    body: bytes = msgpack.packb(_plain(message), buf_size=PACK_BYTES)
    return body


def decode_untrusted(body: bytes | memoryview) -> Any:
    """Return the message in *body*. Raises BadMessage."""
    return _message_untrusted(plain_untrusted(body))


def encode_many(messages: Sequence[Any]) -> bytes:
    """Return one body that holds all of *messages*, in order."""
    body: bytes = msgpack.packb([_plain(message) for message in messages], buf_size=PACK_BYTES)
    return body


def decode_many_untrusted(body: bytes | memoryview) -> list[Any]:
    """Return the messages in *body*; kinds of a newer peer are passed over. Raises BadMessage."""
    plain = plain_untrusted(body)
    if type(plain) is not list or len(plain) > DATAGRAM_MESSAGES_MAX:
        raise BadMessage("not a list of messages")
    messages = []
    for item in plain:
        newer = type(item) is list and len(item) > 1 and type(item[1]) is int
        if newer and item[1] not in TYPES:
            continue
        messages.append(_message_untrusted(item))
    return messages

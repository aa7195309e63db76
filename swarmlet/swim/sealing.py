"""The envelope of a datagram: who sent it, under which key; sealed, and never taken twice.

    packet = header payload-and-tag
    header = version 1, flags 1, key epoch 2, sender 8, boot 4, salt 4, counter 6   (26 bytes)

Big endian. The header is authenticated, the payload encrypted as well (AES-256-GCM, tag 16
bytes). The key is HKDF-SHA256(key of the epoch, "gossip", cluster, sender, boot, salt), the nonce
the counter: no nonce is ever used twice under one key, at any number of members and packets.
The salt is random for each start: a copied disk or a boot number that was restored from a
backup must not bring two different packets under one nonce.

Sync and without I/O, but for the salt. The key authenticates the group, not the sender: any
member can seal in any other's name. So nothing that grants rights may rest on a packet.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from swarmlet.swim.config import PAYLOAD_BYTES_MAX
from swarmlet.swim.messages import BOOT_MAX, SHORT_ID_BYTES, ShortId

VERSION = 0xD1
COMPRESSED = 1
_HEADER = struct.Struct(f">BBH{SHORT_ID_BYTES}sI4s6s")
HEADER_BYTES = _HEADER.size
TAG_BYTES = 16
#: A whole packet; no UDP payload that is longer is ours. It fits IPv6's 1,280 with its headers.
PACKET_BYTES_MAX = HEADER_BYTES + PAYLOAD_BYTES_MAX + TAG_BYTES
assert PACKET_BYTES_MAX <= 1280 - 40 - 8

KEY_BYTES = 32
#: Previous, current and next: a rotation leaves no gap.
EPOCHS_MAX = 3
#: The header has the low bits of an epoch only: a ring's few epochs lie close together.
EPOCH_SPACE = 1 << 16
SALT_BYTES = 4
COUNTER_MAX = (1 << 48) - 1
#: Packets that may overtake each other and still be taken once each.
WINDOW_BITS = 128
#: Senders whose counters are remembered, the longest silent one forgotten first.
SENDERS_MAX = 1 << 14
#: Lives of one sender at one boot number: more than one are a copied disk.
SALTS_MAX = 4
#: Below it, zlib's own bytes eat what it saves.
COMPRESS_LEAST = 300


class BadPacket(ValueError):
    """These bytes are no packet for us: drop them, nothing was changed. *kind*: for counting."""

    kind = "bad"


class Replayed(BadPacket):
    kind = "replayed"


class OwnPacket(BadPacket):
    """One of our own came back."""

    kind = "own"


class UnknownEpoch(BadPacket):
    """Sealed under a key that we do not have, or so its unproved header says.

    *epoch*: its low 16 bits, as headers have them.
    """

    kind = "unknown epoch"

    def __init__(self, epoch: int) -> None:
        super().__init__(f"no key of epoch {epoch}")
        self.epoch = epoch


class OldBoot(BadPacket):
    """Of an earlier start than the sender's newest. The sender cannot know that by itself."""

    kind = "old boot"

    def __init__(self, sender: ShortId, newest: int) -> None:
        super().__init__(f"the sender was started {newest} times already")
        self.sender = sender
        self.newest = newest


@dataclass(frozen=True, slots=True)
class Keyring:
    """The group's keys by epoch, one to three, and the one to seal with."""

    cluster: bytes
    keys: Mapping[int, bytes] = field(repr=False)
    primary: int

    def __post_init__(self) -> None:
        if not 0 < len(self.keys) <= EPOCHS_MAX:
            raise ValueError(f"{len(self.keys)} keys, a ring holds 1 to {EPOCHS_MAX}")
        if self.primary not in self.keys:
            raise ValueError(f"no key of the primary epoch {self.primary}")
        for epoch, key in self.keys.items():
            if epoch < 0 or len(key) != KEY_BYTES:
                raise ValueError(f"epoch {epoch}: not a key of {KEY_BYTES} bytes")
        if len({epoch % EPOCH_SPACE for epoch in self.keys}) < len(self.keys):
            raise ValueError(f"epochs {sorted(self.keys)} look the same in a header")

    @property
    def mark(self) -> int:
        """The primary epoch, as headers have it."""
        return self.primary % EPOCH_SPACE

    def is_newer(self, mark: int) -> bool:
        """Tell whether a header's *mark* stands for an epoch after all of ours."""
        return 0 < (mark - max(self.keys)) % EPOCH_SPACE < EPOCH_SPACE // 2

    def cipher(self, mark: int, sender: ShortId, boot: int, salt: bytes) -> AESGCM:
        """Return the cipher of one sender's packets in one life of its.

        Args:
            mark: the epoch, as headers have it.

        Raises:
            UnknownEpoch: the ring has no such key.
        """
        key = next((key for epoch, key in self.keys.items() if epoch % EPOCH_SPACE == mark), None)
        if key is None:
            raise UnknownEpoch(mark)
        # Lengths are fixed but the cluster's, which is last: no two inputs read the same.
        info = b"swarmlet gossip 1" + sender + struct.pack(">I", boot) + salt + self.cluster
        return AESGCM(HKDF(SHA256(), KEY_BYTES, None, info).derive(key))


class Sealer:
    """Seals the packets of this member."""

    def __init__(self, keyring: Keyring, sender: ShortId, boot: int) -> None:
        self._keyring = keyring
        self._sender = sender
        self._begin(boot)

    @property
    def boot(self) -> int:
        return self._boot

    def set_keys(self, keyring: Keyring) -> None:
        """Seal with *keyring* from now on. The counter goes on, whatever the key."""
        self._keyring = keyring
        self._cipher = keyring.cipher(keyring.mark, self._sender, self._boot, self._salt)

    def set_boot(self, boot: int) -> None:
        """Begin another life: the group knows of later starts than this one was told."""
        self._begin(boot)

    def _begin(self, boot: int) -> None:
        self._boot = boot
        self._salt = secrets.token_bytes(SALT_BYTES)
        self._counter = 0
        self.set_keys(self._keyring)

    def seal(self, payload: bytes) -> bytes:
        assert len(payload) <= PAYLOAD_BYTES_MAX, len(payload)
        flags = 0
        if len(payload) >= COMPRESS_LEAST:
            squeezed = zlib.compress(payload, level=1)
            if len(squeezed) < len(payload):
                flags, payload = COMPRESSED, squeezed
        if self._counter == COUNTER_MAX:
            self._begin(self._boot)
        self._counter += 1
        counter = self._counter.to_bytes(6, "big")
        header = _HEADER.pack(
            VERSION, flags, self._keyring.mark, self._sender, self._boot, self._salt, counter
        )
        return header + self._cipher.encrypt(_nonce(counter), payload, header)


@dataclass(slots=True)
class Life:
    """One start of a sender: its ciphers by epoch, and which counters have come."""

    ciphers: dict[int, AESGCM] = field(default_factory=dict)
    newest: int = 0
    seen: int = 0  # bit i: newest - i has come

    def is_fresh(self, counter: int) -> bool:
        age = self.newest - counter
        return age < 0 or (age < WINDOW_BITS and not self.seen >> age & 1)

    def mark(self, counter: int) -> None:
        if counter > self.newest:
            shift = min(counter - self.newest, WINDOW_BITS)
            self.seen = self.seen << shift & ((1 << WINDOW_BITS) - 1)
            self.newest = counter
        self.seen |= 1 << (self.newest - counter)


@dataclass(slots=True)
class Sender:
    boot: int
    lives: OrderedDict[bytes, Life] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class Opened:
    sender: ShortId
    payload: bytes


class Opener:
    """Opens the packets of the others, each at most once."""

    def __init__(self, keyring: Keyring, myself: ShortId) -> None:
        self._keyring = keyring
        self._myself = myself
        self._senders: OrderedDict[ShortId, Sender] = OrderedDict()

    def set_keys(self, keyring: Keyring) -> None:
        """Take packets of *keyring*'s epochs only; what was seen stays seen."""
        self._keyring = keyring
        for sender in self._senders.values():
            for life in sender.lives.values():
                life.ciphers.clear()

    def open_untrusted(self, packet: bytes) -> Opened:
        """Return what *packet* holds.

        Raises:
            BadPacket: it is none for us; its kind says why.
        """
        if not HEADER_BYTES + TAG_BYTES <= len(packet) <= PACKET_BYTES_MAX:
            raise BadPacket(f"{len(packet)} bytes")
        header = packet[:HEADER_BYTES]
        version, flags, epoch, short, boot, salt, counter_bytes = _HEADER.unpack(header)
        if version != VERSION or flags not in (0, COMPRESSED) or boot > BOOT_MAX:
            raise BadPacket("no header of ours")
        short_id = ShortId(short)
        if short_id == self._myself:
            raise OwnPacket("our own")
        counter = int.from_bytes(counter_bytes, "big")
        sender = self._senders.get(short_id)
        life = sender.lives.get(salt) if sender is not None and sender.boot == boot else None
        if life is not None and not life.is_fresh(counter):
            raise Replayed(f"packet {counter} has come before, or is too old to tell")
        cipher = life.ciphers.get(epoch) if life is not None else None
        if cipher is None:
            cipher = self._keyring.cipher(epoch, short_id, boot, salt)
        try:
            payload = cipher.decrypt(_nonce(counter_bytes), packet[HEADER_BYTES:], header)
        except InvalidTag:
            raise BadPacket("not sealed with the group's key") from None
        # Authentic: only from here on does a packet leave a trace.
        if sender is not None and boot < sender.boot:
            raise OldBoot(short_id, sender.boot)
        if life is None:
            life = self._enter(short_id, boot, salt)
        life.ciphers[epoch] = cipher
        life.mark(counter)
        self._senders.move_to_end(short_id)
        return Opened(short_id, _expand_untrusted(payload) if flags else payload)

    def _enter(self, short: ShortId, boot: int, salt: bytes) -> Life:
        sender = self._senders.get(short)
        if sender is None or sender.boot < boot:
            sender = self._senders[short] = Sender(boot)
            if len(self._senders) > SENDERS_MAX:
                self._senders.popitem(last=False)
        life = sender.lives[salt] = Life()
        if len(sender.lives) > SALTS_MAX:
            sender.lives.popitem(last=False)
        return life


def _nonce(counter: bytes) -> bytes:
    return bytes(6) + counter


def _expand_untrusted(payload: bytes) -> bytes:
    expander = zlib.decompressobj()
    try:
        expanded = expander.decompress(payload, PAYLOAD_BYTES_MAX)
    except zlib.error as exc:
        raise BadPacket(f"not compressed: {exc}") from exc
    if not expander.eof or expander.unused_data:
        raise BadPacket("longer than a packet may be")
    return expanded

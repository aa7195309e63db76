"""Epoch keys of the gossip and of encrypted overlays: three at most, one to send with.

Pure. A new key is first handed out, then sent with, and the one before stays good for a while:
*previous, current, next*. So a switch never cuts off a node that is one step behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field

EPOCHS_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochKey:
    epoch: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """Keys by epoch, ascending; *sending* is the epoch of the key to seal with."""

    keys: tuple[EpochKey, ...]
    sending: int

    def __post_init__(self) -> None:
        epochs = [key.epoch for key in self.keys]
        if epochs != sorted(set(epochs)) or len(epochs) > EPOCHS_MAX:
            raise ValueError(f"a keyring has up to {EPOCHS_MAX} epochs in order, not {epochs}")
        if self.sending not in epochs:
            raise ValueError(f"the keyring has no key of its sending epoch {self.sending}")

    def key_of(self, epoch: int) -> bytes | None:
        """Return the key of *epoch*, None if it is not, or no longer, known."""
        return next((key.key for key in self.keys if key.epoch == epoch), None)

    @property
    def sending_key(self) -> bytes:
        key = self.key_of(self.sending)
        assert key is not None
        return key

    def announced(self, key: bytes) -> Keyring:
        """Return it with *key* as the next epoch: known to all soon, sent with by nobody yet.

        A next epoch that was announced before and never sent with is replaced.
        """
        following = EpochKey(epoch=self.keys[-1].epoch + 1, key=key)
        in_use = [k for k in self.keys if k.epoch <= self.sending]
        return Keyring(keys=(*in_use[-2:], following), sending=self.sending)

    def switched(self) -> Keyring:
        """Return it sending with its newest key; of those before only the last stays good."""
        return Keyring(keys=self.keys[-2:], sending=self.keys[-1].epoch)

    def revoked(self, key: bytes) -> Keyring:
        """Return a keyring of *key* alone: a node was removed and must not listen any more."""
        following = EpochKey(epoch=self.keys[-1].epoch + 1, key=key)
        return Keyring(keys=(following,), sending=following.epoch)


def first_keyring(key: bytes) -> Keyring:
    return Keyring(keys=(EpochKey(epoch=1, key=key),), sending=1)

"""The keys that let go of a container without ending it: ctrl-p,ctrl-q unless said otherwise. Pure.

What a person types passes through; a sequence that began and went on otherwise is sent as it was
typed. (Docker: github.com/moby/term, escape proxy.)
"""

from __future__ import annotations

from swarmlet.api.exchange import ApiError

DEFAULT = "ctrl-p,ctrl-q"
#: ctrl- with the characters from @ to _, as a terminal makes them.
_CONTROLS = "@abcdefghijklmnopqrstuvwxyz[\\]^_"


def parse_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` as the bytes that a terminal sends. Raises ApiError."""
    keys = bytearray()
    for word in (text or DEFAULT).split(","):
        lower = word.lower()
        if len(word) == 1 and word.isascii():
            keys += word.encode()
        elif lower.startswith("ctrl-") and len(lower) == 6 and lower[5] in _CONTROLS:
            keys.append(_CONTROLS.index(lower[5]))
        else:
            raise ApiError(400, f"detachKeys: {word[:20]!r} is no key; write ctrl-p,ctrl-q or x")
    return bytes(keys)


class KeyWatch:
    """Finds the detach keys in what is typed, however it comes in pieces."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0
        self.found = False

    def feed(self, data: bytes) -> bytes:
        """Return what is to be sent on; nothing more once *found*."""
        if self.found:
            return b""
        out = bytearray()
        for byte in data:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    self.found = True
                    break
                continue
            out += self._keys[: self._matched]
            self._matched = 0
            if byte == self._keys[0] and len(self._keys) > 1:
                self._matched = 1
            else:
                out.append(byte)
        return bytes(out)

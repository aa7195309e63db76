"""nft tables: replaced as one transaction, and compared by the kernel's own listing.

Sync; works in the namespace of the calling thread. libnftables by ctypes (0.3 ms a
transaction), or the nft command where the library is missing (17 ms).

How a table is compared: nft lists a table in words of its own, which differ from version to
version, so a text is not compared with a listing. Instead we know what the kernel lists after it
was given a text: the listing right after our transaction, or, where we have not loaded
the text ourselves (a restarted daemon), the listing of the same text in a namespace made for the
purpose. And as long as the ruleset's generation is the one that we left, nothing has to be listed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from overlay import netns
from overlay.rtnetlink import NETFILTER, Message, NetlinkSocket, attributes

LIBRARY = "libnftables.so.1"
# nftables/libnftables.h: no counters in listings.
NFT_CTX_OUTPUT_STATELESS = 1 << 2
# linux/netfilter/nfnetlink.h, nf_tables.h
NFT_MSG_GETGEN = (10 << 8) | 16
NFTA_GEN_ID = 1
_NFGENMSG = bytes(4)

#: libnftables leaves this much garbage behind only after a large table; then the C library is
#: asked to give it back (30 MB after 400 KB of text, measured).
TRIM_BYTES_MIN = 64_000
COMMAND_SECONDS_MAX = 30


class NftError(OSError):
    """nft refused; the text is its own."""


class Nft(Protocol):
    """Runs nft commands in the namespace of the calling thread and returns what they print."""

    def __call__(self, commands: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Known:
    """A text that we gave the kernel, what the kernel lists for it, and when that was seen."""

    text: str
    listing: str
    generation: int


def replace(nft: Nft, table: str, text: str) -> Known:
    """Load *text* as the body of *table*, in place of what it was.

    Raises:
        NftError: nft does not understand the text or the kernel lacks something it needs.
            The table is as it was.
    """
    before = generation()
    nft(f"add table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n{text}\n}}\n")
    listing = read(nft, table)
    after = generation()
    if listing is None or after != (before + 1) % (1 << 32):
        # Somebody else was at the rules as well, perhaps at ours.
        listing = canonical(nft, table, text)
    if len(text) >= TRIM_BYTES_MIN:
        _trim()
    return Known(text, listing, after)


def remove(nft: Nft, table: str) -> None:
    """Delete *table*; no error if there is none."""
    nft(f"add table ip {table}\ndelete table ip {table}\n")


def read(nft: Nft, table: str) -> str | None:
    """Return the kernel's listing of *table*, None if there is none."""
    try:
        return nft(f"list table ip {table}\n")
    except NftError as exc:
        if exc.errno == errno.ENOENT:
            return None
        raise


def verify(nft: Nft, table: str, wanted: str | None, known: Known | None) -> Known | None:
    """Return what the kernel has as *table* now, None if there is no such table.

    The text of the result is that of *known* or *wanted* if the kernel has just that, else
    the listing. *known* is the result of the call before, or of replace().
    """
    now = generation()
    if known and known.generation == now:
        return known
    listing = read(nft, table)
    if listing is None:
        return None
    if known and known.listing == listing:
        return Known(known.text, listing, now)
    if wanted is not None and (known is None or known.text != wanted):
        with suppress(NftError):
            if canonical(nft, table, wanted) == listing:
                return Known(wanted, listing, now)
    return Known(listing, listing, now)


def canonical(nft: Nft, table: str, text: str) -> str:
    """Return what the kernel lists for *text*, tried in a namespace that is thrown away."""

    def load() -> str:
        netns.enter_new()
        nft(f"table ip {table} {{\n{text}\n}}\n")
        return read(nft, table) or ""

    return netns.run_in_thread(load)


def generation() -> int:
    """Return the number of the namespace's ruleset: another after every transaction."""
    with NetlinkSocket(NETFILTER) as sock:
        answer = sock.ask(Message(NFT_MSG_GETGEN, 0, _NFGENMSG))
    return int.from_bytes(attributes(answer[len(_NFGENMSG) :])[NFTA_GEN_ID], "big")


@cache
def open_nft() -> Nft:
    """Return the way to run nft on this machine.

    Raises:
        NftError: there is neither the library nor the command.
    """
    with suppress(OSError):
        return _Library(ctypes.CDLL(LIBRARY))
    if command := _find_command():
        return _Command(command)
    raise NftError(
        errno.ENOENT, f"neither {LIBRARY} nor the nft command is there: apt install nftables"
    )


class _Library:
    """libnftables(3). A context for each call, because it belongs to the thread's namespace."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p

    def __call__(self, commands: str) -> str:
        context = self._library.nft_ctx_new(0)
        if not context:
            raise NftError(errno.ENOMEM, "libnftables gave no context")
        try:
            self._library.nft_ctx_buffer_output(context)
            self._library.nft_ctx_buffer_error(context)
            self._library.nft_ctx_output_set_flags(context, NFT_CTX_OUTPUT_STATELESS)
            failed = self._library.nft_run_cmd_from_buffer(context, commands.encode())
            if failed:
                raise _refusal(self._library.nft_ctx_get_error_buffer(context).decode())
            output: bytes = self._library.nft_ctx_get_output_buffer(context)
            return output.decode()
        finally:
            self._library.nft_ctx_free(context)


class _Command:
    """nft(8). The child is born in the thread's namespace."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, commands: str) -> str:
        with subprocess.Popen(
            [self._path, "-s", "-f", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                output, said = process.communicate(commands, timeout=COMMAND_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                raise NftError(errno.ETIMEDOUT, f"{self._path} did not end") from None
        if process.returncode:
            raise _refusal(said)
        return output


def _refusal(said: str) -> NftError:
    missing = os.strerror(errno.ENOENT) in said
    return NftError(errno.ENOENT if missing else errno.EINVAL, said.strip() or "nft failed")


def _find_command() -> str | None:
    folders = [*os.get_exec_path(), "/usr/sbin", "/sbin"]
    paths = (os.path.join(folder, "nft") for folder in folders)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def _trim() -> None:
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:  # glibc has it, musl does not
        trim(0)

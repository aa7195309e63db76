"""nft tables: changed in one transaction, and compared by the kernel's own listing.

Sync; works in the namespace of the calling thread. libnftables by ctypes (0.3 ms a
transaction), or the nft command where the library is missing (17 ms).

How a table is compared: as long as the namespace's ruleset is of the generation that our last
transaction made, nobody has changed anything. If somebody has (perhaps rules of his own), or the
daemon is a new one, the table is listed. nft lists it in words of its own, which differ from
version to version, so what it should list is found by loading the same chains in a namespace that
is made for the purpose.
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

from overlay import netns, tables
from overlay.rtnetlink import NETFILTER, Message, NetlinkSocket, attributes
from overlay.tables import Chain

LIBRARY = "libnftables.so.1"
# nftables/libnftables.h: no counters in listings.
NFT_CTX_OUTPUT_STATELESS = 1 << 2
# linux/netfilter/nfnetlink.h, nf_tables.h
NFT_MSG_GETGEN = (10 << 8) | 16
NFTA_GEN_ID = 1
_NFGENMSG = bytes(4)
GENERATIONS = 1 << 32
#: No generation: look.
NEVER = -1

#: libnftables leaves this much garbage behind only after a large table; then the C library is
#: asked to give it back (30 MB after 400 KB of text, measured).
TRIM_BYTES_MIN = 64_000
COMMAND_SECONDS_MAX = 30
#: nft repeats the whole line that it refuses, which may be a map of a thousand elements.
REASON_LENGTH_MAX = 300


class NftError(OSError):
    """nft refused; the text is its own."""


class Nft(Protocol):
    """Runs nft commands in the namespace of the calling thread and returns what they print."""

    def __call__(self, commands: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Known:
    """What a table is, as of a generation. *listing* is the kernel's, once it was needed.

    One that is not *ours* has been changed by somebody: *chains* only says that it is another.
    """

    chains: tuple[Chain, ...]
    generation: int
    listing: str | None = None
    ours: bool = True


def replace(nft: Nft, table: str, chains: tuple[Chain, ...], known: Known | None) -> Known:
    """Make *table* of *chains*; *known* is what it was by the last verify().

    Raises:
        NftError: nft does not understand a rule, or the kernel lacks something it needs.
            The table is as it was.
    """
    before = generation()
    commands = None
    if known and known.ours and known.generation == before:
        commands = tables.difference(table, known.chains, chains)
    commands = commands or tables.whole(table, chains)
    nft(commands)
    if len(commands) >= TRIM_BYTES_MIN:
        _trim()
    after = generation()
    # Another number than the next one: somebody else was at the rules as well, perhaps at ours.
    alone = after == (before + 1) % GENERATIONS
    return Known(chains, after if alone else NEVER)


def remove(nft: Nft, table: str) -> None:
    """Delete *table*; no error if there is none."""
    nft(f"add table ip {table}\ndelete table ip {table}\n")


def read(nft: Nft, table: str) -> str | None:
    """Return the kernel's listing of *table*, None if there is none.

    The chains are put in order: the kernel lists them by age.
    """
    try:
        listing = nft(f"list table ip {table}\n")
        body = listing.partition("{")[2].rpartition("}")[0]
        return "\n".join(sorted(block.strip() for block in f"\n{body}".split("\n\tchain ")))
    except NftError as exc:
        if exc.errno == errno.ENOENT:
            return None
        raise


def verify(
    nft: Nft, table: str, wanted: tuple[Chain, ...] | None, known: Known | None
) -> Known | None:
    """Return what the kernel has as *table* now, None if there is no such table.

    *known* is the result of the call before, or of replace().
    """
    now = generation()
    if known and known.generation == now:
        return known
    listing = read(nft, table)
    if listing is None:
        return None
    if known and known.listing == listing:
        return Known(known.chains, now, listing)
    for chains in (known.chains if known and known.ours else None, wanted):
        if chains is not None and _lists_as(nft, table, chains, listing):
            return Known(chains, now, listing)
    return Known((Chain("unknown", (listing,)),), now, listing, ours=False)


def _lists_as(nft: Nft, table: str, chains: tuple[Chain, ...], listing: str) -> bool:
    """Whether *listing* is what the kernel lists for *chains*: tried where it hurts nobody."""

    def load() -> str | None:
        netns.enter_new()
        nft(tables.whole(table, chains))
        return read(nft, table)

    try:
        return netns.run_in_thread(load) == listing
    except NftError:
        return False  # nft never took these chains, so they are not what it has


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
    reason = said.strip()[:REASON_LENGTH_MAX] or "nft failed"
    return NftError(errno.ENOENT if missing else errno.EINVAL, reason)


def _find_command() -> str | None:
    folders = [*os.get_exec_path(), "/usr/sbin", "/sbin"]
    paths = (os.path.join(folder, "nft") for folder in folders)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def _trim() -> None:
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:  # glibc has it, musl does not
        trim(0)

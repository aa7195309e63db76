"""One nft command through libnftables, without the program: for `doctor` and `uninstall`.

The daemon's own rules go through overlay.nftables, which keeps a context open.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

#: libnftables(3): NFT_CTX_OUTPUT_JSON.
OUTPUT_JSON = 1 << 4


class NftError(Exception):
    """What nft said."""


def connect() -> Callable[[str], str]:
    """Return a function that runs one nft command and returns its output as JSON.

    The commands act on the network namespace of this thread. The function raises NftError.

    Raises:
        OSError: there is no libnftables on this machine.
    """
    library = ctypes.CDLL("libnftables.so.1")
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("output", "error"):
        getattr(library, f"nft_ctx_buffer_{name}").argtypes = [ctypes.c_void_p]
        getattr(library, f"nft_ctx_get_{name}_buffer").argtypes = [ctypes.c_void_p]
        getattr(library, f"nft_ctx_get_{name}_buffer").restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    context = library.nft_ctx_new(0)
    if not context:
        raise OSError(errno.ENOMEM, "libnftables gave no context")
    library.nft_ctx_buffer_output(context)
    library.nft_ctx_buffer_error(context)
    library.nft_ctx_output_set_flags(context, OUTPUT_JSON)

    def run(command: str) -> str:
        if library.nft_run_cmd_from_buffer(context, command.encode()):
            raise NftError((library.nft_ctx_get_error_buffer(context) or b"").decode().strip())
        return bytes(library.nft_ctx_get_output_buffer(context) or b"").decode()

    return run

"""A small root file system from Debian's busybox-static: the image of tests and quickstart."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

#: Where Debian 12 and 13 put the static binary.
BUSYBOX = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
#: No wget: busybox-static's crashes in a container (glibc's resolver cannot be linked statically).
APPLETS = """
ash cat chmod cp date dd df echo env expr false grep head hostname httpd id ip kill ln ls mkdir
mknod mount mv nc nslookup ping printf ps rm route sed seq sh sleep sort stat sync tail tee test top
touch tr true umount uname wc whoami yes
"""
FOLDERS = "bin dev etc proc root run sys tmp var www www/cgi-bin"
#: `httpd -f -p 80 -h /www` answers `/` with this: who answered, and whom it believes to talk to.
INDEX = """#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\nhello %s from %s\\n' "$REMOTE_ADDR" "$(hostname)"
"""


def write_rootfs(path: Path) -> Path:
    """Write the tar to *path*, byte for byte the same at every time, and return *path*."""
    busybox = next(candidate for candidate in BUSYBOX if candidate.exists())
    with tarfile.open(path, "w") as tar:
        for folder in [
            "bin",
            "dev",
            "etc",
            "proc",
            "root",
            "run",
            "sys",
            "tmp",
            "var",
            "www",
            "www/cgi-bin",
        ]:
            _add(tar, folder, tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755)
        _add(tar, "bin/busybox", tarfile.REGTYPE, 0o755, busybox.read_bytes())
        for applet in APPLETS.split():
            _add(tar, f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
        _add(tar, "etc/passwd", tarfile.REGTYPE, 0o644, b"root:x:0:0:root:/root:/bin/sh\n")
        _add(tar, "etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\n")
        _add(tar, "www/cgi-bin/index.cgi", tarfile.REGTYPE, 0o755, INDEX.encode())
    return path


def _add(
    tar: tarfile.TarFile, name: str, kind: bytes, mode: int, data: bytes = b"", link: str = ""
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(data), link
    tar.addfile(entry, io.BytesIO(data))

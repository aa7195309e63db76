"""A small image's root file system, made from the host's statically linked busybox.

Reproducible: the same busybox gives the same bytes, so every run has the same digest. Debian's
package is busybox-static.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
#: 2024-01-01, for every file.
MTIME = 1_704_067_200

DIRECTORIES = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "var": 0o755,
    "var/log": 0o755,
    "var/www": 0o755,
}
FILES = {
    "etc/group": "root:x:0:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n",
    "etc/hostname": "",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "www-data:x:33:33:www-data:/var/www:/bin/false\n"
        "nobody:x:65534:65534:nobody:/:/bin/false\n"
    ),
    "etc/resolv.conf": "",
    "var/www/index.html": "It works.\n",
}


def busybox_rootfs(path: Path, busybox: Path = BUSYBOX) -> Path:
    """Write the root file system's tar to *path* and return that.

    Raises:
        FileNotFoundError: There is no busybox.
        ValueError: It is linked dynamically, so that it would not run alone.
    """
    program = busybox.read_bytes()
    # The dynamic linker's path stands in the program itself (ELF, PT_INTERP).
    if b"/ld-linux" in program[:4096] or b"/ld-musl" in program[:4096]:
        raise ValueError(f"{busybox} is not static; install the package busybox-static")
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    links = {f"bin/{applet}": "busybox" for applet in listed.stdout.split()}
    links.pop("bin/busybox", None)
    links["usr/bin/env"] = "/bin/busybox"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, mode in sorted(DIRECTORIES.items()):
            tar.addfile(_member(name, tarfile.DIRTYPE, mode))
        _add_file(tar, "bin/busybox", program, 0o755)
        for name, target in sorted(links.items()):
            member = _member(name, tarfile.SYMTYPE, 0o777)
            member.linkname = target
            tar.addfile(member)
        for name, text in sorted(FILES.items()):
            _add_file(tar, name, text.encode(), 0o644)
    return path


def _add_file(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    member = _member(name, tarfile.REGTYPE, mode)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, MTIME
    return member

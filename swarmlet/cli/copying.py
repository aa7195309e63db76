"""`swarmlet cp | export | commit`: files of containers.

What comes out of a container is a stranger's archive: it is unpacked below the place that was
named and nowhere else, whatever names and links are in it.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from posixpath import basename, dirname, join
from typing import IO, TYPE_CHECKING, Any

import click

from swarmlet.cli.base import App, Command, Failure, pass_app
from swarmlet.cli.output import emit, human_size

if TYPE_CHECKING:
    import tarfile

STAT_HEADER = "X-Docker-Container-Path-Stat"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Go's os.FileMode.
IS_FOLDER, IS_LINK = 1 << 31, 1 << 27


@click.command(cls=Command)
@click.option("-a", "--archive", is_flag=True, help="Keep owners.")
@click.option("-L", "--follow-link", is_flag=True, help="What a link at SOURCE leads to.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing.")
@click.argument("source", metavar="[CONTAINER:]SOURCE|-")
@click.argument("target", metavar="[CONTAINER:]TARGET|-")
@pass_app
def cp(app: App, source: str, target: str, archive: bool, follow_link: bool, quiet: bool) -> None:
    """Copy files between a container and this side; `-` is a tar on a pipe."""
    container, path = split_place(source)
    other, other_path = split_place(target)
    if container and other:
        raise click.UsageError("copying between containers is not supported")
    if not container and not other:
        raise click.UsageError("must specify at least one container source, such as web:/etc")
    if container:
        size = _copy_out(app, container, path, other_path, follow_link, archive)
    else:
        size = _copy_in(app, path, other, other_path, follow_link, archive)
    if not quiet and target != "-" and sys.stderr.isatty():
        sys.stderr.write(f"Successfully copied {human_size(size)} to {target}\n")


def split_place(text: str) -> tuple[str, str]:
    """`web:/etc` -> ("web", "/etc"); what begins like a path has no container in it."""
    if text == "-" or text.startswith(("/", "./", "../")):
        return "", text
    container, colon, path = text.partition(":")
    return (container, path) if colon and "/" not in container else ("", text)


def _stat(app: App, container: str, path: str) -> dict[str, Any]:
    """Raises ClientError: of one that is not there as well."""
    headers = app.client.head(f"/containers/{container}/archive", path=path)
    found = {name.lower(): value for name, value in headers.items()}.get(STAT_HEADER.lower(), "")
    shown: dict[str, Any] = json.loads(base64.b64decode(found))
    return shown


# Out.


def _copy_out(
    app: App, container: str, path: str, target: str, follow: bool, keep_owners: bool
) -> int:
    if not path:
        raise click.UsageError(f"{container}: names no path; write {container}:/etc, for example")
    if follow:
        found = _stat(app, container, path)
        if found["mode"] & IS_LINK:
            path = found["linkTarget"]
    if target == "-":
        if sys.stdout.isatty():
            raise Failure("an archive is nothing for a terminal; name a target, or use a pipe")
        pieces = app.client.stream("GET", f"/containers/{container}/archive", query={"path": path})
        return sum(sys.stdout.buffer.write(piece) for piece in pieces)
    folder, name = _where_to(target)
    pieces = app.client.stream("GET", f"/containers/{container}/archive", query={"path": path})
    with _reading(pieces) as file:
        return unpack(file, folder, name, keep_owners=keep_owners)


def _where_to(target: str) -> tuple[str, str]:
    """The folder to unpack in, and the name that what comes gets there; "" for its own."""
    if os.path.isdir(target):
        return target, ""
    parent = os.path.dirname(target.rstrip("/")) or "."
    if not os.path.isdir(parent):
        raise Failure(f"invalid output path: directory {parent!r} does not exist")
    return parent, os.path.basename(target.rstrip("/"))


def unpack(file: IO[bytes], folder: str, name: str, *, keep_owners: bool) -> int:
    """Unpack an archive in *folder*, its first name changed to *name*. Raises Failure."""
    import tarfile

    size = 0
    root = os.path.realpath(folder)
    folders: list[tuple[str, tarfile.TarInfo]] = []
    try:
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                member.name = _renamed(member.name, name)
                if member.islnk():
                    member.linkname = _renamed(member.linkname, name)
                path = _checked(root, member)
                if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
                    continue  # devices and sockets mean nothing here
                if not member.isdir() and (os.path.islink(path) or os.path.isfile(path)):
                    os.unlink(path)
                _place(tar, member, root, path)
                if member.isdir():
                    folders.append((path, member))
                if keep_owners and os.geteuid() == 0:
                    os.lchown(path, member.uid, member.gid)
                size += member.size
            for path, member in reversed(folders):
                with suppress(OSError):
                    _dress(os.open(path, FOLDER), member)
    except tarfile.TarError as exc:
        raise Failure(f"the archive cannot be read: {exc}") from None
    except OSError as exc:
        raise Failure(f"{exc.filename or folder}: {exc.strerror}") from None
    return size


def _place(tar: tarfile.TarFile, member: tarfile.TarInfo, root: str, path: str) -> None:
    if member.isdir():
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)
    elif member.issym():
        os.symlink(member.linkname, path)
    elif member.islnk():
        os.link(_inside(root, member.linkname), path, follow_symlinks=False)
    else:
        reader = tar.extractfile(member)
        assert reader is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "wb") as out:
            while data := reader.read(1 << 20):
                out.write(data)
            out.flush()
            _dress(os.dup(out.fileno()), member)


def _dress(file: int, member: tarfile.TarInfo) -> None:
    """By descriptor, which is closed: a later entry may have made a link of the name."""
    try:
        os.fchmod(file, member.mode & 0o7777)
        os.utime(file, (member.mtime, member.mtime))
    finally:
        os.close(file)


def _renamed(path: str, name: str) -> str:
    path = path.lstrip("/")
    if not name:
        return path
    _, slash, rest = path.partition("/")
    return f"{name}{slash}{rest}"


def _checked(root: str, member: tarfile.TarInfo) -> str:
    path = _inside(root, member.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def _inside(root: str, name: str) -> str:
    """Where *name* is below *root*, no link on the way followed out of it. Raises Failure."""
    plain = os.path.normpath(join(root, name))
    path = join(os.path.realpath(os.path.dirname(plain)), os.path.basename(plain))
    if plain == root:
        return root
    if os.path.commonpath((root, path)) != root or ".." in name.split("/"):
        raise Failure(f"the archive names {name!r}, which leads out of {root}")
    return path


@contextmanager
def _reading(pieces: Iterator[bytes]) -> Iterator[IO[bytes]]:
    """The pieces as a file."""
    reader, writer = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(writer, "wb", buffering=0) as out:
            for piece in pieces:
                out.write(piece)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    with os.fdopen(reader, "rb") as file:
        yield file
        while file.read(1 << 16):
            pass  # padding behind the archive's end
    thread.join()


# In.


def _copy_in(
    app: App, source: str, container: str, path: str, follow: bool, keep_owners: bool
) -> int:
    if not path:
        raise click.UsageError(f"{container}: names no path; write {container}:/srv, for example")
    query = {"noOverwriteDirNonDir": True, "copyUIDGID": keep_owners or None}
    if source == "-":
        if sys.stdin.isatty():
            raise Failure("no archive on standard input; send one: tar -c … | swarmlet cp - …")
        _put(app, container, path, sys.stdin.buffer, query)
        return 0
    if not os.path.lexists(source.rstrip("/") or "/"):
        raise Failure(f"{source}: there is no such file or folder")
    folder, name = _where_into(app, container, path, source, follow)
    reader, writer = os.pipe()
    sizes: list[int] = []

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(writer, "wb") as out:
            sizes.append(pack(out, source, name, follow=follow))

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    with os.fdopen(reader, "rb") as file:
        _put(app, container, folder, file, query)
    thread.join()
    return sum(sizes)


def _where_into(app: App, container: str, path: str, source: str, follow: bool) -> tuple[str, str]:
    """The container's folder to put the archive in, and the name that it begins with."""
    from swarmlet.api.client import Refused

    is_folder = os.path.isdir(source) and (follow or not os.path.islink(source.rstrip("/")))
    content_alone = source.endswith("/.") or source == "."
    name = "." if content_alone else os.path.basename(os.path.normpath(source))
    try:
        found = _stat(app, container, path)
        if found["mode"] & IS_LINK:
            path = found["linkTarget"]
            found = _stat(app, container, path)
    except Refused as exc:
        if exc.status != 404:
            raise
        # Whether the container is not there, or the path: its own words tell.
        app.client.get(f"/containers/{container}/json")
        if path.endswith("/") and not is_folder:
            raise Failure(f"{container}:{path}: there is no such folder") from None
        return dirname(path.rstrip("/")) or "/", basename(path.rstrip("/"))
    if found["mode"] & IS_FOLDER:
        return path, name
    if is_folder:
        raise Failure(f"cannot copy a folder over a file: {container}:{path}")
    return dirname(path) or "/", basename(path)


def pack(out: IO[bytes], source: str, name: str, *, follow: bool) -> int:
    """Write *source* as an archive that begins with *name*; return the size of its files."""
    import tarfile

    sizes = [0]

    def count(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        sizes[0] += info.size
        return info

    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        path = source
        if follow and os.path.islink(source):
            path = os.path.realpath(source)
        tar.add(path, arcname=name, filter=count)
    return sizes[0]


def _put(app: App, container: str, path: str, file: IO[bytes], query: dict[str, Any]) -> None:
    pieces = app.client.stream(
        "PUT",
        f"/containers/{container}/archive",
        body=file,
        query={"path": path, **query},
        headers={"Content-Type": "application/x-tar"},
    )
    for _ in pieces:
        pass


# Whole containers.


@click.command(cls=Command)
@click.option("-o", "--output", default="-", help="Write to a file.")
@click.argument("container")
@pass_app
def export(app: App, container: str, output: str) -> None:
    """Write all files of a container as a tar."""
    if output == "-" and sys.stdout.isatty():
        raise Failure("an archive is nothing for a terminal; use --output, or a pipe")
    pieces = app.client.stream("GET", f"/containers/{container}/export")
    if output == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        return
    try:
        with open(output, "wb") as out:
            for piece in pieces:
                out.write(piece)
    except OSError as exc:
        raise Failure(f"{output}: {exc.strerror}") from None


@click.command(cls=Command)
@click.option("-a", "--author", default="", help="Who made it.")
@click.option("-c", "--change", "changes", multiple=True, help="Such as 'CMD [\"/bin/sh\"]'.")
@click.option("-m", "--message", default="", help="Comment in the image's history.")
@click.option("-p", "--pause/--no-pause", default=True, help="Freeze it meanwhile.")
@click.argument("container")
@click.argument("reference", metavar="[NAME[:TAG]]", default="")
@pass_app
def commit(
    app: App,
    container: str,
    reference: str,
    author: str,
    changes: tuple[str, ...],
    message: str,
    pause: bool,
) -> None:
    """Make an image of a container, and print its id."""
    query = {
        "container": container,
        "repo": reference or None,
        "author": author or None,
        "comment": message or None,
        "changes": changes,
        "pause": pause,
    }
    emit(app.client.post("/commit", None, **query)["Id"])

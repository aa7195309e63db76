"""`swarmlet image`: import, load, save, ls, inspect, rm, tag; of this node's own store."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from swarmlet.cli.base import (
    App,
    Command,
    Failure,
    Group,
    filter_option,
    filters_query,
    for_each,
    format_option,
    no_trunc_option,
    pass_app,
    quiet_option,
    refused_flag,
    refused_option,
)
from swarmlet.cli.output import ago, emit, human_size, short_id, show, show_documents
from swarmlet.cli.pruning import prune_images

COLUMNS = (
    ("REPOSITORY", "Repository"),
    ("TAG", "Tag"),
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
)
HISTORY_COLUMNS = (
    ("IMAGE", "ID"),
    ("CREATED", "CreatedSince"),
    ("CREATED BY", "CreatedBy"),
    ("SIZE", "Size"),
    ("COMMENT", "Comment"),
)
#: Characters of an instruction.
CREATED_BY = 45
DIGEST_COLUMNS = (*COLUMNS[:2], ("DIGEST", "Digest"), *COLUMNS[2:])


@click.group(cls=Group)
def image() -> None:
    """Manage the images of this node; other nodes fetch them from here when they need them."""


@contextmanager
def _open_input(path: str) -> Iterator[IO[bytes]]:
    """The file, or standard input for `-`. Raises Failure."""
    if path == "-":
        if sys.stdin.isatty():
            raise Failure("no archive on standard input; name a file, or send one: … < FILE.tar")
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as exc:
        raise Failure(f"{path}: {exc.strerror}; name an archive that can be read") from None
    with file:
        yield file


def _send_archive(app: App, path: str, target: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Send the archive and return what the daemon says of it, line by line. Raises Failure."""
    with _open_input(path) as file:
        pieces = app.client.stream(
            "POST",
            target,
            body=file,
            query=query,
            headers={"Content-Type": "application/x-tar"},
        )
        lines = [json.loads(line) for line in _lines(pieces)]
    for line in lines:
        if "error" in line:
            raise Failure(str(line["error"]))
    return lines


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    whole = io.BytesIO(b"".join(pieces))
    return (line for line in whole if line.strip())


@image.command("import", cls=Command)
@click.option("-c", "--change", "changes", multiple=True, help="Such as 'CMD [\"/bin/sh\"]'.")
@click.option("-m", "--message", default="", help="Comment in the image's history.")
@refused_option("--platform", reason="a node keeps images for its own platform only")
@click.argument("file", metavar="FILE|-")
@click.argument("reference", metavar="[NAME[:TAG]]", default="")
@pass_app
def import_(app: App, file: str, reference: str, changes: tuple[str, ...], message: str) -> None:
    """Make an image of a root file system's tar."""
    query = {
        "fromSrc": "-",
        "repo": reference or None,
        "message": message or None,
        "changes": "\n".join(changes) or None,
    }
    for line in _send_archive(app, file, "/images/create", query):
        emit(line["status"])


@image.command(cls=Command)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but the name.")
@refused_flag("-a", "--all-tags", reason="tags are fetched by name, one at a time")
@refused_flag("--disable-content-trust", reason="content trust is not built: digests verify")
@refused_option("--platform", reason="a node keeps images for its own platform only")
@click.argument("name", metavar="NAME[:TAG|@DIGEST]")
@pass_app
def pull(app: App, name: str, quiet: bool) -> None:
    """Fetch an image from its registry."""
    pieces = app.client.stream("POST", "/images/create", query={"fromImage": name})
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "error" in told:
                raise Failure(str(told["error"]))
            if not quiet:
                sys.stdout.write(f"{told['status']}\n")
                sys.stdout.flush()
    if quiet:
        emit(name)


@image.command(cls=Command)
@click.option(
    "-i", "--input", "file", default="-", help="The archive; standard input if not given."
)
@refused_option("--platform", reason="a node keeps images for its own platform only")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing.")
@click.argument("archive", metavar="[FILE]", default="")
@pass_app
def load(app: App, file: str, archive: str, quiet: bool) -> None:
    """Take in the images of an archive: `docker save`'s, or an OCI layout."""
    if archive and file != "-":
        raise click.UsageError("the archive is named twice; give FILE or --input")
    for line in _send_archive(app, archive or file, "/images/load", {"quiet": 1}):
        if not quiet:
            emit(line.get("stream", "").strip())


@image.command(cls=Command)
@click.option("-o", "--output", "file", default="-", help="Write to a file.")
@refused_option("--platform", reason="a node keeps images for its own platform only")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@pass_app
def save(app: App, images: tuple[str, ...], file: str) -> None:
    """Write images to an archive that `load` takes."""
    pieces = app.client.stream("GET", "/images/get", query={"names": images})
    if file == "-":
        if sys.stdout.isatty():
            raise Failure("an archive is nothing for a terminal; use --output, or a pipe")
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        return
    try:
        with open(file, "wb") as out:
            for piece in pieces:
                out.write(piece)
    except OSError as exc:
        raise Failure(f"{file}: {exc.strerror}") from None


@image.command(cls=Command)
@filter_option
@format_option
@quiet_option
@no_trunc_option
@click.option("-a", "--all", "all_", is_flag=True, hidden=True)
@refused_flag("--tree", reason="images of several platforms are not listed apart")
@click.option("--digests", is_flag=True, help="Show digests.")
@click.argument("name", metavar="[NAME]", default="")
@pass_app
def ls(
    app: App,
    filters: Any,
    format_: str,
    quiet: bool,
    no_trunc: bool,
    all_: bool,
    digests: bool,
    name: str,
) -> None:
    """List the images of this node."""
    query = filters_query(filters) or {}
    if name:
        query.setdefault("reference", []).append(name)
    images = app.client.get("/images/json", filters=query or None)
    rows = [row for document in images for row in _rows(document, no_trunc)]
    if quiet:
        for id_ in dict.fromkeys(row["ID"] for row in rows):
            emit(id_)
        return
    show(rows, DIGEST_COLUMNS if digests else COLUMNS, format_)


def _rows(document: dict[str, Any], no_trunc: bool) -> list[dict[str, str]]:
    rows = []
    digests = {text.partition("@")[0]: text.partition("@")[2] for text in document["RepoDigests"]}
    untagged = [f"{name}:<none>" for name in digests] or ["<none>:<none>"]
    for name in document["RepoTags"] or untagged:
        repository, _, tag = name.rpartition(":")
        rows.append(
            {
                "Repository": repository,
                "Tag": tag,
                "Digest": digests.get(repository, "<none>"),
                "ID": short_id(document["Id"], no_trunc),
                "CreatedSince": ago(document["Created"], time.time()),
                "Size": human_size(document["Size"]),
            }
        )
    return rows


@image.command(cls=Command)
@click.option("-f", "--format", "format_", default="", help="json, or a template.")
@refused_option("--platform", reason="a node keeps images for its own platform only")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@pass_app
def inspect(app: App, images: tuple[str, ...], format_: str) -> None:
    """Show images in detail."""
    found: list[Any] = []
    try:
        for_each(images, lambda name: found.append(app.client.get(f"/images/{name}/json")))
    finally:
        if found:
            show_documents(found, format_)


@image.command(cls=Command)
@format_option
@quiet_option
@no_trunc_option
@click.option("-H", "--human/--no-human", default=True, help="Sizes and times for people.")
@refused_option("--platform", reason="a node keeps images for its own platform only")
@click.argument("name", metavar="IMAGE")
@pass_app
def history(app: App, name: str, format_: str, quiet: bool, no_trunc: bool, human: bool) -> None:
    """Show how an image was made."""
    rows = [
        {
            "ID": short_id(row["Id"], no_trunc),
            "CreatedSince": ago(row["Created"], time.time()) if human else str(row["Created"]),
            "CreatedBy": row["CreatedBy"] if no_trunc else row["CreatedBy"][:CREATED_BY],
            "Size": human_size(row["Size"]) if human else str(row["Size"]),
            "Comment": row["Comment"],
        }
        for row in app.client.get(f"/images/{name}/history")
    ]
    show(rows, HISTORY_COLUMNS, format_, quiet=quiet)


@image.command(cls=Command)
@click.argument("source")
@click.argument("target")
@pass_app
def tag(app: App, source: str, target: str) -> None:
    """Give the image SOURCE another name."""
    app.client.post(f"/images/{source}/tag", repo=target)


@image.command(cls=Command)
@click.option("-f", "--force", is_flag=True, help="Also one that is in use loses its names.")
@refused_flag("--no-prune", reason="layers that no image needs are never kept")
@refused_option("--platform", reason="a node keeps images for its own platform only")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@pass_app
def rm(app: App, images: tuple[str, ...], force: bool) -> None:
    """Remove names, and with its last name the image."""

    def remove(name: str) -> None:
        for row in app.client.delete(f"/images/{name}", force=force or None):
            for what, value in row.items():
                emit(f"{what}: {value}")

    for_each(images, remove)


image.add_command(prune_images, "prune")

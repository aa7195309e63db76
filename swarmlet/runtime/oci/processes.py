"""The process of an `exec`: a document of its own, or the container's with flags. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swarmlet.runtime import defaults
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.oci.arguments import Options, UsageError
from swarmlet.runtime.oci.config import Config, read_process
from swarmlet.runtime.oci.reader import Node
from swarmlet.runtime.parts import Process, User
from swarmlet.runtime.validation import validate_process
from swarmlet.runtime.values import changed


def process_of(
    options: Options, args: tuple[str, ...], config: Config, read: Callable[[str], Any]
) -> Process:
    """Return what to run: *args* as the container's own process would, or what a file says."""
    if "process" in options:
        if args:
            raise UsageError("exec: give a command or --process, not both")
        process = read_process(Node(read(options["process"]), "process"))
        return changed(process, terminal=process.terminal or options.flag("tty"))
    base = config.process
    if base is None or not args:
        raise UsageError("exec: give a command, or --process FILE")
    capabilities = base.capabilities
    for name in options.all("cap"):
        if name not in defaults.CAPABILITY_NUMBERS:
            raise SpecError(f"--cap: there is no {name!r}")
        held = ("bounding", "effective", "permitted")
        more = {kind: (*getattr(capabilities, kind), name) for kind in held}
        capabilities = changed(capabilities, **more)
    user = base.user
    if "user" in options:
        uid, _, gid = options["user"].partition(":")
        user = User(user=uid, group=gid or "0", umask=user.umask)
    if "additional-gids" in options:
        user = changed(user, additional_groups=tuple(options.all("additional-gids")))
    process = changed(
        base,
        args=args,
        env=(*base.env, *options.all("env")),
        cwd=options.get("cwd", base.cwd),
        user=user,
        capabilities=capabilities,
        terminal=options.flag("tty"),
        no_new_privileges=base.no_new_privileges or options.flag("no-new-privs"),
    )
    validate_process(process)
    return process

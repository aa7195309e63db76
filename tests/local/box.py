"""One host of the lab with a daemon that is in no swarm, and words for stories about containers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.images.busybox import busybox_rootfs
from tests.lab import Completed, Host, Lab, LabError, eventually

#: Stories that are told with both: what Docker's client does, ours does as well.
both_clients = pytest.mark.parametrize("client", ["docker", "swarmlet"])


class Box:
    def __init__(self, lab: Lab, client: str = "docker") -> None:
        self.lab = lab
        self.client = client

    @property
    def host(self) -> Host:
        return self.lab.hosts[0]

    async def docker(self, *words: str, check: bool = True, **more: Any) -> Completed:
        """Docker's client, or in its place what the story is told with."""
        return await self.host.run(self.client, *words, check=check, **more)

    async def swarmlet(self, *words: str, check: bool = True, **more: Any) -> Completed:
        return await self.host.run("swarmlet", *words, check=check, **more)

    async def out(self, *words: str) -> str:
        """What `docker ...` prints, without the line's end."""
        return (await self.docker(*words)).stdout.strip()

    async def refused(self, *words: str, code: int = 1) -> str:
        """What is said of something that cannot be, which ends with *code*."""
        done = await self.docker(*words, check=False)
        assert done.code == code, done
        return done.stderr

    async def inspect(self, name: str) -> dict[str, Any]:
        found = json.loads((await self.docker("inspect", name)).stdout)
        assert isinstance(found[0], dict)
        return found[0]

    async def state(self, name: str) -> str:
        return await self.out("inspect", "-f", "{{.State.Status}}", name)

    async def wait_state(self, name: str, wanted: str, *, within: float = 30.0) -> None:
        await eventually(
            lambda: self.state(name), until=lambda found: found == wanted, within=within
        )

    async def names(self, *more: str) -> list[str]:
        return sorted((await self.out("ps", "--format", "{{.Names}}", *more)).split())

    async def put_archive(self, name: str, path: str, archive: bytes) -> Completed:
        """Send *archive* as no docker client would; the answer is printed."""
        file = Path(self.lab.folder) / "archive.tar"
        file.write_bytes(archive)
        return await self.host.run(
            "curl",
            "--silent",
            "--show-error",
            "--unix-socket",
            str(self.host.run_dir / "swarmlet.sock"),
            "--upload-file",
            str(file),
            f"http://d/v1.50/containers/{name}/archive?path={path}",
            check=False,
        )

    async def load_busybox(self) -> None:
        tar = busybox_rootfs(Path(self.lab.folder) / "busybox.tar")
        await self.host.run("swarmlet", "image", "import", str(tar), "busybox")

    async def restart_daemon(self) -> None:
        await self.host.stop_daemon()
        await self.host.start_daemon()
        await self.host.wait_ready()

    async def ask(self, port: int, *, address: str = "") -> str:
        """What the host's *port* answers to a client on the LAN; "" when it is refused."""
        url = f"http://{address or self.host.address}:{port}/"
        words = ["curl", "--silent", "--show-error", "--max-time", "5", url]
        return (await self.lab.client(*words, check=False)).stdout.strip()

    async def wait_serving(self, port: int) -> None:
        await eventually(lambda: self.ask(port), until=lambda said: said == "It works.")


@asynccontextmanager
async def box(client: str = "docker", *, image: bool = True) -> AsyncIterator[Box]:
    """A host alone, with busybox. What its daemon said is printed when the story fails."""
    async with Lab(1) as lab:
        story = Box(lab, client)
        try:
            await story.host.start_daemon()
            await story.host.wait_ready()
            if image:
                await story.load_busybox()
            yield story
        except BaseException:
            print(story.host.last_words(80))
            raise


__all__ = ["Box", "LabError", "both_clients", "box"]

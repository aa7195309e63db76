"""Files in and out of containers, images made of them, with the stock docker client."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.local.box import both_clients, box

pytestmark = pytest.mark.level5

HOST_SECRET = "the host's own"


@both_clients
async def test_cp_carries_files_folders_and_links_both_ways(client: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "big").write_bytes(os.urandom(3 << 20))
    (source / "run.sh").write_text("echo hi\n")
    (source / "run.sh").chmod(0o750)
    (source / "link").symlink_to("run.sh")
    async with box(client) as b:
        await b.docker("create", "--name", "still", "busybox", "true")
        await b.docker(
            "run", "-d", "--name", "live", "-v", "data:/data", "busybox", "sleep", "1000"
        )
        for name in ("still", "live"):
            await b.docker("cp", str(source), f"{name}:/srv")
            back = tmp_path / f"back-{name}"
            await b.docker("cp", f"{name}:/srv", str(back))
            assert (back / "inner" / "big").read_bytes() == (source / "inner" / "big").read_bytes()
            assert (back / "run.sh").stat().st_mode & 0o777 == 0o750
            assert os.readlink(back / "link") == "run.sh"
            # The content alone, one file to another name, and a stream.
            await b.docker("cp", f"{source}/.", f"{name}:/tmp")
            await b.docker("cp", str(source / "run.sh"), f"{name}:/etc/other")
            into = tmp_path / f"into-{name}"
            into.mkdir()
            await b.docker("cp", f"{name}:/tmp/.", str(into))
            assert sorted(p.name for p in into.iterdir()) == ["inner", "link", "run.sh"]
            said = await b.docker("cp", f"{name}:/etc/other", "-")
            assert "echo hi" in said.stdout
        assert await b.out("exec", "live", "sh", "/srv/link") == "hi"
        # A volume is the container's at its place, running or not.
        await b.docker("cp", str(source / "run.sh"), "live:/data/in-volume")
        assert (b.host.state_dir / "volumes" / "data" / "_data" / "in-volume").exists()
        assert "No such path in the container: /nosuch" in await b.refused(
            "cp", "live:/nosuch", "-"
        )
        assert "No such container: nosuch" in await b.refused("cp", "nosuch:/x", "-")
        said = await b.refused("cp", str(source / "run.sh"), "live:/nosuch/folder/")
        assert "no such" in said
        await b.docker("run", "-d", "--name", "fixed", "--read-only", "busybox", "sleep", "1000")
        said = await b.refused("cp", str(source / "run.sh"), "fixed:/etc/x")
        assert "Read-only file system" in said


async def test_a_container_leads_no_copy_out_of_its_root(tmp_path: Path) -> None:
    """CVE-2018-15664: links that the container made, and swaps while it is copied."""
    async with box() as b:
        target = b.host.state_dir / "host-file"
        target.write_text(HOST_SECRET)
        swap = (
            f"mkdir /real; echo own > /real/host-file; ln -s {target.parent} /out;"
            f"mkdir -p {target.parent}; echo own > {target};"
            f"while :; do ln -sfn {target.parent} /swap; ln -sfn /real /swap; done"
        )
        await b.docker("run", "-d", "--name", "evil", "busybox", "sh", "-c", swap)
        await b.wait_state("evil", "running")
        for turn in range(20):
            done = await b.docker("cp", "-L", "evil:/swap/host-file", "-", check=False)
            assert HOST_SECRET not in done.stdout
            (tmp_path / "mine").write_text(f"turn {turn}")
            await b.docker("cp", str(tmp_path / "mine"), "evil:/swap/host-file", check=False)
            assert target.read_text() == HOST_SECRET
        said = (await b.docker("cp", "evil:/out/host-file", "-")).stdout
        assert "own" in said or "turn" in said


async def test_hostile_archives_are_refused_and_stay_inside() -> None:
    async with box() as b:
        await b.docker("run", "-d", "--name", "one", "busybox", "sleep", "1000")
        outside = b.host.state_dir / "outside"
        for entries in (
            [("../../../outside", tarfile.REGTYPE, "")],
            [("link", tarfile.SYMTYPE, str(outside.parent)), ("link/outside", tarfile.REGTYPE, "")],
            [("hard", tarfile.LNKTYPE, f"../../../..{outside.parent}/local/networks")],
            [("node", tarfile.BLKTYPE, "")],
        ):
            done = await b.put_archive("one", "/tmp", archive(entries))
            assert done.code or "message" in done.stdout or entries[0][1] == tarfile.SYMTYPE, done
            assert not outside.exists()
        assert "cannot be read" in (await b.put_archive("one", "/tmp", b"no tar" * 200)).stdout
        done = await b.put_archive("one", "/tmp/nosuch", archive([]))
        assert "No such path" in done.stdout
        assert "not a directory" in (await b.put_archive("one", "/etc/passwd", archive([]))).stdout
        assert await b.state("one") == "running"


def archive(entries: list[tuple[str, bytes, str]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)
    return out.getvalue()


async def test_diff_export_and_commit_say_what_a_container_changed(tmp_path: Path) -> None:
    async with box() as b:
        script = "echo new > /new; rm /etc/group; echo x >> /etc/passwd; mkdir /d; echo 1 > /d/f"
        await b.docker("run", "--name", "work", "busybox", "sh", "-c", script)
        changes = (await b.out("diff", "work")).splitlines()
        expected = ["A /d", "A /d/f", "A /new", "C /etc", "C /etc/passwd", "D /etc/group"]
        assert sorted(changes) == expected
        await b.docker("create", "--name", "idle", "busybox", "true")
        assert await b.out("diff", "idle") == ""
        await b.docker("export", "-o", str(tmp_path / "root.tar"), "work")
        with tarfile.open(tmp_path / "root.tar") as tar:
            names = tar.getnames()
            assert "new" in names
            assert "etc/group" not in names
            assert not [name for name in names if name.startswith(("proc/", "sys/"))]
        id_ = await b.out(
            "commit", "-m", "a word", "-a", "me", "-c", 'CMD ["cat", "/new"]', "work", "made:1"
        )
        shown = await b.inspect("made:1")
        assert shown["Id"] == id_
        assert (shown["Comment"], shown["Author"]) == ("a word", "me")
        assert await b.out("run", "--rm", "made:1") == "new"
        assert await b.out("run", "--rm", "made:1", "ls", "/etc", "/d") not in ("", "group")
        said = await b.docker("run", "--rm", "made:1", "cat", "/etc/group", check=False)
        assert said.code == 1
        # One of a container that runs, which goes on afterwards; and one of that.
        await b.docker("run", "-d", "--name", "live", "made:1", "sleep", "1000")
        await b.docker("exec", "live", "sh", "-c", "echo two > /new; rm -r /d")
        await b.docker("commit", "live", "made:2")
        assert await b.state("live") == "running"
        assert await b.out("run", "--rm", "--entrypoint", "cat", "made:2", "/new") == "two"
        assert (await b.docker("run", "--rm", "made:2", "ls", "/d", check=False)).code == 1
        said = await b.refused("commit", "-c", "NONSENSE x", "work", "made:3")
        assert "NONSENSE" in said
        assert "made" in await b.out("image", "ls")
        said = await b.refused("rmi", "made:1")
        assert "needed by a container" in said


async def test_a_tree_too_deep_for_recursion_is_copied_in_part_and_removed() -> None:
    deep = "i=0; while [ $i -lt 1500 ]; do mkdir d && cd d; i=$((i+1)); done; echo made"
    async with box() as b:
        assert await b.out("run", "--name", "deep", "busybox", "sh", "-c", deep) == "made"
        assert len((await b.out("diff", "deep")).splitlines()) > 100
        await b.docker("commit", "deep", "deep:1")
        await b.docker("rm", "deep")
        assert await b.names("-a") == []
        assert not list((b.host.state_dir / "local" / "containers").iterdir())


async def test_a_task_with_users_of_its_own_owns_what_is_copied_in(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("copied")
    os.chown(tmp_path / "mine", 5, 6)
    async with box() as b:
        await b.swarmlet("init")
        await b.swarmlet("service", "create", "--name", "web", "busybox", "sleep", "1000")
        name = (await b.names())[0]
        assert await b.out("exec", name, "cut", "-c", "1-22", "/proc/self/uid_map") != ""
        await b.docker("cp", str(tmp_path / "mine"), f"{name}:/etc/mine")
        assert await b.out("exec", name, "stat", "-c", "%u %g", "/etc/mine") == "5 6"
        await b.docker("exec", name, "sh", "-c", "echo own > /own; chown 7 /own")
        said = await b.host.run("sh", "-c", f"docker cp {name}:/own - | tar -t -v --numeric-owner")
        assert "7/0" in said.stdout
        assert "A /own" in await b.out("diff", name)
        said = await b.refused("commit", name, "x")
        assert "is a task of a service" in said
        assert await b.out("top", name) != ""

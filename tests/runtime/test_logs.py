"""Logs: lines, files, rotation, readers, and the pump between a container and them."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.runtime import pump
from swarmlet.runtime.compressing import Compressions
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.journal import JournalLog
from swarmlet.runtime.logfile import LINE_BYTES_MAX, JsonFileLog, LineSplitter, timestamp
from swarmlet.runtime.logs import _Reader, parse_entry, parse_time, read_logs
from swarmlet.runtime.pump import Poller, Pump
from swarmlet.runtime.spec import LogConfig
from tests.runtime.lab import Lab, output, wait_for_output

SECOND = 1_000_000_000


@given(st.lists(st.binary(max_size=50) | st.just(b"\n") | st.just(b"\r\n")))
def test_splitting_loses_and_adds_nothing(chunks: list[bytes]) -> None:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert b"".join(lines + splitter.finish()) == b"".join(chunks)


@given(st.integers(0, 3 * LINE_BYTES_MAX), st.sampled_from(["x", "ä", "€", "😀"]))
def test_long_lines_are_cut_between_characters(length: int, character: str) -> None:
    text = (character * length + "\n").encode()
    splitter = LineSplitter()
    lines = [*splitter.feed(text), *splitter.finish()]
    assert b"".join(lines) == text
    assert all(len(line) <= LINE_BYTES_MAX for line in lines)
    assert all(line.decode() for line in lines), "no piece breaks a character"


def test_entries_are_dockers(tmp_path: Path) -> None:
    log = JsonFileLog(str(tmp_path / "log"), 1 << 20, 3)
    log.append("stdout", [b'say "hi"\n', b"\xff\n", b"unended"], 1767323045 * SECOND + 7)
    log.close()
    entries = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert entries == [
        {"log": text, "stream": "stdout", "time": "2026-01-02T03:04:05.000000007Z"}
        for text in ('say "hi"\n', "\ufffd\n", "unended")
    ]


def test_rotation_keeps_the_newest_and_is_bounded(tmp_path: Path) -> None:
    log = JsonFileLog(str(tmp_path / "log"), 4096, 3)
    for number in range(400):
        log.append("stdout", [b"line %d\n" % number], SECOND)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 4096 + 100
    kept = [json.loads(line)["log"] for line in lines_of(tmp_path)]
    assert kept == [f"line {number}\n" for number in range(400 - len(kept), 400)]


def test_one_file_starts_over(tmp_path: Path) -> None:
    log = JsonFileLog(str(tmp_path / "log"), 4096, 1)
    for number in range(400):
        log.append("stdout", [b"line %d\n" % number], SECOND)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").stat().st_size < 4200


def lines_of(folder: Path) -> Iterator[str]:
    for name in ("log.2", "log.1", "log"):
        yield from (folder / name).read_text().splitlines()


def test_a_torn_line_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"log":"torn')
    log = JsonFileLog(str(path), 1 << 20, 3)
    log.append("stdout", [b"whole\n"], SECOND)
    log.close()
    torn, whole = path.read_bytes().splitlines()
    assert parse_entry(torn) is None
    entry = parse_entry(whole)
    assert entry is not None
    assert entry.data == b"whole\n"


def test_a_full_disk_loses_the_entry_only() -> None:
    log = JsonFileLog("/dev/full", 1 << 20, 3)
    log.append("stdout", [b"lost\n", b"too\n"], SECOND)
    assert log.dropped == 2
    log.close()


def test_times_have_nanoseconds_in_text_and_microseconds_in_python() -> None:
    assert timestamp(1) == "1970-01-01T00:00:00.000000001Z"
    expected = datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)
    assert parse_time("2026-01-02T03:04:05.123456789Z") == expected
    assert parse_time("2026-01-02T04:04:05.123456+01:00") == expected
    assert parse_time("2026-01-02T03:04:05Z") == expected.replace(microsecond=0)
    with pytest.raises(ValueError, match="is no time"):
        parse_time("yesterday")


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"5", b'{"log":1,"stream":"x","time":"y"}'])
def test_garbage_is_no_entry(raw: bytes) -> None:
    assert parse_entry(raw) is None


# Reading.


def write_log(path: Path, count: int, *, file_bytes: int = 4096) -> None:
    log = JsonFileLog(str(path), file_bytes, 5)
    for number in range(count):
        stream = "stderr" if number % 2 else "stdout"
        log.append(stream, [b"%d\n" % number], number * SECOND)
    log.close()


async def numbers(path: Path, **options: Any) -> list[int]:
    return [int(line.data) async for line in read_logs(str(path), **options)]


async def test_reading_goes_over_rotated_files(tmp_path: Path) -> None:
    write_log(tmp_path / "log", 150)
    assert (tmp_path / "log.2").exists()
    everything = await numbers(tmp_path / "log")
    assert everything == list(range(everything[0], 150))
    assert await numbers(tmp_path / "log", tail=100) == list(range(50, 150))
    assert await numbers(tmp_path / "log", tail=3) == [147, 148, 149]
    assert await numbers(tmp_path / "log", tail=0) == []
    assert await numbers(tmp_path / "log", tail=10**6) == everything


async def test_reading_by_stream_and_time(tmp_path: Path) -> None:
    write_log(tmp_path / "log", 20)
    assert await numbers(tmp_path / "log", stdout=False) == list(range(1, 20, 2))
    # Docker counts the tail before it looks at the stream.
    assert await numbers(tmp_path / "log", tail=4, stderr=False) == [16, 18]
    at = [datetime.fromtimestamp(second, UTC) for second in (5, 8)]
    assert await numbers(tmp_path / "log", since=at[0], until=at[1]) == [5, 6, 7, 8]


async def test_no_log_is_no_lines(tmp_path: Path) -> None:
    assert await numbers(tmp_path / "log") == []
    assert await numbers(tmp_path / "log", tail=5) == []


async def test_following_through_rotations(tmp_path: Path) -> None:
    """A follower sees each line once, although files are renamed under its hands."""
    path = tmp_path / "log"
    log = JsonFileLog(str(path), 8192, 5)
    seen: list[int] = []
    over = trio.Event()

    async def follow(task_status: trio.TaskStatus[None]) -> None:
        lines = read_logs(str(path), follow=True, tail=1, ended=over.is_set)
        async with contextlib.aclosing(lines):
            async for line in lines:
                if not seen:
                    task_status.started()
                seen.append(int(line.data))

    log.append("stdout", [b"0\n"], SECOND)
    async with trio.open_nursery() as nursery:
        await nursery.start(follow)
        for number in range(1, 1000):
            log.append("stdout", [b"%d\n" % number], SECOND)
            if number % 50 == 0:
                while seen[-1] != number:
                    await trio.lowlevel.checkpoint()
        over.set()
        log.append("stdout", [b"1000\n"], SECOND)
    log.close()
    assert seen == list(range(1001))


# The pump.


@pytest.fixture
def poller() -> Poller:
    return Poller()


def pipe_pump(poller: Poller, log: JsonFileLog | None = None) -> tuple[Pump, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    return Pump(poller, reader, "stdout", log), writer


def test_output_reaches_the_log_and_who_is_attached(tmp_path: Path, poller: Poller) -> None:
    log = JsonFileLog(str(tmp_path / "log"), 1 << 20, 3)
    pumped, writer = pipe_pump(poller, log)
    mine, theirs = os.pipe2(os.O_CLOEXEC)
    pumped.attach(theirs)
    os.write(writer, b"one\ntw")
    poller.turn(1)
    os.write(writer, b"o\nthree")
    pumped.finish()
    assert os.read(mine, 100) == b"one\ntwo\nthree"
    assert os.read(mine, 100) == b"", "its end is the end of the container"
    entries = [json.loads(line)["log"] for line in (tmp_path / "log").read_text().splitlines()]
    assert entries == ["one\n", "two\n", "three"]
    pumped.close()
    log.close()
    os.close(mine)
    os.close(writer)


def test_a_slow_reader_holds_the_output_and_is_cut_off(poller: Poller) -> None:
    pumped, writer = pipe_pump(poller)
    os.set_blocking(writer, False)
    mine, theirs = os.pipe2(os.O_CLOEXEC)
    pumped.attach(theirs)
    written = flood(poller, writer)
    assert pumped.blocked
    assert written < 4 * pump.READ_BYTES, "the container waits as for a terminal"
    pumped.drop_stalled(float("inf"))
    assert not pumped.blocked
    assert flood(poller, writer, 8 * pump.READ_BYTES) == 8 * pump.READ_BYTES, "and then goes on"
    pumped.close()
    os.close(mine)
    os.close(writer)


def test_a_reader_that_reads_gets_everything(poller: Poller) -> None:
    pumped, writer = pipe_pump(poller)
    os.set_blocking(writer, False)
    mine, theirs = os.pipe2(os.O_CLOEXEC)
    pumped.attach(theirs)
    written = flood(poller, writer)
    pumped.finish()
    os.set_blocking(mine, True)
    received = 0
    while chunk := os.read(mine, 1 << 16) if received < written else b"":
        received += len(chunk)
        poller.turn(0)
    assert received == written
    pumped.close()
    os.close(mine)
    os.close(writer)


def flood(poller: Poller, writer: int, limit: int = 1 << 20) -> int:
    """Write until the pipe is full and the pump takes no more, or *limit* is reached."""
    written = idle = 0
    while written < limit and idle < 3:
        try:
            written += os.write(writer, b"x" * min(4096, limit - written))
            idle = 0
        except BlockingIOError:
            idle += 1
        poller.turn(0)
    return written


# Compressed files.


class Compressor:
    """The zygote's part: children that compress, and their reaping."""

    def __init__(self) -> None:
        self.compressions = Compressions()

    def reap(self) -> int:
        """Wait for the children that compress, until all is; return how many there were."""
        count = 0
        while running := list(self.compressions._running):
            assert len(running) == 1, "one log, one child"
            _, status = os.waitpid(running[0], 0)
            assert self.compressions.finish(running[0], status)
            count += 1
        return count


async def test_rotated_files_are_compressed_and_read_as_before(tmp_path: Path) -> None:
    compressor = Compressor()
    path = tmp_path / "log"
    log = JsonFileLog(str(path), 4096, 4, compressor.compressions.start)
    for number in range(400):
        log.append("stdout", [b"line %d\n" % number], SECOND)
        compressor.reap()
    names = sorted(os.listdir(tmp_path))
    assert names == ["log", "log.1.gz", "log.2.gz", "log.3.gz"]
    assert (tmp_path / "log.1.gz").stat().st_size < 2000
    with gzip.open(tmp_path / "log.1.gz") as file:
        assert json.loads(file.readline())["log"].startswith("line ")
    lines = [line.data async for line in read_logs(str(path))]
    assert lines == [b"line %d\n" % n for n in range(400 - len(lines), 400)]
    assert len(lines) > 120
    for count in (0, 1, 50, 130):
        last = [line.data async for line in read_logs(str(path), tail=count)]
        assert last == lines[-count:] if count else last == []
    log.close()


def test_what_is_rotated_again_meanwhile_keeps_its_place(tmp_path: Path) -> None:
    """Of several rotations during one compression: each line is there once, in its order."""
    compressor = Compressor()
    log = JsonFileLog(str(tmp_path / "log"), 4096, 5, compressor.compressions.start)
    for number in range(170):  # three rotations, of which the first is being compressed
        log.append("stdout", [b"line %d\n" % number], SECOND)
    assert compressor.reap() == 3
    log.close()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["log", *(f"log.{n}.gz" for n in range(1, 4))]
    reader = _Reader(str(tmp_path / "log"))
    found = []
    while lines := (reader.start(None) if not found else reader.read()):
        found += [json.loads(line)["log"] for line in lines]
    assert found == [f"line {n}\n" for n in range(170)]
    reader.close()


def test_a_file_that_is_gone_when_its_compression_ends_stays_gone(tmp_path: Path) -> None:
    compressor = Compressor()
    log = JsonFileLog(str(tmp_path / "log"), 4096, 2, compressor.compressions.start)
    for number in range(150):
        log.append("stdout", [b"line %d\n" % number], SECOND)
    compressor.reap()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "log.1.gz"]
    assert not compressor.compressions.finish(1, 0)
    log.close()


def test_a_reader_in_the_middle_of_a_file_goes_on_when_it_was_compressed(tmp_path: Path) -> None:
    compressor = Compressor()
    log = JsonFileLog(str(tmp_path / "log"), 4096, 4, compressor.compressions.start)
    log.append("stdout", [b"first\n"], SECOND)
    reader = _Reader(str(tmp_path / "log"))
    found = [json.loads(line)["log"] for line in reader.start(None)]
    for number in range(100):
        log.append("stdout", [b"line %d\n" % number], SECOND)
        compressor.reap()
    assert (tmp_path / "log.1.gz").exists()
    while lines := reader.read():
        found += [json.loads(line)["log"] for line in lines]
    assert found == ["first\n", *(f"line {n}\n" for n in range(100))]
    reader.close()
    log.close()


# The journal.


def test_entries_of_the_journal_are_systemds(tmp_path: Path) -> None:
    """The Native Journal Protocol, heard by a socket as journald has one."""
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        log = JournalLog(path, {"CONTAINER_ID": "abc"})
        log.append("stdout", [b"plain\n", b"cut"], SECOND)
        log.append("stderr", [b"two\nlines\n"], SECOND)
        heard = [journal.recv(1000) for _ in range(3)]
    assert heard == [
        b"CONTAINER_ID=abc\nPRIORITY=6\nMESSAGE=plain\n",
        b"CONTAINER_ID=abc\nPRIORITY=6\nCONTAINER_PARTIAL_MESSAGE=true\nMESSAGE=cut\n",
        b"CONTAINER_ID=abc\nPRIORITY=3\nMESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n",
    ]
    log.append("stdout", [b"nobody hears\n"], SECOND)
    assert log.dropped == 1
    log.close()


# In containers.


@pytest.mark.level4
async def test_containers_write_to_the_journal(lab: Lab, tmp_path: Path) -> None:
    async with lab.supervisor() as supervisor:
        supervisor.journal = str(tmp_path / "journal")
        log = LogConfig(driver="journald", tag="web")
        with pytest.raises(SpecError, match="no journal listens at"):
            await supervisor.create("c", lab.spec("true", log=log))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(supervisor.journal)
            await supervisor.create("c", lab.spec("echo", "hello", log=log), start=True)
            await supervisor.wait("c")
            heard = journal.recv(1000)
        assert b"CONTAINER_ID_FULL=c\n" in heard
        assert b"SYSLOG_IDENTIFIER=web\n" in heard
        assert heard.endswith(b"MESSAGE=hello\n")
        with pytest.raises(RuntimeFailure, match="journalctl CONTAINER_ID_FULL=c"):
            await output(supervisor, "c")
        await supervisor.remove("c")


@pytest.mark.level4
async def test_the_zygote_compresses_what_it_rotates(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        log = LogConfig(driver="local", file_bytes_max=64 << 10, files_max=3)
        spec = lab.spec("seq", "1", "3000", log=log)
        await supervisor.create("c", spec, start=True)
        await supervisor.wait("c")
        folder = lab.state_dir / "containers/c"
        with trio.fail_after(30):
            while not list(folder.glob("*.gz")):  # noqa: ASYNC110
                await trio.sleep(0.02)
        lines = (await output(supervisor, "c")).split()
        assert lines == [str(n) for n in range(3001 - len(lines), 3001)]
        await supervisor.remove("c")


@pytest.mark.level4
async def test_a_flood_fills_no_disk_and_starves_nobody(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        spec = lab.spec("yes", "0123456789" * 10)
        spec_small = lab.spec("sh", "-c", "while read line; do echo got $line; done", stdin=True)
        await supervisor.create("flood", spec)
        await supervisor.create("calm", spec_small)
        await supervisor.start("flood")
        await supervisor.start("calm")
        folder = lab.state_dir / "containers/flood"
        with trio.fail_after(60):
            while not list(folder.glob("flood-json.log.2*")):  # noqa: ASYNC110
                await trio.sleep(0.05)
            async with await supervisor.attach("calm") as session:
                assert session.stdin is not None
                for number in range(5):
                    await session.stdin.send_all(b"%d\n" % number)
                await wait_for_output(supervisor, "calm", "got 4")
        # One of them may be being compressed.
        found = [path for path in folder.glob("flood-json.log*") if path.suffix != ".new"]
        assert len(found) == 3
        assert sum(path.stat().st_size for path in found) < 3 * (10 << 20) + (1 << 20)
        for name in ("flood", "calm"):
            await supervisor.remove(name, force=True)


@pytest.mark.level4
async def test_no_log_on_request(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await supervisor.create("c", lab.spec("yes", log=LogConfig(driver="none")))
        await supervisor.start("c")
        with pytest.raises(RuntimeFailure, match="has no log; its output was kept nowhere"):
            await output(supervisor, "c")
        assert not list((lab.state_dir / "containers/c").glob("*-json.log"))
        await supervisor.remove("c", force=True)

"""Tables by library and by command, and what is known of them. Level 4."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from overlay import netns, nftables
from overlay.nftables import Known, Nft, NftError
from overlay.tables import Chain
from tests.overlay.lab import run_in

pytestmark = pytest.mark.level4

T = TypeVar("T")
FORWARD = Chain("forward", ("tcp dport 22 drop",), "type filter hook forward priority filter")
OPEN = (FORWARD, Chain("more", ("accept",)))
CLOSED = (Chain("more", ("drop",)), Chain("forward", ("jump more",), FORWARD.hook))
STRANGE = "add table ip swl; add chain ip swl odd; add rule ip swl odd accept"


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "swl-nft"
    netns.run_in_thread(lambda: netns.create(path))
    yield path
    netns.remove(path)


@pytest.fixture(params=["library", "command"])
def nft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nft]:
    """Each way to run nft; the command is taken where there is no library."""
    if request.param == "command":
        monkeypatch.setattr(nftables, "LIBRARY", "libnothing.so.1")
    nftables.open_nft.cache_clear()
    yield nftables.open_nft()
    nftables.open_nft.cache_clear()


def in_space(space: Path, work: Callable[[], T]) -> T:
    return netns.run_in_netns(space, work)


def replace(space: Path, nft: Nft, chains: tuple[Chain, ...], known: Known | None = None) -> Known:
    return in_space(space, lambda: nftables.replace(nft, "swl", chains, known))


def verify(
    space: Path, nft: Nft, wanted: tuple[Chain, ...] | None, known: Known | None
) -> Known | None:
    return in_space(space, lambda: nftables.verify(nft, "swl", wanted, known))


def test_a_table_that_nobody_touched_is_known_without_a_look(space: Path, nft: Nft) -> None:
    known = replace(space, nft, OPEN)
    assert verify(space, nft, OPEN, known) is known
    assert "jump more" not in run_in(space, "nft", "list", "table", "ip", "swl")
    known = replace(space, nft, CLOSED, known)
    assert verify(space, nft, CLOSED, known) is known
    assert "jump more" in run_in(space, "nft", "list", "table", "ip", "swl")


def test_a_table_is_recognised_by_a_daemon_that_did_not_make_it(space: Path, nft: Nft) -> None:
    replace(space, nft, OPEN)
    found = verify(space, nft, OPEN, None)
    assert found is not None
    assert (found.chains, found.ours) == (OPEN, True)
    other = verify(space, nft, CLOSED, None)
    assert other is not None
    assert other.ours is False


def test_rules_of_others_do_not_make_ours_unknown(space: Path, nft: Nft) -> None:
    known = replace(space, nft, OPEN)
    run_in(space, "nft", "add table ip other")
    found = verify(space, nft, OPEN, known)
    assert found is not None
    assert (found.chains, found.ours) == (OPEN, True)
    assert found.generation != known.generation


@pytest.mark.parametrize(
    "change",
    [
        "flush chain ip swl forward",
        "add rule ip swl more drop",
        "add chain ip swl extra",
        "add set ip swl extra { type ipv4_addr; }",
        "delete table ip swl; " + STRANGE,
    ],
)
def test_a_change_by_somebody_shows_and_is_put_right(space: Path, nft: Nft, change: str) -> None:
    known = replace(space, nft, OPEN)
    before = run_in(space, "nft", "list", "ruleset")
    run_in(space, "nft", change)
    found = verify(space, nft, OPEN, known)
    assert found is not None
    assert found.ours is False
    again = replace(space, nft, OPEN, found)
    assert run_in(space, "nft", "list", "ruleset") == before
    assert verify(space, nft, OPEN, again) is again


def test_a_table_that_is_gone_is_gone(space: Path, nft: Nft) -> None:
    known = replace(space, nft, OPEN)
    in_space(space, lambda: nftables.remove(nft, "swl"))
    assert verify(space, nft, OPEN, known) is None
    in_space(space, lambda: nftables.remove(nft, "swl"))
    assert run_in(space, "nft", "list", "ruleset") == ""


def test_a_rule_that_nft_does_not_take_leaves_the_table_as_it_was(space: Path, nft: Nft) -> None:
    known = replace(space, nft, OPEN)
    before = run_in(space, "nft", "list", "ruleset")
    with pytest.raises(NftError, match="syntax error"):
        replace(space, nft, (Chain("more", ("nonsense",)),), known)
    assert run_in(space, "nft", "list", "ruleset") == before


def test_without_library_and_command_the_reason_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nftables, "LIBRARY", "libnothing.so.1")
    monkeypatch.setattr(nftables, "_find_command", lambda: None)
    nftables.open_nft.cache_clear()
    with pytest.raises(NftError, match="apt install nftables") as caught:
        nftables.open_nft()
    assert caught.value.errno == errno.ENOENT

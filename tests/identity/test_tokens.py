"""Join tokens: what is mistyped, what is wrong, and what the text says then."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.identity import (
    Grant,
    InvalidToken,
    MistypedToken,
    Role,
    Token,
    TokenFault,
    new_issued_token,
    parse_token,
    secret_digest,
    standing_token,
    verify_token,
)
from tests.identity.makers import NOW

ROOT = "ab" * 32
OTHER_ROOT = "cd" * 32
KEY = bytes(range(32))
GENERATIONS = {"worker": 3, "manager": 1}


@dataclass(frozen=True)
class Record:
    """As the store keeps an issued token."""

    id: str
    role: str
    secret_digest: bytes
    expires_at: float = NOW + 3600
    uses_left: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)


def issued(seed: int = 0) -> Token:
    return new_issued_token(ROOT, random.Random(seed).randbytes)


def verify(token: Token, record: Record | None = None, *, now: float = NOW) -> Grant:
    return verify_token(
        token,
        roots=frozenset({ROOT}),
        key=KEY,
        generations=GENERATIONS,
        find_issued=lambda id_: record if record is not None and record.id == id_ else None,
        now=now,
    )


def record_of(token: Token, role: Role = Role.WORKER) -> Record:
    return Record(token.id, role, secret_digest(token))


def test_standing_token_can_be_shown_again() -> None:
    first = str(standing_token(ROOT, KEY, Role.WORKER, 3))
    assert first == str(standing_token(ROOT, KEY, Role.WORKER, 3))
    assert re.fullmatch(r"SWL1-[a-z2-7]{52}-w3-[a-z2-7]{30}", first)
    assert verify(parse_token(first)) == Grant(role=Role.WORKER, token="w3")


def test_tokens_of_roles_and_generations_share_no_secret() -> None:
    tokens = [
        standing_token(ROOT, KEY, role, generation) for role in Role for generation in (1, 2, 12)
    ]
    assert len({token.secret for token in tokens}) == 6


def test_issued_token_gives_what_its_record_says() -> None:
    token = issued()
    record = replace(record_of(token, Role.MANAGER), labels={"site": "7"})
    grant = verify(parse_token(str(token)), record)
    assert grant == Grant(role=Role.MANAGER, token=token.id, issued=True, labels={"site": "7"})


def test_token_keeps_its_secret_out_of_logs() -> None:
    token = issued()
    assert token.secret.hex() not in repr(token)
    assert repr(token.secret) not in repr(token)


@pytest.mark.parametrize(
    ("token", "record", "now", "reason", "advice"),
    [
        (
            standing_token(ROOT, KEY, Role.WORKER, 2),
            None,
            NOW,
            TokenFault.OLD_GENERATION,
            "`swarmlet token worker` on a manager prints the present one",
        ),
        (standing_token(ROOT, KEY, Role.WORKER, 4), None, NOW, TokenFault.UNKNOWN, "no such token"),
        (
            standing_token(ROOT, bytes(32), Role.WORKER, 3),
            None,
            NOW,
            TokenFault.UNKNOWN,
            "no such token",
        ),
        (
            standing_token(ROOT, bytes(32), Role.WORKER, 2),  # an old one, guessed
            None,
            NOW,
            TokenFault.UNKNOWN,
            "no such token",
        ),
        (
            standing_token(OTHER_ROOT, KEY, Role.WORKER, 3),
            None,
            NOW,
            TokenFault.FOREIGN_CLUSTER,
            "another cluster",
        ),
        (issued(), None, NOW, TokenFault.UNKNOWN, "no such token"),
        (
            issued(),
            replace(record_of(issued()), secret_digest=bytes(32)),
            NOW,
            TokenFault.UNKNOWN,
            "no such token",
        ),
        (
            issued(),
            record_of(issued()),
            NOW + 3 * 3600,
            TokenFault.EXPIRED,
            "ended 2 h ago: make a new one with `swarmlet token create`",
        ),
        (
            issued(),
            replace(record_of(issued()), uses_left=0),
            NOW,
            TokenFault.USED_UP,
            "used as often as it may",
        ),
    ],
)
def test_wrong_token_says_what_to_do(
    token: Token, record: Record | None, now: float, reason: TokenFault, advice: str
) -> None:
    with pytest.raises(InvalidToken, match=re.escape(advice)) as refusal:
        verify(token, record, now=now)
    assert refusal.value.reason is reason


def test_role_without_a_standing_token_has_none() -> None:
    """`token policy --standing off`: generation 0."""
    with pytest.raises(InvalidToken):
        verify_token(
            standing_token(ROOT, KEY, Role.MANAGER, 1),
            roots=frozenset({ROOT}),
            key=KEY,
            generations={},
            find_issued=lambda id_: None,
            now=NOW,
        )


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "begins with SWL1-"),
        ("hello", "begins with SWL1-"),
        ("SWMTKN-1-49nj1cmql0jkz5s954yi3oex3nedyz0fb0xx14ie39trti4wxv-8vxv8r", "Docker Swarm"),
        ("SWLKEY-1-aaaa", "unlocks a manager"),
        ("SWL1-abc", "four parts"),
        ("SWL1-abc-w1-def", "cut short: its second part has 3 characters, not 52"),
        ("x" * 100_000, "begins with SWL1-"),
        (str(issued()) + "-" + "a" * 300, "four parts"),
    ],
)
def test_text_that_is_no_token_says_so(text: str, advice: str) -> None:
    with pytest.raises(MistypedToken, match=re.escape(advice)):
        parse_token(text)


def test_cut_token_is_told_from_a_mistyped_one() -> None:
    text = str(issued())
    with pytest.raises(MistypedToken, match="cut short: its last part has 25"):
        parse_token(text[:-5])
    with pytest.raises(MistypedToken, match="something added"):
        parse_token(text + "a")


def test_token_of_a_newer_kind_asks_for_an_update() -> None:
    token = Token(ROOT, "zz9", bytes(16))
    with pytest.raises(MistypedToken, match="update swarmlet"):
        parse_token(str(token))


tokens = st.one_of(
    st.builds(
        standing_token,
        st.binary(min_size=32, max_size=32).map(bytes.hex),
        st.binary(min_size=32, max_size=32),
        st.sampled_from(Role),
        st.integers(1, 999_999_999),
    ),
    st.integers(0, 1 << 32).map(issued),
)


@given(tokens)
def test_token_survives_text(token: Token) -> None:
    text = str(token)
    assert parse_token(text) == token
    assert parse_token(f"  {text[:40]}\n  {text[40:]}\r\n") == token  # a terminal wrapped it
    assert parse_token(text.upper()) == token


@settings(derandomize=True)  # a check of 20 bits lets one in a million through
@given(tokens, st.data())
def test_one_wrong_character_is_a_typing_error(token: Token, data: st.DataObject) -> None:
    """Whatever is mistyped, nobody is told that the token is wrong, old or foreign."""
    text = str(token)
    at = data.draw(st.integers(5, len(text) - 1))
    wrong = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
    if text[at] in (wrong, "-"):
        return
    with pytest.raises(MistypedToken):
        parse_token(text[:at] + wrong + text[at + 1 :])


@given(st.text(max_size=300))
def test_any_text_is_a_token_or_mistyped(text: str) -> None:
    with pytest.raises(MistypedToken):
        parse_token(text)
    with pytest.raises(MistypedToken):
        parse_token("SWL1-" + text)

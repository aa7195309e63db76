"""An nft table as chains of rules: as text, and as the commands from one to another. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chain:
    """*rules* in nft's words; *hook* is "type ... hook ... priority ..." of a base chain."""

    name: str
    rules: tuple[str, ...]
    hook: str = ""


def whole(table: str, chains: Iterable[Chain]) -> str:
    """Return the commands that make *table* of *chains*, in place of what it was."""
    lines = [f"add table ip {table}", f"delete table ip {table}", f"table ip {table} {{"]
    for chain in chains:
        lines.append(f"chain {chain.name} {{")
        if chain.hook:
            lines.append(_declaration(chain))
        lines += [*chain.rules, "}"]
    return "\n".join([*lines, "}", ""])


def difference(table: str, old: Sequence[Chain], new: Sequence[Chain]) -> str | None:
    """Return the commands that turn *table* from *old* into *new*.

    None when a base chain changes its hook: that takes the table as a whole. Chains are emptied
    before any is deleted, and made before any is filled, because rules name chains.
    """
    before = {chain.name: chain for chain in old}
    after = {chain.name: chain for chain in new}
    if any(before[name].hook != after[name].hook for name in before.keys() & after.keys()):
        return None
    added = [chain for chain in new if chain.name not in before]
    removed = [chain for chain in old if chain.name not in after]
    changed = [c for c in new if c.name in before and before[c.name] != c]
    lines = [
        f"add chain ip {table} {chain.name}"
        + (f" {{ {_declaration(chain)} }}" if chain.hook else "")
        for chain in added
    ]
    lines += [f"flush chain ip {table} {chain.name}" for chain in [*changed, *removed]]
    lines += [
        f"add rule ip {table} {chain.name} {rule}"
        for chain in [*changed, *added]
        for rule in chain.rules
    ]
    lines += [f"delete chain ip {table} {chain.name}" for chain in removed]
    return "\n".join([*lines, ""])


def _declaration(chain: Chain) -> str:
    return f"{chain.hook}; policy accept;"

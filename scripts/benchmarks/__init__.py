"""Benchmarks: each asks a question, measures ours and the peer in the same run, and prints medians.

    scripts/bench                     the names
    scripts/bench swarm --quick       fewer rounds
    scripts/bench swarm --json FILE   the same as JSON

`report.py` holds what a result is, `sides.py` the two clusters that answer the same Docker API in
the same lab, and each benchmark is a module with a docstring that is its question and

    async def measure(report: Report, *, quick: bool, sides: list[str]) -> None

Peers are Debian's packages, named in `peers.txt`, installed by the script and run inside the hosts
of a lab only. No timing is asserted anywhere: a figure is a fact about a machine and a commit.
"""

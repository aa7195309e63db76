"""Simulate gossip from 10 to 10,000 members; write the table and the plot of docs/gossip-scale.md.

scripts/gossip-scale                      10, 100 and 1,000 members: half an hour on two cores
scripts/gossip-scale --largest 10000      the whole of it: another half hour
scripts/gossip-scale --keep FILE          add to what FILE has; a run that was broken off goes on
scripts/gossip-scale --write              also put table and plot into docs/

A run is a function of its story, size and seed; tests/swim/scale.py has the stories and checkers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.swim import scale
from tests.swim.scale import Found

DOCS = Path(__file__).parent.parent / "docs"
SIZES = (10, 100, 1_000, 10_000)
#: size -> runs of a story from different seeds.
SEEDS = {10: 10, 100: 5, 1_000: 2, 10_000: 1}
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


@dataclass(frozen=True, slots=True)
class Story:
    """*largest*: sizes above it are not simulated."""

    title: str
    play: Callable[[int, int], Found]
    largest: int = SIZES[-1]


STORIES = (
    Story("one falls silent", scale.crash),
    Story("one falls silent, 10 % of packets lost", partial(scale.crash, loss=0.1), 1_000),
    Story("one falls silent, 30 % of packets lost", partial(scale.crash, loss=0.3), 1_000),
    Story("a minute of 10 % loss, 1 of 20 stopped for 5 s at a time", scale.weather, 1_000),
    Story("a minute of 30 % loss, 1 of 20 stopped", partial(scale.weather, loss=0.3), 100),
    Story("a tenth leaves at once", lambda n, seed: scale.leave(n, seed, n // 10), 1_000),
    Story("cut in two and healed", scale.partition, 100),
)


def play(number: int, size: int, seed: int) -> Found:
    return STORIES[number].play(size, seed)


def run(largest: int, workers: int, keep: Path | None) -> dict[tuple[int, int], list[Found]]:
    """Play everything that *keep* does not have."""
    results: dict[tuple[int, int], list[Found]] = defaultdict(list)
    kept = kept_in(keep)
    for (number, _, _), found in kept.items():
        results[number, found.members].append(found)
    jobs = [
        (number, size, seed)
        for size in SIZES
        for number, story in enumerate(STORIES)
        for seed in range(SEEDS[size])
        if size <= min(largest, story.largest) and (number, size, seed) not in kept
    ]
    with ProcessPoolExecutor(workers) as pool:
        pending = {pool.submit(play, *job): job for job in jobs}
        for done in as_completed(pending):
            number, size, seed = pending[done]
            found = done.result()
            results[number, size].append(found)
            if keep is not None:
                with keep.open("a") as file:
                    file.write(json.dumps([number, dataclasses.asdict(found)]) + "\n")
            for complaint in found.complaints:
                print(f"{STORIES[number].title}, {size}, seed {seed}: {complaint}", flush=True)
    return results


def kept_in(keep: Path | None) -> dict[tuple[int, int, int], Found]:
    if keep is None or not keep.exists():
        return {}
    kept = {}
    for line in keep.read_text().splitlines():
        number, document = json.loads(line)
        found = Found(**document)
        kept[number, found.members, found.seed] = found
    return kept


def table(results: dict[tuple[int, int], list[Found]]) -> str:
    """Medians, in the order of the stories, as Markdown."""
    sizes = sorted({size for _, size in results})
    lines = [
        "| | " + " | ".join(f"{size:,}" for size in sizes) + " |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    for number, story in enumerate(STORIES):
        names = dict.fromkeys(
            name
            for (n, _), runs in results.items()
            if n == number
            for r in runs
            for name in r.figures
        )
        for name in names:
            cells = [cell(results.get((number, size), []), name) for size in sizes]
            lines.append(f"| {story.title}: {name} | " + " | ".join(cells) + " |")
    runs = ", ".join(f"{SEEDS[size]} of {size:,}" for size in sizes)
    return "\n".join([*lines, "", f"Medians of runs from different seeds, at most {runs}."]) + "\n"


def cell(runs: Iterable[Found], name: str) -> str:
    values = [found.figures[name] for found in runs if name in found.figures]
    if not values:
        return ""
    value = statistics.median(values)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


#: What the plot shows: the names of figures of the first story, and their colours.
CURVES = {"suspected": "#999", "first verdict": "#36c", "all know": "#c33"}
WIDTH, HEIGHT, MARGIN = 640, 360, 56


def plot(results: dict[tuple[int, int], list[Found]]) -> str:
    """Seconds from the silence of a member over the size of the group, as SVG. Every run a dot."""
    sizes = sorted({size for number, size in results if number == 0})
    values = [f.figures[n] for s in sizes for f in results[0, s] for n in CURVES]
    top = math.ceil(max(values) / 5) * 5

    def x(size: int) -> float:
        span = math.log10(sizes[-1]) - math.log10(sizes[0]) or 1
        share = (math.log10(size) - math.log10(sizes[0])) / span
        return MARGIN + share * (WIDTH - 2 * MARGIN)

    def y(seconds: float) -> float:
        return HEIGHT - MARGIN - seconds / top * (HEIGHT - 2 * MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{MARGIN}" y="24">seconds from the silence of a member, over the size of the '
        "group (preset lan)</text>",
    ]
    for seconds in range(0, top + 1, 5):
        parts += [
            f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(seconds):.1f}" '
            f'y2="{y(seconds):.1f}" stroke="#ddd"/>'
            f'<text x="{MARGIN - 8}" y="{y(seconds) + 4:.1f}" text-anchor="end">{seconds}</text>'
        ]
    for size in sizes:
        parts += [
            f'<text x="{x(size):.1f}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle">'
            f"{size:,}</text>"
        ]
    for row, (name, colour) in enumerate(CURVES.items()):
        medians = []
        for size in sizes:
            found = [run.figures[name] for run in results[0, size]]
            medians.append(f"{x(size):.1f},{y(statistics.median(found)):.1f}")
            parts += [
                f'<circle cx="{x(size):.1f}" cy="{y(v):.1f}" r="2" fill="{colour}" '
                'fill-opacity="0.4"/>'
                for v in found
            ]
        parts.append(
            f'<polyline points="{" ".join(medians)}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>'
            f'<text x="{MARGIN + 12}" y="{MARGIN + 16 * row}" fill="{colour}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(results: dict[tuple[int, int], list[Found]]) -> None:
    page = DOCS / "gossip-scale.md"
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")
    (DOCS / "gossip-scale.svg").write_text(plot(results))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/gossip-scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--largest", type=int, default=1_000, choices=SIZES)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="add to its results")
    parser.add_argument("--write", action="store_true", help="write docs/gossip-scale.*")
    options = parser.parse_args()
    began = time.monotonic()
    results = run(options.largest, options.workers, options.keep)
    print(table(results))
    print(f"{time.monotonic() - began:.0f} s")
    if options.write:
        write(results)
    return 1 if any(found.complaints for runs in results.values() for found in runs) else 0


if __name__ == "__main__":
    sys.exit(main())

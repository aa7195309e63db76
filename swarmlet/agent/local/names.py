"""Names: the ones that containers are given when nobody gives one, and which ones can be.

Pure. The random numbers are the caller's, so that a seed replays.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection

#: Docker's rule (daemon/names/names.go); volumes have the same.
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
NAME_CHARACTERS_MAX = 128
#: Tries before a number is added.
TRIES_MAX = 20

_MOODS = """
agile amber brave breezy bright brisk calm candid cheerful clever cosy crisp curious daring deft
eager earnest fair fearless festive fluent fond frank gentle glad golden graceful hardy hearty
honest humble jolly jovial keen kind lively loyal lucid lucky mellow merry mild modest neat nifty
nimble noble patient placid plucky polite prompt proud quick quiet ready robust rosy sage serene
sharp silent sincere smart snug sober solid spry steady stoic sturdy subtle sunny swift tender
thrifty tidy tough trim trusty upbeat vivid warm wise witty young zesty
"""
MOODS = tuple(_MOODS.split())
#: People of science and engineering.
_PEOPLE = """
agnesi ampere archimedes babbage banach bell bernoulli bohr boole borg bose brahmagupta cantor
carson cerf chandrasekhar clarke cori curie dijkstra dirac elion engelbart erdos euclid euler
faraday fermat fermi feynman franklin galileo gauss germain goodall hamilton hawking heisenberg
herschel hertz hopper hypatia jemison johnson joliot kalam kepler khayyam kilby knuth kovalevskaya
lamarr lamport leavitt lovelace maxwell mcclintock meitner mendel mirzakhani moser napier newton
nobel noether noyce ohm pascal pasteur payne perlman planck poincare ptolemy raman ramanujan ride
ritchie rubin shannon shaw snyder stallman swartz tesla thompson torvalds turing varahamihira
volhard wiles wozniak wu yalow yonath
"""
PEOPLE = tuple(_PEOPLE.split())


def generate(taken: Collection[str], rng: random.Random) -> str:
    """Return a name that is not in *taken*, such as `gentle_lovelace`."""
    name = ""
    for _ in range(TRIES_MAX):
        name = f"{rng.choice(MOODS)}_{rng.choice(PEOPLE)}"
        if name not in taken:
            return name
    number = 1
    while f"{name}{number}" in taken:
        number += 1
    return f"{name}{number}"


def new_id(rng: random.Random) -> str:
    """Return 64 hexadecimal digits. Never all decimal in front: that would read as a number."""
    while True:
        text = f"{rng.getrandbits(256):064x}"
        if not text[:12].isdecimal():
            return text


def is_name(text: str) -> bool:
    return len(text) <= NAME_CHARACTERS_MAX and NAME.match(text) is not None

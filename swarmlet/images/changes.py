"""`--change` of an import or a commit: Dockerfile instructions that alter the configuration.

Pure. CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR,
with the Dockerfile's quoting and its $VARIABLES from the image's own environment.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from swarmlet.images.config import Healthcheck, ImageConfig
from swarmlet.images.errors import BadChange

SHELL = ("/bin/sh", "-c")
#: Characters of one instruction and ports of one EXPOSE: far above use, far below harm.
CHANGE_LENGTH_MAX = 64 * 1024
PORTS_MAX = 1024
PORT_MAX = 65535

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_SIGNAL = re.compile(r"(?:SIG)?[A-Z][A-Z0-9+-]*|[0-9]{1,2}", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


def apply_changes(config: ImageConfig, changes: Sequence[str]) -> ImageConfig:
    """Return *config* after the instructions *changes*, in order.

    Raises:
        BadChange: Names the instruction and what is wrong with it.
    """
    for change in changes:
        if len(change) > CHANGE_LENGTH_MAX or "\0" in change:
            raise BadChange(f"{change[:40]!r}… is too long, or has a NUL in it")
        word, _, rest = change.strip().partition(" ")
        instruction = _INSTRUCTIONS.get(word.upper())
        if instruction is None:
            known = ", ".join(sorted(_INSTRUCTIONS))
            raise BadChange(f"{word!r} is no instruction for an image; these are: {known}")
        rest = rest.strip()
        if not rest:
            raise BadChange(f"{word.upper()} needs an argument")
        try:
            config = instruction(config, rest)
        except BadChange as error:
            raise BadChange(f"{change.strip()!r}: {error}") from None
    return config


# Instructions, each (configuration, the text behind the word) -> configuration.
def _cmd(config: ImageConfig, rest: str) -> ImageConfig:
    return replace(config, cmd=_command(config, rest))


def _entrypoint(config: ImageConfig, rest: str) -> ImageConfig:
    return replace(config, entrypoint=_command(config, rest))


def _env(config: ImageConfig, rest: str) -> ImageConfig:
    env = dict(variable.partition("=")[::2] for variable in config.env)
    for key, value in _pairs(config, rest):
        if not key:
            raise BadChange("a variable needs a name")
        env[key] = value
    return replace(config, env=tuple(f"{key}={value}" for key, value in env.items()))


def _expose(config: ImageConfig, rest: str) -> ImageConfig:
    ports = set(config.exposed_ports)
    for word in split_words(rest, _variables(config)):
        match = _PORT.fullmatch(word)
        if match is None:
            raise BadChange(f"{word!r} is no port; write 80, 53/udp or 8000-8010")
        first = int(match[1])
        last = int(match[2] or first)
        if not 0 < first <= last <= PORT_MAX or last - first >= PORTS_MAX:
            raise BadChange(f"{word!r} is no range of up to {PORTS_MAX} ports from 1 to {PORT_MAX}")
        protocol = (match[3] or "tcp").lower()
        ports |= {f"{port}/{protocol}" for port in range(first, last + 1)}
    return replace(config, exposed_ports=tuple(sorted(ports)))


def _healthcheck(config: ImageConfig, rest: str) -> ImageConfig:
    numbers: dict[str, int] = {}
    while rest.startswith("--"):
        option, _, rest = rest.partition(" ")
        rest = rest.strip()
        name, equals, value = option.removeprefix("--").partition("=")
        field = name.replace("-", "_")
        if not equals or field not in Healthcheck.__dataclass_fields__ or field == "test":
            raise BadChange(f"{option!r} is no option of a health check")
        if field == "retries":
            if not value.isdecimal() or len(value) > 6:
                raise BadChange(f"{value!r} is no number of retries")
            numbers[field] = int(value)
        else:
            numbers[field] = _duration(value)
    word, _, rest = rest.partition(" ")
    if word.upper() == "NONE" and not rest:
        return replace(config, healthcheck=Healthcheck(("NONE",)))
    if word.upper() != "CMD" or not rest.strip():
        raise BadChange("write HEALTHCHECK CMD and a command, or HEALTHCHECK NONE")
    listed = _json_list(rest.strip())
    test = ("CMD", *listed) if listed is not None else ("CMD-SHELL", rest.strip())
    return replace(config, healthcheck=Healthcheck(test, **numbers))


def _label(config: ImageConfig, rest: str) -> ImageConfig:
    return replace(config, labels=dict(config.labels) | dict(_pairs(config, rest)))


def _onbuild(config: ImageConfig, rest: str) -> ImageConfig:
    return replace(config, on_build=(*config.on_build, rest))


def _stopsignal(config: ImageConfig, rest: str) -> ImageConfig:
    signal = _one(config, rest)
    if not _SIGNAL.fullmatch(signal):
        raise BadChange(f"{signal!r} is no signal")
    return replace(config, stop_signal=signal)


def _user(config: ImageConfig, rest: str) -> ImageConfig:
    return replace(config, user=_one(config, rest))


def _volume(config: ImageConfig, rest: str) -> ImageConfig:
    listed = _json_list(rest)
    paths = listed if listed is not None else tuple(split_words(rest, _variables(config)))
    if not all(path.strip() for path in paths):
        raise BadChange("a volume needs a path")
    return replace(config, volumes=tuple(sorted({*config.volumes, *paths})))


def _workdir(config: ImageConfig, rest: str) -> ImageConfig:
    path = posixpath.join("/", config.working_dir, _one(config, rest))
    return replace(config, working_dir="/" + posixpath.normpath(path).lstrip("/"))


_INSTRUCTIONS: Mapping[str, Callable[[ImageConfig, str], ImageConfig]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


# Words.
def _command(config: ImageConfig, rest: str) -> tuple[str, ...]:
    """The exec form is a JSON list; anything else is a line for the shell."""
    listed = _json_list(rest)
    return listed if listed is not None else (*(config.shell or SHELL), rest)


def _json_list(rest: str) -> tuple[str, ...] | None:
    if not rest.startswith("["):
        return None
    try:
        listed = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        return None
    if any("\0" in item for item in listed):
        raise BadChange("a NUL in an argument")
    return tuple(listed)


def _one(config: ImageConfig, rest: str) -> str:
    words = list(split_words(rest, _variables(config)))
    if len(words) != 1 or not words[0]:
        raise BadChange(f"one argument is wanted, {len(words)} are there")
    return words[0]


def _pairs(config: ImageConfig, rest: str) -> Iterator[tuple[str, str]]:
    """`a=1 b="x y"`, or the older `a 1 and all the rest`."""
    variables = _variables(config)
    first = re.split(r"[\s=]", rest, maxsplit=1)
    if len(first) == 2 and rest[len(first[0])] != "=":
        yield first[0], " ".join(split_words(first[1].strip(), variables, keep_spaces=True))
        return
    for word in split_words(rest, variables):
        key, equals, value = word.partition("=")
        if not equals:
            raise BadChange(f"{word!r} has no value; write {word}=VALUE")
        yield key, value


def _variables(config: ImageConfig) -> dict[str, str]:
    return dict(variable.partition("=")[::2] for variable in config.env)


def split_words(
    text: str, variables: Mapping[str, str], *, keep_spaces: bool = False
) -> Iterator[str]:
    """Yield the words of *text* without their quotes, with $NAME, ${NAME}, ${NAME:-x}, ${NAME:+x}.

    As in a Dockerfile: single quotes keep all as it is, double quotes keep spaces, a backslash
    keeps the next character. With *keep_spaces* the text is one word.
    """
    word: list[str] | None = None
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char.isspace() and not quote and not keep_spaces:
            if word is not None:
                yield "".join(word)
            word = None
            continue
        word = [] if word is None else word
        if char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif char == "\\" and quote != "'" and at < len(text):
            # Inside of double quotes only what is special there loses its backslash.
            if quote and text[at] not in '"$\\':
                word.append(char)
            word.append(text[at])
            at += 1
        elif char == "$" and quote != "'":
            value, at = _expand(text, at, variables)
            word.append(value)
        else:
            word.append(char)
    if quote:
        raise BadChange(f"a {quote} is not closed")
    if word is not None:
        yield "".join(word)


def _expand(text: str, at: int, variables: Mapping[str, str]) -> tuple[str, int]:
    """Return the value of the variable behind the dollar before *at*, and where it ends."""
    braced = text.startswith("{", at)
    match = _NAME.match(text, at + braced)
    if match is None:
        if braced:
            raise BadChange("${ needs the name of a variable behind it")
        return "$", at
    value = variables.get(match[0], "")
    if not braced:
        return value, match.end()
    end = text.find("}", match.end())
    if end < 0:
        raise BadChange("a ${ is not closed")
    modifier = text[match.end() : end]
    if modifier.startswith(":-"):
        return value or modifier[2:], end + 1
    if modifier.startswith(":+"):
        return modifier[2:] if value else "", end + 1
    if modifier:
        raise BadChange(f"{modifier!r} is no modifier; :- and :+ are")
    return value, end + 1


def _duration(text: str) -> int:
    """Return Go's duration, such as 1m30s, in nanoseconds."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text or len(text) > 32:
        raise BadChange(f"{text!r} is no duration; write 30s or 1m30s")
    return round(sum(float(number) * _UNIT_NS[unit] for number, unit in parts))

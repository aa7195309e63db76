"""The subset of Go's text/template that `--format` is used with. Pure.

    {{.ID}} {{.Spec.Name}} {{$.Name}}      fields; of a list or map also {{index .Labels "a"}}
    {{json .}} {{upper .Name}} {{lower .}} {{title .}} {{len .}} {{join .Args " "}}
    {{println .}} {{print .}} {{truncate .ID 4}} {{split .Name "."}} {{eq .Role "manager"}}
    {{printf "%s:%d" .Name .Count}}; and, or, not, ne, lt, le, gt, ge
    {{.Name | upper | json}}               pipes
    {{range .Args}}...{{else}}...{{end}}   {{if .Error}}...{{else if .Name}}...{{end}}
    {{with .Spec}}...{{end}}               {{range $key, $value := .Labels}}...{{end}}
    {{(index .Ports "80/tcp").HostPort}}   parentheses
    {{- ... -}}                            trims the white space beside it

What is not in this list raises TemplateError, as does a field that does not exist in a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


class TemplateError(Exception):
    """The template cannot be understood, or does not fit what it is given."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Show:
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Block:
    """if, range or with."""

    keyword: str
    names: tuple[str, ...]  # variables that it sets: an item's, or its key's and its own
    pipe: Pipe
    body: tuple[Part, ...]
    otherwise: tuple[Part, ...]


Part: TypeAlias = Text | Show | Block
#: A word of an action: a literal, a path into "." or a variable, or a pipe and a path into that.
Operand: TypeAlias = tuple[str, Any]
Pipe: TypeAlias = tuple[tuple[Operand, ...], ...]
#: Variables by name; "" is the whole, which a template calls $.
Scope: TypeAlias = Mapping[str, Any]

ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
WORD = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)
      | (?P<number>-?\d+)
      | (?P<path>\$\w*(?:\.\w+)*|(?:\.\w+)+|\.)
      | (?P<name>\w+)
      | (?P<pipe>\|)
      | (?P<open>\()
      | \)(?P<close>(?:\.\w+)*)
    )\s*""",
    re.VERBOSE,
)
SETS = re.compile(r"\s*\$(\w+)(?:\s*,\s*\$(\w+))?\s*:=")
ESCAPES = {"\\t": "\t", "\\n": "\n"}
#: Deeper than anybody nests by hand.
DEPTH_MAX = 20


class Template:
    def __init__(self, text: str) -> None:
        """Raises TemplateError."""
        for escape, meant in ESCAPES.items():
            text = text.replace(escape, meant)
        self._tokens = _tokenize(text)
        self._position = 0
        self._parts, ending = self._parse(0)
        if ending:
            raise TemplateError(f"{{{{{ending}}}}} ends nothing")

    def render(self, value: Any) -> str:
        """Raises TemplateError for a field that *value* does not have."""
        return _render(self._parts, value, {"": value})

    def _parse(self, depth: int) -> tuple[tuple[Part, ...], str]:
        """Parse up to an `end` or `else`, which is returned, or to the end of the text."""
        if depth > DEPTH_MAX:
            raise TemplateError("nested too deep")
        parts: list[Part] = []
        while self._position < len(self._tokens):
            token = self._tokens[self._position]
            self._position += 1
            if isinstance(token, Text):
                parts.append(token)
                continue
            keyword, _, rest = token.partition(" ")
            if token in ("end", "else") or keyword == "else":
                return tuple(parts), token
            if keyword in ("if", "range", "with"):
                parts.append(self._parse_block(keyword, rest, depth))
            else:
                parts.append(Show(_parse_pipe(token)))
        return tuple(parts), ""

    def _parse_block(self, keyword: str, rest: str, depth: int) -> Block:
        names: tuple[str, ...] = ()
        if (match := SETS.match(rest)) is not None:
            names = tuple(name for name in match.groups() if name)
            rest = rest[match.end() :]
        pipe = _parse_pipe(rest)
        body, ending = self._parse(depth + 1)
        otherwise: tuple[Part, ...] = ()
        if ending == "else":
            otherwise, ending = self._parse(depth + 1)
        elif ending.startswith("else if "):
            # It ends with the same {{end}}.
            otherwise = (self._parse_block("if", ending.removeprefix("else if "), depth + 1),)
            ending = "end"
        if ending != "end":
            raise TemplateError(f"{{{{{keyword}}}}} has no {{{{end}}}}")
        return Block(keyword, names, pipe, body, otherwise)


def _tokenize(text: str) -> list[Text | str]:
    tokens: list[Text | str] = []
    position, trims = 0, False
    for match in ACTION.finditer(text):
        before = text[position : match.start()]
        before = before.lstrip() if trims else before
        tokens.append(Text(before.rstrip() if match[1] else before))
        tokens.append(match[2].strip())
        position, trims = match.end(), bool(match[3])
    rest = text[position:]
    if "{{" in rest:
        raise TemplateError("{{ without }}")
    tokens.append(Text(rest.lstrip() if trims else rest))
    return tokens


def _parse_pipe(text: str) -> Pipe:
    pipe, position, _ = _parse_commands(text, 0, 0)
    if position < len(text):
        raise TemplateError(f"{{{{{text}}}}} has a ) too many")
    return pipe


def _parse_commands(text: str, position: int, depth: int) -> tuple[Pipe, int, str]:
    """Up to the end or a closing parenthesis: the pipe, where it ended, the path behind that."""
    if depth > DEPTH_MAX:
        raise TemplateError("nested too deep")
    commands: list[list[Operand]] = [[]]
    path, closed = "", False
    while position < len(text) and not closed:
        match = WORD.match(text, position)
        if match is None:
            raise TemplateError(f"{{{{{text}}}}} cannot be read at {text[position:]!r}")
        position = match.end()
        kind = str(match.lastgroup)
        word = match[kind]
        if kind == "close":
            if not depth:
                raise TemplateError(f"{{{{{text}}}}} has a ) too many")
            path, closed = word, True
        elif kind == "open":
            inner, position, behind = _parse_commands(text, position, depth + 1)
            commands[-1].append(("inner", (inner, behind)))
        elif kind == "pipe":
            commands.append([])
        else:
            commands[-1].append(_operand(kind, word))
    if depth and not closed:
        raise TemplateError(f"{{{{{text}}}}} has a ( too many")
    if not all(commands):
        raise TemplateError(f"{{{{{text}}}}} is empty")
    for command in commands:
        for index, (kind, word) in enumerate(command):
            if kind == "name" and (index or word not in FUNCTIONS):
                known = ", ".join(sorted(FUNCTIONS))
                raise TemplateError(f"function {word!r} is not known; known are {known}")
    return tuple(tuple(command) for command in commands), position, path


def _operand(kind: str, word: str) -> Operand:
    if kind == "text":
        return "literal", _unquote(word)
    if kind == "number":
        return "literal", int(word)
    if kind == "name" and word in ("true", "false"):
        return "literal", word == "true"
    return kind, word


def _unquote(word: str) -> str:
    if word.startswith("`"):
        return word[1:-1]
    return word[1:-1].replace('\\"', '"').replace("\\\\", "\\")


def _render(parts: tuple[Part, ...], dot: Any, scope: Scope) -> str:
    return "".join(_render_part(part, dot, scope) for part in parts)


def _render_part(part: Part, dot: Any, scope: Scope) -> str:
    match part:
        case Text(text):
            return text
        case Show(pipe):
            return _text(_evaluate(pipe, dot, scope))
        case Block("range", names, pipe, body, otherwise):
            items = _items(_evaluate(pipe, dot, scope))
            if not items:
                return _render(otherwise, dot, scope)
            return "".join(
                _render(body, item, _set(scope, names, key, item)) for key, item in items
            )
        case Block(keyword, names, pipe, body, otherwise):
            value = _evaluate(pipe, dot, scope)
            scope = _set(scope, names[:1], None, value)
            if not value:
                return _render(otherwise, dot, scope)
            return _render(body, value if keyword == "with" else dot, scope)
    raise AssertionError(part)


def _items(value: Any) -> list[tuple[Any, Any]]:
    """What a range goes through, with keys or places."""
    if isinstance(value, Mapping):
        return [(key, value[key]) for key in sorted(value)]
    if not isinstance(value, list | tuple | type(None)):
        raise TemplateError(f"range over {_text(value)[:40]!r}, which is no list")
    return list(enumerate(value or ()))


def _set(scope: Scope, names: tuple[str, ...], key: Any, value: Any) -> Scope:
    if not names:
        return scope
    return {**scope, **dict(zip(names, (value,) if len(names) == 1 else (key, value), strict=True))}


def _evaluate(pipe: Pipe, dot: Any, scope: Scope) -> Any:
    values: list[Any] = []  # what the pipe hands to the next command, as its last argument
    for command in pipe:
        (kind, word), *rest = command
        arguments = [_value(operand, dot, scope) for operand in rest]
        if kind == "name":
            try:
                values = [FUNCTIONS[word](*arguments, *values)]
            except (TypeError, ValueError, LookupError, AttributeError) as exc:
                raise TemplateError(f"{word}: {exc}") from None
        elif arguments or values:
            raise TemplateError(f"{word!r} is no function and takes no argument")
        else:
            values = [_value((kind, word), dot, scope)]
    return values[0]


def _value(operand: Operand, dot: Any, scope: Scope) -> Any:
    kind, word = operand
    if kind == "literal":
        return word
    if kind == "inner":
        inner, path = word
        value = _evaluate(inner, dot, scope)
    else:
        variable, path = "", word
        if word.startswith("$"):
            variable, dot_, rest = word[1:].partition(".")
            path = f"{dot_}{rest}"
            if variable not in scope:
                raise TemplateError(f"there is no variable ${variable}")
        value = scope[variable] if word.startswith("$") else dot
    for name in path.split("."):
        if name:
            value = _field(value, name)
    return value


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
        raise TemplateError(f"there is no field {name!r}; there are {', '.join(sorted(value))}")
    if value is None:
        return None
    raise TemplateError(f"{_text(value)[:40]!r} has no field {name!r}")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inner = " ".join(f"{key}:{_text(value[key])}" for key in sorted(value))
        return f"map[{inner}]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(_text(item) for item in value) + "]"
    return str(value)


def _truncate(value: Any, length: int) -> str:
    return _text(value)[:length]


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value[key] if not isinstance(value, Mapping) else value.get(key, "")
    return value


def _first(*values: Any, wanted: bool) -> Any:
    """The first that is true, or with *wanted* false the first that is not; else the last."""
    return next((value for value in values if bool(value) is wanted), values[-1])


def _printf(text: str, *values: Any) -> str:
    """%s, %v, %d, %q and %%, with Go's widths."""
    text = re.sub(r"%(-?\d*)v", r"%\1s", text)
    shown = iter(values)

    def place(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        value = next(shown, "")
        if match[0].endswith("q"):
            return json.dumps(_text(value), ensure_ascii=False)
        return match[0] % (value if match[0].endswith("d") else _text(value))

    return re.sub(r"%(?:%|-?\d{0,3}[sdq])", place, text)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": lambda *values: _first(*values, wanted=False),
    "or": lambda *values: _first(*values, wanted=True),
    "ge": lambda left, right: left >= right,
    "gt": lambda left, right: left > right,
    "le": lambda left, right: left <= right,
    "lt": lambda left, right: left < right,
    "printf": _printf,
    "eq": lambda left, *rights: any(left == right for right in rights),
    "index": _index,
    "join": lambda items, separator: separator.join(_text(item) for item in items),
    "json": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "len": len,
    "lower": lambda value: _text(value).lower(),
    "ne": lambda left, right: left != right,
    "not": lambda value: not value,
    "print": lambda *values: "".join(_text(value) for value in values),
    "println": lambda *values: " ".join(_text(value) for value in values) + "\n",
    "split": lambda text, separator: text.split(separator),
    "title": lambda value: _text(value).title(),
    "truncate": _truncate,
    "upper": lambda value: _text(value).upper(),
}

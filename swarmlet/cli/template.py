"""The subset of Go's text/template that `--format` is used with. Pure.

    {{.ID}} {{.Spec.Name}} {{$.Name}}      fields; of a list or map also {{index .Labels "a"}}
    {{json .}} {{upper .Name}} {{lower .}} {{title .}} {{len .}} {{join .Args " "}}
    {{println .}} {{print .}} {{truncate .ID 4}} {{split .Name "."}} {{eq .Role "manager"}}
    {{.Name | upper | json}}               pipes
    {{range .Args}}...{{else}}...{{end}}   {{if .Error}}...{{else}}...{{end}}
    {{with .Spec}}...{{end}}
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
    pipe: Pipe
    body: tuple[Part, ...]
    otherwise: tuple[Part, ...]


Part: TypeAlias = Text | Show | Block
#: A word of an action: a literal, or a path into "." or "$".
Operand: TypeAlias = tuple[str, Any]
Pipe: TypeAlias = tuple[tuple[Operand, ...], ...]

ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
WORD = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)
      | (?P<number>-?\d+)
      | (?P<path>\$?(?:\.\w+)+|\$|\.)
      | (?P<name>\w+)
      | (?P<pipe>\|)
    )\s*""",
    re.VERBOSE,
)
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
        return _render(self._parts, value, value)

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
            if token in ("end", "else"):
                return tuple(parts), token
            if keyword in ("if", "range", "with"):
                body, ending = self._parse(depth + 1)
                otherwise: tuple[Part, ...] = ()
                if ending == "else":
                    otherwise, ending = self._parse(depth + 1)
                if ending != "end":
                    raise TemplateError(f"{{{{{keyword}}}}} has no {{{{end}}}}")
                parts.append(Block(keyword, _parse_pipe(rest), body, otherwise))
            else:
                parts.append(Show(_parse_pipe(token)))
        return tuple(parts), ""


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
    commands: list[list[Operand]] = [[]]
    position = 0
    while position < len(text):
        match = WORD.match(text, position)
        if match is None:
            raise TemplateError(f"{{{{{text}}}}} cannot be read at {text[position:]!r}")
        position = match.end()
        kind = str(match.lastgroup)
        word = match[kind]
        if kind == "pipe":
            commands.append([])
        elif kind == "text":
            commands[-1].append(("literal", _unquote(word)))
        elif kind == "number":
            commands[-1].append(("literal", int(word)))
        elif kind == "name" and word in ("true", "false"):
            commands[-1].append(("literal", word == "true"))
        else:
            commands[-1].append((kind, word))
    if not all(commands):
        raise TemplateError(f"{{{{{text}}}}} is empty")
    for command in commands:
        for index, (kind, word) in enumerate(command):
            if kind == "name" and (index or word not in FUNCTIONS):
                known = ", ".join(sorted(FUNCTIONS))
                raise TemplateError(f"function {word!r} is not known; known are {known}")
    return tuple(tuple(command) for command in commands)


def _unquote(word: str) -> str:
    if word.startswith("`"):
        return word[1:-1]
    return word[1:-1].replace('\\"', '"').replace("\\\\", "\\")


def _render(parts: tuple[Part, ...], dot: Any, root: Any) -> str:
    return "".join(_render_part(part, dot, root) for part in parts)


def _render_part(part: Part, dot: Any, root: Any) -> str:
    match part:
        case Text(text):
            return text
        case Show(pipe):
            return _text(_evaluate(pipe, dot, root))
        case Block("if", pipe, body, otherwise):
            return _render(body if _evaluate(pipe, dot, root) else otherwise, dot, root)
        case Block("with", pipe, body, otherwise):
            value = _evaluate(pipe, dot, root)
            return _render(body, value, root) if value else _render(otherwise, dot, root)
        case Block(_, pipe, body, otherwise):
            items = _evaluate(pipe, dot, root)
            if isinstance(items, Mapping):
                items = [items[key] for key in sorted(items)]
            if not isinstance(items, list | tuple | type(None)):
                raise TemplateError(f"range over {_text(items)[:40]!r}, which is no list")
            if not items:
                return _render(otherwise, dot, root)
            return "".join(_render(body, item, root) for item in items)
    raise AssertionError(part)


def _evaluate(pipe: Pipe, dot: Any, root: Any) -> Any:
    values: list[Any] = []  # what the pipe hands to the next command, as its last argument
    for command in pipe:
        (kind, word), *rest = command
        arguments = [_value(operand, dot, root) for operand in rest]
        if kind == "name":
            try:
                values = [FUNCTIONS[word](*arguments, *values)]
            except (TypeError, ValueError, LookupError) as exc:
                raise TemplateError(f"{word}: {exc}") from None
        elif arguments or values:
            raise TemplateError(f"{word!r} is no function and takes no argument")
        else:
            values = [_value((kind, word), dot, root)]
    return values[0]


def _value(operand: Operand, dot: Any, root: Any) -> Any:
    kind, word = operand
    if kind == "literal":
        return word
    value = root if word.startswith("$") else dot
    for name in word.lstrip("$").split("."):
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


FUNCTIONS: dict[str, Callable[..., Any]] = {
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

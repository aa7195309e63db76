"""Tables, formats and human figures, in Docker's shape. Pure but for show() and emit().

A list command makes rows: mappings from Docker's placeholder names (ID, Name, ...) to text. The
same rows serve the table, `--format json` (one object a line) and templates.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from swarmlet.cli.base import Failure

if TYPE_CHECKING:
    from swarmlet.cli.template import Template

Row: TypeAlias = Mapping[str, str]
#: Header and the placeholder that stands below it.
Columns: TypeAlias = Sequence[tuple[str, str]]

GAP = 3
ID_CHARACTERS = 12
#: Docker cuts after 30: "no suitable node (insufficie…". Here the reason is what one looks for.
ERROR_CHARACTERS = 120


def show(
    rows: Sequence[Row], columns: Columns, format_: str, *, quiet: bool = False, key: str = "ID"
) -> None:
    """Print *rows* as the flags ask. Raises Failure for a template that cannot be."""
    if quiet:
        lines = [row[key] for row in rows]
    elif format_ in ("", "table"):
        lines = render_table(rows, columns)
    elif format_ == "json":
        lines = [json.dumps(row) for row in rows]
    elif format_.startswith("table "):
        lines = _render_custom_table(rows, columns, format_.removeprefix("table "))
    else:
        template = compile_template(format_)
        lines = [_render(template, row) for row in rows]
    for line in lines:
        emit(line)


def show_documents(documents: Sequence[Any], format_: str) -> None:
    """Print what `inspect` found: indented JSON, or each through a template."""
    if not format_:
        emit(json.dumps(documents, indent=4, ensure_ascii=False))
    elif format_ == "json":
        for document in documents:
            emit(json.dumps(document, ensure_ascii=False))
    else:
        template = compile_template(format_)
        for document in documents:
            emit(_render(template, document))


def emit(line: str) -> None:
    sys.stdout.write(line + "\n")


def render_table(rows: Sequence[Row], columns: Columns) -> list[str]:
    table = [[header for header, _ in columns]]
    table += [[_clean(row.get(name, "")) for _, name in columns] for row in rows]
    return _align(table)


def _align(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [cell.ljust(width + GAP) for cell, width in zip(row, widths, strict=True)]
        lines.append("".join(cells).rstrip())
    return lines


def _clean(text: str) -> str:
    """What came from elsewhere may hold anything: no line breaks, no escape codes."""
    return "".join(c if c.isprintable() else " " for c in text)


def _render_custom_table(rows: Sequence[Row], columns: Columns, text: str) -> list[str]:
    text = text.replace("\\t", "\t").replace("\\n", "\n")
    template = compile_template(text)
    headers = {name: header for header, name in columns}
    names = {name for row in rows for name in row}
    header_row = {name: headers.get(name, name.upper()) for name in {*names, *headers}}
    table = [_render(template, row).split("\t") for row in (header_row, *rows)]
    width = max(len(line) for line in table)
    return _align([[*line, *[""] * (width - len(line))] for line in table])


def compile_template(text: str) -> Template:
    from swarmlet.cli.template import Template, TemplateError  # most commands need none

    try:
        return Template(text)
    except TemplateError as exc:
        raise Failure(f"--format: {exc}") from None


def _render(template: Template, value: Any) -> str:
    from swarmlet.cli.template import TemplateError

    try:
        return template.render(value)
    except TemplateError as exc:
        raise Failure(f"--format: {exc}") from None


def short_id(text: str, no_trunc: bool = False) -> str:
    bare = text.removeprefix("sha256:")
    return text if no_trunc else bare[:ID_CHARACTERS]


def short_error(text: str, no_trunc: bool = False) -> str:
    if not text:
        return ""
    if not no_trunc and len(text) > ERROR_CHARACTERS:
        text = text[: ERROR_CHARACTERS - 1] + "…"
    return f'"{text}"'


def short_image(text: str, no_trunc: bool = False) -> str:
    """Without the digest that a tag was resolved to."""
    name, separator, _ = text.partition("@")
    has_tag = ":" in name.rpartition("/")[2]
    return name if separator and has_tag and not no_trunc else text


def parse_time(text: str) -> float:
    """RFC 3339 with up to nine digits of a second; 0 for Go's zero time."""
    if not text or text.startswith("0001-"):
        return 0.0
    whole, dot, rest = text.partition(".")
    digits = rest.rstrip("Z") if dot else ""
    moment = datetime.fromisoformat(whole.rstrip("Z")).replace(tzinfo=UTC)
    return moment.timestamp() + (float(f"0.{digits}") if digits.isdigit() else 0.0)


def human_age(seconds: float) -> str:
    """`3 minutes`, in Docker's words."""
    seconds = max(0.0, seconds)
    minutes, hours = round(seconds // 60), round(seconds / 3600)
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return _plural(int(seconds), "second")
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return _plural(minutes, "minute")
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return _plural(hours, "hour")
    days = hours // 24
    if days < 14:
        return _plural(days, "day")
    if days < 60:
        return _plural(days // 7, "week")
    if days < 730:
        return _plural(days // 30, "month")
    return _plural(days // 365, "year")


def ago(at: float, now: float) -> str:
    return f"{human_age(now - at)} ago" if at else ""


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def human_size(size: float) -> str:
    """`1.41MB`: powers of 1000 and three digits, as Docker shows sizes of images."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g}{unit}"


def human_memory(size: float) -> str:
    """`7.75GiB`: powers of 1024, as Docker shows memory."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.4g}{unit}"

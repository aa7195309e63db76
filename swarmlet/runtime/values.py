"""Frozen values that cost next to nothing to define: for programs that live for milliseconds.

Pure. dataclasses compiles the methods of each class anew at each import, a millisecond for one with
slots; `swarmlet-oci` and the daemon's start have a hundred such classes. A class under `@value` has
the same behaviour (fields by annotation, defaults, keyword-only if asked, equality, hash, repr,
patterns) from functions that all share, and `dataclasses.fields`, `replace` and `asdict` know it.
An instance costs a microsecond more than a dataclass's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast, dataclass_transform

T = TypeVar("T")
_REQUIRED = object()


class _Factory:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], T]) -> T:
    """Return the default of a field that is made anew for each value."""
    made: Any = _Factory(default_factory)
    return cast(T, made)


@dataclass_transform(frozen_default=True, eq_default=True, field_specifiers=(field,))
def value(kind: type[T]) -> type[T]:
    """Make *kind* a frozen value; its fields may be given by place or by name."""
    return _value(kind, by_place=True)


@dataclass_transform(
    frozen_default=True, eq_default=True, kw_only_default=True, field_specifiers=(field,)
)
def named_value(kind: type[T]) -> type[T]:
    """Make *kind* a frozen value whose fields are given by name."""
    return _value(kind, by_place=False)


def _value(kind: type[T], *, by_place: bool) -> type[T]:
    names = tuple(kind.__annotations__)
    defaults = {name: kind.__dict__[name] for name in names if name in kind.__dict__}
    made: Any = kind
    made._fields = names
    made._defaults = defaults
    made.__match_args__ = names if by_place else ()  # type: ignore[misc]
    made.__init__ = _init_by_place if by_place else _init
    for name in ("__eq__", "__hash__", "__repr__", "__setattr__", "__delattr__"):
        setattr(made, name, vars(_Methods)[name])
    made.__dataclass_fields__ = _Fields(by_place)
    return kind


def changed(old: T, **changes: Any) -> T:
    """Return *old* with fields changed, as dataclasses.replace does."""
    return type(old)(**{**vars(old), **changes})


def _init(self: Any, **given: Any) -> None:
    fields = self.__dict__
    defaults = self._defaults
    for name in self._fields:
        if name in given:
            fields[name] = given.pop(name)
        else:
            found = defaults.get(name, _REQUIRED)
            if found is _REQUIRED:
                raise TypeError(f"{type(self).__name__}: {name} is missing")
            fields[name] = found.make() if type(found) is _Factory else found
    if given:
        raise TypeError(f"{type(self).__name__}: there is no {min(given)}")


def _init_by_place(self: Any, *values: Any, **given: Any) -> None:
    names = self._fields
    if len(values) == len(names):
        self.__dict__.update(zip(names, values, strict=True))
        if given:
            raise TypeError(f"{type(self).__name__}: {min(given)} is given twice")
        return
    for name, member in zip(names, values, strict=False):
        if name in given:
            raise TypeError(f"{type(self).__name__}: {name} is given twice")
        given[name] = member
    if len(values) > len(names):
        raise TypeError(f"{type(self).__name__}: takes {len(names)} values at most")
    _init(self, **given)


class _Methods:
    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return bool(self.__dict__ == other.__dict__)

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={member!r}" for name, member in self.__dict__.items())
        return f"{type(self).__name__}({fields})"

    def __setattr__(self, name: str, member: object) -> None:
        raise AttributeError(f"cannot set {name}: a {type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete {name}: a {type(self).__name__} is frozen")


class _Fields:
    """`__dataclass_fields__`, made when somebody asks: few do."""

    def __init__(self, by_place: bool) -> None:
        self._by_place = by_place

    def __get__(self, _: object, kind: type[Any]) -> Mapping[str, Any]:
        import dataclasses

        definitions = {}
        for name in kind._fields:
            found = kind._defaults.get(name, dataclasses.MISSING)
            if type(found) is _Factory:
                definitions[name] = dataclasses.field(default_factory=found.make)
            else:
                definitions[name] = dataclasses.field(default=found)
        # A dataclass of the same fields is asked, so that nothing is known of how it is made.
        annotations = kind.__annotations__
        made = [(name, annotations[name], field) for name, field in definitions.items()]
        twin = dataclasses.make_dataclass(kind.__name__, made, kw_only=not self._by_place)
        fields: Mapping[str, Any] = twin.__dict__["__dataclass_fields__"]
        kind.__dataclass_fields__ = fields
        return fields

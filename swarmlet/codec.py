"""The one codec: frozen dataclasses to msgpack arrays and back, for wire and disk alike.

Pure. A record is the array of its fields in the order of the class:

    dataclass            [field, field, ...]     without the trailing ones that hold their default
    A | B (dataclasses)  [position in the union, [field, ...]]
    X | None             nil or X
    enum                 its value
    tuple, Mapping       array, map

So fields and union members are append-only: never reordered, never reused, and a default never
changes. A newer writer's surplus fields are ignored, an older writer's missing ones take their
defaults.

What comes from outside goes through unpack_untrusted, which raises BadMessage and nothing
else, whatever the bytes are; the message names the path to the offending field.
"""

from __future__ import annotations

import dataclasses
import enum
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgpack

T = TypeVar("T")

Encoder = Callable[[Any], Any]
Decoder = Callable[[Any], Any]

#: The buffer that packing begins with; it grows as it must. msgpack's own 256 KiB are mapped and
#: unmapped for every small message, at ten times the cost of packing it.
PACK_BYTES = 1024

#: Made once for each type, on first use.
_encoders: dict[Any, Encoder] = {}
_decoders: dict[Any, Decoder] = {}


class BadMessage(ValueError):
    """A peer or a file holds bytes that are no record of ours: drop it, nothing was changed."""


def pack(record: Any) -> bytes:
    """Return the bytes of *record*, an instance of a dataclass made of codable types."""
    body: bytes = msgpack.packb(encoder_of(type(record))(record), buf_size=PACK_BYTES)
    return body


def unpack_untrusted(cls: type[T], body: bytes | memoryview) -> T:
    """Return the *cls* that *body* holds.

    Raises:
        BadMessage: *body* is not one; the text names the field.
    """
    record: T = decoder_of(cls)(plain_untrusted(body))
    return record


def plain_untrusted(body: bytes | memoryview) -> Any:
    """Return the msgpack value in *body*: nil, numbers, text, bytes, lists and maps."""
    try:
        return msgpack.unpackb(body, strict_map_key=False, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        # TypeError: a map whose key is an array. ValueError covers text that is not UTF-8.
        raise BadMessage(f"not msgpack: {exc}") from exc


def encoder_of(hint: Any) -> Encoder:
    """Return the function that turns a value of type *hint* into what msgpack packs."""
    encode = _encoders.get(hint)
    if encode is None:
        encode = _encoders[hint] = _make_encoder(hint)
    return encode


def _make_encoder(hint: Any) -> Encoder:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _record_encoder(hint)
    if isinstance(hint, typing.NewType):
        return encoder_of(hint.__supertype__)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return operator.attrgetter("value")
    match _shape(hint):
        case "union", members:
            return _union_encoder(members)
        case "tuple", (item, ell) if ell is Ellipsis:
            encode = encoder_of(item)
            return _same if encode is _same else lambda values: [encode(v) for v in values]
        case "tuple", items:
            encoders = [encoder_of(item) for item in items]
            return lambda values: [e(v) for e, v in zip(encoders, values, strict=True)]
        case "map", (key, value):
            key_of, value_of = encoder_of(key), encoder_of(value)
            return lambda values: {key_of(k): value_of(v) for k, v in values.items()}
    return _same


def _same(value: Any) -> Any:
    return value


def _record_encoder(cls: type[Any]) -> Encoder:
    fields = dataclasses.fields(cls)
    hints = get_type_hints(cls)
    names = [field.name for field in fields]
    if not names:
        return lambda record: []
    encoders = [encoder_of(hints[name]) for name in names]
    getter = operator.attrgetter(*names) if len(names) > 1 else None
    defaults = [_default_of(field) for field in fields]
    required = sum(default is _NOTHING for default in defaults)
    first = names[0]

    def encode(record: Any) -> Any:
        values = getter(record) if getter is not None else (getattr(record, first),)
        count = len(values)
        while count > required and values[count - 1] == defaults[count - 1]:
            count -= 1
        return [encoders[i](values[i]) for i in range(count)]

    return encode


_NOTHING = object()


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _NOTHING


def _union_encoder(members: tuple[Any, ...]) -> Encoder:
    records: list[Any] = [m for m in members if dataclasses.is_dataclass(m)]
    if len(records) < 2:
        (inner,) = records or [m for m in members if m is not types.NoneType][:1]
        encode = encoder_of(inner)
        if encode is _same:
            return _same
        return lambda value: value if value is None else encode(value)
    tags: dict[type[Any], tuple[int, Encoder]] = {
        record: (tag, encoder_of(record)) for tag, record in enumerate(records)
    }

    def encode_tagged(value: Any) -> Any:
        if value is None:
            return None
        tag, encode = tags[type(value)]
        return [tag, encode(value)]

    return encode_tagged


def decoder_of(hint: Any) -> Decoder:
    """Return the function that checks and builds a value of type *hint*, or raises BadMessage."""
    decode = _decoders.get(hint)
    if decode is None:
        decode = _decoders[hint] = _make_decoder(hint)
    return decode


def _make_decoder(hint: Any) -> Decoder:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _record_decoder(hint)
    if isinstance(hint, typing.NewType):
        return decoder_of(hint.__supertype__)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_decoder(hint)
    match _shape(hint):
        case "union", members:
            return _union_decoder(members)
        case "tuple", (item, ell) if ell is Ellipsis:
            return _sequence_decoder(decoder_of(item))
        case "tuple", items:
            return _tuple_decoder([decoder_of(item) for item in items])
        case "map", (key, value):
            return _map_decoder(decoder_of(key), decoder_of(value))
        case "scalar", cls:
            return _scalar_decoder(cls)
    raise TypeError(f"no codec for {hint!r}")


def _shape(hint: Any) -> tuple[str, Any]:
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return "union", get_args(hint)
    if origin is tuple:
        return "tuple", get_args(hint)
    if origin in (dict, Mapping):
        return "map", get_args(hint)
    return "scalar", hint


def _record_decoder(cls: type[Any]) -> Decoder:
    fields = dataclasses.fields(cls)
    hints = get_type_hints(cls)
    decoders = [(field.name, decoder_of(hints[field.name])) for field in fields]
    required = sum(_default_of(field) is _NOTHING for field in fields)
    name = cls.__name__

    def decode(value: Any) -> Any:
        if type(value) is not list:
            raise BadMessage(f"{name} is a {type(value).__name__}, not an array")
        if len(value) < required:
            raise BadMessage(f"{name} has {len(value)} of {required} fields")
        arguments: dict[str, Any] = {}
        for (field, decode_field), item in zip(decoders, value, strict=False):
            try:
                arguments[field] = decode_field(item)
            except BadMessage as exc:
                raise BadMessage(f"{name}.{field}: {exc}") from None
        try:
            return cls(**arguments)
        except (ValueError, AssertionError) as exc:  # the class checks itself
            raise BadMessage(f"{name}: {exc}") from exc

    return decode


def _enum_decoder(cls: type[enum.Enum]) -> Decoder:
    by_value = {member.value: member for member in cls}

    def decode(value: Any) -> Any:
        try:
            return by_value[value]
        except (KeyError, TypeError):
            raise BadMessage(f"{value!r:.40} is no {cls.__name__}") from None

    return decode


def _union_decoder(members: tuple[Any, ...]) -> Decoder:
    optional = types.NoneType in members
    records: list[Any] = [m for m in members if dataclasses.is_dataclass(m)]
    others = [m for m in members if m not in records and m is not types.NoneType]
    if len(records) < 2:
        decoders = [decoder_of(member) for member in [*records, *others]]
    else:
        assert not others, "records and scalars do not mix in a union"
        decoders = [_tagged_decoder([decoder_of(record) for record in records])]

    def decode(value: Any) -> Any:
        if value is None and optional:
            return None
        for decode_member in decoders[:-1]:
            try:
                return decode_member(value)
            except BadMessage:
                continue
        return decoders[-1](value)

    return decode


def _tagged_decoder(decoders: list[Decoder]) -> Decoder:
    def decode(value: Any) -> Any:
        match value:
            case [int(tag), inner] if type(tag) is int and 0 <= tag < len(decoders):
                return decoders[tag](inner)
        raise BadMessage("not [tag, record] of a tag that we know")

    return decode


def _sequence_decoder(decode_item: Decoder) -> Decoder:
    def decode(value: Any) -> Any:
        if type(value) is not list:
            raise BadMessage(f"a {type(value).__name__}, not an array")
        return tuple([decode_item(item) for item in value])

    return decode


def _tuple_decoder(decoders: list[Decoder]) -> Decoder:
    def decode(value: Any) -> Any:
        if type(value) is not list or len(value) != len(decoders):
            raise BadMessage(f"not an array of {len(decoders)}")
        return tuple([d(item) for d, item in zip(decoders, value, strict=True)])

    return decode


def _map_decoder(decode_key: Decoder, decode_value: Decoder) -> Decoder:
    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise BadMessage(f"a {type(value).__name__}, not a map")
        return {decode_key(key): decode_value(item) for key, item in value.items()}

    return decode


def _scalar_decoder(cls: Any) -> Decoder:
    if cls not in (bool, int, float, str, bytes):
        raise TypeError(f"no codec for {cls!r}")

    def decode(value: Any) -> Any:
        if type(value) is cls:
            return value
        if cls is float and type(value) is int:
            return float(value)
        raise BadMessage(f"a {type(value).__name__}, not {cls.__name__}")

    return decode

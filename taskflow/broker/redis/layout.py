"""Derives the stored form of records, and the literals that the scripts need, from the declaration in `engine/records.py`."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence, Set
from typing import Any, Final, NamedTuple

import msgpack

from taskflow.broker.engine.records import HEADERS, INDEXES, Field, Flag, Index, Kind, Position, Type
from taskflow.model.fingerprint import UNKNOWN
from taskflow.model.ids import ID_BYTES

LAYOUT: Final = 5
"""The version of keys and records. A store with another version is refused. Increase it with every change that an older taskflow would
misread. Kinds and indexes may be added without an increase: see DECLARED."""

PREFIXES: Final = ("j:", "k:", "s:", "h:", "q:", "e:", "a:", "x:", "m:", "y:", "g:", "o:", "f:", "t:")
"""The key prefixes of records, by kind."""

MARK: Final = b"\xff@"
REFERENCE_BYTES: Final = 14
"""The length of a reference to separate content: the mark, the content's length (4 bytes) and the end of its key (8). See `records.py`."""

WAITING_BYTES: Final = 44
RUNNING_BYTES: Final = 63
"""The lengths of the fixed parts of waiting jobs and of leases: see records.lua."""

MEMBER_BYTES: Final = 20
"""The length of the field `member`, in bytes."""
SINCE_BYTES: Final = 8

GROUPS_AT_ONCE: Final = 60
"""The maximum number of an index's groups that one script counts, so that other clients don't wait for long."""

_BIAS: Final = 1 << 63


def number_bytes(number: int) -> bytes:
    """Encode a number for headers and indexes, as bytes that sort like the number."""
    return (number + _BIAS).to_bytes(8, "big")


def number_in(stored: bytes) -> int:
    return int.from_bytes(stored, "big") - _BIAS


def text_bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def ended(value: bytes) -> bytes:
    """Encode bytes of any length for a member of an index: escape zero bytes, and add an end mark that sorts before any continuation."""
    return value.replace(b"\0", b"\0\xff") + b"\0\1"


# --- fields -------------------------------------------------------------------------------------------------------

PLACES: Final = {kind: {field.name: at for at, field in enumerate(fields)} for kind, fields in HEADERS.items()}
"""The place of each field in a header's array, from 0."""

ENTRIES: Final = {index.kind: index.name for index in INDEXES if index.entries is not None}
"""The index of each kind whose records may have several entries. Their values are the last element of the header's array."""


def field_bytes(field: Field, value: Any) -> Any:
    """Encode the value of a field for a header."""
    if value is None:
        return False
    if field.type is Type.NUMBER:
        return number_bytes(value)
    return text_bytes(value) if field.type is Type.NAME else value


DEFAULTS: Final = {
    kind: [*(field_bytes(field, field.default) for field in fields), *([False] if kind in ENTRIES else [])]
    for kind, fields in HEADERS.items()
}
"""For each kind, the header of a record whose fields all have their defaults."""


# --- members of indexes -------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """Describes how a member of an index is made from a position and an id.

    `types`    the types of the position's values, except an id at its end
    `falls`    for each of these values, True if members are sorted by it in descending order
    `has_id`   True if the id ends the position
    `id_at`    the offset at which the id begins; -1 if it follows the first value, None if it is the last 16 bytes
    """

    types: tuple[Type, ...]
    falls: tuple[bool, ...]
    has_id: bool
    id_at: int | None


def _member(index: Index) -> Member:
    types = {field.name: field.type for field in HEADERS[index.kind]}
    names = [name for name in index.at if name != "id"]
    entry = () if index.entries is None else (index.entries,)
    chosen = (*entry, *(types[name.removeprefix("-")] for name in names))
    falls = (*(False for _ in entry), *(name.startswith("-") for name in names))
    if index.kind == Kind.JOB:
        id_at = None
    elif index.entries is not None:
        id_at = -1
    else:
        id_at = sum(2 if each is Type.SMALL else 8 for each in chosen)
    return Member(chosen, falls, "id" in index.at, id_at)


BY_NAME: Final = {index.name: index for index in INDEXES}
MEMBERS: Final = {index.name: _member(index) for index in INDEXES}


def position_bytes(member: Member, position: Position) -> bytes:
    """Return the bytes with which the members at a position begin. The position may be incomplete."""
    given = zip(member.types, member.falls, position, strict=False)
    parts = [_value_bytes(of_type, value - 1 if falls and of_type is Type.NUMBER else value) for of_type, falls, value in given]
    return b"".join([*parts, *position[len(member.types) :]])


def _value_bytes(of_type: Type, value: Any) -> bytes:
    if of_type is Type.NUMBER:
        return number_bytes(value)
    if of_type is Type.SMALL:
        return bytes((value + 32_768).to_bytes(2, "big"))
    return ended(text_bytes(value) if of_type is Type.NAME else value)


def split(member: Member, packed: bytes) -> tuple[Position, bytes]:
    """Return the position and the id from which a member of an index was made."""
    if not member.types:  # the id alone, as for a note, of which a join may have 10,000
        return (packed,), packed
    values, at = list[Any](), 0
    for of_type, falls in zip(member.types, member.falls, strict=True):
        if of_type is Type.NUMBER:
            values.append(number_in(packed[at : at + 8]) + falls)
            at += 8
        elif of_type is Type.SMALL:
            values.append(int.from_bytes(packed[at : at + 2], "big") - 32_768)
            at += 2
        else:
            end = packed.index(b"\0\1", at)
            value = packed[at:end].replace(b"\0\xff", b"\0")
            values.append(value.decode(errors="surrogatepass") if of_type is Type.NAME else value)
            at = end + 2
    record_id = packed[at:]
    return (*values, record_id) if member.has_id else tuple(values), record_id


def bounds(index: str, prefix: Position, after: Position | None, until: Position | None, *, backwards: bool) -> tuple[bytes, bytes]:
    """Return the bounds of a scan: the first possible member (inclusive), and the end (exclusive), or b"" if the scan has no end."""
    member = MEMBERS[index]
    begin = position_bytes(member, prefix)
    least, ends = begin, behind(begin)
    if after is None and until is None:
        return least, ends
    width = len(member.types) + member.has_id

    def past(position: Position) -> bytes:
        """Return the smallest bytes that sort after all members at exactly this position. No member is at an incomplete position."""
        packed = position_bytes(member, position)
        if len(position) < width:
            return packed
        return packed + (b"\0" if member.has_id else b"\xff" * 64)

    lower, upper = (until, after) if backwards else (after, until)
    if lower is not None:
        least = max(least, position_bytes(member, lower) if backwards else past(lower))
    if upper is not None:
        bound = position_bytes(member, upper) if backwards else past(upper)
        ends = min(ends, bound) if ends else bound
    return least, ends


def behind(begin: bytes) -> bytes:
    """Return the smallest bytes greater than all that start with `begin`, or b"" if there are none."""
    begin = begin.rstrip(b"\xff")
    return begin[:-1] + bytes([begin[-1] + 1]) if begin else b""


DECLARED: Final = frozenset(f"{index.kind}.{index.name}.{zlib.crc32(repr(index).encode()):08x}" for index in INDEXES)
"""Each index as the store lists it: kind, name and checksum. A taskflow version that doesn't know an index would not update it."""


def compare_declarations(stored: Set[str]) -> tuple[list[str], list[str]]:
    """Return the indexes of known records that the store lacks, and those that this version doesn't know. Indexes of new kinds don't count,
    because these kinds have no records yet, or the other version never touches them."""

    def of(names: Set[str], others: Set[str]) -> list[str]:
        kinds = {name.partition(".")[0] for name in others}
        return sorted(name.split(".")[1] for name in names - others if name.partition(".")[0] in kinds)

    return of(DECLARED, stored), of(stored, DECLARED)


# --- for the scripts ----------------------------------------------------------------------------------------------

_LONE_KEY: Final = msgpack.packb([bytes(ID_BYTES), False], use_bin_type=False) or b""
"""The header of a key's record without `next`. It ends with the holder and `next`."""


def literals() -> dict[str, str]:
    """Return the Lua literals of the names F.X, K.X, G.X and L.X."""
    found = {f"F.{field.name}": str(at) for kind, fields in reversed(tuple(HEADERS.items())) for at, field in enumerate(fields, 1)}
    found["F.name"], found["F.dead_at"] = (str(PLACES[Kind.SESSION][name] + 1) for name in ("name", "dead_at"))
    found["F.entries"] = str(len(DEFAULTS[Kind.JOB]))
    statuses = ("held", "scheduled", "ready", "running", "succeeded", "failed", "cancelled", "buried")
    found |= {f"F.{status}_status": str(code) for code, status in enumerate(statuses)}
    found |= {f"K.{name}": str(kind) for name, kind in vars(Kind).items() if name.isupper()}
    found |= {f"G.{name}": str(flag) for name, flag in vars(Flag).items() if name.isupper()}
    found |= {
        "L.waiting": str(WAITING_BYTES),
        "L.running": str(RUNNING_BYTES + 1),
        "L.fence": "10, 45",
        "L.place": "13, 28",
        "L.priority": "12",
        "L.member": str(MEMBER_BYTES),
        "L.lengths": "37",
        "L.reference": str(REFERENCE_BYTES),
        "L.mark": lua_bytes(MARK),
        "L.portion": str(GROUPS_AT_ONCE),
        "L.prefixes": "({" + ", ".join(f"'{prefix}'" for prefix in PREFIXES) + "})",
        "L.fields": "({" + ", ".join(str(len(DEFAULTS[kind])) for kind in HEADERS) + "})",
        "L.defaults": "({" + ", ".join(lua_bytes(msgpack.packb(DEFAULTS[kind], use_bin_type=False) or b"") for kind in HEADERS) + "})",
        "L.types": "({" + ", ".join(_types(kind) for kind in HEADERS) + "})",
        "L.before_holder": lua_bytes(len(_LONE_KEY).to_bytes(4, "big") + _LONE_KEY[: -1 - ID_BYTES]),
        "L.behind_holder": lua_bytes(_LONE_KEY[-1:] + bytes(12)),
        "L.stand_in": lua_bytes(b"set\0aside"[:8]),
        "L.unknown": lua_bytes(UNKNOWN),
        "L.places": ",\n".join(_places(kind) for kind in HEADERS),
    }
    return found


def _types(kind: int) -> str:
    """Return the types of a header's fields as a Lua string of letters: n for a number, s for a small one, t for text or bytes. A letter is
    in upper case if the field is always present."""
    letters = [{Type.NUMBER: "n", Type.SMALL: "s"}.get(field.type, "t") for field in HEADERS[kind]]
    given = zip(letters, HEADERS[kind], strict=True)
    return "'" + "".join(letter if field.default is None else letter.upper() for letter, field in given) + "'"


def lua_bytes(value: bytes) -> str:
    return "'" + "".join(f"\\{byte:03d}" for byte in value) + "'"


BY_HAND: Final = frozenset({"status", "ready", "leases"})
"""The indexes that move_job() in records.lua and the hot scripts write, instead of code generated from the declaration."""


def _places(kind: int) -> str:
    """Return a Lua function that takes a header and an id, and returns names of indexes and members alternately."""
    lines = ["function(h, id)", "  local at = {}"]
    for index in INDEXES:
        if index.kind != kind or index.name in BY_HAND:
            continue
        condition = _in_lua(kind, index.when) if index.when else "true"
        parts = [_part(kind, name) for name in index.at if name != "id"]
        given = [PLACES[kind][name.removeprefix("-")] for name in index.at if name != "id"]  # another program may have removed a field
        condition = " and ".join([f"({condition})", *(f"h[{at + 1}]" for at in given if HEADERS[kind][at].default is None)])
        if index.entries is None:
            lines.append(f"  if {condition} then at[#at + 1] = '{index.name}' at[#at + 1] = {' .. '.join([*parts, 'id'])} end")
        else:
            lines.append(f"  if {condition} then for _, value in ipairs(h[{len(DEFAULTS[kind])}] or {{}}) do")
            lines.append(f"    at[#at + 1] = '{index.name}' at[#at + 1] = {' .. '.join(['value', *parts, 'id'])} end end")
    return "\n".join([*lines, "  return at", "end"])


def _part(kind: int, name: str) -> str:
    place, field = PLACES[kind][name.removeprefix("-")] + 1, HEADERS[kind][PLACES[kind][name.removeprefix("-")]]
    if field.type is Type.NUMBER:
        return f"falling(h[{place}])" if name.startswith("-") else f"h[{place}]"
    if field.type is Type.SMALL:
        return f"struct.pack('>I2', 32768 {'-' if name.startswith('-') else '+'} h[{place}])"
    return f"esc(h[{place}])"


def _in_lua(kind: int, condition: str) -> str:
    """Translate a condition of the declaration into Lua."""
    for at, field in enumerate(HEADERS[kind], 1):
        if not re.search(rf"\b{field.name}\b", condition):
            continue
        value = f"h[{at}]"
        condition = condition.replace(f"{field.name} IS NOT NULL", value).replace(f"{field.name} IS NULL", f"not {value}")
        condition = re.sub(rf"\b{field.name} & (\d+)", rf"bit.band({value}, \1)", condition)
        condition = re.sub(rf"\b{field.name}\b", f"dec({value})" if field.type is Type.NUMBER else value, condition)
    for sql, lua in (("<>", "~="), (" = ", " == "), (" AND ", " and "), (" OR ", " or ")):
        condition = condition.replace(sql, lua)
    return condition


def id_at(index: str) -> int:
    """Return the position of the id's first byte in a member, for scripts. Positions count from 1, and negative ones from the
    end; 0 means that the id follows the first value."""
    at = MEMBERS[index].id_at
    return -ID_BYTES if at is None else at + 1


def texts_in(index: Index) -> int:
    """Return the number of variable-length values in the prefix that identifies a group of an index. They come first in it."""
    return len([each for each in MEMBERS[index.name].types[: index.groups] if each in (Type.NAME, Type.BYTES)])


def packed_entries(kind: int, values: Sequence[str | bytes]) -> list[bytes]:
    return [ended(text_bytes(value) if isinstance(value, str) else value) for value in values]

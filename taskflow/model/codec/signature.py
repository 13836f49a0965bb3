"""Converts the arguments of a call to a map keyed by parameter name, and back.

The parameters are analysed once for each function. `Signature.bind` would analyse them on each call, which takes 2 µs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from inspect import Parameter
from typing import Any, Final

from taskflow.model.codec.misfit import Misfit, name_step, one_of
from taskflow.model.codec.parts import read_items, read_map, write_items
from taskflow.model.codec.scalars import encodable
from taskflow.model.codec.shape import Read, Shape
from taskflow.model.codec.untyped import read_any, read_json_any, write_any
from taskflow.model.codec.wire import wire_type
from taskflow.model.errors import MissingArgument, UnknownArgument

CallArguments = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and keyword arguments of a call."""


class Arguments:
    """Converts the arguments of calls to one function, according to its parameters and their shapes. Immutable.

    An argument that was not passed is not written, so the called function uses its default. ``*args`` becomes an array and
    ``**kwargs`` a map, each under the parameter's name; if empty, they are left out.
    """

    def __init__(self, parameters: Sequence[Parameter], shapes: Mapping[str, Shape]) -> None:
        single = [each for each in parameters if each.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        self._positional = [each for each in single if each.kind is not Parameter.KEYWORD_ONLY]
        self._position_names = [each.name for each in self._positional]
        self._position_writes = [(each.name, shapes[each.name].write) for each in self._positional]
        self._keyword_writes = {each.name: shapes[each.name].write for each in single if each.kind is not Parameter.POSITIONAL_ONLY}
        self._position_only = frozenset(each.name for each in single if each.kind is Parameter.POSITIONAL_ONLY)
        self._required_in_order = [each.name for each in single if each.default is Parameter.empty]
        self._required = frozenset(self._required_in_order)
        self._rest, self._extra = (_named_of_kind(parameters, kind) for kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD))
        self._known = frozenset(each.name for each in parameters)
        self._shapes = shapes
        self._reads = {name: self._read_of(name, shape.read) for name, shape in shapes.items()}
        self._json_reads = {name: self._read_of(name, shape.read_json) for name, shape in shapes.items()}
        # Most calls of most functions pass all arguments by position.
        self._reads_in_order = [shapes[each.name].read for each in self._positional] if len(self._positional) == len(parameters) else None

    @property
    def shape(self) -> Shape:
        """The shape of all arguments together. It converts `CallArguments` to a map keyed by parameter name, and back."""
        return Shape(
            "arguments",
            self._write,
            self._read_all,
            partial(self._read, self._json_reads),
            types=frozenset((tuple,)),
            forms=frozenset((dict,)),
        )

    def _read_of(self, name: str, read: Read) -> Read:
        """Return the reader of a parameter. For ``*args`` and ``**kwargs``, it reads several values, each according to the annotation."""
        if name == self._rest:
            return partial(_read_rest, read)
        if name == self._extra:
            return partial(_read_extra, read)
        return read

    def _write(self, call: CallArguments, levels: int) -> dict[str, Any]:
        args, kwargs = call
        wires: dict[str, Any] = {}
        name = ""
        try:
            for (name, write), value in zip(self._position_writes, args, strict=False):
                wires[name] = write(value, levels)
        except Misfit as misfit:
            misfit.within(name)
            raise
        if len(args) > len(self._positional):
            self._write_rest(args, wires, levels)
        if kwargs:
            self._write_keywords(kwargs, wires, levels)
        if not wires.keys() >= self._required:
            raise _missing(self._required_in_order, self._required - wires.keys())
        return wires

    def _write_rest(self, args: Sequence[Any], wires: dict[str, Any], levels: int) -> None:
        taken = len(self._positional)
        if self._rest is None:
            raise Misfit(f"takes at most {taken} positional arguments, got {len(args)}")
        try:
            wires[self._rest] = write_items(args[taken:], self._shapes[self._rest].write, levels, [])
        except Misfit as misfit:
            misfit.within(self._rest)
            raise

    def _write_keywords(self, kwargs: Mapping[str, Any], wires: dict[str, Any], levels: int) -> None:
        extra: dict[str, Any] = {}
        name = ""
        try:
            for name, value in kwargs.items():
                if name in self._keyword_writes and name not in wires:
                    wires[name] = self._keyword_writes[name](value, levels)
                else:
                    stored = self._extra_name(name, wires)
                    extra[stored] = self._shapes[self._extra or ""].write(value, levels)
        except Misfit as misfit:
            misfit.within(name)
            raise
        if extra:
            wires[self._extra or ""] = extra

    def _extra_name(self, name: str, wires: Mapping[str, Any]) -> str:
        """Return the name of an argument that belongs to ``**kwargs``. Raises Misfit if it is not allowed there."""
        if name in self._keyword_writes and name in wires:
            raise Misfit("is given twice, by position and by name")
        if self._extra is None:
            takes = f"; its arguments are {one_of(list(self._keyword_writes))}" if self._keyword_writes else ""
            raise Misfit(("is positional only" if name in self._position_only else "is not an argument of this function") + takes)
        return encodable(name)

    def _read_all(self, wires: Any, levels: int) -> CallArguments:
        if self._reads_in_order is not None and type(wires) is dict and [*wires] == self._position_names:
            try:
                return tuple([read(wire, levels) for read, wire in zip(self._reads_in_order, wires.values(), strict=True)]), {}
            except Misfit:
                pass  # reported below, with the name of the argument
        return self._read(self._reads, wires, levels)

    def _read(self, reads: Mapping[str, Read], wires: Any, levels: int) -> CallArguments:
        """Read the arguments. Unknown names are reported first, because they show that another version of the code sent the call."""
        if type(wires) is not dict:
            raise Misfit(f"expected a map by parameter name, got {wire_type(wires)}")
        if not wires.keys() <= self._known:
            raise _unknown(wires.keys() - self._known)
        if not wires.keys() >= self._required:
            raise _missing(self._required_in_order, self._required - wires.keys())
        name = ""
        values: dict[str, Any] = {}
        try:
            for name, wire in wires.items():
                values[name] = reads[name](wire, levels)
        except Misfit as misfit:
            misfit.within(name)
            raise
        return self._call(values) if values else ((), {})

    def _call(self, values: dict[str, Any]) -> CallArguments:
        """Arrange the values as arguments: by position up to the first missing
        one (or beyond it, if a later value requires that), then by name."""
        rest = values.pop(self._rest, ()) if self._rest else ()
        extra = values.pop(self._extra, {}) if self._extra else {}
        args: list[Any] = []
        for name in self._position_names:
            if name not in values:
                break
            args.append(values.pop(name))
        if rest or (values and not self._position_only.isdisjoint(values)):
            self._fill_gap(args, values, to_the_end=bool(rest))
        return (*args, *rest), {**values, **extra} if extra else values

    def _fill_gap(self, args: list[Any], values: dict[str, Any], *, to_the_end: bool) -> None:
        """Append defaults for missing arguments that precede a value which must be passed by position."""
        for parameter in self._positional[len(args) :]:
            if not to_the_end and self._position_only.isdisjoint(values):
                break
            args.append(values.pop(parameter.name, parameter.default))


def _write_by_name(arguments: Mapping[str, Any], levels: int) -> dict[str, Any]:
    wires: dict[str, Any] = {}
    name = ""
    try:
        for name, value in arguments.items():
            wires[encodable(str(name))] = write_any(value, levels)
    except Misfit as misfit:
        misfit.within(name)
        raise
    return wires


def _read_by_name(read: Read, wires: Any, levels: int) -> dict[str, Any]:
    if type(wires) is not dict:
        raise Misfit(f"expected a map by parameter name, got {wire_type(wires)}")
    return read_map(wires, read, levels, name_step)


BY_NAME: Final = Shape(
    "arguments",
    _write_by_name,
    partial(_read_by_name, read_any),
    partial(_read_by_name, read_json_any),
    types=frozenset((dict,)),
    forms=frozenset((dict,)),
)
"""The arguments of a function that is not known: a map by parameter name, whose values have no annotations."""


def _read_rest(read: Read, wire: Any, levels: int) -> list[Any]:
    if type(wire) is not list:
        raise Misfit(f"expected a list, got {wire_type(wire)}")
    return read_items(wire, read, levels)


def _read_extra(read: Read, wire: Any, levels: int) -> dict[str, Any]:
    if type(wire) is not dict:
        raise Misfit(f"expected a map, got {wire_type(wire)}")
    return read_map(wire, read, levels, name_step)


def _named_of_kind(parameters: Iterable[Parameter], kind: Any) -> str | None:
    return next((each.name for each in parameters if each.kind is kind), None)


def _unknown(names: Iterable[Any]) -> Misfit:
    found = sorted(str(name)[:60] for name in names)
    return Misfit(f"the function has no such argument (another version of it has: {one_of(found)})", UnknownArgument).within(found[0])


def _missing(order: Iterable[str], names: frozenset[str] | set[str]) -> Misfit:
    """Return the Misfit for required arguments that were not given. Its path names the first of them."""
    found = [name for name in order if name in names]
    more = f" (and {one_of(found[1:])})" if len(found) > 1 else ""
    return Misfit(f"is a required argument and was not given{more}", MissingArgument).within(found[0])

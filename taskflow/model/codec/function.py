"""Encodes and decodes the arguments and results of one function, as its annotations require."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from inspect import Parameter
from typing import Any, Final, get_args, get_origin

from msgspec.structs import replace
from typing_extensions import is_typeddict

from taskflow.model.codec.classes import record_for
from taskflow.model.codec.compiler import RETURNED, UNPACK, Compiler, secret_names
from taskflow.model.codec.containers import convert_items, read_map, write_map
from taskflow.model.codec.hints import hints_of_function, hints_of_item
from taskflow.model.codec.payload import DEFAULT_LIMITS, Limits, decode, decode_plain, encode
from taskflow.model.codec.scalars import encodable
from taskflow.model.codec.shape import Convert, Shape, ShapeError, Unresolved, Unsupported, name_step, one_of
from taskflow.model.codec.untyped import read_any, read_json_any, write_any
from taskflow.model.codec.wire import wire_type
from taskflow.model.errors import DeclarationError, EncodeError, MissingArgument, UnknownArgument
from taskflow.model.flow import MAX_RESULTS

CallArguments = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and keyword arguments of a call."""


class Arguments:
    """Converts the arguments of calls to one function, according to its parameters and their shapes. Immutable. Arguments not passed are
    left out. ``*args`` becomes an array and ``**kwargs`` a map, each under the parameter's name; empty ones are left out too."""

    def __init__(self, parameters: Sequence[Parameter], shapes: Mapping[str, Shape], injected: frozenset[str]) -> None:
        self._injected = injected
        single = [each for each in parameters if each.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        self._positional = [each for each in single if each.kind is not Parameter.KEYWORD_ONLY]
        self._position_names = [each.name for each in self._positional]
        self._position_writes = [(each.name, shapes[each.name].write) for each in self._positional]
        self._keyword_writes = {each.name: shapes[each.name].write for each in single if each.kind is not Parameter.POSITIONAL_ONLY}
        self._position_only = frozenset(each.name for each in single if each.kind is Parameter.POSITIONAL_ONLY)
        self._required = dict.fromkeys(each.name for each in single if each.default is Parameter.empty)
        self._rest = next((each.name for each in parameters if each.kind is Parameter.VAR_POSITIONAL), None)
        self._extra = next((each.name for each in parameters if each.kind is Parameter.VAR_KEYWORD), None)
        self._known = frozenset(each.name for each in parameters)
        self._shapes = shapes
        self._reads = {name: self._read_of(name, shape.read) for name, shape in shapes.items()}
        self._json_reads = {name: self._read_of(name, shape.read_json) for name, shape in shapes.items()}
        # Most calls of most functions pass all arguments by position.
        self._reads_in_order = [shapes[each.name].read for each in self._positional] if len(self._positional) == len(parameters) else None

    @property
    def shape(self) -> Shape:
        """The shape of all arguments together, as `CallArguments`."""
        return Shape("arguments", self._write, self._read_all, partial(self._read, self._json_reads))

    def _read_of(self, name: str, read: Convert) -> Convert:
        """Return the reader of a parameter. For ``*args`` and ``**kwargs``, it reads several values, each according to the annotation."""
        if name == self._rest:
            return partial(_read_rest, read)
        if name == self._extra:
            return partial(_read_by_name, read)
        return read

    def _write(self, call: CallArguments, levels: int) -> dict[str, Any]:
        args, kwargs = call
        wires: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        name = ""
        try:
            for (name, write), value in zip(self._position_writes, args, strict=False):
                wires[name] = write(value, levels)
            if len(args) > (taken := len(self._positional)):
                name = self._rest or ""
                if not name:
                    raise ShapeError(f"takes at most {taken} positional arguments, got {len(args)}")
                wires[name] = convert_items(args[taken:], self._shapes[name].write, levels)
            for name, value in kwargs.items():
                if name in self._keyword_writes and name not in wires:
                    wires[name] = self._keyword_writes[name](value, levels)
                else:
                    stored = self._extra_name(name, wires)
                    extra[stored] = self._shapes[self._extra or ""].write(value, levels)
        except ShapeError as error:
            error.within(name)
            raise
        if extra:
            wires[self._extra or ""] = extra
        if not wires.keys() >= self._required.keys():
            raise self._missing(wires)
        return wires

    def _extra_name(self, name: str, wires: Mapping[str, Any]) -> str:
        """Return the name of an argument that belongs to ``**kwargs``. Raises ShapeError if it is not allowed there."""
        if name in self._keyword_writes and name in wires:
            raise ShapeError("is passed twice, by position and by name")
        if self._extra is None or name in self._injected:
            takes = f"; its arguments are {one_of(list(self._keyword_writes))}" if self._keyword_writes else ""
            raise ShapeError(("is positional only" if name in self._position_only else "is not an argument of this function") + takes)
        return encodable(name)

    def _read_all(self, wires: Any, levels: int) -> CallArguments:
        if self._reads_in_order is not None and type(wires) is dict and [*wires] == self._position_names:
            try:
                return tuple([read(wire, levels) for read, wire in zip(self._reads_in_order, wires.values(), strict=True)]), {}
            except ShapeError:
                pass  # reported below, with the name of the argument
        return self._read(self._reads, wires, levels)

    def _read(self, reads: Mapping[str, Convert], wires: Any, levels: int) -> CallArguments:
        """Read the arguments. Unknown names are reported first, because they show that another version of the code sent the call."""
        if type(wires) is not dict:
            raise ShapeError(f"expected a map by parameter name, got {wire_type(wires)}")
        if unknown := wires.keys() - self._known:
            found = sorted(str(name)[:60] for name in unknown)
            message = f"the function has no such argument (another version of it has: {one_of(found)})"
            raise ShapeError(message, UnknownArgument).within(found[0])
        if not wires.keys() >= self._required.keys():
            raise self._missing(wires)
        name = ""
        values: dict[str, Any] = {}
        try:
            for name, wire in wires.items():
                values[name] = reads[name](wire, levels)
        except ShapeError as error:
            error.within(name)
            raise
        return self._call(values) if values else ((), {})

    def _missing(self, wires: Mapping[str, Any]) -> ShapeError:
        found = [name for name in self._required if name not in wires]
        more = f" (and {one_of(found[1:])})" if len(found) > 1 else ""
        return ShapeError(f"is a required argument and was not given{more}", MissingArgument).within(found[0])

    def _call(self, values: dict[str, Any]) -> CallArguments:
        """Arrange the values by position up to the first missing one (or beyond it, if a later value requires that), then by name."""
        rest = values.pop(self._rest, ()) if self._rest else ()
        extra = values.pop(self._extra, {}) if self._extra else {}
        if extra and (foreign := self._injected.intersection(extra)):
            raise ShapeError("is provided by the worker for each run, so a call cannot pass it", UnknownArgument).within(min(foreign))
        args: list[Any] = []
        for name in self._position_names:
            if name not in values:
                break
            args.append(values.pop(name))
        for parameter in self._positional[len(args) :] if rest or values else ():  # fills gaps before values that need a position
            if not rest and self._position_only.isdisjoint(values):
                break
            args.append(values.pop(parameter.name, parameter.default))
        return (*args, *rest), {**values, **extra} if extra else values


def _read_by_name(read: Convert, wires: Any, levels: int) -> dict[str, Any]:
    if type(wires) is not dict:
        raise ShapeError(f"expected a map by parameter name, got {wire_type(wires)}")
    return read_map(wires, read, levels, name_step)


BY_NAME: Final = Shape(
    "arguments",
    lambda arguments, levels: write_map({str(name): value for name, value in arguments.items()}, write_any, levels, str),
    partial(_read_by_name, read_any),
    partial(_read_by_name, read_json_any),
)
"""The arguments of an unknown function: a map by parameter name, whose values have no annotations."""


def _read_rest(read: Convert, wire: Any, levels: int) -> list[Any]:
    if type(wire) is not list:
        raise ShapeError(f"expected a list, got {wire_type(wire)}")
    return convert_items(wire, read, levels)


def encode_by_name(arguments: Mapping[str, Any], *, job: str, limits: Limits) -> bytes:
    """Encode the arguments of a job whose function is not known here. Raises EncodeError, naming the argument, or TooLarge."""
    return encode(BY_NAME, arguments, limits, where=f" (in a call of {job}, whose annotations are not known here: import its module)")


def decode_by_name(payload: bytes, *, limits: Limits) -> dict[str, Any]:
    """Decode arguments without annotations. Raises DecodeError if the payload is invalid or exceeds a limit."""
    arguments: dict[str, Any] = decode_plain(BY_NAME, payload, limits)
    return arguments


class FunctionCodec:
    """Encodes and decodes the calls and results of one function, by its signature and annotations. It is thread-safe.

    `name` is the job's name, for messages. Callers do not pass the first `skip` parameters, nor those named in `injected`. Raises
    DeclarationError for an unsupported signature, or for a name that is undefined when `resolve` is called or the codec is first used.

    If `is_batch` is True, the function takes and returns a list with an element for each job.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str = "",
        skip: int = 0,
        injected: Collection[str] = (),
        limits: Limits = DEFAULT_LIMITS,
        is_batch: bool = False,
    ) -> None:
        self.name = name or getattr(function, "__qualname__", repr(function))
        self.limits = limits
        self._function = function
        self._is_batch = is_batch
        self._injected = frozenset(injected)
        self._parameters = [each for each in self._own_parameters(skip) if each.name not in injected]
        self._in_call = f" (in a call of {self.name})"
        self._in_result = f" (in the result of {self.name})"
        self._compiled: tuple[Shape, Shape] | None = None
        self._of_none: bytes | None = None
        self._around = dict[str, Shape]()
        self._try_to_compile()

    @property
    def is_resolved(self) -> bool:
        """True if all names in the annotations have been resolved."""
        return self._compiled is not None

    def resolve(self) -> None:
        """Resolve names that were undefined at construction. Raises DeclarationError, naming the parameter, if one is still undefined."""
        unresolved = self._try_to_compile() if self._compiled is None else None
        if unresolved is not None:
            raise DeclarationError(
                f"{self.name}, {unresolved}: define or import it where the function is defined, outside `if TYPE_CHECKING:`"
            ) from unresolved

    @functools.cached_property
    def secrets(self) -> tuple[str, ...]:
        """The names that the annotations mark as `Secret`: names of parameters and of fields of their types, and "return" for the result.
        Raises DeclarationError if an annotation cannot be resolved."""
        self.resolve()
        hints = self._all_hints()
        return secret_names({**{each.name: each.annotation for each in self._annotated(hints)}, RETURNED: hints.get(RETURNED, Any)})

    def hints(self, names: Collection[str]) -> dict[str, Any]:
        """Return the annotations of one job. They differ from those of a batch function, which takes and returns lists."""
        hints = hints_of_function(self._function, names)
        return hints_of_item(hints) if self._is_batch else hints

    def _all_hints(self) -> dict[str, Any]:
        return self.hints((RETURNED, *(each.name for each in self._parameters)))

    def _arguments(self, hints: Mapping[str, Any], without: str = "") -> Shape:
        """Return the shape of the arguments, except for the parameter named `without`."""
        parameters, compiler = [each for each in self._annotated(hints) if each.name != without], Compiler()
        shapes = {each.name: _shape(compiler, each.annotation, each.name) for each in parameters}
        return replace(Arguments(parameters, shapes, self._injected).shape, runs_code=compiler.runs_code)

    def _annotated(self, hints: Mapping[str, Any]) -> list[Parameter]:
        return [each for one in self._parameters for each in _expanded(one.replace(annotation=hints.get(one.name, Any)))]

    def encode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """Encode arguments as a payload that `decode_arguments` accepts. Raises TooLarge, or EncodeError with the path of the value."""
        arguments, _ = self._compiled or self._ready()
        return encode(arguments, (args, kwargs), self.limits, where=self._in_call)

    def decode_arguments(self, payload: bytes, *, results: int = 0) -> CallArguments:
        """Decode the arguments of a call. One of them may hold the results of `results` other jobs, up to `MAX_RESULTS` bytes in all.

        Raises only DecodeError or a subclass (NewerFormat, ...), whatever the bytes are.
        """
        arguments, _ = self._compiled or self._ready()
        limits = self.limits
        if results:
            limits = Limits(limits.size + MAX_RESULTS, limits.depth + 1, limits.items * (results + 1))
        return decode(arguments, payload, limits, where=self._in_call)  # type: ignore[no-any-return]

    def around(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, int, CallArguments]:
        """Return the name and the index of the first positional parameter that is missing in `kwargs`, and the call's arguments without it.
        `args` are for the parameters after it. Raises EncodeError if no such parameter exists."""
        before, named = list[Any](), dict(kwargs)
        for each in self._parameters:
            if each.kind not in _BY_POSITION:
                break
            if each.kind is Parameter.POSITIONAL_ONLY or each.name not in named:
                return each.name, len(before), ((*before, *args), named)
            before.append(named.pop(each.name))
        raise EncodeError(f"{self.name} has no free parameter for a result: use bind() for a call that ignores the result")

    def encode_around(self, takes: str, call: CallArguments) -> bytes:
        """Encode the arguments from `around`, which lack only the parameter `takes`. Raises the same errors as `encode_arguments`."""
        return encode(self._shape_around(takes), call, self.limits, where=self._in_call)

    def decode_around(self, takes: str, payload: bytes) -> CallArguments:
        """Decode a payload that `encode_around` made."""
        return decode(self._shape_around(takes), payload, self.limits, where=self._in_call)  # type: ignore[no-any-return]

    def _shape_around(self, takes: str) -> Shape:
        if takes not in self._around:
            self._around[takes] = self._arguments(self._all_hints(), without=takes)
        return self._around[takes]

    def as_sent(self, name: str) -> Callable[[Any], Any]:
        """Return a function that converts an argument to the value that a run gets. It raises EncodeError for an unsuitable argument."""
        self.resolve()
        shape = _shape(Compiler(), self.hints((name,)).get(name, Any), name)
        return lambda value: decode(shape, encode(shape, value, self.limits), self.limits)

    def encode_result(self, value: Any) -> bytes:
        """Encode the function's result as a payload. Raises TooLarge if a limit is exceeded, and EncodeError for any other problem."""
        if value is None and self._of_none is not None:
            return self._of_none
        _, result = self._compiled or self._ready()
        return encode(result, value, self.limits, where=self._in_result, annotated=_RETURN)

    def decode_result(self, payload: bytes) -> Any:
        """Decode the function's result. Raises DecodeError if the payload is invalid or does not fit the annotation."""
        _, result = self._compiled or self._ready()
        return decode(result, payload, self.limits, where=self._in_result)

    def _ready(self) -> tuple[Shape, Shape]:
        self.resolve()
        assert self._compiled is not None
        return self._compiled

    def _own_parameters(self, skip: int) -> list[Parameter]:
        try:
            parameters = list(inspect.signature(self._function).parameters.values())
        except (TypeError, ValueError) as error:
            raise DeclarationError(f"the signature of {self.name} cannot be read: {error}; wrap it in a function") from error
        if len(parameters) < skip or any(each.kind not in _BY_POSITION for each in parameters[:skip]):
            raise DeclarationError(f"{self.name} has no first parameter for the context: add one that is not keyword-only")
        return parameters[skip:]

    def _try_to_compile(self) -> Unresolved | None:
        """Compile the signature. Return Unresolved if a name is undefined, otherwise None. Raises DeclarationError for other problems."""
        try:
            hints, of_result = self._all_hints(), Compiler()
            result = replace(_shape(of_result, hints.get(RETURNED, Any), RETURNED), runs_code=of_result.runs_code)
            arguments = self._arguments(hints)
        except Unresolved as unresolved:
            return unresolved
        except Unsupported as unsupported:
            raise DeclarationError(f"{self.name}: {unsupported}") from unsupported
        with suppress(EncodeError):  # most functions return None, but the annotation may forbid it
            self._of_none = encode(result, None, self.limits)
        self._compiled = arguments, result  # assigned last: to other threads, it means that everything is compiled
        return None


_RETURN = "the function's return type (or the field)"
_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def _expanded(parameter: Parameter) -> list[Parameter]:
    """Expand ``**options: Unpack[Options]`` into keyword-only parameters. Any other parameter is returned unchanged."""
    if parameter.kind is not Parameter.VAR_KEYWORD or get_origin(parameter.annotation) not in UNPACK:
        return [parameter]
    [options] = get_args(parameter.annotation)
    origin = get_origin(options) or options
    record = record_for(origin, get_args(options)) if is_typeddict(origin) else None
    if record is None:
        raise Unsupported("Unpack needs a TypedDict here").within(parameter.name)
    return [
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=Parameter.empty if each.required else None, annotation=each.annotation)
        for each in record.fields
    ]


def _shape(compiler: Compiler, annotation: Any, name: str) -> Shape:
    """Return the shape of a parameter or of the result. Raises Unsupported or Unresolved, naming the parameter, if there is none."""
    try:
        return compiler.shape(annotation)
    except Unsupported as unsupported:
        unsupported.within(name)
        raise
    except Unresolved as unresolved:
        raise Unresolved(unresolved.name, f"{name}: {unresolved.where}") from unresolved
    except (RecursionError, TypeError) as error:
        raise Unsupported(f"{annotation!r} cannot be understood: {type(error).__name__}: {error}").within(name) from error

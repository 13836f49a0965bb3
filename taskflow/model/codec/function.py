"""Encodes and decodes the arguments and results of one function, as its annotations require."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, get_args, get_origin

import msgspec
from typing_extensions import is_typeddict

from taskflow.model.codec.body import DEFAULT_LIMITS, decode, decode_plain, encode
from taskflow.model.codec.classes import record_for
from taskflow.model.codec.compiler import UNPACK, Compiler
from taskflow.model.codec.hints import hints_of_function
from taskflow.model.codec.limits import Limits
from taskflow.model.codec.secret import RETURNED, secret_names
from taskflow.model.codec.shape import Shape, Unresolved, Unsupported
from taskflow.model.codec.signature import BY_NAME, Arguments, CallArguments
from taskflow.model.errors import DeclarationError, EncodeError


def encode_by_name(arguments: Mapping[str, Any], *, job: str, limits: Limits) -> bytes:
    """Encode the arguments of a job whose function is not known here. Raises EncodeError, naming the argument, or TooLarge."""
    return encode(BY_NAME, arguments, limits, where=f" (in a call of {job}, whose annotations are not known here: import its module)")


def decode_by_name(payload: bytes, *, limits: Limits) -> dict[str, Any]:
    """Decode arguments without annotations. Raises DecodeError if the payload is invalid or exceeds a limit."""
    arguments: dict[str, Any] = decode_plain(BY_NAME, payload, limits)
    return arguments


class _Compiled(msgspec.Struct, frozen=True):
    """A shape, and whether decoding with it runs code in users' classes."""

    shape: Shape
    runs_code: bool


class FunctionCodec:
    """Encodes and decodes the calls and results of one function, by its signature and annotations. It is thread-safe.

    `name` is the job's name, for messages. The first `skip` parameters are injected when the function runs, so callers do not pass them.
    Raises DeclarationError for an unsupported signature. An annotation may use a name that is not defined yet. If the name is
    still undefined when `resolve` is called or the codec is first used, DeclarationError is raised.
    """

    def __init__(self, function: Callable[..., Any], *, name: str = "", skip: int = 0, limits: Limits = DEFAULT_LIMITS) -> None:
        self.name = name or getattr(function, "__qualname__", repr(function))
        self.limits = limits
        self._function = function
        self._parameters = self._own_parameters(skip)
        self._in_call = f" (in a call of {self.name})"
        self._in_result = f" (in the result of {self.name})"
        self._arguments: _Compiled | None = None
        self._result: _Compiled | None = None
        self._of_none: bytes | None = None
        self._try_to_compile()

    def __repr__(self) -> str:
        return f"<FunctionCodec of {self.name}{'' if self.is_resolved else ', not resolved'}>"

    @property
    def is_resolved(self) -> bool:
        """True if all names in the annotations have been resolved."""
        return self._arguments is not None

    def resolve(self) -> None:
        """Resolve names that were undefined at construction. If one still is, raises DeclarationError, naming the parameter."""
        unresolved = self._try_to_compile() if self._arguments is None else None
        if unresolved is not None:
            raise DeclarationError(
                f"{self.name}, {unresolved}: define or import it where the function is defined, outside `if TYPE_CHECKING:`"
            ) from unresolved

    @functools.cached_property
    def secrets(self) -> tuple[str, ...]:
        """The names that are marked as `Secret` in the annotations: of parameters, of fields of their types, and "return" for the result.
        Raises DeclarationError if an annotation cannot be resolved."""
        self.resolve()
        hints = hints_of_function(self._function, (RETURNED, *(each.name for each in self._parameters)))
        annotated = [parameter.replace(annotation=hints.get(parameter.name, Any)) for parameter in self._parameters]
        by_name = {each.name: each.annotation for parameter in annotated for each in _expanded(parameter)}
        return secret_names({**by_name, RETURNED: hints.get(RETURNED, Any)})

    def encode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """Encode arguments as a payload that `decode_arguments` is guaranteed to accept.

        Raises TooLarge if a limit is exceeded, and EncodeError, with the path of the offending value, for:
        - too many, unknown or missing arguments
        - values that do not fit their annotation or cannot be encoded exactly
        """
        arguments = self._arguments or self._ready()[0]
        return encode(arguments.shape, (args, kwargs), self.limits, runs_code=arguments.runs_code, where=self._in_call)

    def decode_arguments(self, payload: bytes) -> CallArguments:
        """Decode the positional and keyword arguments of a call, which do not include the skipped parameters.

        Raises UnknownArgument, MissingArgument, NewerFormat or DecodeError, and no other error, whatever the bytes are.
        """
        arguments = self._arguments or self._ready()[0]
        call: CallArguments = decode(arguments.shape, payload, self.limits, where=self._in_call)
        return call

    def as_sent(self, name: str) -> Callable[[Any], Any]:
        """Return a function that converts a value of a parameter to the one that a run gets: both are equal, but their types may differ.
        It raises EncodeError for a value that does not fit."""
        self.resolve()
        shape = _shape(Compiler(), hints_of_function(self._function, (name,)).get(name, Any), name)
        return lambda value: decode(shape, encode(shape, value, self.limits), self.limits)

    def encode_result(self, value: Any) -> bytes:
        """Encode the function's result as a payload. Raises TooLarge if a limit is exceeded, and EncodeError for any other problem."""
        if value is None and self._of_none is not None:
            return self._of_none
        result = self._result or self._ready()[1]
        return encode(result.shape, value, self.limits, runs_code=result.runs_code, where=self._in_result, annotated=_RETURN)

    def decode_result(self, payload: bytes) -> Any:
        """Decode the function's result. Raises DecodeError if the payload is invalid or does not fit the annotation."""
        return decode((self._result or self._ready()[1]).shape, payload, self.limits, where=self._in_result)

    def _ready(self) -> tuple[_Compiled, _Compiled]:
        self.resolve()
        assert self._arguments is not None
        assert self._result is not None
        return self._arguments, self._result

    def _own_parameters(self, skip: int) -> list[Parameter]:
        try:
            parameters = list(inspect.signature(self._function).parameters.values())
        except (TypeError, ValueError) as error:
            raise DeclarationError(f"the signature of {self.name} cannot be read: {error}; wrap it in a function") from error
        if len(parameters) < skip or any(each.kind not in _BY_POSITION for each in parameters[:skip]):
            raise DeclarationError(f"{self.name} has no first parameter for the context: add one that is not keyword-only")
        return parameters[skip:]

    def _try_to_compile(self) -> Unresolved | None:
        """Compile the signature. Returns the Unresolved error if a name is undefined. Raises DeclarationError if it can never work."""
        try:
            hints = hints_of_function(self._function, ("return", *(each.name for each in self._parameters)))
            result = self._compile_result(hints.get("return", Any))
            arguments = self._compile_arguments(hints)
        except Unresolved as unresolved:
            return unresolved
        except Unsupported as unsupported:
            raise DeclarationError(f"{self.name}: {unsupported}") from unsupported
        self._result = result
        self._of_none = _encoded_none(result, self.limits)
        self._arguments = arguments  # assigned last: to other threads, it means that everything is compiled
        return None

    def _compile_arguments(self, hints: Mapping[str, Any]) -> _Compiled:
        compiler = Compiler()
        annotated = [parameter.replace(annotation=hints.get(parameter.name, Any)) for parameter in self._parameters]
        parameters = [each for parameter in annotated for each in _expanded(parameter)]
        shapes = {each.name: _shape(compiler, each.annotation, each.name) for each in parameters}
        return _Compiled(Arguments(parameters, shapes).shape, compiler.runs_code)

    def _compile_result(self, annotation: Any) -> _Compiled:
        compiler = Compiler()
        return _Compiled(_shape(compiler, annotation, "return"), compiler.runs_code)


def _encoded_none(result: _Compiled, limits: Limits) -> bytes | None:
    """Return the payload for the result None, or None if the annotation forbids this result.

    It is encoded in advance, because most functions return None.
    """
    try:
        return encode(result.shape, None, limits, runs_code=result.runs_code)
    except EncodeError:
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
    """Return the shape of a parameter or of the result. Raises Unsupported or Unresolved, naming the parameter, if it cannot."""
    try:
        return compiler.shape(annotation)
    except Unsupported as unsupported:
        unsupported.within(name)
        raise
    except Unresolved as unresolved:
        raise Unresolved(unresolved.name, f"{name}: {unresolved.where}") from unresolved
    except (RecursionError, TypeError) as error:
        raise Unsupported(f"{annotation!r} cannot be understood: {type(error).__name__}: {error}").within(name) from error

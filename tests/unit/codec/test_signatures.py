"""Arguments are bound as Python binds them, checked where they are sent, and arrive as the function accepts them."""

from __future__ import annotations

import functools
from typing import Any, NotRequired, ParamSpec, TypedDict

import pytest
from hypothesis import given, strategies as st
from typing_extensions import TypeVarTuple, Unpack

from taskflow.model.codec import FunctionCodec
from taskflow.model.errors import DeclarationError, EncodeError, UnknownArgument
from tests.support.ids import stable_id
from tests.unit.codec.exactly import quick

P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class Options(TypedDict):
    colour: str
    size: NotRequired[int]


# Each returns what its parameters got.
def plain(a: int, b: int = 2) -> Any:
    return locals()


def nothing() -> Any:
    return locals()


def position_only(a: int, b: int = 2, /, c: int = 3) -> Any:
    return locals()


def keyword_only(*, a: int, b: int = 2) -> Any:
    return locals()


def rest(a: int = 1, *numbers: int) -> Any:
    return locals()


def extra(a: int, /, **options: int) -> Any:
    return locals()


def everything(a: int, b: int = 2, /, c: int = 3, *numbers: int, d: int, e: int = 5, **options: int) -> Any:
    return locals()


def typed_extra(a: int, **options: Unpack[Options]) -> Any:
    return locals()


def unannotated(a, *b, c=None, **d):  # type: ignore[no-untyped-def]
    return locals()


def variadic(*args: Any, **kwargs: Any) -> Any:
    return locals()


variadic.__annotations__ = {"args": "P.args", "kwargs": "P.kwargs"}


def many(*items: Any) -> Any:
    return locals()


many.__annotations__ = {"items": "Unpack[Ts]"}


def codec_of_function(function: Any, skip: int = 0) -> FunctionCodec:
    return FunctionCodec(function, name="app.job", skip=skip)


CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (extra, (1,), {"a": 2, "options": 3, "numbers": 4}),
    (everything, (1, 2, 3, 4, 5), {"d": 4, "e": 6, "x": 7, "a": 8, "numbers": 9, "options": 10}),
    (typed_extra, (1,), {"colour": "red", "size": 2}),
    (unannotated, ([1, (2,)], "x", None), {"c": {1}, "z": b"b"}),
    (variadic, (1, "a"), {"x": None}),
    (many, (1, "a"), {}),
]


def bound(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return what each parameter gets when Python itself binds (`Signature.bind` refuses some calls that Python 3.11 accepts)."""
    names: dict[str, Any] = function(*args, **kwargs)
    return names


@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS, ids=lambda each: getattr(each, "__name__", repr(each)))
def test_a_call_arrives_as_it_was_made(function: Any, args: Any, kwargs: Any) -> None:
    codec = codec_of_function(function)
    there = codec.decode_arguments(codec.encode_arguments(args, kwargs))
    assert bound(function, *there) == bound(function, args, kwargs)


arguments = st.tuples(
    st.lists(st.integers(), max_size=6),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e", "x", "numbers", "options"]), st.integers()),
)


@pytest.mark.parametrize("function", [plain, position_only, keyword_only, rest, extra, everything], ids=lambda each: each.__name__)
def test_only_arguments_that_python_would_bind_are_accepted(function: Any) -> None:
    codec = codec_of_function(function)

    @quick
    @given(arguments)
    def agree(call: tuple[list[int], dict[str, int]]) -> None:
        args, kwargs = tuple(call[0]), call[1]
        try:
            expected = bound(function, args, kwargs)
        except TypeError:
            with pytest.raises(EncodeError):
                codec.encode_arguments(args, kwargs)
        else:
            assert bound(function, *codec.decode_arguments(codec.encode_arguments(args, kwargs))) == expected

    agree()


MISFITS: list[tuple[Any, tuple[Any, ...], dict[str, Any], str, str]] = [
    (plain, (), {}, "a", "is a required argument and was not given"),
    (plain, (1, 2, 3), {}, "", "takes at most 2 positional arguments, got 3"),
    (plain, (1,), {"a": 2}, "a", "is passed twice"),
    (plain, (1,), {"c": 2}, "c", "is not an argument of this function; its arguments are a, b"),
    (plain, (1,), {"\ud800": 2}, "\ud800", "is not an argument"),
    (nothing, (1,), {}, "", "takes at most 0 positional arguments, got 1"),
    (position_only, (), {"a": 1}, "a", "is positional only"),
    (keyword_only, (1,), {}, "", "takes at most 0 positional"),
    (rest, (1, 2, "3"), {}, "numbers[1]", "expected int, got str"),
    (extra, (1,), {"x": "a"}, "x", "expected int, got str"),
    (extra, (1,), {"\ud800": 1}, "\ud800", "lone surrogate"),
    (everything, (), {}, "a", "(and d)"),
    (typed_extra, (1,), {}, "colour", "is a required argument"),
    (typed_extra, (1,), {"color": "a", "colour": "b"}, "color", "is not an argument"),
]


@pytest.mark.parametrize(("function", "args", "kwargs", "path", "message"), MISFITS, ids=stable_id)
def test_a_wrong_call_names_the_argument_and_the_job(function: Any, args: Any, kwargs: Any, path: str, message: str) -> None:
    with pytest.raises(EncodeError) as caught:
        codec_of_function(function).encode_arguments(args, kwargs)
    assert caught.value.path == path
    assert message in str(caught.value)
    assert "app.job" in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_an_injected_parameter_is_no_argument() -> None:
    def function(ctx: NotDefinedHere, a: int) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    codec = codec_of_function(function, skip=1)
    assert codec.decode_arguments(codec.encode_arguments((1,), {})) == ((1,), {})
    with pytest.raises(EncodeError, match="ctx: is not an argument"):
        codec.encode_arguments((1,), {"ctx": 2})


# --- deploys ------------------------------------------------------------------------------------------------------


def newer(a: int, b: int = 2, c: int = 3) -> None: ...


def test_an_unknown_argument_is_reported_first() -> None:
    """The worker that knows the argument may also know the others."""

    def renamed(z: str) -> None: ...

    with pytest.raises(UnknownArgument, match=r"c, d|z"):
        codec_of_function(plain).decode_arguments(codec_of_function(renamed).encode_arguments(("1",), {}))


# --- what can be a function -------------------------------------------------------------------------------------


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Calls:
    def __call__(self, a: int, b: int = 2) -> None: ...
    def method(self, a: int, b: int = 2) -> None: ...


@pytest.mark.parametrize("function", [decorated(plain), functools.partial(decorated(newer)), Calls(), Calls().method], ids=stable_id)
def test_all_that_can_be_called_has_a_codec(function: Any) -> None:
    codec = FunctionCodec(function)
    assert codec.decode_arguments(codec.encode_arguments((1,), {"b": 3})) == ((1, 3), {})


def test_an_object_without_a_signature_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"signature of .* cannot be read"):
        FunctionCodec(type, name="app.job")
    with pytest.raises(DeclarationError, match=r"signature of .* cannot be read"):
        FunctionCodec(5, name="app.job")  # type: ignore[arg-type]

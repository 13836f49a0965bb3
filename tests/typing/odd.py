"""The odd signatures: a table of them, and the module that it makes, each as a job in eight forms.

A form is async or plain, with a JobContext before the rest or without, with a bare ``@job`` or ``@job(...)``. What cannot be had
of a checker stands in `limit_of`, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import product
from typing import NamedTuple

ARITY = "mypy[call-arg] pyright[reportCallIssue]"
KIND = "mypy[arg-type] pyright[reportArgumentType]"


class Signature(NamedTuple):
    """`right` are the arguments of calls that are taken, `wrong` of those that are not, with the errors.

    `gives`            the result's type, where it is not `returns`
    `ignored`          mypy's complaint of the function itself
    `has_own_context`  the parameters begin with a JobContext
    `refusal`          mypy's complaint of a right call, at a limit
    """

    name: str
    parameters: str
    right: tuple[str, ...]
    wrong: tuple[tuple[str, str], ...] = ()
    returns: str = "int"
    gives: str = ""
    ignored: str = ""
    has_own_context: bool = False
    refusal: str = "mypy[arg-type]"


SIGNATURES = (
    Signature("normal", "x: int, y: int = 1", ("1, 2", "x=1"), (("'1'", KIND), ("x='1'", KIND), ("", ARITY), ("1, z=2", ARITY))),
    Signature("any", "x: Any, y: int = 1", ("'a', 2", "x=None, y=2"), (("", ARITY), ("1, 2, 3", ARITY), ("x=1, y='2'", KIND))),
    Signature("object", "x: object, y: int = 1", ("'a', 2", "x=None, y=2"), (("", ARITY), ("1, 2, 3", ARITY), ("x=1, y='2'", KIND))),
    Signature(
        "unannotated",
        "x, y: int = 1",
        ("'a', 2", "x=None, y=2"),
        (("", ARITY), ("1, 2, 3", ARITY), ("x=1, y='2'", KIND)),
        ignored="no-untyped-def",
    ),
    Signature("any_by_position", "x: Any, /", ("'a'", "1"), (("", ARITY), ("x=1", ARITY))),
    Signature("args_int", "*args: int", ("", "1, 2"), (("1, '2'", KIND), ("x=1", ARITY))),
    Signature("args_any", "*args: Any", ("", "1, 'a'"), (("x=1", ARITY),)),
    Signature("keyword", "*, x: int, y: int = 1", ("x=1", "y=2, x=1"), (("1", ARITY), ("", ARITY), ("x='1'", KIND))),
    Signature("keyword_any", "*, x: Any, y: int = 1", ("x=1", "y=2, x='a'"), (("1", ARITY), ("", ARITY), ("x=1, y='2'", KIND))),
    Signature("nothing", "", ("",), (("1", ARITY), ("x=1", ARITY))),
    Signature("generic", "x: T, y: int = 1", ("'a', 2", "x='a'"), (("", ARITY), ("'a', '2'", KIND)), returns="T", gives="str"),
    Signature("generic_twice", "x: T, y: Sequence[T]", ("1, [2]", "x=1, y=[2]"), (("", ARITY),)),
    Signature("generic_pair", "x: T, y: T", ("1, 2", "x=1, y=2"), (("", ARITY),)),
    Signature("generic_once", "x: T, y: int = 1", ("1, 2", "x=1, y=2"), (("", ARITY), ("1, '2'", KIND))),
    Signature("kwargs_any", "**kwargs: Any", ("", "a=1, b='b'"), (("1", ARITY),)),
    Signature("kwargs_any_after", "x: int, **kwargs: Any", ("1, a='a'", "x=1"), (("'1'", KIND), ("", ARITY))),
    Signature(
        "kwargs_after_another_name",
        "context: JobContext, **kwargs: Any",
        ("a=1, b='b'", ""),
        has_own_context=True,
        refusal="mypy[call-arg]",
    ),
    Signature("kwargs_after_a_slash", "context: JobContext, /, **kwargs: Any", ("a=1, b='b'", ""), (("1", ARITY),), has_own_context=True),
    Signature("all", "*args: Any, **kwargs: Any", ("", "1, 'a', b=2")),
    Signature("dict", "x: dict[str, Any], y: int = 1", ("{'a': 1}", "x={}, y=2"), (("1", KIND), ("", ARITY), ("{}, '2'", KIND))),
    Signature("dict_later", "y: int, x: dict[str, Any]", ("1, {'a': 1}", "x={}, y=2"), (("'1', {}", KIND), ("1", ARITY))),
    Signature("returns_any", "x: int", ("1", "x=1"), (("'1'", KIND), ("", ARITY)), returns="Any"),
    Signature("returns_dict", "x: int", ("1", "x=1"), (("'1'", KIND), ("", ARITY)), returns="dict[str, Any]"),
)


class Form(NamedTuple):
    is_async: bool
    has_context: bool
    decorator: str


FORMS = tuple(Form(*each) for each in product((True, False), (False, True), ("@job", "@job(queue='odd')")))


class Limit(Enum):
    """What a checker makes of a job that it cannot see as it is."""

    ANYTHING = "all of it is Any: no call is refused, and nothing is known of its result"
    ANY_CALL = "no call is refused; the result is known"
    REFUSED = "right calls are refused"


def limit_of(checker: str, signature: Signature, form: Form) -> Limit | None:
    """Where a checker falls short. The reasons were found by experiment, with mypy 2.4.1 and pyright 1.1.414."""
    name = signature.name
    if name == "generic" and not form.is_async:
        # A plain function that returns a type variable of its own may return a coroutine, so mypy would take it for an async one.
        # It is met by an overload for whoever may return anything, which pyright takes too, before the one that would be exact.
        return Limit.ANYTHING
    if checker == "pyright":
        # By the typing specification, (*args: Any, **kwargs: Any) is the same as (...).
        return Limit.ANY_CALL if name == "all" else None
    if name == "all" and (form.is_async or form.has_context):
        # It matches several overloads by its Anys, and is no subtype of what they make of it where Any does not pass for all types.
        return Limit.ANYTHING
    if name == "returns_any" and not form.is_async:
        # It matches the overloads for async functions by its Any, and no formal can be both: Any is no subtype of a coroutine there.
        return Limit.ANYTHING
    if name == "generic_once" and not form.has_context:
        # A type variable that the function uses once is solved with Never as the function is handed over. It says no more than
        # `object` does, which works; pyright warns of it.
        return Limit.REFUSED
    if name == "kwargs_after_another_name":
        # **kwargs might name the first parameter, so mypy holds the function for no match of one with a nameless first parameter,
        # and there is an overload for the name `ctx` alone. A slash after the parameter serves too, as in the next signature.
        return Limit.REFUSED
    return None


def module() -> str:
    """The source of a module with every signature in every form; each call carries the errors that are expected of it."""
    lines = [HEAD]
    for signature, (number, form) in product(SIGNATURES, enumerate(FORMS)):
        if not (signature.has_own_context and form.has_context):
            lines += _job(signature, form, f"{signature.name}_{number}")
    return "\n".join(lines) + "\n"


HEAD = """\
from collections.abc import Sequence
from typing import Any, TypeVar, assert_type

from taskflow import Call, JobContext, JobHandle, job

T = TypeVar("T")
"""


def _job(signature: Signature, form: Form, name: str) -> Iterator[str]:
    parameters = ", ".join(filter(None, ["ctx: JobContext" if form.has_context else "", signature.parameters]))
    ignored = f"  # type: ignore[{signature.ignored}]" if signature.ignored else ""
    prefix, awaits = ("async ", "await ") if form.is_async else ("", "")
    yield f"\n{form.decorator}"
    yield f"{prefix}def {name}({parameters}) -> {signature.returns}:{ignored}"
    yield "    raise NotImplementedError\n"
    yield f"async def call_{name}() -> None:"
    gives = signature.gives or signature.returns
    limits = {checker: limit_of(checker, signature, form) for checker in ("mypy", "pyright")}
    for given in signature.right:
        yield f"    assert_type({awaits}{name}({given}), {gives}){_of_a_right_call(signature, limits, gives != 'Any')}"
        yield f"    assert_type(await {name}.delay({given}), JobHandle[{gives}]){_of_a_right_call(signature, limits)}"
        yield f"    assert_type({name}.options(priority=1).bind({given}), Call[{gives}]){_of_a_right_call(signature, limits)}"
    for given, errors in signature.wrong:
        yield f"    {awaits}{name}({given}){_of_a_wrong_call(limits, errors)}"
        yield f"    await {name}.options(priority=1).delay({given}){_of_a_wrong_call(limits, errors)}"


def _of_a_right_call(signature: Signature, limits: dict[str, Limit | None], is_seen: bool = True) -> str:
    """None, but where there is a limit; `is_seen` when an Any in the result's place would be found out."""
    errors = []
    if limits["mypy"] is Limit.ANYTHING and is_seen:
        errors.append("mypy[assert-type]")
    if limits["mypy"] is Limit.REFUSED:
        errors.append(signature.refusal)
    if limits["pyright"] is Limit.ANYTHING and is_seen:
        errors.append("pyright[reportAssertTypeFailure]")
    return _marked(errors)


def _of_a_wrong_call(limits: dict[str, Limit | None], errors: str) -> str:
    return _marked([error for error in errors.split() if limits[error.partition("[")[0]] in (None, Limit.REFUSED)])


def _marked(errors: list[str]) -> str:
    return f"  # E: {' '.join(errors)}" if errors else ""

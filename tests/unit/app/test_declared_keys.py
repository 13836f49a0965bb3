"""Keys that the decorator declares, and their scope."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple, TypedDict, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from taskflow import Cron, DeclarationError, EnqueueFailed, Every, JobContext, KeyConflict, Secret, enqueue, job, operate, schedules
from taskflow.app.app import App, default_app
from taskflow.app.options import EnqueueOptions
from taskflow.model.ids import key_digest
from taskflow.model.schedule_plan import SchedulePlan
from tests.unit.app.bench import Bench

any_job: Any = job


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Order:
    id: int
    note: str = ""

    @property
    def label(self) -> str:
        return f"order-{self.id}"


@dataclass
class Priced:
    price: float


@dataclass
class Login:
    user: str
    pin: Annotated[int, Secret]


class Row(TypedDict):
    id: int


class Pair(NamedTuple):
    left: int
    right: int


class Odd(msgspec.Struct):
    @property
    def key(self) -> str:
        raise RuntimeError("no key today")


@job(name="keys.sync", key="{project_id}", key_scope="name")
async def sync(project_id: int, branch: str = "main") -> None: ...


@job(name="keys.rebuild", key="singleton", on_conflict="raise")
def rebuild() -> None: ...


@job(name="keys.many", key="{tenant}:{order.id}:{branch}")
async def many(ctx: JobContext, tenant: str, /, order: Order, *, branch: str = "main") -> None: ...


def declared(key: Any, function: Callable[..., Any] | None = None, **options: Any) -> Any:
    async def work(project_id: int, order: Order, row: Row, *args: int, size: int = 1, **rest: int) -> None: ...

    return any_job(name="keys.declared", key=key, **options)(function or work)


@pytest.fixture(autouse=True)
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setattr(default_app(), "registry", type(default_app().registry)())
    return default_app()


# --- formatting -----------------------------------------------------------------------------------------------------


def test_each_call_has_the_key_of_its_arguments() -> None:
    assert [call.key for call in (sync.bind(7), sync.bind(project_id=7), sync.bind(8))] == ["7", "7", "8"]
    assert many.bind("acme", Order(3)).key == "acme:3:main"
    assert many.bind("acme", order=Order(3), branch="dev").key == "acme:3:dev"


def test_a_constant_key_is_the_same_for_all_calls() -> None:
    assert rebuild.bind().key == rebuild.key == "singleton"
    assert declared("{{braces}}").key == "{braces}"


def test_a_positional_only_parameter_is_not_taken_from_keywords() -> None:
    def work(name: str = "default", /, **names: str) -> None: ...

    assert declared("{name}", work).bind(name="other").key == "default"


VALUES: list[tuple[Any, Any, str, str]] = [
    (int, 7, "", "7"),
    (int, 7, ":04d", "0007"),
    (bool, True, "", "True"),
    (str, "a b", "", "a b"),
    (uuid.UUID, uuid.UUID(int=1), "", "00000000-0000-0000-0000-000000000001"),
    (Color, Color.RED, "", "red"),
    (Level, Level.LOW, "", "1"),
    (date, date(2026, 11, 28), "", "2026-11-28"),
    (date, date(2026, 11, 28), ":%Y-%m", "2026-11"),
    (Decimal, Decimal("1.10"), "", "1.10"),
    (str | None, None, "?-", "-"),
    (str | None, None, "?", ""),
    (str | None, "None", "?-", "None"),
    (date | None, None, "?never:%Y", "never"),
    (date | None, date(2026, 11, 28), "?never:%Y", "2026"),
    (Order | None, None, ".id?none", "none"),
    (float, 1, "", "1.0"),
    (float, 1.0, "", "1.0"),
    (Priced, Priced(1), ".price", "1.0"),
    (Order, Order(3), ".id", "3"),
    (Order, Order(3), ".label", "order-3"),
    (Row, {"id": 3}, "[id]", "3"),
    (Pair, Pair(1, 2), "[1]", "2"),
    (Pair, Pair(1, 2), ".right", "2"),
    (list[int], [5, 6], "[1]", "6"),
    (dict[str, Order], {"a": Order(3)}, "[a].id", "3"),
]


@pytest.mark.parametrize(("annotation", "value", "rest", "expected"), VALUES, ids=[f"{case[1]!r}{case[2]}" for case in VALUES])
def test_a_value_is_formatted_plainly(annotation: Any, value: Any, rest: str, expected: str) -> None:
    async def work(x: Any) -> None: ...

    work.__annotations__["x"] = annotation
    assert declared(f"x{{x{rest}}}", work).bind(value).key == f"x{expected}"


def test_a_path_is_formatted_as_text() -> None:
    from taskflow.app.declared_key import DeclaredKey

    async def work(x: Any) -> None: ...

    assert DeclaredKey("{x}", any_job(name="keys.path")(work)).of((PurePosixPath("/a/b"),), {}) == "/a/b"


@pytest.mark.parametrize(
    ("key", "value", "error", "says"),
    [
        ("{x}", [1, 2], TypeError, r"key='\{x\}' of keys.declared: \{x\} is a list: a key takes text, .*\{order.id\}"),
        ("{x}", None, TypeError, r"\{x\} is None: name the text that stands for None, as in \{x\?none\}"),
        ("{x.id}", None, ValueError, r"\{x.id\}: AttributeError: 'NoneType'"),
        ("{x:f}", Decimal("1E+50000000"), ValueError, r"\{x\}: ValueError: it has more than 10,000 digits or characters"),
        ("{x:.2f}", Decimal("1E-50000000"), ValueError, "more than 10,000 digits"),
        pytest.param("{x:x}", 1 << 1_000_000, ValueError, "more than 10,000 digits", id="a large int"),
        ("{x}", Order(3), TypeError, r"\{x\} is a Order: a key takes"),
        ("{x.id}", 3, ValueError, r"\{x.id\}: AttributeError: 'int' object has no attribute 'id'"),
        ("{x[id]}", {}, ValueError, r"\{x\[id\]\}: KeyError: 'id'"),
        ("{x[2]}", [1], ValueError, r"\{x\[2\]\}: IndexError: list index out of range"),
        ("{x:d}", "a", ValueError, r"\{x\}: ValueError: Unknown format code 'd'"),
        ("{x}", "", ValueError, r"key='\{x\}' of keys.declared: key= has 0 bytes of UTF-8, expected 1 to 200"),
        ("{x}", "x" * 201, ValueError, "key= has 201 bytes of UTF-8"),
    ],
)
def test_a_value_that_makes_no_key_is_refused_where_the_call_is_made(key: str, value: Any, error: type[Exception], says: str) -> None:
    async def work(x: Any) -> None: ...

    work.__annotations__["x"] = Order if isinstance(value, Order) else Any
    with pytest.raises(error, match=says):
        declared(key, work).bind(value)


def test_an_error_in_a_property_names_the_key() -> None:
    async def work(x: Odd) -> None: ...

    work.__annotations__["x"] = Odd
    with pytest.raises(ValueError, match=r"key='\{x.key\}' of keys.declared: \{x.key\}: RuntimeError: no key today"):
        declared("{x.key}", work).bind(Odd())


def test_wrong_arguments_are_reported_before_the_key() -> None:
    with pytest.raises(TypeError, match=r"project_id: expected int, got str"):
        sync.bind("x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="project_id: is a required argument"):
        any_job(name="keys.sync2", key="{project_id}")(sync.function).bind()


def test_a_default_makes_the_same_key_as_the_value_that_is_sent() -> None:
    async def work(x: float = 1, y: int = cast(Any, None)) -> None: ...

    made = declared("{x}:{y?none}", work)
    assert made.bind().key == made.bind(1).key == made.bind(x=1.0).key == "1.0:none"


# --- secrets --------------------------------------------------------------------------------------------------------


@job(name="keys.login", key="{login.user}:{login.pin}:{token?none}", on_conflict="raise")
async def log_in(login: Login, token: Annotated[str | None, Secret] = None) -> None: ...


async def test_a_secret_in_a_key_is_neither_stored_with_it_nor_shown(bench: Bench) -> None:
    first = await log_in.delay(Login("ada", 4711))
    info, text = await first.info(), "ada:[hidden]:none"
    assert info is not None
    assert info.key == log_in.bind(Login("ada", 4711)).key == text
    with pytest.raises(KeyConflict, match=r"has its key 'ada:\[hidden\]:none'"):
        await log_in.delay(Login("ada", 4711))
    assert (await log_in.delay(Login("ada", 4712))).is_new
    assert await log_in.live("ada:4711:none") == first


async def test_what_is_hidden_by_its_name_is_hidden_in_a_key_too(bench: Bench) -> None:
    def log_in(password: str, n: int) -> None: ...

    handle = await declared("{password}:{n}", log_in).delay("hunter2", 1)
    info = await handle.info()
    assert info is not None
    assert info.key == "[hidden]:1"


def test_a_secret_in_a_key_survives_new_settings_and_is_in_no_error(app: App) -> None:
    call = log_in.bind(Login("ada", 4711), "t")
    other = log_in.options(queue="other").bind(Login("ada", 4711), "t")
    call.job_type = other.job_type
    assert call._renewed().key == other.envelope.key
    for token in ("hunter2" * 30, ""):
        with pytest.raises(ValueError, match="key=") as caught:
            declared("{token:>d}" if token == "" else "{token}", log_in.function).bind(Login("ada", 1), token)
        assert "hunter2" not in str(caught.value)


# --- the declaration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (
            "{projct_id}",
            r"@job on .*: key='\{projct_id\}': 'projct_id' is not a parameter; did you mean 'project_id'\?; the parameters are ",
        ),
        ("{colour}", "'colour' is not a parameter; the parameters are project_id, order, row, size"),
        ("{args}", r"'args' takes any number of values; the parameters are project_id, order, row, size"),
        ("{rest[a]}", "'rest' takes any number of values"),
        ("{}", r"\{\} names no parameter; the parameters are"),
        ("{0}", r"\{0\} names no parameter"),
        ("{project_id.}", r"\{project_id\.\} names no parameter"),
        ("{order.__class__}", r"\{order.__class__\} names the private attribute '__class__'"),
        ("{order.id._x}", "private attribute '_x'"),
        ("{order.idd}", r"\{order.idd\}: order has no 'idd'; its fields are id, note"),
        ("{order[id]}", "order has no 'id'; its fields are id, note"),
        ("{row[idd]}", "row has no 'idd'; its fields are id"),
        ("{row.id}", "row has no 'id'"),
        ("{project_id!r}", "no conversion"),
        ("{project_id:{size}}", "no nested field"),
        ("{project_id:99999999}", r"the format of \{project_id\} has a number above 200, the bytes of a key"),
        ("{project_id:.201f}", "has a number above 200"),
        ("{project_id:%99999Y}", "has a number above 200"),
        ("{project_id", r"key='\{project_id': expected '\}' before end of string; write \{\{ and \}\} for braces"),
        ("project}", r"Single '\}' encountered"),
        ("", "key= has 0 bytes"),
        ("x" * 201, "key= has 201 bytes"),
        (7, "key=7: expected a str"),
    ],
)
def test_a_key_that_cannot_be_made_is_refused_at_decoration(key: Any, says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        declared(key)
    assert "keys.declared" not in [known.name for known in default_app().registry]


def test_the_context_is_no_part_of_a_key() -> None:
    async def work(ctx: JobContext) -> None: ...

    work.__annotations__["ctx"] = JobContext
    with pytest.raises(DeclarationError, match=r"'ctx' is the context, which callers do not pass; the function has no parameters that"):
        declared("{ctx}", work)


def test_a_scope_is_queue_or_name() -> None:
    with pytest.raises(DeclarationError, match='key_scope=\'job\': expected "queue" or "name"'):
        declared("{project_id}", key_scope="job")
    with pytest.raises(ValueError, match="key_scope='job'"):
        sync.options(key_scope="job")  # type: ignore[arg-type]


def test_the_fields_of_a_class_that_is_not_defined_yet_are_not_checked() -> None:
    async def work(later: Any) -> None: ...

    work.__annotations__["later"] = "DefinedLater"
    assert declared("{later.id}", work).key == "{later.id}"


# --- overriding -----------------------------------------------------------------------------------------------------


def test_options_override_a_declared_key() -> None:
    assert sync.options(key="mine").bind(7).key == "mine"
    assert sync.options(key=None).bind(7).key == "7"
    assert rebuild.options(key="other").bind().key == "other"
    assert sync.options(queue="io").bind(7).key == "7"


def test_an_empty_key_removes_it() -> None:
    for call in (sync.options(key="").bind(7), rebuild.options(key="").bind(), sync.options(key="a").options(key="").bind(7)):
        assert (call.key, call.envelope.key) == (None, None)
    with pytest.raises(ValueError, match='key="" removes a key, but there is none'):
        sync.options(key="").options(key="")


# --- through the store ----------------------------------------------------------------------------------------------


async def test_a_declared_key_dedupes_whatever_the_queue(bench: Bench) -> None:
    first = await sync.delay(7)
    again = await sync.options(queue="io").delay(7, branch="dev")
    other = await sync.delay(8)
    assert (again, again.is_new, other.is_new) == (first, False, True)
    [third, fourth] = await enqueue([sync.bind(7), sync.bind(9)])
    assert (third, third.is_new, fourth.is_new) == (first, False, True)
    assert (await sync.options(key="").delay(7)).is_new
    info = await first.info()
    assert info is not None
    assert info.key == "7"


async def test_a_declared_conflict_raises_and_names_the_key(bench: Bench) -> None:
    first = await rebuild.delay()
    with pytest.raises(KeyConflict, match="'singleton'") as caught:
        await rebuild.delay()
    assert caught.value.job_id == first.id
    assert not (await rebuild.options(on_conflict="keep").delay()).is_new
    with pytest.raises(EnqueueFailed):
        await enqueue([rebuild.bind()])


# --- schedules ------------------------------------------------------------------------------------------------------


def test_a_schedules_jobs_have_the_declared_key() -> None:
    made = declared("{size}", lambda size=3: None, schedule=Every(30, options={"queue": "io"}), key_scope="name")
    template = SchedulePlan.from_body(made.schedules[0].definition.body).template
    assert (template.key, template.key_text) == (key_digest("", "keys.declared", "3"), "3")


@pytest.mark.parametrize("overlap", ["skip", "latest"])
def test_a_declared_key_excludes_overlap_unless_the_schedule_removes_it(overlap: str) -> None:
    with pytest.raises(DeclarationError, match=rf'key= and overlap="{overlap}" exclude each other.*on_conflict=.*options=\{{"key": ""\}}'):
        declared("singleton", lambda: None, schedule=Every(30), overlap=overlap)
    made = declared("singleton", lambda: None, schedule=Cron("0 9 * * *", options={"key": ""}), overlap=overlap)
    assert SchedulePlan.from_body(made.schedules[0].definition.body).template.key is None


# --- any text -------------------------------------------------------------------------------------------------------

PIECES = (
    "{",
    "}",
    "x",
    "project_id",
    "order",
    ".",
    "[",
    "]",
    "id",
    "!",
    ":",
    "0",
    "_",
    "²",
    "é",
    "\0",
    " ",
    "{{",
    "}}",
    "{size}",
    "{order.id}",
    "?",
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=12))
def test_any_template_is_refused_at_decoration_or_makes_keys(template: str) -> None:
    try:
        made = declared(template)
    except DeclarationError:
        return
    try:
        key = made.bind(7, Order(3), {"id": 4}).key
    except (TypeError, ValueError) as error:
        key = str(error).partition(" of keys.declared: ")[1]
    assert 0 < len(key.encode()) <= 200


async def test_a_backfill_of_calls_with_a_key_adds_one_job_or_is_refused(bench: Bench) -> None:
    """All jobs but one would be refused, as the first is live."""
    await schedules.put("keys.hourly", sync.bind(7), Every(3600))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="its calls have the key '7', so only one of 3 jobs could be live"):
        await schedules.backfill("keys.hourly", start, start + timedelta(hours=3))
    assert await operate.count() == 0
    handles = await schedules.backfill("keys.hourly", start, start + timedelta(hours=1))
    assert [handle.is_new for handle in handles] == [True]


async def test_a_schedule_takes_no_call_that_raises_to_its_sender(bench: Bench) -> None:
    with pytest.raises(ValueError, match=r'a worker sends the calls, so their on_conflict must be "keep" or "replace"'):
        await schedules.put("keys.hourly", sync.options(on_conflict="raise").bind(7), Every(3600))
    assert await schedules.list() == []
    cases: list[tuple[dict[str, Any], EnqueueOptions]] = [({}, {"on_conflict": "raise"}), ({"on_conflict": "raise"}, {})]
    for on_job, options in cases:
        with pytest.raises(DeclarationError, match="a worker sends the calls"):
            declared("singleton", lambda: None, schedule=Every(30, options=options), **on_job)
    declared("singleton", lambda: None, schedule=Every(30, options={"on_conflict": "keep"}), on_conflict="raise")

"""key= and on_conflict=, as senders see them, and keys that the decorator declares."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, TypedDict

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from taskflow import (
    Cron,
    DeclarationError,
    EnqueueFailed,
    Every,
    JobContext,
    KeyConflict,
    Secret,
    depends,
    enqueue,
    job,
    operate,
    schedules,
)
from taskflow.app.app import App, default_app
from taskflow.app.job_type import Registry
from taskflow.app.options import EnqueueOptions
from taskflow.model.ids import key_digest
from taskflow.model.schedule_plan import SchedulePlan
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add
from tests.unit.app.watched import Watched

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
    monkeypatch.setattr(default_app(), "registry", registry := Registry())
    registry.add(add)
    return default_app()


# --- keys of calls -----------------------------------------------------------------------------------------------------

once = add.options(key="sum")


async def test_raise_in_a_batch_comes_after_it_with_both_lists(bench: Bench) -> None:
    """Calls without a conflict are sent, and the caller gets all handles, in order, and which of them conflicted."""
    standing = await once.delay(0)
    raising = add.options(on_conflict="raise")

    with pytest.raises(EnqueueFailed, match="1 call") as caught:
        await enqueue([raising.options(key=key).bind(n) for n, key in enumerate(("a", "sum", "b"))])

    assert caught.value.conflicts == [standing]
    assert [handle.is_new for handle in caught.value.handles] == [True, False, True]
    assert len(await bench.claim()) == 3


# --- live ---------------------------------------------------------------------------------------------------------


async def test_live_finds_a_job_by_its_key_until_it_has_ended(bench: Bench) -> None:
    assert await add.live("sum") is None
    sent = await once.delay(1)

    found = await add.live("sum")

    assert found is not None
    assert (found, found.is_new) == (sent, False)
    await bench.run_all()
    assert await found.result() == 2
    assert await add.live("sum") is None


async def test_live_takes_one_round_trip(bench: Bench) -> None:
    watched = Watched(bench.broker)
    with bench.app.using(watched.as_broker):
        await add.live("sum")
    assert watched.calls == {"holders": 1}


async def test_live_refuses_an_invalid_key(bench: Bench) -> None:
    with pytest.raises(ValueError, match="key= has 0 bytes"):
        await add.live("")
    with pytest.raises(TypeError, match=r"live\(\) got 7: expected a key"):
        await add.live(7)  # type: ignore[arg-type]


# --- formatting -----------------------------------------------------------------------------------------------------


def test_each_call_has_the_key_of_its_arguments() -> None:
    assert [call.key for call in (sync.bind(7), sync.bind(project_id=7), sync.bind(8))] == ["7", "7", "8"]
    assert many.bind("acme", Order(3)).key == "acme:3:main"
    assert many.bind("acme", order=Order(3), branch="dev").key == "acme:3:dev"


VALUES: list[tuple[Any, Any, str, str]] = [
    (int, 7, "", "7"),
    (int, 7, ":04d", "0007"),
    (Color, Color.RED, "", "red"),
    (Level, Level.LOW, "", "1"),
    (date, date(2026, 11, 28), ":%Y-%m", "2026-11"),
    (str | None, None, "?-", "-"),
    (date | None, None, "?never:%Y", "never"),
    (date | None, date(2026, 11, 28), "?never:%Y", "2026"),
    (Order | None, None, ".id?none", "none"),
    (float, 1, "", "1.0"),
    (Priced, Priced(1), ".price", "1.0"),
    (Order, Order(3), ".label", "order-3"),
    (Row, {"id": 3}, "[id]", "3"),
    (Pair, Pair(1, 2), ".right", "2"),
    (dict[str, Order], {"a": Order(3)}, "[a].id", "3"),
]


@pytest.mark.parametrize(("annotation", "value", "rest", "expected"), VALUES, ids=[f"{case[1]!r}{case[2]}" for case in VALUES])
def test_a_value_is_formatted_plainly(annotation: Any, value: Any, rest: str, expected: str) -> None:
    async def work(x: Any) -> None: ...

    work.__annotations__["x"] = annotation
    assert declared(f"x{{x{rest}}}", work).bind(value).key == f"x{expected}"


@pytest.mark.parametrize(
    ("key", "value", "error", "says"),
    [
        ("{x}", [1, 2], TypeError, r"key='\{x\}' of keys.declared: \{x\} is a list: a key accepts text, .*\{order.id\}"),
        ("{x}", None, TypeError, r"\{x\} is None: add a text for None, as in \{x\?none\}"),
        ("{x.id}", None, ValueError, r"\{x.id\}: AttributeError: 'NoneType'"),
        ("{x:f}", Decimal("1E+50000000"), ValueError, r"\{x\}: ValueError: it has more than 10,000 digits or characters"),
        pytest.param("{x:x}", 1 << 1_000_000, ValueError, "more than 10,000 digits", id="a large int"),
        ("{x.id}", 3, ValueError, r"\{x.id\}: AttributeError: 'int' object has no attribute 'id'"),
        ("{x[id]}", {}, ValueError, r"\{x\[id\]\}: KeyError: 'id'"),
        ("{x:d}", "a", ValueError, r"\{x\}: ValueError: Unknown format code 'd'"),
        ("{x}", "", ValueError, r"key='\{x\}' of keys.declared: key= has 0 bytes of UTF-8, expected 1 to 200"),
    ],
)
def test_a_value_that_makes_no_key_is_refused_where_the_call_is_made(key: str, value: Any, error: type[Exception], says: str) -> None:
    async def work(x: Any) -> None: ...

    work.__annotations__["x"] = Order if isinstance(value, Order) else Any
    with pytest.raises(error, match=says):
        declared(key, work).bind(value)


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
        ("{}", r"\{\} names no parameter; the parameters are"),
        ("{project_id.}", r"\{project_id\.\} names no parameter"),
        ("{order.__class__}", r"\{order.__class__\} names the private attribute '__class__'"),
        ("{order.idd}", r"\{order.idd\}: order has no 'idd'; its fields are id, note"),
        ("{row[idd]}", "row has no 'idd'; its fields are id"),
        ("{project_id!r}", "no conversion"),
        ("{project_id:{size}}", "no nested field"),
        ("{project_id:99999999}", r"the format of \{project_id\} has a number above 200, the maximum size of a key"),
        ("{project_id", r"key='\{project_id': expected '\}' before end of string; write \{\{ and \}\} for braces"),
        ("project}", r"Single '\}' encountered"),
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

    with pytest.raises(DeclarationError, match=r"'ctx' is the context, which callers do not pass; the function has no parameters that"):
        declared("{ctx}", work)


def test_a_dependency_is_no_part_of_a_key() -> None:
    async def work(db: str = depends(lambda: "session")) -> None: ...

    with pytest.raises(DeclarationError, match=r"'db' is a dependency, which callers do not pass"):
        declared("{db}", work)


def test_a_scope_is_queue_or_name() -> None:
    with pytest.raises(DeclarationError, match='key_scope=\'job\': expected "queue" or "name"'):
        declared("{project_id}", key_scope="job")
    with pytest.raises(ValueError, match="key_scope='job'"):
        sync.options(key_scope="job")  # type: ignore[arg-type]


# --- overriding -----------------------------------------------------------------------------------------------------


def test_an_empty_key_removes_it() -> None:
    for call in (sync.options(key="").bind(7), rebuild.options(key="").bind(), sync.options(key="a").options(key="").bind(7)):
        assert (call.key, call.envelope.key) == (None, None)
    with pytest.raises(ValueError, match='key="" removes a declared key, but the job declares none'):
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


# --- schedules ------------------------------------------------------------------------------------------------------


def test_a_schedules_jobs_have_the_declared_key() -> None:
    made = declared("{size}", lambda size=3: None, schedule=Every(30, options={"queue": "io"}), key_scope="name")
    template = SchedulePlan.from_body(made.schedules[0].definition.body).template
    assert (template.key, template.key_text) == (key_digest("", "keys.declared", "3"), "3")


@pytest.mark.parametrize("overlap", ["skip", "latest"])
def test_a_declared_key_excludes_overlap_unless_the_schedule_removes_it(overlap: str) -> None:
    with pytest.raises(DeclarationError, match=rf'key= and overlap="{overlap}" cannot be combined.*on_conflict=.*options=\{{"key": ""\}}'):
        declared("singleton", lambda: None, schedule=Every(30), overlap=overlap)
    made = declared("singleton", lambda: None, schedule=Cron("0 9 * * *", options={"key": ""}), overlap=overlap)
    assert SchedulePlan.from_body(made.schedules[0].definition.body).template.key is None


# --- any text -------------------------------------------------------------------------------------------------------

PIECES = [*"{}x.[]!:0_²é\0 ?", "project_id", "order", "id", "{{", "}}", "{size}", "{order.id}"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
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
    """All jobs but one would be refused, because the first is live."""
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

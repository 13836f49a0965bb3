"""Deliberate mistakes in the public signatures. The typing tests must notice each, in every checker that can see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

BOTH = ("mypy", "pyright")


class Mistake(NamedTuple):
    """`old`, which stands in the file once, is replaced by `new`."""

    name: str
    file: str
    old: str
    new: str
    seen_by: tuple[str, ...] = BOTH

    def make(self, tree: Path) -> None:
        file = tree / self.file
        right = file.read_text()
        times = right.count(self.old)
        assert times == 1, f"{self.name}: {self.file} has {self.old!r} {times} times: bring the mistake up to date"
        file.write_text(right.replace(self.old, self.new))

    @contextmanager
    def made(self, tree: Path) -> Iterator[None]:
        """Made for a while."""
        file = tree / self.file
        right = file.read_text()
        self.make(tree)
        try:
            yield
        finally:
            file.write_text(right)


APP = "taskflow/app/app.py"
CONNECTIONS = "taskflow/app/connections/types.py"
CONTEXT = "taskflow/app/context.py"
DECORATOR = "taskflow/app/decorator.py"
HANDLE = "taskflow/app/handle.py"
JOB = "taskflow/app/job.py"
JOB_TYPE = "taskflow/app/job_type.py"
OPTIONS = "taskflow/app/options.py"
PORTAL = "taskflow/app/portal.py"
SENDING = "taskflow/app/sending.py"

# What the decorator makes of a function.
OF_THE_DECORATOR = (
    Mistake(
        "an async job takes its context",
        DECORATOR,
        "_Function[_Context, P, Q, _Async[R], _Async[R]], /) -> Job[P, R]",
        "_Function[_Context, P, Q, _Async[R], _Async[R]], /) -> Job[Q, R]",
    ),
    Mistake(
        "a plain job takes its context",
        DECORATOR,
        "_Function[_Context, P, Q, R, R], /) -> SyncJob[P, R]",
        "_Function[_Context, P, Q, R, R], /) -> SyncJob[Q, R]",
    ),
    Mistake(
        "an async job loses a first Any",
        DECORATOR,
        "_Function[_Free, P, Q, _Async[R], _Async[R]], /) -> Job[Q, R]",
        "_Function[_Free, P, Q, _Async[R], _Async[R]], /) -> Job[P, R]",
    ),
    Mistake(
        "a plain job loses a first Any",
        DECORATOR,
        "_Function[_Free, P, Q, R, R], /) -> SyncJob[Q, R]",
        "_Function[_Free, P, Q, R, R], /) -> SyncJob[P, R]",
    ),
    Mistake(
        "a free first parameter is solved for generic functions",
        DECORATOR,
        '_Free = TypeVar("_Free", object, _Anything)',
        '_Free = TypeVar("_Free", bound=_Anything)',
    ),
    Mistake(
        "a context is solved for generic functions",
        DECORATOR,
        '_Context = TypeVar("_Context", JobContext, _OwnContext)',
        '_Context = TypeVar("_Context", bound=JobContext)',
        ("mypy",),
    ),
    Mistake(
        "a context before **kwargs is not seen",
        DECORATOR,
        "self, ctx: First_contra, *args",
        "self, context: First_contra, *args",
        ("mypy",),
    ),
    Mistake(
        "the whole signature is forgotten",
        DECORATOR,
        "def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> S_co: ...\n\n\nclass _WithCtx",
        "def __call__(self, *args: Any, **kwargs: Any) -> S_co: ...\n\n\nclass _WithCtx",
    ),
    Mistake("an async job gives its coroutine", DECORATOR, "Callable[Q, _Async[R]], /) -> Job[Q, R]", "Callable[Q, R], /) -> Job[Q, R]"),
    Mistake(
        "a plain job is an async one",
        DECORATOR,
        "function: Callable[Q, R], /) -> SyncJob[Q, R]",
        "function: Callable[Q, R], /) -> Job[Q, R]",
    ),
    Mistake(
        "a plain job that returns Any is an async one",
        DECORATOR,
        "_Whole[Q, _AnyResult, _AnyResultToo], /) -> SyncJob[Q, _AnyResult]",
        "_Whole[Q, _AnyResult, _AnyResultToo], /) -> Job[Q, _AnyResult]",
        ("pyright",),
    ),
    Mistake(
        "a plain generic job is an async one",
        DECORATOR,
        "Callable[..., _Anything], /) -> SyncJob[..., Any]",
        "Callable[..., _Anything], /) -> Job[..., Any]",
    ),
    Mistake("a job does not know where it runs", JOB_TYPE, "self.runs_in: RunsIn = runs_in", "self.runs_in: str = runs_in"),
    Mistake(
        "options make a decorator without types",
        DECORATOR,
        "Unpack[JobOptions]) -> _Decorator: ...",
        "Unpack[JobOptions]) -> Callable[..., Any]: ...",
    ),
    Mistake("the decorator takes any errors", OPTIONS, "retry_on: Sequence[type[BaseException]]", "retry_on: Any"),
    Mistake(
        "the decorator takes no timedelta",
        OPTIONS,
        "    timeout: float | timedelta | None\n    keep",
        "    timeout: float | None\n    keep",
    ),
    Mistake(
        "a child process may be set up by anything",
        APP,
        "child_initializer: Callable[[], object] | None = None,",
        "child_initializer: Any = None,",
    ),
    Mistake(
        "a child process may have any lifespan", APP, "child_lifespan: ChildLifespanFactory | None = None,", "child_lifespan: Any = None,"
    ),
    Mistake("a grace time may be anything", OPTIONS, "    stop_grace: float | timedelta | None\n", "    stop_grace: object\n"),
    Mistake("a job runs in any place", OPTIONS, "    runs_in: RunsIn | None\n", "    runs_in: str | None\n"),
    Mistake(
        "the decorator takes any option",
        DECORATOR,
        "**declared: Unpack[JobOptions]) -> _Decorator: ...",
        "**declared: Any) -> _Decorator: ...",
    ),
    Mistake("a preset takes any option", DECORATOR, "def preset(**options: Unpack[PresetOptions])", "def preset(**options: Any)"),
    Mistake(
        "a preset takes a name", DECORATOR, "def preset(**options: Unpack[PresetOptions])", "def preset(**options: Unpack[JobOptions])"
    ),
    Mistake("a preset has no types", DECORATOR, "Unpack[PresetOptions]) -> _Decorator", "Unpack[PresetOptions]) -> Callable[..., Any]"),
)

# A job's methods, handles, batches, options, signals.
OF_THE_REST = (
    Mistake(
        "delay takes anything",
        JOB,
        "async def delay(self, /, *args: P.args, **kwargs: P.kwargs)",
        "async def delay(self, /, *args: Any, **kwargs: Any)",
    ),
    Mistake(
        "delay forgets the result's type",
        JOB,
        "async def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R_co]",
        "async def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[Any]",
    ),
    Mistake("delay is no coroutine", JOB, "async def delay(", "def delay("),
    Mistake(
        "delay_sync takes anything",
        JOB,
        "def delay_sync(self, /, *args: P.args, **kwargs: P.kwargs)",
        "def delay_sync(self, /, *args: Any, **kwargs: Any)",
    ),
    Mistake(
        "delay_sync gives the result",
        JOB,
        "def delay_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R_co]",
        "def delay_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co",
    ),
    Mistake(
        "bind takes anything",
        JOB,
        "def bind(self, /, *args: P.args, **kwargs: P.kwargs)",
        "def bind(self, /, *args: Any, **kwargs: Any)",
    ),
    Mistake(
        "bind forgets the result's type",
        JOB,
        "def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]",
        "def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[Any]",
    ),
    Mistake("options takes any option", JOB, "def options(self, **options: Unpack[EnqueueOptions])", "def options(self, **options: Any)"),
    Mistake(
        "options forgets the signature",
        JOB,
        "**options: Unpack[EnqueueOptions]) -> Self",
        "**options: Unpack[EnqueueOptions]) -> Sendable[..., R_co]",
    ),
    Mistake(
        "options forgets that a job can be called",
        JOB,
        "**options: Unpack[EnqueueOptions]) -> Self",
        "**options: Unpack[EnqueueOptions]) -> Sendable[P, R_co]",
    ),
    Mistake(
        "a call forgets the result's type",
        JOB,
        "async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co",
        "async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any",
    ),
    Mistake(
        "a plain call takes anything",
        JOB,
        "    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:\n        result: R_co = self",
        "    def __call__(self, *args: Any, **kwargs: Any) -> R_co:\n        result: R_co = self",
    ),
    Mistake(
        "a handle of a job forgets the result's type",
        HANDLE,
        "job: JobType[T]) -> JobHandle[T]",
        "job: JobType[T]) -> JobHandle[Any]",
    ),
    Mistake(
        "a handle of an id knows the result", HANDLE, "def of(job_id: str) -> JobHandle[Any]", "def of(job_id: str) -> JobHandle[None]"
    ),
    Mistake(
        "result forgets its type",
        HANDLE,
        "timeout: float | timedelta | None = None) -> R_co",
        "timeout: float | timedelta | None = None) -> Any",
    ),
    Mistake("there is always a status", HANDLE, "async def status(self) -> Status | None", "async def status(self) -> Status"),
    Mistake("there is always a record", HANDLE, "async def info(self) -> JobInfo | None", "async def info(self) -> JobInfo"),
    Mistake("handles are invariant", HANDLE, 'R_co = TypeVar("R_co", covariant=True)', 'R_co = TypeVar("R_co")'),
    Mistake("calls are invariant", JOB_TYPE, 'R_co = TypeVar("R_co", covariant=True)', 'R_co = TypeVar("R_co")'),
    Mistake(
        "enqueue forgets the results' type",
        SENDING,
        "AsyncIterable[Call[R]], *, connection: Connection | None = None) -> list[JobHandle[R]]",
        "AsyncIterable[Call[R]], *, connection: Connection | None = None) -> list[JobHandle[Any]]",
    ),
    Mistake(
        "enqueue takes no async generator",
        SENDING,
        "\nasync def enqueue(calls: Iterable[Call[R]] | AsyncIterable[Call[R]], *",
        "\nasync def enqueue(calls: Iterable[Call[R]], *",
    ),
    Mistake("enqueue_sync takes anything", SENDING, "def enqueue_sync(calls: Iterable[Call[R]], *", "def enqueue_sync(calls: Any, *"),
    Mistake("options takes anything for a connection", OPTIONS, "connection: Connection | None", "connection: Any"),
    Mistake("a run completes in anything", CONTEXT, "connection: Connection, *, result", "connection: Any, *, result"),
    Mistake("any connection is taken", CONNECTIONS, "= _Commits | _Proxy | _IsInTransaction | RunsStatement", "= Any"),
    Mistake("whatever commits is a connection", CONNECTIONS, "    def rollback(self) -> Any: ...\n", ""),
    Mistake("no connection of asyncpg is taken", CONNECTIONS, "= _Commits | _Proxy | _IsInTransaction |", "= _Commits | _Proxy |"),
    Mistake("an awaited class must return sequences", CONNECTIONS, "Awaitable[Iterable[Iterable[Any]]]", "Awaitable[list[Sequence[Any]]]"),
    Mistake(
        "configure takes any middleware",
        APP,
        "middleware: Sequence[Middleware] | None = None,\n    lifespan",
        "middleware: Any = None,\n    lifespan",
    ),
    Mistake("configure takes any subscriber", APP, "subscribers: Sequence[Subscriber] | None", "subscribers: Any"),
    Mistake(
        "run_sync forgets the type", PORTAL, "def run_sync(awaitable: Awaitable[T]) -> T", "def run_sync(awaitable: Awaitable[T]) -> Any"
    ),
    Mistake("no key is not None", OPTIONS, "    key: str | None\n    key_scope", "    key: str\n    key_scope"),
    Mistake("a job has no name of a function", JOB_TYPE, "    __name__: str\n", ""),
    Mistake("after takes no timedelta", OPTIONS, "    after: float | timedelta | None\n", "    after: float | None\n"),
    Mistake("on_conflict takes any text", OPTIONS, "    on_conflict: Conflict | None\n", "    on_conflict: str | None\n"),
    Mistake("key_scope takes any text", OPTIONS, "    key_scope: KeyScope | None\n", "    key_scope: str | None\n"),
    Mistake(
        "headers take any value",
        OPTIONS,
        "    headers: dict[str, str] | None\n    connection",
        "    headers: dict[str, Any] | None\n    connection",
    ),
    Mistake("there may be no current job", CONTEXT, "def current_job() -> JobContext: ...", "def current_job() -> JobContext | None: ..."),
    Mistake(
        "a default context is forgotten",
        CONTEXT,
        "def current_job(default: D) -> JobContext | D",
        "def current_job(default: D) -> JobContext",
    ),
    Mistake("a job is sent by anything", JOB, "async def send(name: str, /", "async def send(name: Any, /"),
    Mistake("a job has any name", JOB, "def send_sync(name: str, /", "def send_sync(name: Any, /"),
    Mistake("configure takes any defaults", APP, "    defaults: DefaultOptions | None = None,", "    defaults: Any = None,"),
    Mistake("a default has any value", OPTIONS, "    max_attempts: int | None\n", "    max_attempts: Any\n"),
    Mistake("progress cannot be awaited", CONTEXT, 'note: str = "") -> DoneAwaitable', 'note: str = "") -> None'),
    Mistake("a snooze needs no time", CONTEXT, "after: float | timedelta) -> None", "after: float | timedelta = 1) -> None"),
)

MISTAKES = OF_THE_DECORATOR + OF_THE_REST

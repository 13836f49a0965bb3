"""Options for many jobs at once: `configure(defaults=...)` and `preset(...)`, and which source of an option takes precedence."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from taskflow import Backoff, ConfigurationError, DeclarationError, DefaultOptions, EnqueueOptions, Every, configure, job, named, preset
from taskflow.app.app import App, default_app
from taskflow.app.job import Declared
from taskflow.app.job_type import Registry
from taskflow.app.settings import Defaults
from taskflow.model.envelope import Envelope, follow_up_of
from taskflow.model.schedule_plan import SchedulePlan
from taskflow.worker.children.child import Application
from taskflow.worker.children.messages import Handshake


@pytest.fixture(autouse=True)
def _configured_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    app = default_app()
    with app.using(app.broker()):
        yield


@job(name="tests.defaults.plain")
async def plain() -> None: ...


@job(
    name="tests.defaults.own",
    max_attempts=7,
    timeout=5,
    queue="own",
    retry_on=(ValueError,),
    retry=Backoff(base=9),
    keep_arguments=False,
)
async def own() -> None: ...


@job(name="tests.defaults.unlimited", timeout=None, expires=None)
async def unlimited() -> None: ...


copied = plain.options(priority=3)
EVERY: DefaultOptions = {
    "queue": "io",
    "priority": 5,
    "expires": timedelta(hours=1),
    "max_attempts": 3,
    "retry": Backoff(base=2),
    "timeout": 1800,
    "keep_result": 60,
    "retry_on": (OSError,),
    "discard_on": [KeyError],
    "stop_grace": 2,
    "timeout_raises": True,
    "keep_arguments": True,
}


def sent(made: Declared[..., Any]) -> tuple[str, int, int, float | None, float | None, float]:
    """Return the fields of a call that defaults decide."""
    call = made.bind().envelope
    return call.queue, call.priority, call.max_attempts, call.timeout, call.expires, call.keep_result


# --- configure(defaults=...) ------------------------------------------------------------------------------------------


def test_a_default_holds_for_a_job_that_was_declared_before_it_and_for_its_copies() -> None:
    assert sent(plain) == ("default", 0, 10, None, None, 3600.0)
    configure(defaults=EVERY)
    assert sent(plain) == ("io", 5, 3, 1800.0, 3600.0, 60.0)
    assert sent(copied) == ("io", 3, 3, 1800.0, 3600.0, 60.0)
    assert (plain.queue, plain.queues, plain.policy.retry) == ("io", {"io"}, Backoff(base=2))
    assert (plain.policy.retry_on, plain.policy.discard_on, plain.stop_grace) == ((OSError,), (KeyError,), 2.0)
    assert (plain.policy.timeout_raises, plain.policy.keep_arguments) == (True, True)
    assert (own.policy.timeout_raises, own.policy.keep_arguments) == (True, False)


def test_the_job_comes_before_the_default_and_the_call_before_the_job() -> None:
    configure(defaults=EVERY)
    assert sent(own) == ("own", 5, 7, 5.0, 3600.0, 60.0)
    assert (own.policy.retry_on, own.policy.discard_on, own.policy.retry) == ((ValueError,), (KeyError,), Backoff(base=9))
    assert sent(own.options(max_attempts=2, queue="call", timeout=None)) == ("call", 5, 2, None, 3600.0, 60.0)


def test_none_removes_a_default_limit() -> None:
    configure(defaults=EVERY)
    assert sent(unlimited)[3:5] == (None, None)
    assert sent(plain.options(timeout=None, expires=None))[3:5] == (None, None)
    configure(defaults={"timeout": None, "max_attempts": None})
    assert sent(plain) == ("default", 0, 10, None, None, 3600.0)


@pytest.mark.parametrize("follow_up", [plain, named("tests.defaults.elsewhere")])
@pytest.mark.parametrize("of_call", [{}, {"key": "k", "max_attempts": 7}])
def test_a_declared_follow_up_has_defaults_that_are_configured_later(follow_up: Any, of_call: EnqueueOptions) -> None:
    @job(name="tests.defaults.followed", on_failure=follow_up.options(**of_call).bind())
    async def followed() -> None: ...

    for queue in ("io", "other"):
        configure(defaults={"queue": queue, "max_attempts": 3})
        packed = followed.bind().envelope.on_failure
        assert packed is not None
        sent = follow_up_of(packed, bytes(16), bytes(16))
        expected = follow_up.options(**of_call).bind().envelope
        assert (sent.job, sent.queue, sent.max_attempts) == (follow_up.name, queue, of_call.get("max_attempts", 3))
        assert (sent.key, sent.key_text, sent.payload) == (expected.key, expected.key_text, expected.payload)


def test_the_jobs_of_a_declared_schedule_have_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_app(), "registry", Registry())  # otherwise other tests' workers would fire it

    @job(name="tests.defaults.scheduled", schedule=Every(60))
    async def scheduled() -> None: ...

    def template() -> Envelope:
        return SchedulePlan.from_body(scheduled.schedules[0].definition.body).template

    assert (template().queue, template().max_attempts) == ("default", 10)
    configure(defaults={"queue": "io", "max_attempts": 1})
    assert (template().queue, template().max_attempts) == ("io", 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_attempt": 3}, "configure(defaults=...): unknown option max_attempt=; did you mean max_attempts=?"),
        ({"key": "k"}, "unknown option key=: pass it to each job that needs it: it cannot be a default"),
        ({"max_attempts": 0}, "max_attempts=0: expected at least 1"),
        ({"queue": "a b"}, "queue 'a b': expected"),
        ({"retry_on": ("OSError",)}, "retry_on=('OSError',): expected a tuple of exception classes"),
        ([("max_attempts", 3)], "configure(defaults=...): expected a dict of options, got"),
    ],
)
def test_a_wrong_default_is_refused_where_it_is_configured(given: Any, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configure(defaults=given)
    assert says in str(caught.value)
    assert sent(plain)[2] == 10


def test_pyproject_may_have_a_table_of_defaults(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text('[tool.taskflow.defaults]\nmax_attempts = 1\ntimeout = 1800\nqueue = "io"\n')
    app = App()
    assert app.settings.defaults == Defaults({"max_attempts": 1, "timeout": 1800.0, "queue": "io"})
    app.configure(defaults={"max_attempts": 2})
    assert app.settings.defaults == Defaults({"max_attempts": 2})
    file.write_text("[tool.taskflow.defaults]\nmax_attempt = 1\n")
    with pytest.raises(ConfigurationError, match=r"defaults in \[tool.taskflow\] of .*pyproject.toml: unknown option max_attempt="):
        _ = App().settings


def test_a_child_process_has_the_defaults_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    monkeypatch.setattr("taskflow.worker.children.child.default_app", lambda: app)
    monkeypatch.setattr("sys.argv", ["worker"])
    settings = {"broker": "sqlite:///x.db", "enqueue_timeout": 1.0, "max_payload": 100, "defaults": {"max_attempts": 3}}
    Application(Handshake(modules=(), arguments=("worker",), settings=settings, is_reachable=True, has_lifespan=False, log_level=20))
    assert (app.settings.defaults, app.settings.max_payload) == (Defaults({"max_attempts": 3}), 100)
    app.configure(defaults={"max_attempts": 4})
    assert app.settings.defaults == Defaults({"max_attempts": 4}), "a module that the child imports may configure its own"


# --- preset(...) ------------------------------------------------------------------------------------------------------

io = preset(queue="io", max_attempts=1, retry_on=(OSError,))


@io
async def fetch(url: str) -> str:
    return url


@io(name="tests.defaults.store", max_attempts=4, timeout=60)
def store(url: str) -> str:
    return url


def test_the_decorator_comes_before_the_preset_and_the_preset_before_the_defaults() -> None:
    configure(defaults={"max_attempts": 9, "timeout": 7, "keep_result": 8})
    assert sent_of(store.bind("a")) == ("io", 4, 60.0)
    assert sent_of(fetch.bind("a")) == ("io", 1, 7.0)
    assert fetch.bind("a").envelope.keep_result == 8.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"quue": "io"}, "preset(): unknown option quue=; did you mean queue=?"),
        ({"name": "n"}, "preset(): name= belongs to one job: pass it where the preset is used, as in @io(name=...)"),
        ({"after": 5}, "preset(): unknown option after=: pass it with a call, as in .options(after=...)"),
    ],
)
def test_a_wrong_preset_is_refused_where_it_is_made(given: Any, says: str) -> None:
    made: Any = preset
    with pytest.raises(DeclarationError) as caught:
        made(**given)
    assert says in str(caught.value)


def sent_of(call: Any) -> tuple[str, int, float | None]:
    return call.envelope.queue, call.envelope.max_attempts, call.envelope.timeout

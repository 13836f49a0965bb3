"""How the jobs of a flow are numbered and tied, without any store."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from taskflow import Concurrency, EnqueueFailed, Failure, Flow, Group, enqueue, group, job
from taskflow.app.app import App, default_app
from taskflow.app.flow_plan import Plan, plan_of
from taskflow.app.job_type import Registry
from taskflow.broker.url import connect
from taskflow.model.codec import decode_value
from taskflow.model.envelope import check_envelope
from taskflow.model.errors import EncodeError
from taskflow.model.flow import MAX_FLOW_BYTES, Member, Tie

any_group: Any = group


@pytest.fixture(autouse=True)
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setattr(default_app(), "registry", Registry())
    return default_app()


@job(name="flow.one")
async def one(n: int = 0) -> int:
    return n


@job(name="flow.twice")
async def twice(n: int, by: int = 2) -> int:
    return n * by


@job(name="flow.total")
async def total(numbers: list[int], /, plus: int = 0) -> int:
    return sum(numbers) + plus


@job(name="flow.tally")
async def tally(outcomes: list[int | Failure]) -> int:
    return len(outcomes)


any_one: Any = one
any_twice: Any = twice


def planned(flow: Flow[Any] | Group[Any]) -> Plan:
    numbers = itertools.count()
    plan = plan_of(flow._chain, lambda: next(numbers).to_bytes(16, "big"))
    for call in plan.calls:
        check_envelope(call.envelope)
    return plan


def tied(plan: Plan) -> list[str]:
    """Return each job with its scope, what it takes and awaits, and for each job that waits for it, that job's number and input."""
    number_of = {call.envelope.id: number for number, call in enumerate(plan.calls)}
    lines = list[str]()
    for number, call in enumerate(plan.calls):
        envelope, member = call.envelope, call.envelope.member
        assert member is not None
        assert (member.flow, member.number) == (plan.flow, number)
        takes = "" if member.takes is None else f" {member.takes}={'list' if member.is_list else 'one'} of {member.inputs}"
        ties = [
            f"{number_of[other]}{'' if tie.number is None else f'[{tie.number}]'}{'?' * tie.collects}"
            for other, tie in zip(envelope.joins, envelope.ties, strict=True)
        ]
        lines.append(f"{envelope.job[5:]} {member.first}-{member.last} awaits {envelope.awaits}{takes} -> {' '.join(ties)}".rstrip(" ->"))
    return lines


def test_a_chain() -> None:
    assert tied(planned(one.bind(1) | twice | twice.partial(3) | one.bind(2))) == [
        "one 0-3 awaits 0 -> 1[0]",
        "twice 0-3 awaits 1 n=one of 1 -> 2[0]",
        "twice 0-3 awaits 1 n=one of 1 -> 3",
        "one 0-3 awaits 1",
    ]


def test_a_group_and_its_join() -> None:
    assert tied(planned(group([one.bind(1), one.bind(2)]) | total.partial(plus=1))) == [
        "one 0-2 awaits 0 -> 2[0]",
        "one 0-2 awaits 0 -> 2[1]",
        "total 0-2 awaits 2 numbers=list of 2",
    ]


def test_a_branch_that_may_fail_is_a_separate_scope() -> None:
    inner = group([one.bind(1), one.bind(2)]) | total
    flow = one.bind() | group([one.bind(3) | twice, inner], failures="collect") | tally
    assert tied(planned(flow)) == [
        "one 0-6 awaits 0 -> 1 3 4",
        "one 1-2 awaits 1 -> 2[0]",
        "twice 1-2 awaits 1 n=one of 1 -> 6[0]?",
        "one 3-5 awaits 1 -> 5[0]",
        "one 3-5 awaits 1 -> 5[1]",
        "total 3-5 awaits 2 numbers=list of 2 -> 6[1]?",
        "tally 0-6 awaits 2 outcomes=list of 2",
    ]


def test_the_innermost_scope_counts() -> None:
    inner = group([one.bind(1), one.bind(2)], failures="collect") | tally
    assert [line.split()[1] for line in tied(planned(group([inner, one.bind(3)], failures="collect") | tally))] == [
        *("0-0", "1-1", "0-2", "3-3", "0-4")
    ]


def test_an_empty_group_gives_an_empty_list_and_is_waited_through() -> None:
    assert tied(planned(group(list[Any]()) | total)) == ["total 0-0 awaits 0 numbers=list of 0"]
    flow = group([one.bind(1)], failures="collect") | group(list[Any]()) | group(list[Any]()) | total
    assert tied(planned(flow)) == ["one 0-0 awaits 0 -> 1?", "total 0-1 awaits 1 numbers=list of 0"]


def test_a_group_behind_a_group_waits_for_all_of_it() -> None:
    flow = group([one.bind(1), one.bind(2)]) | group([one.bind(3), one.bind(4)])
    assert [line.partition(" awaits ")[2] for line in tied(planned(flow))] == ["0 -> 2 3", "0 -> 2 3", "2", "2"]


def test_a_flow_may_follow_a_flow_and_be_a_branch() -> None:
    first, second = one.bind(1) | twice, one.bind(2) | twice
    assert [line.partition(" awaits ")[2] for line in tied(planned(first | second))] == [
        *("0 -> 1[0]", "1 n=one of 1 -> 2", "1 -> 3[0]", "1 n=one of 1")
    ]
    assert len(planned(group([first, second]) | total).calls) == 5


def test_each_plan_has_new_ids_so_that_a_flow_can_be_sent_again() -> None:
    call = one.bind(1)
    flow = group([call, call]) | total
    ids = [each.envelope.id for _ in range(2) for each in plan_of(flow._chain, default_app().new_id).calls]
    assert len({*ids, call.envelope.id}) == 7


def test_arguments_are_those_beside_the_result() -> None:
    """The result is the first argument that is not given by name, and positional ones follow it."""
    plan = planned(one.bind() | twice.partial(5) | twice.partial(n=7))
    assert [(call.envelope.member and call.envelope.member.takes, decode_value(call.envelope.payload)) for call in plan.calls] == [
        *((None, {}), ("n", {"by": 5}), ("by", {"n": 7}))
    ]
    assert twice.partial(5).bind(4).envelope.payload == twice.bind(4, 5).envelope.payload
    assert twice.partial(n=7).bind(4).envelope.payload == twice.bind(7, 4).envelope.payload


def test_wrong_arguments_are_refused_where_the_flow_is_made() -> None:
    flow: Any = one.bind()
    wrong: list[Callable[[], Any]] = [
        lambda: any_twice.partial(1, 2),
        lambda: any_twice.partial(by="x"),
        lambda: any_twice.partial(of=1),
        lambda: any_one.partial(n=1),
    ]
    for partial in wrong:
        with pytest.raises(EncodeError, match=r"flow\.(one|twice)"):
            flow | partial()
    for other in (twice.function, 7, None, [one.bind()]):
        with pytest.raises(TypeError, match=r"after `\|`: expected a job"):
            flow | other
    with pytest.raises(TypeError, match="takes the results of a group, so its parameter 'n' must be a list"):
        any_group([one.bind()]) | twice
    for given in (7, [7], [group([one.bind()])]):
        with pytest.raises(TypeError, match=r"group\(\) got"):
            any_group(given)
    with pytest.raises(ValueError, match='failures=\'ignore\': expected "cancel" or "collect"'):
        any_group([], failures="ignore")


@job(name="flow.keyed", key="{n}")
async def keyed(n: int) -> int:
    return n


@job(name="flow.limited", limits=[Concurrency(2, key="tenant")])
async def limited(tenant: str, n: int = 0) -> int:
    return n


def test_a_key_is_refused_where_the_flow_is_made() -> None:
    flow: Any = one.bind()
    of_keys: list[Callable[[], object]] = [
        lambda: flow | keyed,
        lambda: flow | keyed.partial(),
        lambda: flow | keyed.bind(1),
        lambda: keyed.bind(1) | one,
        lambda: group([one.options(key="k", throttle=5).bind()]),
        lambda: group([one.options(key="k", debounce=5).bind()]),
    ]
    for make in of_keys:
        with pytest.raises(ValueError, match=r'has the key .*, but a job in a flow cannot have a key: \.options\(key=""\) removes it'):
            make()
    assert len(planned(flow | keyed.options(key="")).calls) == 2


def test_a_limit_counts_by_what_is_known() -> None:
    with pytest.raises(ValueError, match="counts by 'tenant', which the result fills"):
        limited.partial()
    [_, call] = planned(one.bind() | limited.partial(tenant="acme")).calls
    assert call.envelope.limits == limited.bind("acme").envelope.limits


def test_a_flow_is_bounded() -> None:
    call = one.bind()
    most = group(call for _ in range(10_000)) | total
    assert len(planned(most).calls) == 10_001
    with pytest.raises(ValueError, match="a flow of 10,002 jobs: it can have at most 10,000, apart from those that follow a group"):
        most | twice
    with pytest.raises(ValueError, match="a flow of 20,001 jobs"):
        group([group(list[Any]()) | total | twice for _ in range(10_000)]) | total
    with pytest.raises(ValueError, match=r"group\(\) got 12,345 calls: a flow can have at most 10,000 jobs"):
        group(call for _ in range(12_345))
    with pytest.raises(ValueError, match=r"group\(\) got 1,000,001 calls or more"):
        group(itertools.repeat(call))
    large = text.bind("x" * 1_000_000)
    with pytest.raises(ValueError, match=rf"a flow of 17,000,\d\d\d bytes: it can have at most {MAX_FLOW_BYTES:,}"):
        group([large] * 17)
    with pytest.raises(ValueError, match=r"a flow of 24,\d\d\d,\d\d\d bytes"):
        group([call] * 1_000) | group([call] * 1_000)
    nested = one.bind() | twice
    for _ in range(50):
        nested = group([nested]) | total
    with pytest.raises(ValueError, match="groups nested 51 deep"):
        group([nested])


@job(name="flow.text")
async def text(content: str) -> None: ...


def test_a_connection_is_given_to_the_whole_flow() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        _refuse_in_parts(connection)


def _refuse_in_parts(connection: sqlite3.Connection) -> None:
    with pytest.raises(TypeError, match="pass connection= to the whole flow"):
        one.options(connection=connection).partial()
    with pytest.raises(TypeError, match="pass connection= to the whole flow"):
        (one.bind() | twice).options(connection=connection) | twice
    with pytest.raises(TypeError, match="connection="):
        (one.bind() | twice).options(connection=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_tie_and_a_member_are_plain_values() -> None:
    assert planned(one.bind() | twice).calls[0].envelope.ties == (Tie(0, collects=False),)
    assert planned(one.bind() | twice).calls[1].envelope.member == Member(bytes(16), 1, 0, 1, "n", False, 1)


async def test_a_flow_is_no_call_for_enqueue() -> None:
    with (
        default_app().using(connect("memory://")),
        pytest.raises(EnqueueFailed, match=r"expected calls made by .bind\(...\); to send a flow, call its .delay\(\)"),
    ):
        await enqueue([one.bind() | twice])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

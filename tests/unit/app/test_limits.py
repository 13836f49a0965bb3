"""limits=: what a decorator accepts, and the gates of calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from taskflow import Concurrency, DeclarationError, Job, Limit, Rate, job, preset
from taskflow.app.declared_limits import unadmitted
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.errors import DecodeError
from taskflow.model.limits import RATE, TENANT, Gate, gate_id, interval
from taskflow.model.verdict import HandedBack
from tests.unit.app.jobs import add

any_job: Any = job


@dataclass
class Order:
    tenant: str


@job(limits=[Concurrency(3, key="tenant"), Limit("shared", Concurrency(5))])
async def charge(tenant: str, amount: int = 0) -> None: ...


@job(limits=[Concurrency(1, key="order.tenant")])
async def ship(order: Order) -> None: ...


@job(limits=[Concurrency(1, key="tenant")])
async def optional(tenant: str | None = None) -> None: ...


@job
async def unlimited(tenant: str | None = None) -> None: ...


async def on_tenant(tenant: str) -> None: ...


def gate(limit: str, key: str, most: int) -> Gate:
    return Gate(gate_id(limit, key), limit, key, most)


def test_each_call_has_its_gates() -> None:
    assert charge.bind("acme").envelope.limits == (gate(charge.name, "acme", 3), gate("shared", "", 5))
    assert ship.bind(Order("acme")).envelope.limits == (gate(ship.name, "acme", 1),)


def test_a_preset_has_limits() -> None:
    """A job can also leave them out."""
    limited = preset(limits=[Limit("disk", Concurrency(2))])

    @limited(name="limited")
    async def one() -> None: ...

    @limited(name="not limited", limits=[])
    async def other() -> None: ...

    assert one.bind().envelope.limits == (gate("disk", "", 2),)
    assert other.bind().envelope.limits == ()


@job(fair="order.tenant")
async def pack(order: Order) -> None: ...


def test_calls_of_one_tenant_take_turns_with_others() -> None:
    acme, other = pack.bind(Order("acme")).envelope, pack.bind(Order("umbrella")).envelope
    assert acme.fair == pack.options(queue="other").bind(Order("acme")).envelope.fair == pack.bind(Order("acme"))._renewed().fair
    assert None is not other.fair != acme.fair
    assert charge.bind("acme").envelope.fair is None


def test_a_preset_has_turns() -> None:
    @preset(fair="tenant")(name="fair")
    async def one(tenant: str) -> None: ...

    assert isinstance(one, Job)
    assert one.bind("acme").envelope.fair == gate_id("", "acme", kind=TENANT)


@pytest.mark.parametrize(
    ("fair", "said"),
    [
        (3, "fair=3: expected the name of a parameter"),
        ("{tenant}", "fair='{tenant}': expected the name of a parameter"),
        ("tenent", "'tenent' is not a parameter; did you mean 'tenant'?"),
    ],
)
def test_a_wrong_parameter_for_turns(fair: Any, said: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        any_job(name="wrongly fair", fair=fair)(on_tenant)

    assert said in str(caught.value)


def test_a_follow_up_has_its_gates() -> None:
    assert charge.bind("acme")._renewed().limits == charge.bind("acme").envelope.limits


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (3, "limits=3: expected a list of limits"),
        ("tenant", "limits='tenant': expected a list of limits"),
        ([3], "limits=[3]: expected a list of limits"),
        ([Concurrency(1), Concurrency(2, key="tenant")], "two limits named"),
        ([Limit("a", Concurrency(1)), Limit("a", Concurrency(1))], "two limits named 'a'"),
        ([Limit(str(n), Concurrency(1)) for n in range(9)], "limits= has 9 limits: a job can have at most 8"),
        ([Concurrency(1, key="tenent")], "'tenent' is not a parameter; did you mean 'tenant'?"),
    ],
)
def test_a_wrong_declaration(limits: Any, said: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        any_job(name="wrongly limited", limits=limits)(on_tenant)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Concurrency(0), "n=0: expected 1 to 1,000,000,000"),
        (lambda: Concurrency(True), "n=True: expected an int"),
        (lambda: Concurrency(1, key="{tenant}"), "key='{tenant}': expected the name of a parameter"),
        (lambda: Concurrency(1, key=""), "key='': expected the name of a parameter"),
        (lambda: Limit("", Concurrency(1)), "has 0 bytes"),
        (lambda: Limit(3, Concurrency(1)), "Limit(name=3): expected a str"),  # type: ignore[arg-type]
        (lambda: Limit("a", 3), "expected a rule"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_limit(make: Callable[[], object], said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert said in str(caught.value)


def test_a_key_needs_a_value() -> None:
    with pytest.raises(TypeError, match="is None"):
        optional.bind()


@job(name="rated", limits=[Rate(100, per=timedelta(minutes=1), burst=5, key="tenant"), Concurrency(2)])
async def rated(tenant: str) -> None: ...


def test_a_rate_and_a_number_are_two_limits() -> None:
    one, other = rated.bind("acme").envelope.limits
    assert one == Gate(gate_id("rated", "acme", kind=RATE), "rated", "acme", 100, 60_000_000, 5)
    assert other == gate("rated", "", 2)


def lease(waited: int = 0, limits: tuple[Gate, ...] = ()) -> Lease:
    envelope = msgspec.structs.replace(rated.bind("acme").envelope, limits=limits)
    return Lease(envelope=envelope, epoch=1, claim=ClaimId(bytes(16), 1, 0), created_at=0, waited=waited)


def test_a_lease_that_may_start() -> None:
    limits = rated.bind("acme").envelope.limits
    assert unadmitted(lease(1_000_000, limits), rated) is None
    assert unadmitted(lease(60_000_000, charge.bind("acme").envelope.limits), charge) is None
    assert unadmitted(lease(60_000_000), add) is None


def test_a_lease_that_lacks_gates() -> None:
    """It gets all gates; the store knows those that it has."""
    limits = rated.bind("acme").envelope.limits
    assert unadmitted(lease(0, limits[:1]), rated) == HandedBack(counts=False, limits=limits)
    assert unadmitted(lease(), rated) == HandedBack(counts=False, limits=limits)


def test_a_lease_whose_arguments_make_no_key() -> None:
    """The job must not run without its limits. Arguments that can't be decoded are left to the run, which says what is wrong with them."""
    for payload in (unlimited.bind(None).envelope.payload, unlimited.bind("x" * 300).envelope.payload):
        sent = lease()
        sent = msgspec.structs.replace(sent, envelope=msgspec.structs.replace(sent.envelope, payload=payload))
        with pytest.raises(DecodeError, match=r"limits=: .*tenant"):
            unadmitted(sent, optional)
        assert unadmitted(sent, ship) is None


def test_a_lease_that_is_late() -> None:
    limits = rated.bind("acme").envelope.limits
    assert unadmitted(lease(1_000_001, limits), rated) == HandedBack(counts=False, limits=())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Rate(0, per=1.0), "n=0: expected 1"),
        (lambda: Rate(1, per=0.0), "per=0.0: expected at least a microsecond"),
        (lambda: Rate(1, per="x"), "per='x': expected seconds"),  # type: ignore[arg-type]
        (lambda: Rate(1, per=1.0, burst=0), "burst=0: expected 1"),
    ],
)
def test_a_wrong_rate(make: Callable[[], object], said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert said in str(caught.value)


def test_interval() -> None:
    """The times of a rate are far enough apart that no period has more jobs than the rate allows."""
    assert interval(Gate(b"", "", "", 7, 60_000_000)) == 8_571_429
    assert interval(Gate(b"", "", "", 600_000, 1_000_000)) == 2

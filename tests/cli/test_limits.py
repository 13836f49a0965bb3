"""`taskflow limits`: which limits hold up jobs, and how to set their numbers."""

from __future__ import annotations

import pytest

from taskflow import Concurrency, Limit, limits
from taskflow.broker.engine import decisions, limits as engine_limits
from taskflow.broker.protocol import Broker
from taskflow.cli import limits as cli_limits
from taskflow.cli.limits import NONE
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.model.limits import RATE, Gate, gate_id
from tests.cli.inprocess import Cli

TASKS = """
from taskflow import Concurrency, Limit, job

@job(name="charge", limits=[Concurrency(2, key="tenant"), Limit("ledger", Concurrency(5))])
async def charge(tenant: str) -> None: ...

@job(name="fetch", limits=[Concurrency(1, key="token")])
async def fetch(token: str) -> None: ...
"""


async def stock(broker: Broker) -> None:
    """Two of acme's three jobs hold slots. A rate opens in a minute or less."""
    slots, rate = Gate(gate_id("charge", "acme"), "charge", "acme", 2), Gate(gate_id("api", "", kind=RATE), "api", "", 1, 60_000_000)
    new = IdFactory()
    await broker.enqueue([Envelope(id=new(), job="charge", payload=b"", limits=(slots,)) for _ in range(3)])
    await broker.enqueue([Envelope(id=new(), job="call", payload=b"", limits=(rate,))])


@pytest.fixture
def stored(cli: Cli) -> None:
    cli.write("app/tasks.py", TASKS)
    cli.with_broker(stock)


def test_limits_are_listed(cli: Cli, stored: None) -> None:
    charge, call = cli.json("limits")
    assert (charge["limit"], charge["key"], charge["n"], charge["running"], charge["waiting"]) == ("charge", "acme", 2, 2, 1)
    assert (call["limit"], call["per"], call["running"], call["waiting"]) == ("api", 60.0, 0, 0)
    assert 0 < call["opens_in"] <= 60.0
    assert [(each["job"], each["queue"], each["is_running"]) for each in charge["holders"]] == [("charge", "default", False)] * 2
    [waiting] = charge["next"]
    assert call["holders"] == call["next"] == []
    assert waiting["id"] not in {each["id"] for each in charge["holders"]}
    said = cli("limits", "list", "charge").out.splitlines()
    assert said[:2] == ["LIMIT   KEY   NUMBER  RUNNING  WAITING  NEXT", "charge  acme  2       2        1"]
    assert said[2:] == [f"    {each['id']}  ready  charge  (queue default)" for each in charge["holders"]]
    assert cli("limits").out.splitlines()[2:4] == said[2:]
    assert cli("limits", "list", "api").out.splitlines()[1].startswith("api         1 in 1m                    in ")
    assert cli("limits", "list", "other").out == f"{NONE}\n"


def test_a_list_that_is_cut_says_so(cli: Cli, stored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that is named is still found, and its number can be set without its module."""
    for module in (cli_limits, engine_limits):
        monkeypatch.setattr(module, "MAX_LISTED", 1)
    monkeypatch.setattr(decisions, "PORTION", 1)
    assert "these are 1 keys, the maximum: there may be more, even ones at which jobs wait" in cli("limits").err
    assert len(cli.json("limits")) == 1
    for name in ("charge", "api"):
        assert [info["limit"] for info in cli.json("limits", "list", name)] == [name]
    assert cli("limits", "set", "api", "7").out == "api: 7\n"
    assert cli("limits", "set", "charge", "acme", "3").out == "charge of acme: 3\n"


def test_a_number_is_set(cli: Cli, stored: None) -> None:
    """The waiting job passes. The audit log says who did it, and why."""
    set_it = ("limits", "set", "charge", "acme", "3", "--module", "app.tasks")
    assert cli(*set_it, "--reason", "a larger plan").out == "charge of acme: 3\n"
    [_, charge] = cli.json("limits")
    assert (charge["n"], charge["is_set"], charge["running"], charge["waiting"]) == (3, True, 3, 0)
    [act] = cli.json("audit")
    assert (act["action"], act["names"], act["selection"], act["reason"]) == (
        "limits.set",
        ["charge"],
        {"key": "acme", "n": "3"},
        "a larger plan",
    )
    assert cli.json("limits", "set", "ledger", "0", "--module", "app.tasks") == {
        "action": "limits.set",
        "limit": "ledger",
        "key": None,
        "n": 0,
    }
    assert cli("limits", "set", "ledger", "declared", "--module", "app.tasks").out == "ledger: the declared number\n"
    assert [info["limit"] for info in cli.json("limits") if info["is_set"]] == ["charge"]


def test_a_secret_key_is_not_stored(cli: Cli, stored: None) -> None:
    cli("limits", "set", "fetch", "hunter2", "3", "--module", "app.tasks")
    assert ("fetch", "[hidden]", 3) in [(info["limit"], info["key"], info["n"]) for info in cli.json("limits")]
    cli("limits", "set", "fetch", "hunter3", "4")  # only the store tells this process that the key is secret
    assert [info["key"] for info in cli.json("limits") if info["limit"] == "fetch"] == ["[hidden]"] * 2
    assert [act["selection"]["key"] for act in cli.json("audit")] == ["[hidden]"] * 2


async def test_a_key_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="a key of type bytes: expected text"):
        await limits.set(Limit("ledger", Concurrency(1, key="tenant")), b"acme", 2)


def test_a_number_of_a_limit_in_use_is_set_without_its_module(cli: Cli, stored: None) -> None:
    """The store knows its kind. Only the number in the code needs the module."""
    assert cli("limits", "set", "charge", "acme", "3").out == "charge of acme: 3\n"
    assert cli("limits", "set", "api", "7").out == "api: 7\n"
    api, charge = sorted(cli.json("limits"), key=lambda each: str(each["limit"]))
    assert (charge["n"], charge["running"], api["n"], api["per"], api["is_set"]) == (3, 3, 7, 60.0, True)
    assert "needs a value of key" in cli("limits", "set", "charge", "3", code=2).err
    for words in (("ledger", "3"), ("charge", "acme", "declared")):
        assert "or in use in the store: name the module that declares it with --module" in cli("limits", "set", *words, code=2).err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("charge", "acme", "many"), 'N is many: expected a whole number, or "declared"'),
        (("charge", "acme", "\u0663"), 'N is \u0663: expected a whole number, or "declared"'),
        (("charge", "acme", "9" * 5_000), 'expected 0 to 1,000,000,000, or "declared"'),
        (("chargee", "acme", "3"), "did you mean 'charge'?"),
        (("charge", "3"), "needs a value of tenant"),
        (("ledger", "acme", "3"), "counts all calls together: leave out the key"),
        (("charge", "a" * 201, "3"), "201 bytes of UTF-8, expected 1 to 200"),
    ],
)
def test_invalid_arguments_of_limits_set_are_refused(cli: Cli, stored: None, words: tuple[str, ...], said: str) -> None:
    assert said in cli("limits", "set", *words, "--module", "app.tasks", code=2).err

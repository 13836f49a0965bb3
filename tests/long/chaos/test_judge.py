"""The judge of the chaos tests: it accepts a right ledger, and rejects each wrong one for the rule that it breaks, and for no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.long.chaos.judge import RULES, judge, told
from tests.long.chaos.ledger import Event, Ledger, Line
from tests.long.chaos.state import Fired, State, Stored

TTL = 6.0


class Tale:
    """A ledger and a store, both written by hand. It begins with one job of each kind, for which everything is right."""

    def __init__(self) -> None:
        self.lines = list[Line]()
        self.state = State(jobs={}, counts={}, totals={}, orders=set(), effects={})
        self.job("plain")
        self.job("delayed", sent_at=0.0, after=1.0)
        self.job("expiring", expires=5.0)
        self.job("first of a batch", kind="plain", batch="b")
        self.job("second of a batch", kind="plain", batch="b")
        self.job("one of a key", kind="keyed", key="k", begin=10.0, end=11.0)
        self.job("next of that key", kind="keyed", key="k", begin=11.1, end=12.0)
        self.job("ordered", kind="transactional")
        self.state.orders = {"ordered"}
        self.tell("send", id="undone", kind="transactional")
        self.tell("rolled back", id="undone")
        self.job("completed", job="chaos.completed")
        self.state.effects = {"completed": 1}
        self.retried()
        self.job("mourning", kind="", job="chaos.mourning", caused_by="retried")
        self.tell("send", id="cancelled", kind="cancelled", after=9.0)
        self.tell("accepted", id="cancelled")
        self.tell("cancelled", id="cancelled", mono=1.0, status="scheduled")
        self.state.jobs["cancelled"] = Stored(status="cancelled")
        for instant in (2.0, 4.0, 6.0):
            self.job(f"tick {instant}", kind="", schedule="chaos.put", instant=instant)
        self.state.schedules = (Fired(name="chaos.put", every=2.0, fired=3),)
        self.zombie()

    def tell(self, event: Event, mono: float = 0.0, pid: int = 7, **facts: str | float) -> None:
        self.lines.append(msgspec.convert({"event": event, "at": mono, "mono": mono, "pid": pid, **facts}, Line))

    def job(
        self,
        id: str,
        *,
        kind: str | None = None,
        begin: float = 3.0,
        end: float = 4.0,
        sent_at: float = 0.5,
        key: str = "",
        **facts: object,
    ) -> None:
        sent = {name: facts.pop(name) for name in ("after", "expires", "batch") if name in facts}
        if kind != "":
            self.tell("send", sent_at, id=id, kind=kind or id, key=key, **sent)  # type: ignore[arg-type]
            self.tell("accepted" if kind != "transactional" else "committed", sent_at, id=id)
        self.run(id, begin, end)
        self.state.jobs[id] = msgspec.convert({"status": "succeeded", "result_epoch": 1, **facts}, Stored)

    def run(self, id: str, begin: float, end: float, epoch: int = 1, attempt: int = 1, status: str = "ok", pid: int = 7) -> None:
        self.tell("begin", begin, pid, id=id, epoch=epoch, attempt=attempt)
        self.tell("end", end, pid, id=id, epoch=epoch, attempt=attempt, status=status)

    def retried(self) -> None:
        """Both attempts of the job fail."""
        self.tell("send", id="retried", kind="retried", fails=4, max_attempts=2)
        self.tell("accepted", id="retried")
        self.run("retried", 1.0, 2.0, status="failed")
        self.run("retried", 3.0, 4.0, epoch=2, attempt=2, status="failed")
        self.state.jobs["retried"] = Stored(status="failed", epoch=2, failures=2, max_attempts=2)

    def zombie(self) -> None:
        """A process is stopped for longer than a lease lives. Its run goes on afterwards, beside the job's next run."""
        self.tell("send", id="lapsed", kind="plain")
        self.tell("accepted", id="lapsed")
        self.tell("stopped", 20.0, pid=8)
        self.tell("continued", 30.0, pid=8)
        self.run("lapsed", 19.0, 30.5, status="stopped", pid=8)
        self.run("lapsed", 27.0, 31.0, epoch=2)
        self.state.jobs["lapsed"] = Stored(status="succeeded", epoch=2, result_epoch=2, crashes=1)

    def change(self, id: str, **fields: object) -> None:
        self.state.jobs[id] = msgspec.structs.replace(self.state.jobs[id], **fields)

    def alter(self, id: str, event: Event, **fields: object) -> None:
        """Change the job's last line of this kind."""
        number = max(number for number, line in enumerate(self.lines) if (line.id, line.event) == (id, event))
        self.lines[number] = msgspec.structs.replace(self.lines[number], **fields)

    def broken_rules(self) -> set[str]:
        """Fill in the counts, unless the tale gives them, and call the judge."""
        jobs = self.state.jobs.values()
        self.state.counts = self.state.counts or {
            status: number for status in ("succeeded", "failed", "cancelled", "ready") if (number := _number(self.state, status))
        }
        self.state.totals = self.state.totals or {"enqueue": len(jobs), "succeed": _number(self.state, "succeeded")}
        violations = judge(self.lines, self.state, ttl=TTL)
        assert all(violation.why in told(violations, self.lines) for violation in violations)
        return {violation.rule for violation in violations}


def _number(state: State, status: str) -> int:
    return sum(job.status == status for job in state.jobs.values())


def test_a_right_ledger_passes() -> None:
    tale = Tale()
    assert tale.broken_rules() == set(), told(judge(tale.lines, tale.state, ttl=TTL), tale.lines)


def test_a_job_whose_transaction_committed_after_that_of_another_with_its_key_is_kept_out() -> None:
    tale = Tale()
    for line in ("send", "committed"):
        tale.tell(line, id="came second", kind="transactional", key="k", conflict="keep")
    tale.state.orders = {"ordered", "came second"}
    tale.state.jobs["came second"] = Stored(status="cancelled", reason="key held by one of a key")
    assert tale.broken_rules() == set(), told(judge(tale.lines, tale.state, ttl=TTL), tale.lines)


def lost(tale: Tale) -> None:
    del tale.state.jobs["plain"]
    tale.lines = [line for line in tale.lines if line.id != "plain" or line.event in ("send", "accepted")]


def live(tale: Tale) -> None:
    tale.change("plain", status="ready", result_epoch=None)


def key_held(tale: Tale) -> None:
    tale.state.held_keys = ("k",)


def poison_after_one_crash(tale: Tale) -> None:
    tale.change("plain", status="failed", reason="poison: SIGKILL", crashes=1)


def unsent(tale: Tale) -> None:
    tale.job("unsent", kind="")


def committed_and_missing(tale: Tale) -> None:
    tale.tell("send", id="missing", kind="transactional")
    tale.tell("unknown", id="missing")
    assert tale.state.orders is not None
    tale.state.orders.add("missing")


def rolled_back_and_ordered(tale: Tale) -> None:
    assert tale.state.orders is not None
    tale.state.orders.add("undone")


def half_a_batch(tale: Tale) -> None:
    tale.tell("send", id="third of a batch", kind="plain", batch="b")


def ran_after_its_end(tale: Tale) -> None:
    tale.tell("ended", 5.0, id="plain", status="succeeded", epoch=1)
    tale.run("plain", 6.0, 7.0, epoch=2)
    tale.change("plain", epoch=2)


def ended_twice(tale: Tale) -> None:
    tale.tell("ended", 5.0, id="plain", status="cancelled")


def another_runs_result(tale: Tale) -> None:
    tale.change("lapsed", result_epoch=1)


def success_that_was_ignored(tale: Tale) -> None:
    tale.tell("ignored", 5.0, id="plain", epoch=1)


def one_attempt_too_many(tale: Tale) -> None:
    tale.run("retried", 5.0, 6.0, epoch=3, attempt=3, status="failed")
    tale.change("retried", epoch=3)


def began_after_it_was_cancelled(tale: Tale) -> None:
    tale.run("cancelled", 20.0, 21.0)


def succeeded_though_cancelled(tale: Tale) -> None:
    tale.run("cancelled", 9.0, 9.5)
    tale.alter("cancelled", "cancelled", mono=9.2)
    tale.change("cancelled", status="succeeded", result_epoch=1)


def began_early(tale: Tale) -> None:
    tale.alter("delayed", "begin", at=0.9)


def began_expired(tale: Tale) -> None:
    tale.alter("expiring", "begin", at=6.5)


def fired_twice(tale: Tale) -> None:
    tale.job("tick again", kind="", schedule="chaos.put", instant=4.0)


def left_out(tale: Tale) -> None:
    del tale.state.jobs["tick 4.0"]
    tale.lines = [line for line in tale.lines if line.id != "tick 4.0"]
    tale.state.schedules = (Fired(name="chaos.put", every=2.0, fired=2),)


def without_follow_up(tale: Tale) -> None:
    tale.change("mourning", caused_by="nobody")


def two_effects(tale: Tale) -> None:
    tale.state.effects = {"completed": 2}


def counted_wrongly(tale: Tale) -> None:
    tale.state.counts = {"ready": 1}


def vanished(tale: Tale) -> None:
    tale.tell("begin", 1.0, 9, id="plain", epoch=2, attempt=1)
    tale.change("plain", epoch=2)
    tale.run("plain", 5.0, 6.0, epoch=3)
    tale.change("plain", epoch=3, result_epoch=3)
    tale.tell("stopped", 0.5, pid=9)  # or it would overlap as well
    tale.alter("plain", "begin", mono=40.0)
    tale.lines = [line for line in tale.lines if (line.id, line.epoch) != ("plain", 1)]


def service_failed(tale: Tale) -> None:
    tale.tell("service failed", 1.0, note="Fetcher.run: KeyError: 7")


def two_runs_of_a_job(tale: Tale) -> None:
    """The process was not stopped at all."""
    tale.lines = [line for line in tale.lines if line.event not in ("stopped", "continued")]


def lease_lapsed_too_soon(tale: Tale) -> None:
    tale.alter("lapsed", "begin", mono=21.0)


def two_runs_of_a_key(tale: Tale) -> None:
    tale.alter("next of that key", "begin", mono=10.5)


WRONG = [
    ("no_job_is_lost", lost),
    ("no_job_is_stuck", live),
    ("no_job_is_stuck", key_held),
    ("each_job_ends_as_it_may", poison_after_one_crash),
    ("nothing_comes_from_nowhere", unsent),
    ("transactions_decide", committed_and_missing),
    ("transactions_decide", rolled_back_and_ordered),
    ("batches_are_whole", half_a_batch),
    ("each_job_ends_once", ran_after_its_end),
    ("each_job_ends_once", ended_twice),
    ("each_job_ends_once", another_runs_result),
    ("each_job_ends_once", success_that_was_ignored),
    ("attempts_are_counted", one_attempt_too_many),
    ("cancelled_jobs_do_not_begin", began_after_it_was_cancelled),
    ("cancelled_jobs_do_not_begin", succeeded_though_cancelled),
    ("no_run_begins_early_or_late", began_early),
    ("no_run_begins_early_or_late", began_expired),
    ("each_instant_fires_once", fired_twice),
    ("each_instant_fires_once", left_out),
    ("failures_are_followed_up_once", without_follow_up),
    ("effects_are_of_successes", two_effects),
    ("counts_are_true", counted_wrongly),
    ("no_run_vanishes", vanished),
    ("no_service_fails", service_failed),
    ("runs_do_not_overlap", two_runs_of_a_job),
    ("runs_do_not_overlap", lease_lapsed_too_soon),
    ("runs_do_not_overlap", two_runs_of_a_key),
]


@pytest.mark.parametrize(("rule", "change"), WRONG, ids=[change.__name__ for _, change in WRONG])
def test_a_wrong_ledger_is_rejected(rule: str, change: Callable[[Tale], None]) -> None:
    tale = Tale()
    change(tale)
    assert tale.broken_rules() == {rule}


def test_each_rule_has_a_wrong_ledger() -> None:
    assert {rule for rule, _ in WRONG} == {rule.__name__ for rule in RULES} | {"runs_do_not_overlap"}


def test_the_ledger_of_a_killed_writer_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    for pid in (1, 2):
        Ledger(path).write("send", id=f"job of {pid}", kind="plain", after=0.5, pid=pid)
    assert [(line.id, line.pid, line.after) for line in Ledger(path).read()] == [("job of 1", 1, 0.5), ("job of 2", 2, 0.5)]

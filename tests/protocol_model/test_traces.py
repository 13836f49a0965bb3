"""The traces that real brokers are put through are those that the search finds today, and only broken rules fail them."""

from __future__ import annotations

import pytest

from tests.protocol_model import traces
from tests.protocol_model.export import to_trace
from tests.protocol_model.replay import first_deviation
from tests.protocol_model.report import hunt
from tests.protocol_model.rules import BROKEN, CORRECT, Rules
from tests.protocol_model.traces import TRACES, Trace, constant_name

pytestmark = pytest.mark.xdist_group("protocol model")  # what one test has searched is there for the next

RULES = {rules.name: rules for rules in BROKEN}
every_trace = pytest.mark.parametrize("trace", [pytest.param(trace, id=trace.rules) for trace in TRACES])


def test_there_is_one_trace_for_each_of_the_broken_rules() -> None:
    assert [trace.rules for trace in TRACES] == [rules.name for rules in BROKEN]
    assert all(getattr(traces, constant_name(trace.rules)) is trace for trace in TRACES)


@every_trace
def test_a_trace_is_what_the_search_finds_today(trace: Trace) -> None:
    """If not: look at why, then paste what `python -m tests.protocol_model --traces` prints."""
    rules = RULES[trace.rules]

    assert to_trace(rules, hunt(rules).path) == trace


@every_trace
def test_a_trace_is_at_most_eleven_steps_long(trace: Trace) -> None:
    assert len(trace.steps) <= 11


@every_trace
@pytest.mark.parametrize("rules", [pytest.param(rules, id=rules.name) for rules in CORRECT])
def test_correct_rules_answer_as_every_trace_expects(trace: Trace, rules: Rules) -> None:
    assert first_deviation(rules, trace) is None


@every_trace
def test_broken_rules_do_not_answer_as_their_trace_expects(trace: Trace) -> None:
    assert first_deviation(RULES[trace.rules], trace) is not None

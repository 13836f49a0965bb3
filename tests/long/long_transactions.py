"""Transactions that last, and 5,000 runs that are completed in theirs while workers and connections are killed."""

from __future__ import annotations

from tests.cli.processes import Shell
from tests.faults.counting import each_is_counted_once, on_each_transactional_broker
from tests.support.postgres import shared_postgres
from tests.transactions.open_long import found_after_a_long_transaction


@on_each_transactional_broker
def test_each_of_5000_increments_counts_once(shell: Shell) -> None:
    each_is_counted_once(shell, 5_000, kills=40)


async def test_a_job_is_found_after_a_transaction_of_a_minute() -> None:
    server = shared_postgres()
    await found_after_a_long_transaction(server.url(server.new_database()), 60.0)

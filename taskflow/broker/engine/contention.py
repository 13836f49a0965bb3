"""Tracks the records that other clients keep changing. Clients of a server take turns reading and changing these records."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

from taskflow.broker.engine.seam import Apply, Effect, Operation, Query, Ref, Stale
from taskflow.model.errors import BrokerError

T = TypeVar("T")

STALE_BEFORE_TURN: Final = 2
"""The number of stale changes after which an operation waits for its turn."""

CONTENTION_TTL: Final = 1.0
"""How many seconds a record counts as contested. Operations that read it in this time wait for their turn from the start."""


class Contention:
    """Tracks the records that other clients recently changed several times while this client was using them."""

    def __init__(self) -> None:
        self._until: dict[Ref, float] = {}

    async def run(
        self,
        operation: Operation[T],
        perform: Callable[[Effect], Awaitable[Any]],
        in_turn: Callable[[Sequence[Ref], Operation[T], Effect], Awaitable[tuple[Effect, Any]]],
        answer: Any = None,
    ) -> T:
        """Run an operation to its end, and return its result. `perform` carries out an effect, and returns the answer. If the operation has
        already yielded an effect, `answer` is the answer to it.

        If other clients keep changing the records, `in_turn` runs the effects up to the next change while those clients wait, and returns
        that change and its answer.
        """
        stale = 0
        try:
            effect = operation.send(answer)
            contested = self.of(effect)
            while True:
                if contested and isinstance(effect, Query):
                    effect, answer = await in_turn(contested, operation, effect)
                    contested = []
                else:
                    answer = await perform(effect)
                if isinstance(effect, Apply) and (refs := stale_refs(effect, answer)):
                    stale += 1
                    if stale >= STALE_BEFORE_TURN:
                        contested = refs
                        self.note(refs)
                effect = operation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        except Ended as end:
            if end.error is not None:
                raise end.error from None
            return cast("T", end.result)
        finally:
            operation.close()

    def note(self, refs: Sequence[Ref]) -> None:
        now = time.monotonic()
        self._until = {ref: until for ref, until in self._until.items() if until > now} | dict.fromkeys(refs, now + CONTENTION_TTL)

    def of(self, effect: Effect) -> list[Ref]:
        """Return the contested records that an effect reads. Only queries read any."""
        if not self._until or not isinstance(effect, Query):
            return []
        now = time.monotonic()
        if all(until < now for until in self._until.values()):
            self._until = {}
        return [ref for ref in effect.refs if self._until.get(ref, 0.0) > now]


def stale_refs(effect: Apply, answer: Any) -> list[Ref]:
    """Return the records that an effect's stale steps name, or an empty list if no step was stale."""
    steps = [step for step, each in zip(effect.steps, answer[0], strict=True) if type(each) is Stale]
    return list(dict.fromkeys(ref for step in steps for ref in (*step.expect, *(each.ref for each in step.adds))))


class Ended(Exception):
    """Raised when an operation ends during its turn, with a result or an error."""

    def __init__(self, result: Any, error: BrokerError | None = None) -> None:
        self.result, self.error = result, error


def advance(operation: Operation[Any], answer: Any) -> Effect:
    """Send an answer to an operation, and return its next effect. Raises Ended if the operation returns, or raises a BrokerError."""
    try:
        return operation.send(answer)
    except StopIteration as end:
        raise Ended(end.value) from None
    except BrokerError as error:
        raise Ended(None, error) from error

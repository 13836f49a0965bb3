"""Collects the decisions of an operation before a store applies them.

The decision on each item of a batch sees the records as the earlier decisions would leave them. A draft tracks which records each decision
reads and writes, so that the store can refuse the decision if one of these records has changed in the meantime.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from taskflow.broker.engine.job import Job
from taskflow.broker.engine.records import Kind, Position
from taskflow.broker.engine.seam import (
    ABSENT,
    KEEP,
    Addition,
    Applied,
    Apply,
    Entry,
    Full,
    Keep,
    Locked,
    Operation,
    Put,
    Query,
    Record,
    Ref,
    Scan,
    Snapshot,
    Step,
)
from taskflow.model.errors import BrokerUnavailable, StoreFull
from taskflow.model.rules import Rules

Item = TypeVar("Item")
T = TypeVar("T")

MAX_ROUNDS: Final = 8
"""How many times the items of an operation are decided before it fails, if their records keep changing."""

MAX_CHAIN: Final = 6
"""The maximum number of queries for one round of decisions. More would be needed only if records change between two queries."""


class Missing(Exception):
    """Raised when a decision needs a record that wasn't loaded."""


class Foreseen(NamedTuple):
    """Facts that are known in advance, so that decisions need no second query.

    `waiting`  for each gate, how many of its waiting jobs the decisions will probably need
    `scans`    scans without records: for the first job of each line (see turns.py) that jobs will probably join, or for paused queues
    `seen`     the answer to the first query, if the caller has made it
    `after`    for a gate whose first waiting jobs don't matter, the position after which the others begin
    """

    waiting: Mapping[bytes, int] = {}
    scans: frozenset[Scan] = frozenset()
    seen: Snapshot | None = None
    after: Mapping[bytes, Position] = {}


class Left:
    """Collects the work that decisions leave to a later decision: see `Draft.released`, `Draft.opened` and `Draft.actions`."""

    def __init__(self, released: Iterable[bytes] = (), actions: Mapping[bytes, Any] = {}) -> None:
        self.released, self.opened, self.actions = set(released), set[bytes](), dict(actions)

    def take(self, draft: Draft) -> None:
        self.released |= draft.released
        self.opened |= draft.opened
        self.actions |= draft.actions


class Plain:
    """A record of any kind except a job: its header and its stored body."""

    __slots__ = ("content", "entries", "header", "ref", "state")

    def __init__(self, ref: Ref, header: dict[str, Any], state: bytes | Keep | None = KEEP, content: bytes | Keep = KEEP) -> None:
        self.ref, self.header, self.state, self.content = ref, header, state, content
        self.entries: dict[str, tuple[str | bytes, ...]] | None = None

    def to_put(self) -> Put:
        return Put(self.ref, self.header, self.state, content=self.content, entries=self.entries)


class Part:
    """The decision on one item: the records that it reads and writes, and what else it changes."""

    __slots__ = ("additions", "read", "totals", "wakes", "written")

    def __init__(self) -> None:
        self.read: set[Ref] = set()
        self.written: dict[Ref, None] = {}  # ordered: new records are numbered in the order of the writes
        self.additions: dict[tuple[Ref, str], int] = {}
        self.totals: dict[tuple[str, str], int] = {}
        self.wakes: set[str] = set()

    @property
    def is_empty(self) -> bool:
        return not (self.written or self.additions or self.totals)


class Draft:
    """The records as they would be after the decisions so far."""

    def __init__(self, seen: Snapshot, rules: Rules, scans: Sequence[Scan] = ()) -> None:
        """`scans` are the query's scans for gates, and those in `Foreseen.scans`. Their entries come last in `seen`."""
        self.seen, self.rules = seen, rules
        self.now, self.steady, self._stored = seen.now, seen.steady, seen.records
        self.missing = set[Ref]()
        self.released = set[bytes]()
        """The jobs whose `awaits` the decisions change: some may have nothing left to await."""
        self.actions = dict[bytes, Any]()
        """The actions on flows that the decisions begin."""
        self.opened = set[bytes]()
        """The gates that now have room and may have waiting jobs: see gates.py."""
        self.wanted = Counter[bytes]()
        """For each gate with too few waiting jobs loaded, how many the decisions need to see."""
        self.unseen = set[Scan]()
        """The lines (see turns.py) whose first job the decisions need to see."""
        found = dict(zip(scans, seen.scans[len(seen.scans) - len(scans) :], strict=True))
        self.scanned = {scan: entries for scan, entries in found.items() if not scan.with_records}
        scans = [scan for scan in scans if scan.with_records]
        self._waiting = {scan.prefix[0]: deque(found[scan]) for scan in scans}
        for entries in self._waiting.values():
            self._stored.update({entry.ref: entry.record for entry in entries})
        self.has_seen_all = {scan.prefix[0] for scan in scans if scan.after is None and len(self._waiting[scan.prefix[0]]) < scan.limit}
        """The gates whose waiting jobs were all loaded."""
        self.part = Part()
        self._parts = list[Part]()
        self._is_whole = False
        self._current: dict[Ref, Job | Plain | None] = {}

    def decide(self, items: Sequence[Item], one: Callable[[Draft, Item], T], *, together: bool) -> list[T]:
        """Call `one` for each item in turn, and return its answers. If `lacks` is true afterwards, they are not valid.

        Each decision is a separate part. With `together`, all parts that change anything are applied as one step.
        """
        self._is_whole = together
        answers = list[T]()
        for item in items:
            self.part = Part()
            self._parts.append(self.part)
            try:
                answers.append(one(self, item))
            except Missing:
                continue
            except Exception:
                if not self.lacks:  # otherwise an earlier item may have left a record half changed, and all items are decided again
                    raise
        return answers

    @property
    def lacks(self) -> bool:
        """True if the decisions need more than was loaded."""
        return bool(self.missing or self.wanted or self.unseen)

    # --- records ---------------------------------------------------------------------------------------------

    def job(self, job_id: bytes) -> Job | None:
        found = self._get(Ref(Kind.JOB, job_id))
        assert found is None or isinstance(found, Job)
        return found

    def plain(self, kind: int, record_id: bytes) -> Plain | None:
        found = self._get(Ref(kind, record_id))
        assert found is None or isinstance(found, Plain)
        return found

    def put(self, record: Job | Plain) -> None:
        """Add a new or changed record to those that the current part writes."""
        ref, part = record.ref, self.part
        part.read.add(ref)
        part.written[ref] = None
        self._current[ref] = record

    def drop(self, ref: Ref) -> None:
        self.part.read.add(ref)
        self.part.written[ref] = None
        self._current[ref] = None

    def add(self, ref: Ref, field: str, n: int) -> None:
        additions = self.part.additions
        additions[ref, field] = additions.get((ref, field), 0) + n

    def _get(self, ref: Ref) -> Job | Plain | None:
        current = self._current
        if ref in current:
            self.part.read.add(ref)
            return current[ref]
        if ref not in self._stored:
            self.missing.add(ref)
            raise Missing
        self.part.read.add(ref)
        stored = self._stored[ref]
        record: Job | Plain | None
        if stored is None:
            record = None
        elif ref.kind == Kind.JOB:
            record = Job.of_record(stored)
        else:
            record = Plain(ref, dict(stored.header), stored.state)
        current[ref] = record
        return record

    def has_loaded(self, refs: Iterable[Ref]) -> bool:
        return all(ref in self._current or ref in self._stored for ref in refs)

    def require(self, refs: Iterable[Ref], *, frees: bool = False, heads: Iterable[Scan] = ()) -> None:
        """Register which of these records and scans weren't loaded, and raise Missing if anything is missing. With `frees`, the refs are
        gates that get a free slot, so their waiting jobs are needed too."""
        self.unseen.update(scan for scan in heads if scan not in self.scanned)
        for ref in refs:
            is_known = ref in self._current or ref in self._stored
            if not is_known:
                self.missing.add(ref)
            if frees and ref.id not in self._waiting:
                gate = self.plain(*ref) if is_known else None
                if not is_known or (gate is not None and gate.header["has_waiting"]):
                    self.wanted[ref.id] += 2
        if self.lacks:
            raise Missing

    def head(self, line: Scan) -> Entry | None:
        """Return a line's first entry as it was before these decisions, or None if the line was empty. Call `require` first."""
        return next(iter(self.scanned[line]), None)

    def waiting(self, gate: bytes) -> deque[Entry] | None:
        """Return the entries of the jobs that wait at a gate, in order, or None if they weren't queried. Decisions remove the entries that
        they have handled."""
        return self._waiting.get(gate)

    # --- what else a decision changes ------------------------------------------------------------------------

    def count(self, queue: str, event: str) -> None:
        totals = self.part.totals
        totals[queue, event] = totals.get((queue, event), 0) + 1

    def wake(self, topic: str) -> None:
        self.part.wakes.add(topic)

    # --- steps -----------------------------------------------------------------------------------------------

    def steps(self) -> list[tuple[list[int], Step]]:
        """Return the steps, each with the numbers of its parts. Parts that change nothing are left out.

        Two parts belong to the same step if one of them writes a record that the other reads or writes.
        """
        parts = [(number, part) for number, part in enumerate(self._parts) if not part.is_empty]
        groups = [parts] if self._is_whole and parts else _tied(parts)
        return [([number for number, _ in group], self._step([part for _, part in group])) for group in groups]

    def _step(self, parts: Sequence[Part]) -> Step:
        whole = parts[0] if len(parts) == 1 else _merged(parts)
        stored, current = self._stored, self._current
        expect = {ref: ABSENT if (record := stored[ref]) is None else record.rev for ref in whole.read}
        puts, drops = list[Put](), list[Ref]()
        for ref in whole.written:
            changed = current[ref]
            if changed is not None:
                if ref.kind != Kind.GATE or not _is_as_stored(changed, stored[ref]):  # passing a slot on leaves the gate unchanged
                    puts.append(changed.to_put())
            elif expect[ref] != ABSENT:
                drops.append(ref)
        adds = tuple([Addition(ref, field, n) for (ref, field), n in whole.additions.items()]) if whole.additions else ()
        return Step(expect, tuple(puts), tuple(drops), adds, whole.totals, tuple(whole.wakes))


def _is_as_stored(record: Job | Plain, stored: Record | None) -> bool:
    return stored is not None and (record.header, record.state) == (stored.header, stored.state)


def _merged(parts: Iterable[Part]) -> Part:
    whole = Part()
    for part in parts:
        whole.read |= part.read
        whole.written |= part.written
        _add_up(whole.additions, part.additions)
        _add_up(whole.totals, part.totals)
        whole.wakes |= part.wakes
    return whole


def _add_up(total: dict[Any, int], numbers: dict[Any, int]) -> None:
    for name, number in numbers.items():
        total[name] = total.get(name, 0) + number


def _tied(parts: Sequence[tuple[int, Part]]) -> list[list[tuple[int, Part]]]:
    """Group the parts that must be applied together in one step."""
    if sum([len(part.read) for _, part in parts]) == len(set().union(*[part.read for _, part in parts])):
        return [[numbered] for numbered in parts]
    group_of = list(range(len(parts)))

    def find(at: int) -> int:
        while group_of[at] != at:
            group_of[at] = at = group_of[group_of[at]]
        return at

    readers: dict[Ref, int] = {}
    written = {ref for _, part in parts for ref in part.written}
    for at, (_, part) in enumerate(parts):
        for ref in part.read & written:
            group_of[find(at)] = find(readers.setdefault(ref, at))
    groups: dict[int, list[tuple[int, Part]]] = {}
    for at, numbered in enumerate(parts):
        groups.setdefault(find(at), []).append(numbered)
    return list(groups.values())


# --- deciding again until nothing has changed ---------------------------------------------------------------------


def decide(
    items: Sequence[Item],
    one: Callable[[Draft, Item], T],
    rules: Rules,
    look: Query,
    *,
    locked: T | None = None,
    grows: bool = False,
    together: bool | None = False,
    left: Left | None = None,
    foreseen: Foreseen | None = None,
) -> Operation[list[T]]:
    """Call `one` to decide each item, apply the decisions, and return the answers. Items whose records change meanwhile are decided again.

    `look`      a query for the records that the decisions will probably need; others are loaded on demand
    `locked`    the answer for an item whose records another program's open transaction has locked
    `grows`     True if jobs are added, so that the store first checks whether it has room
    `together`  True to apply all decisions as one step; None to try that first, which is faster, and to separate them if it fails
    `foreseen`  facts that are known in advance
    `left`      collects the work that is left to a later decision

    Raises StoreFull if the store has no room. Raises BrokerUnavailable if records keep changing, or are locked and `locked` is None.
    """
    answers, foreseen = dict[int, T](), foreseen or Foreseen()
    known, sizes, more, is_locked = set(look.refs), dict(foreseen.waiting), set(foreseen.scans), False
    rounds = deque([(list(range(len(items))), 1)] if items else ())
    while rounds:
        numbers, tries = rounds.popleft()
        if tries > MAX_ROUNDS:
            why = "another program's open transaction has locked" if is_locked else "other clients keep changing"
            raise BrokerUnavailable(f"{why} the records of this call: try again")
        chosen = [items[number] for number in numbers]
        is_whole = tries == 1 if together is None else together
        drafted = yield from _draft(chosen, one, rules, look, known, sizes, more, together=is_whole, foreseen=foreseen)
        foreseen = foreseen._replace(seen=None)  # later rounds query again
        if drafted is None:
            rounds.append((numbers, tries + 1))
            continue
        draft, decided = drafted
        answers.update(zip(numbers, decided, strict=True))
        steps = draft.steps()
        if not steps:
            continue
        if left is not None:
            left.take(draft)
        (results, _), stale = (yield Apply([step for _, step in steps], grows=grows)), list[int]()
        for (places, _), result in zip(steps, results, strict=True):
            of_step = numbers if is_whole else [numbers[place] for place in places]
            if isinstance(result, Full):
                raise StoreFull(result.says)
            if isinstance(result, Locked) and len(of_step) > 1 and not is_whole:
                rounds.extend(([number], tries) for number in of_step)
            elif isinstance(result, Locked) and locked is not None and is_whole is bool(together):
                answers.update(dict.fromkeys(of_step, locked))
            elif not isinstance(result, Applied):  # Stale, or Locked, perhaps only while another client's call is in progress
                stale += of_step
                is_locked = is_locked or isinstance(result, Locked)
        if stale:
            rounds.append((stale, tries + 1))
    return [answers[number] for number in range(len(items))]


def _draft(
    items: Sequence[Item],
    one: Callable[[Draft, Item], T],
    rules: Rules,
    look: Query,
    known: set[Ref],
    sizes: dict[bytes, int],
    more: set[Scan],
    *,
    together: bool,
    foreseen: Foreseen,
) -> Operation[tuple[Draft, list[T]] | None]:
    """Load the records that the decisions need, and decide. Return the draft and the answers, or None if `MAX_CHAIN` queries are too few.
    `sizes` maps each gate to how many waiting jobs to read there, and `more` are further scans."""
    seen = foreseen.seen
    for _ in range(MAX_CHAIN):
        scans = [*(Scan("gated", size, (gate,), foreseen.after.get(gate)) for gate, size in sizes.items()), *more]
        draft = Draft(seen or (yield look._replace(refs=tuple(known), scans=(*look.scans, *scans))), rules, scans)
        seen = None
        answers = draft.decide(items, one, together=together)
        if not draft.lacks:
            return draft, answers
        if not (draft.wanted or draft.unseen):  # records may be of different moments: the steps expect the revisions of all of them
            rest: Snapshot = yield look._replace(refs=tuple(draft.missing), scans=(), groups=())
            seen = rest._replace(records=draft.seen.records | rest.records, scans=draft.seen.scans, groups=draft.seen.groups)
        known |= draft.missing
        more |= draft.unseen
        sizes.update(draft.wanted)
    return None

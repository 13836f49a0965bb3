"""Engines with one rule wrong, to test the suite: the clauses named must fail on the memory store.

A change begins with the functions to change, the clauses, and how the defect harms. Beside the reference broker, which shares no code with
the engine, the state machine finds those that begin with a star. It reaches the steps of the others too seldom.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from tests.support.changes import Change, Changed

_CHANGES: Final = """
* jobs._settle: settle_repeat settle_stale: a run that was lost settles the next one's job
- (header["status"], header["epoch"], header["session"], header["claim"]) != (RUNNING, settlement.epoch, session, claim)
+ header["status"] != RUNNING

* jobs._settle: settle_stale: epochs repeat after the store lost its latest changes
- (header["status"], header["epoch"], header["session"], header["claim"]) != (RUNNING, settlement.epoch, session, claim)
+ (header["status"], header["epoch"]) != (RUNNING, settlement.epoch)

* jobs._answer_repeated: settle_repeat: a settlement whose reply was lost counts as stale
- if settled == _fence(settlement, is_committed=False):
+ if False:

jobs._settle: settle_progress: the last progress of a run is not kept
- if settlement.progress is not None:
+ if False:

jobs._settle: poison_follow_up: a follow-up of a poison job resets its crashes
- if job.has(Flag.POISON):
+ if False:

* jobs._settle: settle_follow_ups: a follow-up is lost
- for follow_up in settlement.follow_ups:
+ for follow_up in ():

* moves.ask_to_stop: cancel_running: a run does not learn that it was cancelled
- job.set_flag(Flag.MARKED, True)
+ pass

moves.ask_to_stop: listen_session: a run learns of its cancellation only with the next heartbeat
- draft.wake(topics.session(job.header["session"]))
+ pass

* moves.requeue: key_gives_way: two jobs with one key wait
- successor = _successor(draft, job)
+ successor = None

* moves.requeue: crash_marked settle_marked: a job that was asked to stop runs again
- successor is not None or job.state.stop is not None
+ successor is not None

* moves.requeue: beat_ghosts hand_back_place: a job that was handed back goes to the end of its queue
-         move(draft, job, transition.event, READY)
+         job.header["due_at"] = NOW
+         move(draft, job, transition.event, READY)

* moves.finish: key_gives_way key_waits_behind: a key is never freed
- release_key(draft, job.id, job.sent.key)
+ pass

* moves.finish: joins: a job that awaits others never runs
- if job.has(Flag.AWAITED):
+ if False:

moves.finish: ends_heard: the end of a cancelled job is not reported
- if not is_settled and draft.seen.scans[1]:
+ if False:

* moves.add: enqueue_clash enqueue_repeat: a resent job replaces itself
- if (known := draft.job(envelope.id)) is not None:
+ if (known := None) is not None:

* moves.take_key: key_replaces: a job and its replacement both run
- if waiting is not None:
+ if False:

* moves.take_key: key_waits_behind: two jobs with one key run
- if running is not None:
-         job.set_flag
+ if False:
+         job.set_flag

* moves.holders: key_keeps key_waits_behind: a key is never freed once a failed job had it
- job is not None and job.is_waiting
+ job is not None

* moves.enter: enqueue_adds hand_back_backoff upkeep_due: a delayed job runs at once
- isinstance(due_at, After) or due_at <= draft.now
+ True

* decisions._free: joins: a job runs before those that it awaits
- job.header["awaits"] <= 0 and not
+ not

* moves.bury: admin_drop admin_purge: a resent job runs twice
- if forgotten_at <= draft.now:
+ if True:

moves.apply_transition: poison_follow_up: a poison job loses its follow-up
- job.header["expires_at"], job.state.reason = None, text_bytes(transition.reason)
+ job.state.reason = text_bytes(transition.reason)

* moves.apply_transition: settle_history: a failure is not recorded
- if transition.error is not None:
+ if False:

* sessions._extend: beat_dead: a session that was reaped lives on, and its jobs run twice
- session is None or session.header["dead_at"] is not None
+ session is None

* sessions._return_ghosts: beat_young: a job is handed back while its lease is under way
- if draft.steady - job.header["claimed_steady"] < to_microseconds(rules.ghost_after):
+ if False:

* sessions.beat: beat_ghosts: a lease whose answer was lost is never returned
- claim not in named and claim.request <= beat.seen
+ False

* sessions.release: crash_backoff crash_poison: a job that kills its workers is never poison
- if died_of is None:
+ if True:

sessions.release: beat_leaving hand_back_backoff: a shutdown counts as a crash
- if died_of is None:
+ if False:

* maintenance.record_outage sessions.record_outage: outage: in an outage, the session that sent its last heartbeat first has crashed
- ttl * 2 // 3
+ ttl

* maintenance.lapse: outage: a crash beside an outage does not count
- silent_until - beat_at > ttl and silent_until
+ silent_until

* maintenance._reap: outage: the whole fleet is reaped after a failover
- if lapses_at > draft.steady:
+ if False:

* maintenance._expire: upkeep_expires: a job runs after its expiry
- if job is None or not job.is_waiting
+ if True or not job.is_waiting

* jobs._cancel: cancel_waiting: a job that was cancelled runs
- if job.is_waiting:
+ if False:

* jobs._shown: read_kept: a job is shown for longer than it is kept
- if job is not None and job.is_kept(seen.now) else
+ if job is not None else

* moves.apply_transition: settle_resets: crashes between successes make a job poison
- job.counters = transition.counters
+ job.counters = max(job.counters, transition.counters)

moves.finish: ends_unheard: ends are recorded without a subscriber
- if not is_settled and draft.seen.scans[1]:
+ if not is_settled:

moves.finish: ends_settled: a hook is called twice for an end
- if not is_settled and draft.seen.scans[1]:
+ if draft.seen.scans[1]:

* sessions.register: register_dead: a reaped session begins again
- is_alive = known is None or known.header["dead_at"] is None
+ is_alive = True

* sessions.beat: beat_lost: a worker goes on with a job that it has lost
- if claim not in leases.held),
+ if False),

* sessions.beat: beat_stopping: a job that should stop runs on
- if claim in leases.stopping),
+ if False),

* maintenance._reap: upkeep_reaps: jobs of a dead worker never run again
- if lapses_at > draft.steady:
+ if True:

maintenance.upkeep: upkeep_bounded: one call makes a whole night's jobs ready
- Promote(limit - len(taken))
+ Promote(10 * limit)

* maintenance._drop: upkeep_caps: ended jobs fill the store
- rules.kept_per_queue
+ 10**9

schedules.fire: schedule_cas: a schedule fires once for each worker
- body is None or not (firing.is_extra or body.state.expects(firing))
+ body is None

schedules._add: schedule_alone: a nightly flow runs beside yesterday's, because that one's last job has ended
- heads=[alive := flows.alive(state.last_flow)]
+ heads=[alive := flows.alive(bytes(16))]

schedules._add: schedule_alone: after an hour without a worker, many flows run side by side
- added.add(state.last_flow)
+ pass

schedules._add: schedule_fires schedule_extra: a schedule sends a part of a flow
- moves.add_flow(draft, firing.envelopes)[-1]
+ moves.add(draft, last)

moves.add_flow: flow_whole schedule_fires: a flow that is sent again after an hour waits for jobs that are forgotten
- any(draft.job(envelope.id) is not None for envelope in envelopes)
+ False

schedules.fire: schedule_extra: a trigger moves the next time
- if not firing.is_extra:
+ if True:

schedules.fire: schedule_advances schedule_fires: a schedule fires again and again
- body.state.advance(firing)
+ pass

schedules.hand_over: schedule_handover: a dead worker's schedule remains
- each.session != session
+ True

schedules.define: schedule_session: a reaped worker declares a schedule
- known is None or known.header["dead_at"] is not None
+ known is None

schedules.offers: schedule_declared: a schedule that no worker declares is kept for ever
- if body.state.asleep_since is not None:
+ if False:

admin.retry: admin_retry: a failed job is retried beside another job with its key
- if any(moves.holders(draft, job.sent.key)):
+ if False:

admin.retry: admin_retry: a success is retried
- if job.status == SUCCEEDED:
+ if False:

admin.retry: admin_retry: a running job is retried
- if job.is_live:
+ if job.is_waiting:

admin._run_now: admin_run_now_leaves: a job that waits for a key runs now
- if found is Status.SCHEDULED and
+ if found in (Status.SCHEDULED, Status.HELD) and

admin.drop: admin_drop: a live job is dropped
- if found.is_ended:
+ if found is not Status.RUNNING:

gates.admit: gate_takes gate_never_over: a limit has no effect
- if full is not None:
+ if False:

gates.admit: gate_never_over: one job more than the limit allows starts
- each[0].header["taken"] >= each[0].header["most"]
+ each[0].header["taken"] > each[0].header["most"]

gates.admit: gate_all_or_none: a job that waits at one gate holds slots of the others
- _wait(draft, job, full[0])
+ [(r.header.update(taken=r.header["taken"] + 1), draft.put(r)) for r, g in passed if g is not full[1]]; _wait(draft, job, full[0])

gates.leave: gate_passes_on: a slot is given back twice
- record.header["taken"] -= 1
+ record.header["taken"] -= 2

handover.by_step: gate_never_over gate_passes_on: a slot is handed on and is free too
- gate.header["taken"] + len(passing) - len(ending)}
+ gate.header["taken"] - len(ending)}

handover._may_pass: gate_all_or_none: a job passes only one of its gates
- (Flag.FAIR | Flag.MANY_GATES)
+ Flag.FAIR

handover._is_limited_run: gate_passes_on: a run that is over ends the next one's job
- (header["status"], header["epoch"], header["session"], header["claim"]) == lease
+ header["status"] == RUNNING

maintenance.take_back: gate_taken_back: a queue that nobody serves keeps the slots of a shared limit for ever
- if not gates.leave_to_others(draft, job):
+ if True:

gates._pay: gate_rate: jobs start as fast as they arrive
- if not starts or max(starts) < 0:
+ if True:

gates.declare: gate_number: a deployed number has no effect
- for gate in limits:
+ for gate in ():

limits.set_number: gate_number: READY jobs keep their slots when an operator sets a lower number
- elif is_over:
+ elif False:

jobs.admit_again: gate_rate: READY jobs start although a run has closed their rate
- or (each["closed_until"] or 0) > draft.now
+

answers.merge: debounce_last: a debounced call keeps the limits of an earlier one
- envelope.limits), ()
+ job.sent.limits), ()

moves.add: debounce_last: a READY job keeps the slots of limits that a debounced call doesn't have
- if waiting.status == READY and
+ if False and

admin._run_now: gate_acts: run_now sends a job that waits for a rate to the end of the line
- and job.state.paid is None
+

moves.enter: gate_acts: a retried job passes its gates without a slot
- gates.admit(draft, job)
+ True

limits._in_force: admin_limits: limits that hold up jobs are not listed
- if limit in (None, each[1].limit) and each[1].id != gates.of_pause(each[1].limit).id
+ if False

limits.records: admin_limits: the jobs that hold slots are not found
- job.has(Flag.LIMITED)
+ False

limits.records: admin_limits: the next jobs are not listed
- seen.scans[len(crowded) :]
+ ()

limits.set_number: admin_set_limit: a number that an operator sets has no effect
- int(is_set), gate.most
+ int(is_set), record.header["most"]

limits._pay_anew: admin_set_limit: jobs keep the times that a closed rate gave them
- enter(draft, job, Event.DUE)
+ pass

flows.end: flow_collects: a join starts before its last member has ended, because one was counted twice
- draft.add(Ref(Kind.JOB, successor), "awaits", -1)
+ draft.add(Ref(Kind.JOB, successor), "awaits", -2)

flows.end: flow_released flow_redo: a join is lost, because its members do not count
- draft.add(Ref(Kind.JOB, successor), "awaits", -1)
+ pass

flows.end: flow_result: a result is lost
- note = result_note(result or b"")
+ note = result_note(b"")

flows.end: flow_fells: the jobs after a failure wait for ever
- acts = by is None
+ acts = False

flows.end: flow_collects: a collected failure holds up the join for ever
- has_succeeded or (each[1].collects and is_apart)
+ has_succeeded

flows.end: flow_collects: a branch that is cancelled with the whole flow lets the join run
- is_apart = state.cancelled_by is None or (by is not None and (by.first, by.last) == (member.first, member.last))
+ is_apart = True

flows.drop_notes: flow_result: results fill the store
- draft.require(refs)
+ return

flows._failure_of: flow_collects: the cause of a member's failure is lost
- if reason == f"{error.type}: {error.message}"
+ if False

flows.redo: flow_redo: the join gets a failure in place of the retry's result
- state.counted
+ False

flows.redo: flow_redo: a retry restores nothing
- if acts and (_acts(job, member) or job.header["awaits"] > 0):
+ if False:

flows.redo: flow_redo: a job that is retried alone waits for ever for others that are not
- or job.header["awaits"] > 0
+ or False

flows.redo: flow_redo: a join that is retried together with a member starts without its result
- waiting.add_awaited(1)
+ pass

flows.redo: flow_redo: a join that runs gets a second end of the same member
- state.spent = (*state.spent, successor)
+ pass

decisions._finish: flow_redo: a restored join waits for ever, because another failure remains
- if action.what == flows.RESTORE
+ if False

flows.Census.failures: flow_redo: a restored join waits for ever, because another failure remains
- if at(waiting, first) < at(waiting, last + 1)
+ if False

decisions._give_up: flow_redo: a restored join waits for ever for a job that was dropped
- job.header["awaits"] > 0
+ False

flows.Census.in_vain: flow_redo: a restored join is cancelled, though all jobs that it awaits exist
- job.header["awaits"] > self._awaited[job.id]
+ True

flows.redo: flow_redo: of two failures that are retried at once, one stays in force
- known.retried | new.retried
+ new.retried

flows.redo: flow_redo: of two branches that are retried at once, one is not restored
- replace(together([known, new]),
+ replace(new,

decisions._free: flow_result: a result is kept for ever, because its recipient was dropped
- flows.put(draft, job_id, flows.Action(flows.FORGET, job_id), leaves=True)
+ pass

decisions._act: flow_redo: a job that was to start tomorrow starts at once
- redo(draft, job, job.header["due_at"])
+ redo(draft, job)

decisions._carry_on: upkeep_bounded: one call cancels hundreds of jobs of a flow
- room = min(PORTION, most - number)
+ room = PORTION

moves.finish: flow_fells: the jobs that a cancelled job's end cancelled are dropped too early to be restored
- keep = draft.rules.keep_failed
+ pass

moves.make_fresh: flow_redo: a restored join starts at once
- if job.sent.member is None:
+ if True:

decisions._act: flow_fells: the jobs that a failure cancelled are dropped before the failed job
- keep=action.keep
+ keep=None

flows._cancel_awaiting: admin_purge: a purged flow is kept for retries, which can't restore it
- PURGED_TTL if is_purged else draft.rules.keep_failed
+ draft.rules.keep_failed

admin._purger: admin_purge: the jobs that a purge cancelled are not purged
- if job.state.reason != text_bytes(
+ if text_bytes("") != text_bytes(

decisions._act: flow_cancel: a job of a cancelled flow runs on
- elif job.status == RUNNING and
+ elif False and

admin.newest_flows: admin_flows: a large flow hides the ones before it
- after = (numbered([*last][-1], 0),)
+ break

admin.flow: admin_flow: each page of a flow begins with its first job
- flows.whole(flow_id, first, limit)
+ flows.whole(flow_id, 0, limit)

jobs._settle: gate_late: a job whose sender did not know a limit passes it
- if isinstance(settlement.verdict, HandedBack) and settlement.verdict.limits is not None:
+ if False:

turns.take: fair_turns: a tenant with many jobs holds up all others
- draft.require([ref], heads=[scan])
+ ref = turn_ref(line, b""); draft.require([ref], heads=[scan])

turns.take: fair_turns: a tenant that arrives late is placed behind all earlier jobs
- draft.now if first is None else first.position[2]
+ draft.now

turns.take: fair_turns: all jobs of a tenant run before those that arrived earlier
- max(place, turn.header.get("place", 0) + 1)
+ place

turns.take: fair_comes_back: a job that comes back passes its old place on to new tenants
- draft.now if isinstance(due_at, After) else due_at if first is None else max(due_at, place)
+ due_at

moves.requeue: fair_comes_back: a tenant whose jobs fail gets more than its share
- if job.has(Flag.FAIR) and not transition.is_paused:
+ if False:

admin.queues: fair_times: a line that never ends seems to be as old as its beginning
- if seen.scans[2] else
+ if False else

turns.forget: fair_forgets: tenants are kept for ever
- elif turn is not None:
+ elif False:

turns.forget: fair_forgets: a tenant is forgotten while it waits, and starts again
- turn.header["place"] >= places[line]
+ False

jobs.compare_known: enqueue_clash: a job with a known id and other contents counts as sent
- isinstance(answer, Refused) and answer.because == "id"]
+ False]

history.record: history_repeat: measures that were sent again are counted twice
- if draft.plain(*ref) is None:
-             draft.put(_period(ref, 0, draft.now, measures))
+ known = draft.plain(*ref)
+         both = add_up(unpack_measures(known and _state(known)), unpack_measures(measures))
+         draft.put(_period(ref, 0, draft.now, pack_measures(both)))

history.roll: history_levels: measures are counted again each time they are added up
- draft.drop(part.ref)
+ pass

history.roll: history_levels: only the last worker's measures are kept
- known = draft.plain(*target)
+ known = None
"""


def _changed(text: str) -> Changed:
    first, *lines = text.splitlines()
    functions, breaks, because = first.removeprefix("* ").split(": ")
    before, after = ("\n".join(line[2:] for line in lines if line[0] == sign) for sign in "-+")
    changes = list[Change]()
    for name in functions.split():
        module, *owner, function = name.split(".")
        found = import_module(f"taskflow.broker.engine.{module}")
        changes.append(Change(getattr(found, owner[0]) if owner else found, function, before, after))
    return Changed(f"{functions.split()[0]}: {because}", because, tuple(changes), frozenset(breaks.split()))


_TEXTS: Final = _CHANGES.strip().split("\n\n")
ENGINES: Final = tuple(map(_changed, _TEXTS))
FOUND: Final = tuple(changed for changed, text in zip(ENGINES, _TEXTS, strict=True) if text.startswith("* "))

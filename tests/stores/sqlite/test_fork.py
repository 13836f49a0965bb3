"""A process forks with a broker open."""

from __future__ import annotations

from pathlib import Path

from tests.stores.sqlite.support import run_script


def test_parent_and_child_go_on_with_the_same_broker(path: Path) -> None:
    """Between two calls: the child starts afresh, also its listening, and leaves alone what is its parent's."""
    script = """
        import asyncio, os, sys, warnings
        from taskflow.broker.sqlite import SqliteBroker
        from taskflow.model.envelope import Envelope
        from taskflow.model.ids import IdFactory

        warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads has its dangers
        broker, an_id = SqliteBroker(sys.argv[1]), IdFactory()

        def add(number, queue):
            jobs = [Envelope(id=an_id(), job="work", payload=b"", queue=queue) for _ in range(number)]
            return asyncio.run(broker.enqueue(jobs))

        async def hear(queue):
            with broker.listen([f"queue:{queue}"]) as waiter:
                await broker.enqueue([Envelope(id=an_id(), job="work", payload=b"", queue=queue)])
                return await waiter.wait(5)

        add(10, "before")
        asyncio.run(broker.console.queues())  # over a connection of its own
        asyncio.run(hear("before"))
        children = []
        for number in range(3):
            pid = os.fork()
            if pid == 0:
                add(10, "child")
                heard = asyncio.run(hear("child")) and len(asyncio.run(broker.console.queues())) > 1
                if number:  # the first one does not even close it
                    asyncio.run(broker.close())
                os._exit(0 if heard else 1) if number == 2 else sys.exit(0 if heard else 1)
            children.append(pid)
            add(10, "parent")
        print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
        add(10, "parent")

        async def count():
            queues = {queue.name: sum(queue.counts.values()) for queue in await broker.console.queues()}
            await broker.close()
            return queues

        print(asyncio.run(count()))
    """
    assert run_script(script, path).splitlines() == ["[0, 0, 0]", "{'before': 11, 'child': 33, 'parent': 40}"]


def test_a_process_that_is_forked_during_a_transaction_can_use_the_file(path: Path) -> None:
    """SQLite's table of a process's locks is copied with the process."""
    script = """
        import asyncio, os, sys, threading, time, warnings
        from taskflow.broker.sqlite import SqliteBroker
        from taskflow.broker.sqlite.store import SqliteStore
        from taskflow.model.envelope import Envelope
        from taskflow.model.ids import IdFactory

        warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads has its dangers
        broker, an_id, parent = SqliteBroker(sys.argv[1]), IdFactory(), os.getpid()
        inside, flush = threading.Event(), SqliteStore.flush

        def flush_late(store):
            if os.getpid() == parent:
                inside.set()
                time.sleep(0.3)
            return flush(store)

        def add():
            return asyncio.run(broker.enqueue([Envelope(id=an_id(), job="work", payload=b"")]))

        add()
        SqliteStore.flush = flush_late
        sender = threading.Thread(target=add)
        sender.start()
        inside.wait()
        if (pid := os.fork()) == 0:
            add()
            os._exit(0)
        sender.join()
        add()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sum(asyncio.run(broker.console.queues())[0].counts.values()))
        asyncio.run(broker.close())
    """
    assert run_script(script, path) == "0 4\n"

"""Calls that wait are handled together; none is lost, and too many are refused at once."""

import asyncio
import threading

import pytest

from recbole_bbqrec.serving.service.batching import Batcher, OverloadedError


class Blocked:
    """A batcher whose thread waits in its first batch until it is told to go on."""

    def __init__(self, size=8, room=100):
        self.batches, self.began, self.go = [], threading.Event(), threading.Event()
        self.batcher = Batcher(self.handle, size, room, "test")

    def handle(self, calls):
        self.batches.append(calls)
        self.began.set()
        assert self.go.wait(10)
        return [ValueError(call) if call < 0 else 10 * call for call in calls]


async def first_blocked(blocked):
    task = asyncio.create_task(blocked.batcher(0))
    await asyncio.to_thread(blocked.began.wait, 10)
    return task


def test_what_waits_is_handled_together_up_to_a_size():
    async def work():
        blocked = Blocked(size=3)
        first = await first_blocked(blocked)
        others = [asyncio.create_task(blocked.batcher(number)) for number in range(1, 6)]
        await asyncio.sleep(0)
        blocked.go.set()
        assert await asyncio.gather(first, *others) == [0, 10, 20, 30, 40, 50]
        blocked.batcher.close()
        return blocked.batches

    assert asyncio.run(work()) == [[0], [1, 2, 3], [4, 5]]


def test_one_that_fails_leaves_the_others_their_results():
    async def work():
        blocked = Blocked()
        blocked.go.set()
        found = await asyncio.gather(*map(blocked.batcher, (1, -1, 2)), return_exceptions=True)
        blocked.batcher.close()
        return found

    one, wrong, two = asyncio.run(work())
    assert (one, two) == (10, 20) and isinstance(wrong, ValueError)


def test_a_handler_that_fails_fails_its_calls_and_works_again():
    def handle(calls):
        if "bad" in calls:
            raise RuntimeError("broken")
        return calls

    async def work():
        batcher = Batcher(handle, 8, 8, "test")
        with pytest.raises(RuntimeError, match="broken"):
            await batcher("bad")
        assert await batcher("good") == "good"
        batcher.close()

    asyncio.run(work())


def test_a_full_queue_refuses_and_goes_on():
    async def work():
        blocked = Blocked(size=1, room=2)
        waiting = [await first_blocked(blocked), *(asyncio.create_task(blocked.batcher(n)) for n in (1, 2))]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="2 requests wait"):
            await blocked.batcher(3)
        blocked.go.set()
        assert await asyncio.gather(*waiting) == [0, 10, 20]
        assert await blocked.batcher(4) == 40
        blocked.batcher.close()

    asyncio.run(work())


def test_close_handles_what_waits_and_takes_no_more():
    async def work():
        blocked = Blocked()
        waiting = [await first_blocked(blocked), asyncio.create_task(blocked.batcher(1))]
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(blocked.batcher.close))
        blocked.go.set()
        await closing
        assert await asyncio.gather(*waiting) == [0, 10]
        with pytest.raises(OverloadedError, match="shutting down"):
            await blocked.batcher(2)

    asyncio.run(work())


def test_a_call_that_is_cancelled_disturbs_nobody():
    async def work():
        blocked = Blocked()
        first, gone = await first_blocked(blocked), asyncio.create_task(blocked.batcher(1))
        other = asyncio.create_task(blocked.batcher(2))
        await asyncio.sleep(0)
        gone.cancel()
        blocked.go.set()
        assert await asyncio.gather(first, other) == [0, 20]
        blocked.batcher.close()

    asyncio.run(work())

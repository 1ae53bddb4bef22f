from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from ovbridge.serve.batcher import MicroBatcher
from ovbridge.serve.failures import RequestError


class Gate:
    """Doubles numbers; waits for `open` before the first batch ends and remembers every batch."""

    def __init__(self) -> None:
        self.open, self.begun, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, jobs: Sequence[int]) -> list[int]:
        self.batches.append(list(jobs))
        self.begun.set()
        assert self.open.wait(10)
        if -1 in jobs:
            raise ValueError("bad job")
        return [2 * job for job in jobs]


async def _queued(batcher: MicroBatcher[int, int], gate: Gate, jobs: Sequence[int]) -> list[object]:
    """Results of `jobs`, all queued while the worker is held up by job 100."""
    first = asyncio.create_task(batcher.submit(100))
    await asyncio.to_thread(gate.begun.wait, 10)
    tasks = [asyncio.create_task(batcher.submit(job)) for job in jobs]
    while batcher.waiting < len(jobs):
        await asyncio.sleep(0.001)
    gate.open.set()
    assert await first == 200
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_jobs_that_wait_together_run_together_by_key() -> None:
    gate = Gate()
    sizes: list[int] = []
    batcher = MicroBatcher(gate, lambda job: job % 2, max_batch=3, on_batch=sizes.append)
    assert asyncio.run(_queued(batcher, gate, [1, 2, 3, 5, 7, 4])) == [2, 4, 6, 10, 14, 8]
    batcher.close()
    assert gate.batches == [[100], [1, 3, 5], [2, 4], [7]]
    assert sizes == [1, 3, 2, 1]


def test_a_bad_job_does_not_spoil_its_batch() -> None:
    gate = Gate()
    batcher = MicroBatcher(gate, lambda job: 0)
    good, bad, other = asyncio.run(_queued(batcher, gate, [1, -1, 2]))
    batcher.close()
    assert (good, other) == (2, 4)
    assert isinstance(bad, ValueError)


def test_a_full_queue_refuses() -> None:
    gate = Gate()
    batcher = MicroBatcher(gate, lambda job: 0, max_waiting=2)

    async def overfill() -> None:
        first = asyncio.create_task(batcher.submit(100))
        await asyncio.to_thread(gate.begun.wait, 10)
        tasks = [asyncio.create_task(batcher.submit(job)) for job in (1, 2)]
        await asyncio.sleep(0.01)
        with pytest.raises(RequestError) as refused:
            await batcher.submit(3)
        assert refused.value.status == 429
        gate.open.set()
        assert await asyncio.gather(first, *tasks) == [200, 2, 4]

    asyncio.run(overfill())
    batcher.close()


def test_who_gave_up_is_not_computed() -> None:
    gate = Gate()
    batcher = MicroBatcher(gate, lambda job: 0)

    async def give_up() -> None:
        first = asyncio.create_task(batcher.submit(100))
        await asyncio.to_thread(gate.begun.wait, 10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit(1), 0.02)
        last = asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0.01)
        gate.open.set()
        assert await asyncio.gather(first, last) == [200, 4]

    asyncio.run(give_up())
    batcher.close()
    assert gate.batches == [[100], [2]]


def test_close_finishes_what_is_queued_and_refuses_more() -> None:
    gate = Gate()
    batcher = MicroBatcher(gate, lambda job: 0)

    async def close_while_queued() -> list[int]:
        tasks = [asyncio.create_task(batcher.submit(job)) for job in (1, 2, 3)]
        await asyncio.to_thread(gate.begun.wait, 10)
        closing = asyncio.get_running_loop().run_in_executor(None, batcher.close)
        gate.open.set()
        results = await asyncio.gather(*tasks)
        await closing
        with pytest.raises(RequestError) as refused:
            await batcher.submit(4)
        assert refused.value.status == 503
        return results

    assert asyncio.run(close_while_queued()) == [2, 4, 6]
    assert not batcher.alive


def test_the_first_worker_serves_whoever_comes_alone() -> None:
    started: list[tuple[int, str]] = []
    ran_on: list[str] = []

    def run(jobs: Sequence[int]) -> list[int]:
        ran_on.append(threading.current_thread().name)
        return list(jobs)

    async def one_after_another(batcher: MicroBatcher[int, int]) -> list[int]:
        return [await batcher.submit(job) for job in range(30)]

    batcher = MicroBatcher(
        run, lambda job: 0, workers=3, on_start=lambda n: started.append((n, threading.current_thread().name))
    )
    assert asyncio.run(one_after_another(batcher)) == list(range(30))
    batcher.close()
    lead = dict(started)[0]
    assert sorted(number for number, _ in started) == [0, 1, 2]
    assert set(ran_on) == {lead}


def test_the_others_help_while_the_first_is_busy() -> None:
    together = threading.Barrier(3, timeout=10)  # Broken, and so an error, unless three workers run at once.

    def run(jobs: Sequence[int]) -> list[int]:
        together.wait()
        return list(jobs)

    async def three_at_once(batcher: MicroBatcher[int, int]) -> list[int]:
        return await asyncio.gather(*(batcher.submit(job) for job in range(3)))

    batcher = MicroBatcher(run, lambda job: 0, max_batch=1, workers=3)
    assert asyncio.run(three_at_once(batcher)) == [0, 1, 2]
    batcher.close()

"""Joins requests that wait at the same time into one pass of the model.

A free worker takes the oldest job at once, with whatever waiting jobs fit it: nobody waits for company, and under
load the queue itself makes the batches. The first worker leads: the others take jobs only while it is busy, so that a
request alone always meets the same, warm thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ovbridge.serve.failures import busy

J = TypeVar("J")
R = TypeVar("R")


@dataclass(eq=False)
class _Waiting(Generic[J, R]):
    job: J
    key: Hashable
    future: asyncio.Future[R]
    loop: asyncio.AbstractEventLoop


class MicroBatcher(Generic[J, R]):
    """A queue of jobs and the threads that run them in batches.

    Args:
        run: computes the results of several jobs, in order; called in a worker thread.
        key: only jobs with equal keys go into one batch.
        max_batch: most jobs in a batch.
        max_waiting: most jobs in the queue; beyond it `submit` refuses (429).
        workers: threads.
        on_start: told, in each thread, its number; 0 leads.
        on_batch: told the size of each batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[J]], Sequence[R]],
        key: Callable[[J], Hashable],
        *,
        max_batch: int = 8,
        max_waiting: int = 64,
        workers: int = 1,
        on_start: Callable[[int], None] = lambda number: None,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._run, self._key, self._on_start, self._on_batch = run, key, on_start, on_batch
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._queue: deque[_Waiting[J, R]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._lead_busy = False
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"model-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """True while every worker lives and takes jobs."""
        return not self._stopping and all(thread.is_alive() for thread in self._threads)

    async def submit(self, job: J) -> R:
        """The result of `job`, or what `run` raised for it; raises RequestError 429 when the queue is full.

        A caller that is cancelled (its time is up) takes its job out of the queue.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        waiting = _Waiting(job=job, key=self._key(job), future=future, loop=loop)
        with self._changed:
            if self._stopping:
                raise busy(503, "the server is shutting down: try another or come back later")
            if len(self._queue) >= self._max_waiting:
                raise busy(429, f"{len(self._queue)} pictures are waiting already: try again in a moment")
            self._queue.append(waiting)
            self._changed.notify_all()
        return await future

    def close(self) -> None:
        """Finish what is queued, then stop the workers."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        self._on_start(number)
        while batch := self._take(number):
            self._on_batch(len(batch))
            outcomes = self._outcomes(batch)
            if number == 0:
                # Before anyone hears of it: who asks again at once must meet the lead, not a helper.
                with self._changed:
                    self._lead_busy = False
            for waiting, result, error in outcomes:
                _answer(waiting, result=result, error=error)

    def _take(self, number: int) -> list[_Waiting[J, R]]:
        """The oldest job and those that fit it; empty when there will be no more."""
        leads = number == 0
        with self._changed:
            while True:
                if leads or self._lead_busy:
                    # A job can be cancelled at any moment, so what is taken decides, not what was waiting.
                    batch = self._fitting()
                    if leads and batch:
                        self._lead_busy = True
                        self._changed.notify_all()
                    if batch:
                        return batch
                if self._stopping and not self._queue:
                    self._changed.notify_all()
                    return []
                self._changed.wait()

    def _fitting(self) -> list[_Waiting[J, R]]:
        batch: list[_Waiting[J, R]] = []
        left: deque[_Waiting[J, R]] = deque()
        for waiting in self._queue:
            if waiting.future.cancelled():
                continue
            fits = len(batch) < self._max_batch and (not batch or waiting.key == batch[0].key)
            (batch if fits else left).append(waiting)
        self._queue = left
        return batch

    def _outcomes(self, batch: list[_Waiting[J, R]]) -> list[tuple[_Waiting[J, R], R | None, Exception | None]]:
        """What `run` gave or raised for each job."""
        try:
            results = self._run([waiting.job for waiting in batch])
        except Exception as error:
            if len(batch) == 1:
                return [(batch[0], None, error)]
            # One bad job must not spoil its neighbours: each is tried alone.
            return [outcome for waiting in batch for outcome in self._outcomes([waiting])]
        return [(waiting, result, None) for waiting, result in zip(batch, results, strict=True)]


def _answer(waiting: _Waiting[J, R], *, result: R | None, error: Exception | None) -> None:
    def settle() -> None:
        if waiting.future.done():
            return
        if error is not None:
            waiting.future.set_exception(error)
        else:
            waiting.future.set_result(result)  # type: ignore[arg-type]

    try:
        waiting.loop.call_soon_threadsafe(settle)
    except RuntimeError:
        # The loop is closed: nobody waits for the answer any more.
        return

"""Combines the calls of several threads: whoever finds the engine free runs everything that waits, in shared calls.

A thread that submits work while another one runs a call waits for it. When that call ends, one waiting thread becomes
the leader: it runs the head rows that wait in one call, or else the row groups that wait, as many as a call may have,
and hands over. A leader first waits a moment for the threads whose groups were in the last call, because those are
about to submit their next work; without this, two threads would take turns and never share a call.

A group of many rows, such as a prompt, is computed in parts while other groups wait, so that these do not wait for all
of it, and leaves some calls to the others (`prompt_budget.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.runtime.backend.batching.job import Job
from ouro_edge.runtime.backend.batching.prompt_budget import PromptBudget
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.protocol import GroupOutput, RowGroup

# The wait for threads that are about to submit. Sampling and text take a millisecond or two per thread, one thread at a
# time; a group that misses a call costs another read of the weights, so a longer call is worth a longer wait.
_MIN_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.004, 0.03
_WAIT_TO_CALL_RATIO = 0.25
_BLOCK, _HEAD = "block", ""  # kinds of work: the name of a graph, or the head
_CANCEL_POLL_SECONDS = 0.02  # a Cancel may fire in a signal handler, which may take no locks and can wake no thread


class CallQueue:
    """Runs blocks and heads of one backend.

    A shared block call has at most `max_groups` row groups, and at most `max_prompt_rows` rows of prompts.
    """

    def __init__(
        self,
        run_block: Callable[[list[RowGroup], Cancel | None], list[GroupOutput]],
        run_head: Callable[[Array], Array],
        max_groups: int,
        max_prompt_rows: int,
    ) -> None:
        self._run_block, self._run_head, self._max_groups = run_block, run_head, max_groups
        self._budget = PromptBudget(max_prompt_rows)
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._taken: list[Job] = []  # by the leader, who may be interrupted before they have run
        self._busy = False
        self._recent: set[int] = set()  # threads whose groups were in the last block call
        self._wait_seconds = _MIN_WAIT_SECONDS

    @property
    def waiting(self) -> int:
        """The number of submissions that wait for a call."""
        return len(self._waiting)

    def block(self, groups: Sequence[RowGroup], cancel: Cancel | None, graph: str = _BLOCK) -> list[GroupOutput]:
        """The outputs of these groups, which share calls with others for the same graph.

        Raises Cancelled when `cancel` fires before or during the call.
        """
        outputs: list[GroupOutput] = self._submit(Job(graph, list(groups), cancel))
        if cancel is not None:
            cancel.check()
        return outputs

    def head(self, rows: Array) -> Array:
        """Logits [T, V] of rows [T, W]."""
        logits: Array = self._submit(Job(_HEAD, rows, None))
        return logits

    def _submit(self, job: Job) -> Any:
        with self._changed:
            self._waiting.append(job)
            job.leads, self._busy = not self._busy, True
            self._changed.notify_all()  # a leader may be waiting for this group
        try:
            while not job.done:  # set by the thread that leads, which may be this one
                if job.leads:
                    self._lead(job)
                    continue
                job.wake.wait(None if job.cancel is None else _CANCEL_POLL_SECONDS)
                if job.cancel is not None and job.cancel.cancelled and self._withdraw(job):
                    job.cancel.check()
        except BaseException:  # such as KeyboardInterrupt while waiting: the queue must not wait for this thread
            self._leave(job)
            raise
        if job.error is not None:
            raise job.error
        return job.result

    def _withdraw(self, job: Job) -> bool:
        """Take a cancelled job out of the queue; False if it is running, done or leading."""
        with self._changed:
            if job.leads or job not in self._waiting:
                return False
            self._waiting.remove(job)
            return True

    def _lead(self, job: Job) -> None:
        """Run what waits until the own job is done, then hand over."""
        try:
            while not job.done:
                if job.cancel is not None:
                    job.cancel.check()
                self._await_recent()
                if not self._run_heads():
                    self._run_groups(job)
        finally:
            self._leave(job)

    def _leave(self, job: Job) -> None:
        """Take a job out of the queue, and hand over if it leads."""
        with self._changed:
            job.abandoned = not job.done
            if not job.done and job in self._waiting:
                self._waiting.remove(job)
            if not job.leads:
                return
            job.leads = False
            left = (other for other in self._taken if not (other.done or other.abandoned or other in self._waiting))
            self._waiting, self._taken = [*left, *self._waiting], []
            if self._waiting:
                self._waiting[0].leads = True
                self._waiting[0].wake.set()
            else:
                self._busy = False

    def _await_recent(self) -> None:
        """Wait until the threads of the last call have submitted again, for a few milliseconds at most."""
        deadline = time.monotonic() + self._wait_seconds
        with self._changed:
            while True:
                there, left = {job.thread for job in self._waiting}, deadline - time.monotonic()
                if self._recent <= there or len(there) >= self._max_groups or left <= 0:
                    return
                self._changed.wait(left)

    def _run_heads(self) -> bool:
        """Run the head rows that wait; False if there are none."""
        jobs = self._take(_HEAD, 1 << 30)
        if jobs:
            with self._handing_over(jobs):
                logits = self._run_head(np.concatenate([job.work for job in jobs]) if len(jobs) > 1 else jobs[0].work)
                ends = np.cumsum([len(job.work) for job in jobs])[:-1]
                for job, rows in zip(jobs, np.split(logits, ends), strict=True):
                    job.result, job.done = rows, True
        return bool(jobs)

    def _run_groups(self, own: Job) -> None:
        jobs = self._take(own.kind, self._max_groups, own)
        if not jobs:
            return
        alone = self._recent <= {job.thread for job in jobs}
        waiting = [job.waiting_rows() for job in jobs]
        shares = iter(self._budget.share(list(chain(*waiting)), alone))
        counts = [[next(shares) for _ in each] for each in waiting]
        with self._changed:  # prompts whose turn it is not keep their places
            passed_over = (job for job, share in zip(jobs, counts, strict=True) if share == [0])
            self._waiting[:0] = [job for job in passed_over if not job.abandoned]
        planned = [plan for plan in zip(jobs, waiting, counts, strict=True) if plan[2] != [0]]
        self._run([job for job, *_ in planned], [each for _, each, _ in planned], [share for *_, share in planned])

    def _run(self, jobs: list[Job], waiting: list[list[int]], counts: list[list[int]]) -> None:
        """One call with so many of the rows that wait, per job and group."""
        self._recent = {job.thread for job in jobs}
        parts = [job.next_groups(each) for job, each in zip(jobs, counts, strict=True)]
        cancel = jobs[0].cancel if len(jobs) == 1 else None  # a shared call goes on when one of its jobs is cancelled
        with self._handing_over(jobs):
            began = time.monotonic()
            outputs = iter(self._run_block([group for part in parts for group in part], cancel))
            seconds = time.monotonic() - began
            for job, part in zip(jobs, parts, strict=True):
                job.take([next(outputs) for _ in part])
            self._budget.record(list(chain(*waiting)), list(chain(*counts)), seconds)
            self._wait_seconds = min(max(seconds * _WAIT_TO_CALL_RATIO, _MIN_WAIT_SECONDS), _MAX_WAIT_SECONDS)

    def _take(self, kind: str, most: int, own: Job | None = None) -> list[Job]:
        """The waiting jobs of a kind, `own` first, with at most this many groups or rows.

        At most one is a long prompt: a graph has the attention for many rows over a quantised cache only once.
        """
        with self._changed:
            taken: list[Job] = []
            for job in sorted((j for j in self._waiting if j.kind == kind), key=lambda j: j is not own):
                if taken and sum(len(t.work) for t in taken) + len(job.work) > most:
                    break
                if not (job.kind and job.is_long_prompt and any(other.is_long_prompt for other in taken)):
                    taken.append(job)
            self._taken = taken
            for job in taken:
                self._waiting.remove(job)
            return taken

    @contextmanager
    def _handing_over(self, jobs: list[Job]) -> Iterator[None]:
        """Afterwards, wake the threads of the jobs that are done, all of them after an error; the others wait again."""
        try:
            yield
        except BaseException as problem:
            for job in jobs:
                job.error, job.done = problem, True
            if not isinstance(problem, Exception):
                raise
        finally:
            with self._changed:
                self._waiting += [job for job in jobs if not job.done and not job.abandoned]
            for job in jobs:
                if job.done:
                    job.wake.set()

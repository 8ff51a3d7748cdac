"""Jobs side by side: each in a process of its own with a fixed number of threads.

That uses the cores better than many threads in one process, and gives the same numbers whatever runs beside.
"""

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from queue import Empty
from typing import Any, TypeVar

import torch

from fewshot.errors import FewshotError, RecordError

Task = TypeVar("Task")
News = TypeVar("News")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_PR_SET_PDEATHSIG = 1  # of prctl.h
_keeps_memory = False


def prepare_process(threads: int) -> None:
    """Fix the number of threads, and let the allocator keep what it has.

    By default glibc gives every large block back to the system at once and page-faults it in again: measured
    on Conv4-64, that is a quarter of a training step and a third of a forward pass.
    """
    global _keeps_memory
    torch.set_num_threads(threads)
    libc = _libc()
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        _keeps_memory = True


def keeps_memory() -> bool:
    """Whether the allocator of this process keeps what it has, as `prepare_process` tells it where it can."""
    return _keeps_memory


def run_side_by_side(
    work: Callable[[Task, Callable[[News], None]], None],
    tasks: Sequence[Task],
    workers: int,
    report: Callable[[News], None],
) -> None:
    """work(task, report) for each task, at most `workers` at a time; reports arrive in this process.

    A task that fails does not stop the others; what went wrong is raised at the end, as one line.
    """
    context = multiprocessing.get_context("spawn")
    problems: list[BaseException] = []
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(workers, mp_context=context, initializer=die_with_parent) as pool,
    ):
        queue = manager.Queue()
        running = {pool.submit(work, task, queue.put) for task in tasks}
        try:
            while running:
                done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _drain(queue, report)
                problems += [problem for job in done if (problem := job.exception())]
            _drain(queue, report)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    _raise_together(problems)


def die_with_parent() -> None:
    """Where the system can (Linux), end with the process that started this one, however that ends."""
    libc = _libc()
    if libc is not None and hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _raise_together(problems: list[BaseException]) -> None:
    for problem in problems:
        if isinstance(problem, BrokenProcessPool):
            raise RecordError(
                "a process was killed, most likely because the memory ran out: run again with --jobs 1, "
                "it goes on from where it was"
            ) from problem
        if not isinstance(problem, FewshotError):
            raise problem
    lines = list(dict.fromkeys(str(problem) for problem in problems))
    if len(lines) == 1:
        raise problems[0]
    if lines:
        raise RecordError("; and ".join(lines))


def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def _drain(queue: Any, report: Callable[[Any], None]) -> None:
    while True:
        try:
            report(queue.get_nowait())
        except Empty:
            return

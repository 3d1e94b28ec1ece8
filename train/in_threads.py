"""Slow questions side by side, their answers taken one by one in the thread that asked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

FAREWELL = 2.0  # seconds that jobs under way have to end in when the run is stopped


def in_threads(
    jobs: Iterable[Callable[[], Any]], take: Callable[[Any], None], count: int, stop: threading.Event
) -> None:
    """take(job()) for every job, at most `count` at a time; `jobs` is drawn from, and `take` called, in this thread.

    What a job or `take` raises, and Ctrl-C, ends the run: `stop` is set, and what has been answered by then is taken.
    The threads are daemons: a request that hangs does not keep the process.
    """
    waiting: queue.Queue = queue.Queue()
    results: queue.Queue = queue.Queue()
    threads = [threading.Thread(target=_work, args=(waiting, results), daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        running = 0
        for job in jobs:
            waiting.put(job)
            running += 1
            if running == count:
                take(_result(results.get()))
                running -= 1
        for _ in range(running):
            take(_result(results.get()))
    except BaseException:
        stop.set()
        _dismiss(threads, waiting)
        _take_the_rest(results, take)
        raise
    _dismiss(threads, waiting)


def _work(waiting: queue.Queue, results: queue.Queue) -> None:
    while (job := waiting.get()) is not None:
        try:
            results.put((job(), None))
        except BaseException as error:  # a mistake of ours is raised where the jobs came from, not lost in a thread
            results.put((None, error))


def _result(entry: tuple[Any, BaseException | None]) -> Any:
    value, error = entry
    if error is not None:
        raise error
    return value


def _dismiss(threads: list[threading.Thread], waiting: queue.Queue) -> None:
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join(FAREWELL / len(threads))


def _take_the_rest(results: queue.Queue, take: Callable[[Any], None]) -> None:
    while not results.empty():
        with suppress(Exception):  # the first error is the one that is told
            take(_result(results.get_nowait()))

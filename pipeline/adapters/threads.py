"""Two threads, each with operators of its own: at the size of a crop, threads share one operator's work badly."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

THREADS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_pool() -> ThreadPoolExecutor:
    """A pool whose threads have as many torch threads each as the caller: that setting is a thread's own."""
    return ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))


def map_in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items, which are asked for in the caller's thread and no sooner than needed."""
    with thread_pool() as pool:
        under_way: deque[Future[Result]] = deque()
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) == THREADS:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

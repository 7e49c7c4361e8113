"""A world that runs from one seed: virtual time, and threads that take turns.

Threads are greenlets. One runs at a time, and gives way at what a real one could be interrupted or wait at: a system call, a
request to a target, a lock, a queue. When it goes on is drawn from the seed, so that the same seed has the same
interleaving, and another seed another one. The event loop never sleeps: when nothing is ready, the clock is set to
the moment at which something will be.

The stand-ins (`Thread`, `Condition`, `Lock`, `SimpleQueue`, `Executor`) are those parts of the standard library that the engine uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from asyncio import base_events
from collections import deque
from collections.abc import Callable, Iterable
from concurrent import futures
from random import Random
from typing import Any

import greenlet

BEGIN_NS = 1_700_000_000 * 10**9
TURN_NS = 10_000
"""What a turn of the event loop takes."""
TURNS_MAX = 400_000
"""More in one history is a livelock."""


class Ended(KeyboardInterrupt):
    """The process ended: nothing more of it happens. The event loop lets this one out at once."""


class Stuck(AssertionError):
    """Nothing will ever happen again, or nothing else than what happens already."""


class World:
    """Time, and the threads of one process. A new life of the process begins with `revive`."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.now_ns = BEGIN_NS
        self.dead = False
        self.turns = 0
        self.trace: list[str] = []
        """What happened, for a failure's report and to compare runs."""
        self._main = greenlet.getcurrent()
        self._sleeping: list[tuple[int, int, greenlet.greenlet]] = []
        self._ticket = itertools.count()
        self._alive: set[greenlet.greenlet] = set()

    def note(self, what: str) -> None:
        """Add to the trace."""
        self.trace.append(f"{(self.now_ns - BEGIN_NS) / 1e9:.6f} {what}")

    # ------------------------------------------------------------------ threads

    @property
    def in_thread(self) -> bool:
        """Called by a thread, not by the event loop's."""
        return greenlet.getcurrent() is not self._main

    def check(self) -> None:
        """Ended, if the process did: nothing it still runs may have an effect."""
        if self.dead:
            raise Ended

    def spawn(self, function: Callable[[], object]) -> None:
        """Begin a thread."""
        self.check()

        def work() -> None:
            try:
                function()
            except BaseException:
                if not self.dead:
                    raise
            finally:
                self._alive.discard(thread)

        thread = greenlet.greenlet(work, self._main)
        self._alive.add(thread)
        self._wake_at(thread, self.now_ns + self._some_ns(200_000))

    def _some_ns(self, most_ns: int) -> int:
        # Mostly little, now and then all of it.
        return int(self.chance.random() ** 4 * most_ns)

    def _wake_at(self, thread: greenlet.greenlet, at_ns: int) -> None:
        heapq.heappush(self._sleeping, (at_ns, next(self._ticket), thread))

    def pause(self, most_ns: int) -> None:
        """Something takes up to so long. Other threads run meanwhile; what the event loop does itself takes no time."""
        self.check()
        if self.in_thread:
            self._wake_at(greenlet.getcurrent(), self.now_ns + self._some_ns(most_ns))
            self._main.switch()
            self.check()

    def sleep(self, seconds: float) -> None:
        """`time.sleep` of a thread."""
        self.check()
        self._wake_at(greenlet.getcurrent(), self.now_ns + int(seconds * 1e9))
        self._main.switch()
        self.check()

    def wait(self, waiting: deque[greenlet.greenlet], until: Callable[[], bool]) -> None:
        """Block until the condition holds; who makes it hold calls `wake`."""
        self.check()
        if not self.in_thread:
            while not until():
                if not self._sleeping:
                    raise Stuck("the event loop waits for a thread that will never run")
                self.now_ns = max(self.now_ns, self._sleeping[0][0])
                self._run_next()
            return
        while not until():
            waiting.append(greenlet.getcurrent())
            self._main.switch()
            self.check()

    def wake(self, waiting: deque[greenlet.greenlet]) -> None:
        """Let those who wait look again."""
        while waiting:
            self._wake_at(waiting.popleft(), self.now_ns + self._some_ns(50_000))

    def _run_next(self) -> None:
        _, _, thread = heapq.heappop(self._sleeping)
        thread.switch()
        self.check()

    def run_due(self, deadline_ns: int | None, is_ready: Callable[[], bool]) -> None:
        """Let threads run until the event loop has something to do, by the deadline at the latest; None: there is none."""
        self.turns += 1
        if self.turns > TURNS_MAX:
            raise Stuck(f"still busy after {TURNS_MAX} turns of the event loop")
        self.now_ns += TURN_NS
        while not is_ready():
            next_ns = self._sleeping[0][0] if self._sleeping else None
            if deadline_ns is None and next_ns is None:
                raise Stuck("nothing will ever happen again")
            if next_ns is None or (deadline_ns is not None and deadline_ns < next_ns):
                assert deadline_ns is not None
                self.now_ns = max(self.now_ns, deadline_ns)
                break
            self.now_ns = max(self.now_ns, next_ns)
            self._run_next()
        while self._sleeping and self._sleeping[0][0] <= self.now_ns:
            self._run_next()

    # ------------------------------------------------------------------ lives

    def end(self) -> None:
        """The process is gone: its threads and tasks stop where they are, and whatever they try has no effect."""
        self.dead = True
        for thread in list(self._alive):
            if thread:  # it had begun
                thread.throw(Ended)
        self._alive.clear()
        self._sleeping.clear()

    def revive(self) -> None:
        """A new process begins."""
        self.dead = False


_world: World | None = None


def enter(world: World | None) -> None:
    """From now on the stand-ins belong to this world."""
    global _world
    _world = world


def current() -> World:
    """The world that runs."""
    assert _world is not None
    return _world


class Clock:
    """The world's time (`core.ports.Clock`)."""

    def now_ns(self) -> int:
        """See `Clock.now_ns`."""
        return current().now_ns

    monotonic_ns = now_ns


class Loop(base_events.BaseEventLoop):
    """An event loop in the world's time."""

    def __init__(self, world: World, failed: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._world = world
        self._selector = self
        self._abandoned = False
        self.set_exception_handler(lambda _, context: None if self._abandoned or world.dead else failed(context))

    def time(self) -> float:
        return (self._world.now_ns - BEGIN_NS) / 1e9

    def select(self, timeout: float | None) -> list[Any]:
        """In the place of a selector: let threads run, or time go by."""
        world = self._world
        if not world.dead:
            deadline_ns = None if timeout is None else world.now_ns + int(timeout * 1e9)
            world.run_due(deadline_ns, lambda: bool(self._ready) or timeout == 0)  # type: ignore[attr-defined]
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        pool = executor if isinstance(executor, OneThread) else Executor()
        return asyncio.wrap_future(pool.submit(func, *args), loop=self)

    def abandon(self) -> None:
        """After the process ended: let go of its tasks without effect."""
        self._abandoned = True
        for task in asyncio.all_tasks(self):
            task.cancel()
        for _ in range(8):
            self.call_soon(self.stop)
            with contextlib.suppress(Ended):
                self.run_forever()
        self.close()


# ---------------------------------------------------------------------- stand-ins for the standard library


class Thread:
    """`threading.Thread`."""

    def __init__(
        self, *, target: Callable[..., object], args: Iterable[Any] = (), name: str = "", daemon: bool = False
    ):
        self.name = name
        self._call = lambda: target(*args)
        self._done = False
        self._waiting: deque[greenlet.greenlet] = deque()

    def start(self) -> None:
        """See `threading.Thread.start`."""
        world = current()

        def work() -> None:
            self._call()
            self._done = True
            world.wake(self._waiting)

        world.spawn(work)

    def join(self) -> None:
        """See `threading.Thread.join`."""
        current().wait(self._waiting, lambda: self._done)


class Lock:
    """`threading.Lock`."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[greenlet.greenlet] = deque()

    def __enter__(self) -> Lock:
        current().wait(self._waiting, lambda: not self._held)
        self._held = True
        return self

    def __exit__(self, *_: object) -> None:
        self._held = False
        current().wake(self._waiting)


class Condition(Lock):
    """`threading.Condition`."""

    def __init__(self) -> None:
        super().__init__()
        self._notified = 0
        self._sleeping: deque[greenlet.greenlet] = deque()

    def wait(self) -> None:
        """See `threading.Condition.wait`."""
        seen = self._notified
        self.__exit__()
        current().wait(self._sleeping, lambda: self._notified != seen)
        self.__enter__()

    def notify(self) -> None:
        """See `threading.Condition.notify`; it wakes all, as it may."""
        self._notified += 1
        current().wake(self._sleeping)


class SimpleQueue:
    """`queue.SimpleQueue`."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiting: deque[greenlet.greenlet] = deque()

    def put(self, item: Any) -> None:
        """See `queue.SimpleQueue.put`."""
        current().check()
        self._items.append(item)
        current().wake(self._waiting)

    def get(self) -> Any:
        """See `queue.SimpleQueue.get`."""
        current().wait(self._waiting, lambda: bool(self._items))
        return self._items.popleft()


def settle(outcome: futures.Future[Any], call: Callable[[], Any]) -> None:
    """Do a call in a thread, unless nobody waits for it any more, and say what came of it."""
    if not outcome.set_running_or_notify_cancel():
        return
    try:
        result = call()
        current().pause(20_000)
    except Ended:
        raise
    except BaseException as error:
        outcome.set_exception(error)
    else:
        outcome.set_result(result)


class Executor(futures.Executor):
    """A pool with a thread for every call."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """See `concurrent.futures.Executor.submit`."""
        outcome = futures.Future[Any]()
        current().spawn(lambda: settle(outcome, lambda: fn(*args, **kwargs)))
        return outcome


class OneThread(futures.Executor):
    """A pool of one thread: calls are done in the order in which they were asked for."""

    def __init__(self, *_: object, **__: object) -> None:
        self._calls: deque[tuple[futures.Future[Any], Callable[[], Any]]] = deque()
        self._busy = False
        self._waiting: deque[greenlet.greenlet] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """See `concurrent.futures.Executor.submit`."""
        outcome = futures.Future[Any]()
        self._calls.append((outcome, lambda: fn(*args, **kwargs)))
        if not self._busy:
            self._busy = True
            current().spawn(self._work)
        return outcome

    def _work(self) -> None:
        while self._calls:
            settle(*self._calls.popleft())
        self._busy = False
        current().wake(self._waiting)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor.shutdown`."""
        if wait:
            current().wait(self._waiting, lambda: not self._busy)


class AtOnce:
    """A pool that does each call when it is asked for."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    map = staticmethod(map)


def wait_for(some: Iterable[futures.Future[Any]]) -> None:
    """`concurrent.futures.wait`."""
    wanted = list(some)
    current().wait(deque(), lambda: all(future.done() for future in wanted))

"""The dispatcher of an engine: what arrives while one call runs goes into the next.

It lives in one event loop and has one worker thread, because engines are not thread-safe; real
twins answer on that thread, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError

from gym_llmworld.anchoring import Twin
from gym_llmworld.backends.base import Backend
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, WorldModelError
from gym_llmworld.imagination import Imagination
from gym_llmworld.session import Outcome, Session

# A task that was just answered needs a few passes of the event loop to send its next action: one
# when it awaits the step itself, four through `asyncio.wait_for`. A pass takes microseconds.
_PASSES = 8

P = ParamSpec("P")
T = TypeVar("T")
Request = tuple[Session, str, int]


def join(engine: Backend, max_batch: int) -> Seat:
    """Returns a seat for one environment with the dispatcher of its engine.

    Args:
        engine: Shared by all who name it.
        max_batch: Most requests in one call; the smallest of all seats counts.
    """
    with _LOCK:
        if engine not in _DISPATCHERS:
            _DISPATCHERS[engine] = _Dispatcher(engine)
        return _DISPATCHERS[engine].seat(max_batch)


@dataclass(eq=False)
class _Job:
    """One action of one environment.

    Attributes:
        imagination: Of the environment.
        request: Session, action, sampling seed.
        twin: The real twin, where it may answer.
        future: Who waits for the outcome.
    """

    imagination: Imagination
    request: Request
    twin: Twin | None
    future: asyncio.Future[Outcome]


class Seat:
    """An environment's place with the dispatcher of its engine. A copy takes a seat of its own."""

    def __init__(self, dispatcher: _Dispatcher, max_batch: int) -> None:
        self.max_batch = max_batch
        self._dispatcher = dispatcher
        self._waiting: set[asyncio.Future[Outcome]] = set()
        self._moving: str | None = None
        self._left = False

    def __deepcopy__(self, memo: dict[int, object]) -> Seat:
        self._require_open()
        return self._dispatcher.seat(self.max_batch)

    @property
    def worker(self) -> ThreadPoolExecutor:
        """The engine's thread."""
        return self._dispatcher.worker

    @contextlib.contextmanager
    def moving(self, call: str) -> Iterator[None]:
        """Refuses two calls at once that move the episode.

        Raises:
            AlreadyPendingCallError: Another such call has not ended.
        """
        self._require_open()
        if self._moving is not None:
            raise AlreadyPendingCallError(
                f"{call} while {self._moving} of this environment is still being answered; await "
                "it first, or give each task its own environment (env.fork())",
                self._moving,
            )
        self._moving = call
        try:
            yield
        finally:
            self._moving = None

    def submit(
        self, imagination: Imagination, request: Request, twin: Twin | None
    ) -> asyncio.Future[Outcome]:
        """Puts an action in line; cancelling the future takes it back."""
        self._require_open()
        future = self._dispatcher.submit(self, imagination, request, twin)
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a function on the engine's thread, and blocks until it returns."""
        self._require_open()
        return self.worker.submit(function, *args, **kwargs).result()

    def leave(self) -> bool:
        """Accepts nothing more and sends everybody who waits away; False the second time."""
        first, self._left = not self._left, True
        for future in tuple(self._waiting):
            if not (future.done() or future.get_loop().is_closed()):
                future.set_exception(ClosedEnvironmentError("closed while it was waiting"))
        return first

    def release(self) -> None:
        """Gives the seat back, once the thread no longer works for it."""
        self._dispatcher.release(self)

    def _require_open(self) -> None:
        if self._left:
            raise ClosedEnvironmentError("this environment is closed; make another one")


class _Dispatcher:
    """Collects the actions of an engine's environments and asks for them together.

    Attributes:
        worker: The only thread that enters the engine.
    """

    def __init__(self, engine: Backend) -> None:
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="gym-llmworld-engine")
        self._engine = engine
        self._seats: set[Seat] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lines: dict[Seat, deque[_Job]] = {}
        self._busy = False

    def seat(self, max_batch: int) -> Seat:
        """Returns a seat for one environment."""
        seat = Seat(self, max_batch)
        self._seats.add(seat)
        return seat

    def release(self, seat: Seat) -> None:
        """Takes a seat back; the thread ends with the last one."""
        with _LOCK:
            self._seats.discard(seat)
            if not self._seats:
                _DISPATCHERS.pop(self._engine, None)
                self.worker.shutdown(wait=False)

    def submit(
        self, seat: Seat, imagination: Imagination, request: Request, twin: Twin | None
    ) -> asyncio.Future[Outcome]:
        """Puts an action in line.

        Raises:
            RuntimeError: Another event loop uses the engine.
        """
        loop = self._enter()
        job = _Job(imagination, request, twin, loop.create_future())
        self._lines.setdefault(seat, deque()).append(job)
        if not self._busy:
            self._busy = True
            self._start(loop, _PASSES)
        return job.future

    def _enter(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None or self._loop.is_closed():
            # Nobody waits any more for what a closed loop has left behind.
            self._loop, self._busy = loop, False
            self._lines.clear()
        if self._loop is not loop:
            raise RuntimeError(
                f"the engine of {self._engine.name} is used by another event loop that is not "
                "closed; expected one loop for all environments that share an engine: run them in "
                "one asyncio.run, or close the other loop, or its environments, first"
            )
        return loop

    def _start(self, loop: asyncio.AbstractEventLoop, passes: int) -> None:
        if passes:
            loop.call_soon(self._start, loop, passes - 1)
            return
        batch = self._next()
        if not batch:
            self._busy = False
            return
        call = loop.run_in_executor(self.worker, _answer, self._engine, batch)
        call.add_done_callback(partial(self._deliver, loop, batch))

    def _next(self) -> list[_Job]:
        """Takes one action of each environment in turn, until the batch is full."""
        limit = min((seat.max_batch for seat in self._seats), default=0)
        batch: list[_Job] = []
        while self._lines and len(batch) < limit:
            seat = next(iter(self._lines))
            line = self._lines.pop(seat)
            job = line.popleft()
            if line:
                self._lines[seat] = line
            if not job.future.done():
                batch.append(job)
        return batch

    def _deliver(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[_Job],
        call: asyncio.Future[list[Outcome | Exception]],
    ) -> None:
        for job, result in zip(batch, call.result(), strict=True):
            if job.future.done():  # cancelled, or its environment was closed
                continue
            if isinstance(result, StopIteration):  # no future can hold one
                result = RuntimeError(f"{self._engine.name} raised {result!r}")
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)
        self._start(loop, _PASSES)


class _Asks(Exception):
    """Ends `Imagination.ask` where the engine is needed, and says what for."""

    def __init__(self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]) -> None:
        super().__init__()
        [self.chat] = chats
        [self.sampling] = samplings


@dataclass
class _StandIn:
    """Takes the engine's place in `Imagination.ask`, so that one call can serve many of them.

    Up to the engine, ``ask`` only computes. So it can be ended there to learn what it wants, and
    begun again when the answer is known.
    """

    name: str
    answer: Completion | BackendError | None = None
    max_context: int | None = None

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        if self.answer is None:
            raise _Asks(chats, samplings)
        return [self.answer]

    def close(self) -> None:
        """Holds nothing."""


def _answer(engine: Backend, jobs: Sequence[_Job]) -> list[Outcome | Exception]:
    """Answers each job, or says why it could not, with at most one call of the engine."""
    results = [_ask(job, _StandIn(engine.name)) for job in jobs]
    asking = [(i, asks) for i, asks in enumerate(results) if isinstance(asks, _Asks)]
    if not asking:
        return results
    started = time.perf_counter()
    answers = _generate(engine, [asks for _, asks in asking])
    seconds = time.perf_counter() - started
    for place, (i, _) in enumerate(asking):
        jobs[i].imagination.stats.seconds += seconds
        if isinstance(answers, Exception):
            results[i] = answers
        else:
            results[i] = _ask(jobs[i], _StandIn(engine.name, answers[place]))
    return results


def _ask(job: _Job, engine: Backend) -> Outcome | Exception:
    imagination = dataclasses.replace(job.imagination, backend=engine)
    try:
        [outcome] = imagination.ask([job.request], [job.twin])
    except Exception as error:  # whatever it is, it belongs to the one task that waits for it
        return error
    return outcome


def _generate(
    engine: Backend, asking: Sequence[_Asks]
) -> Sequence[Completion | BackendError] | Exception:
    try:
        answers = engine.generate(
            [asks.chat for asks in asking], [asks.sampling for asks in asking]
        )
    except Exception as error:  # belongs to all tasks of this call, and to no other
        return error
    if len(answers) != len(asking):
        return WorldModelError(
            f"backend {engine.name} answered {len(answers)} of {len(asking)} chats"
        )
    return answers


_DISPATCHERS: dict[Backend, _Dispatcher] = {}
_LOCK = threading.Lock()

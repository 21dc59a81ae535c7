"""Awaited environments against synchronous ones with the same seeds."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import pytest
from gymnasium.error import (
    AlreadyPendingCallError,
    ClosedEnvironmentError,
    InvalidAction,
    NameNotFound,
    ResetNeeded,
)

from gym_llmworld import WorldModelEnv, backends
from gym_llmworld.asynchronous import AsyncWorldModelEnv, make_async
from gym_llmworld.backends.base import BackendStats
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, ScenarioError, WorldModelError
from tests.scripted_world import MODEL, answer
from tests.tiny_models import save_checkpoint

ID = "LLMWorld-ALFWorld-v0"
ACTIONS = ("a", "b", "look", "win", "", "blank", "go to desk 1", "x" * 2000)
T = TypeVar("T")


class Engine:
    """Writes the sampling seed and the whole history, so that a mix-up of either shows.

    Attributes:
        calls: The last action of each chat, call by call.
        threads: Who entered.
        gate: Calls wait until it is set.
        entered: Set once a call waits there.
    """

    name = "engine"
    max_context: int | None = None

    def __init__(self, script: Callable[[Sequence[Message]], Any] = answer) -> None:
        self.calls: list[list[str]] = []
        self.threads: set[threading.Thread] = set()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self._script = script

    @property
    def stats(self) -> BackendStats:
        return BackendStats(calls=len(self.calls))

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        self.calls.append([chat[-1].content for chat in chats])
        self.threads.add(threading.current_thread())
        self.entered.set()
        assert self.gate.wait(30)
        written = [self._script(chat) for chat in chats]
        return [
            Completion(f"{sampling.seed} {text}", "stop") if isinstance(text, str) else text
            for text, sampling in zip(written, samplings, strict=True)
        ]

    def close(self) -> None:
        """Holds nothing."""


_NUMBERS = itertools.count()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Engine], str]]:
    """Gives engines names that ``model=`` understands."""
    engines: dict[str, Engine] = {}

    def name(engine: Engine) -> str:
        key = f"engine:{next(_NUMBERS)}"
        engines[key] = engine
        return f"scripted:{key}"

    monkeypatch.setattr(backends, "load_script", engines.__getitem__)
    yield name
    for engine in engines.values():
        engine.gate.set()


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, 240))


def sync_env(seed: int, **kwargs: Any) -> gym.Env[str, str]:
    env = gym.make(ID, disable_env_checker=True, **{"model": MODEL, **kwargs})
    env.reset(seed=seed)
    return env


def world_of(env: gym.Env[str, str]) -> WorldModelEnv:
    inner = env.unwrapped
    assert isinstance(inner, WorldModelEnv)
    return inner


async def started(seed: int = 0, **kwargs: Any) -> AsyncWorldModelEnv:
    env = make_async(ID, **{"model": MODEL, **kwargs})
    await env.reset_async(seed=seed)
    return env


def script_of(seed: int, steps: int) -> list[str]:
    return random.Random(seed).choices(ACTIONS, k=steps)


def sync_trace(env: gym.Env[str, str], seed: int, actions: Sequence[str]) -> list[Any]:
    trace: list[Any] = [env.reset(seed=seed)]
    for action in actions:
        result = env.step(action)
        trace.append(result)
        if result[2] or result[3]:
            trace.append(env.reset())
    return trace


async def async_trace(
    env: AsyncWorldModelEnv, seed: int, actions: Sequence[str], order: random.Random
) -> list[Any]:
    trace: list[Any] = [await env.reset_async(seed=seed)]
    for action in actions:
        for _ in range(order.choice([0, 0, 1, 5, 30])):
            await asyncio.sleep(0)
        result = await env.step_async(action)
        trace.append(result)
        if result[2] or result[3]:
            trace.append(await env.reset_async())
    return trace


@pytest.mark.parametrize("order", [0, 1, 2])
def test_equals_synchronous_environments_in_any_order_of_arrival(
    serve: Callable[[Engine], str], order: int
) -> None:
    model, count, steps = serve(Engine()), 12, 25
    scripts = [script_of(seed, steps) for seed in range(count)]
    expected = [
        sync_trace(gym.make(ID, model=model, max_episode_steps=6), seed, script)
        for seed, script in enumerate(scripts)
    ]

    async def main() -> list[Any]:
        rng = random.Random(order)
        envs = [make_async(ID, model=model, max_episode_steps=6) for _ in range(count)]
        tasks = [
            async_trace(env, seed, script, rng)
            for seed, (env, script) in enumerate(zip(envs, scripts, strict=True))
        ]
        rng.shuffle(tasks)
        return sorted(await asyncio.gather(*tasks), key=repr)

    assert run(main()) == sorted(expected, key=repr)


@pytest.mark.parametrize("patient", [False, True])
def test_tasks_that_step_at_once_share_every_call(
    serve: Callable[[Engine], str], patient: bool
) -> None:
    engine, count = Engine(), 64
    model = serve(engine)

    async def play(env: AsyncWorldModelEnv) -> None:
        for _ in range(4):
            step = env.step_async("a")
            await (asyncio.wait_for(step, 30) if patient else step)

    async def main() -> None:
        envs = [await started(seed, model=model) for seed in range(count)]
        await asyncio.gather(*map(play, envs))
        assert all(
            (e.stats.model_calls, e.stats.requests, e.stats.steps) == (4, 4, 4) for e in envs
        )

    run(main())
    assert [len(call) for call in engine.calls] == [count] * 4
    assert len(engine.threads) == 1
    assert threading.main_thread() not in engine.threads


def test_what_arrives_during_a_call_goes_into_the_next(serve: Callable[[Engine], str]) -> None:
    engine = Engine()
    model = serve(engine)

    async def main() -> None:
        envs = [await started(seed, model=model) for seed in range(5)]
        engine.gate.clear()
        first = asyncio.create_task(envs[0].step_async("first"))
        await asyncio.to_thread(engine.entered.wait, 30)
        others = [asyncio.create_task(env.step_async("later")) for env in envs[1:]]
        await asyncio.sleep(0.05)
        assert engine.calls == [["first"]]
        engine.gate.set()
        await asyncio.gather(first, *others)

    run(main())
    assert engine.calls == [["first"], ["later"] * 4]


def test_a_full_batch_leaves_the_rest_and_environments_take_turns(
    serve: Callable[[Engine], str],
) -> None:
    engine = Engine()
    model = serve(engine)

    async def main() -> None:
        greedy = await started(0, model=model, max_batch=3)
        modest = [await started(seed, model=model) for seed in (1, 2)]
        futures, *_ = await asyncio.gather(
            greedy.what_if_async([f"g{i}" for i in range(6)]),
            *(env.step_async(f"m{i}") for i, env in enumerate(modest)),
        )
        oracle = world_of(sync_env(0, model=model)).what_if([f"g{i}" for i in range(6)])
        assert futures == oracle

    run(main())
    assert engine.calls[:3] == [["g0", "m0", "m1"], ["g1", "g2", "g3"], ["g4", "g5"]]


def test_a_cancelled_step_did_not_happen(serve: Callable[[Engine], str]) -> None:
    engine = Engine()
    model = serve(engine)
    envs = [sync_env(seed, model=model) for seed in range(3)]
    expected = [[env.step("a"), env.step("b")] for env in envs]
    engine.calls.clear()

    async def main() -> list[Any]:
        flying, waiting, other = [await started(seed, model=model) for seed in range(3)]
        engine.gate.clear()
        engine.entered.clear()
        tasks = [asyncio.create_task(flying.step_async("z"))]
        await asyncio.to_thread(engine.entered.wait, 30)
        tasks += [asyncio.create_task(e.step_async("a")) for e in (waiting, other)]
        await asyncio.sleep(0)
        for task in tasks[:2]:
            task.cancel()
        engine.gate.set()
        cut = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(c) for c in cut[:2]] == [asyncio.CancelledError] * 2
        assert engine.calls == [["z"], ["a"]]
        assert flying.session.steps == ()
        again = [[await e.step_async("a"), await e.step_async("b")] for e in (flying, waiting)]
        return [*again, [cut[2], await other.step_async("b")]]

    assert run(main()) == expected


def failing(chat: Sequence[Message]) -> str | BackendError:
    """Fails on two actions: as a whole call, or in one chat's place."""
    if chat[-1].content == "crash":
        raise BackendError("the server died")
    if chat[-1].content == "sour":
        return BackendError("this chat only")
    if chat[-1].content == "stop":
        raise StopIteration("script is over")
    return answer(chat)


def test_a_failed_call_reaches_exactly_the_tasks_in_it(serve: Callable[[Engine], str]) -> None:
    engine = Engine(failing)
    model = serve(engine)

    async def main() -> None:
        envs = [await started(seed, model=model) for seed in range(5)]
        engine.gate.clear()
        actions = ["crash", "a", ""]
        tasks = [
            asyncio.create_task(env.step_async(action))
            for env, action in zip(envs, actions, strict=False)
        ]
        await asyncio.to_thread(engine.entered.wait, 30)
        tasks += [asyncio.create_task(env.step_async("b")) for env in envs[3:]]
        await asyncio.sleep(0)
        engine.gate.set()
        got = await asyncio.gather(*tasks, return_exceptions=True)
        for failed in got[:2]:
            assert isinstance(failed, BackendError)
            assert "the server died" in str(failed)
        assert got[2][0] == "Nothing happens."  # type: ignore[index]
        for seed in (3, 4):
            assert got[seed] == sync_env(seed, model=model).step("b")
        # The failed step left no trace, not even in the random generator.
        assert await envs[1].step_async("a") == sync_env(1, model=model).step("a")

    run(main())


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [("sour", BackendError, "this chat only"), ("stop", RuntimeError, "script is over")],
)
def test_the_error_of_one_chat_and_odd_errors(
    serve: Callable[[Engine], str], action: str, error: type[Exception], message: str
) -> None:
    model = serve(Engine(failing))

    async def main() -> None:
        bad, good = [await started(seed, model=model) for seed in range(2)]
        steps = [bad.step_async(action), good.step_async("a" if action == "sour" else "")]
        failed, fine = await asyncio.gather(*steps, return_exceptions=True)
        assert isinstance(failed, error)
        assert message in str(failed)
        assert isinstance(fine, tuple)
        with pytest.raises(error, match=message):
            await bad.what_if_async(["a", action, "b"])

    run(main())


def test_an_engine_that_answers_too_few(
    serve: Callable[[Engine], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine()
    monkeypatch.setattr(engine, "generate", lambda chats, samplings: [])

    async def main() -> None:
        env = await started(model=serve(engine))
        with pytest.raises(WorldModelError, match="answered 0 of 1 chats"):
            await env.step_async("a")

    run(main())


def test_fork_snapshot_undo_and_what_if_equal_the_synchronous_ones(
    serve: Callable[[Engine], str],
) -> None:
    model = serve(Engine())
    oracle = world_of(sync_env(5, model=model))

    async def main() -> None:
        env = await started(5, model=model)
        assert await env.step_async("a") == oracle.step("a")
        assert await env.what_if_async(["b", "win", ""]) == oracle.what_if(["b", "win", ""])
        assert await env.what_if_async([]) == []
        here, fork, deep = env.snapshot(), env.fork(), copy.deepcopy(env)
        assert here == oracle.snapshot()
        expected = oracle.step("b")
        assert (
            await asyncio.gather(*(e.step_async("b") for e in (env, fork, deep))) == [expected] * 3
        )
        await env.step_async("c")
        env.restore(here)
        assert await env.step_async("b") == expected
        assert env.undo() == oracle.undo()
        assert await env.step_async("d") == oracle.step("d")
        assert env.episode == oracle.episode
        start = await env.reset_async(options={"start": here})
        assert start == oracle.reset(options={"start": here})
        # The blocking methods give the same.
        assert env.what_if(["x"]) == oracle.what_if(["x"])
        assert env.step("x") == oracle.step("x")

    run(main())


def test_while_a_step_is_being_answered(serve: Callable[[Engine], str]) -> None:
    engine = Engine()
    model = serve(engine)
    expected = sync_env(0, model=model).step("a")

    async def main() -> None:
        env = await started(model=model)
        before = env.snapshot()
        engine.gate.clear()
        step = asyncio.create_task(env.step_async("a"))
        await asyncio.sleep(0)
        moves: list[Callable[[], Any]] = [
            lambda: env.step("b"),
            env.reset,
            env.undo,
            lambda: env.restore(before),
        ]
        for move in moves:
            with pytest.raises(AlreadyPendingCallError, match="of this environment is still being"):
                move()
        for call in (env.step_async("b"), env.reset_async()):
            with pytest.raises(AlreadyPendingCallError):
                await call
        assert env.snapshot() == before
        fork = env.fork()
        engine.gate.set()
        assert await fork.step_async("a") == expected
        assert await step == expected

    run(main())


def test_closing(serve: Callable[[Engine], str]) -> None:
    engine = Engine()
    model = serve(engine)

    async def main() -> None:
        first, second = [await started(seed, model=model) for seed in range(2)]
        engine.gate.clear()
        flying = asyncio.create_task(first.step_async("a"))
        await asyncio.to_thread(engine.entered.wait, 30)
        waiting = asyncio.create_task(first.what_if_async(["b", "c"]))
        other = asyncio.create_task(second.step_async("a"))
        await asyncio.sleep(0)
        closing = asyncio.create_task(first.close_async())
        await asyncio.sleep(0)
        for task in (flying, waiting):
            with pytest.raises(ClosedEnvironmentError, match="closed while it was waiting"):
                await task
        assert not closing.done()
        engine.gate.set()
        await closing
        await first.close_async()
        first.close()
        assert (await other)[0].endswith("a")
        calls: list[Callable[[], Any]] = [first.reset, first.fork, lambda: first.step("a")]
        for call in calls:
            with pytest.raises(ClosedEnvironmentError, match="this environment is closed"):
                call()
        with pytest.raises(ClosedEnvironmentError):
            await first.step_async("a")
        async with second:
            await second.step_async("b")
        with pytest.raises(ClosedEnvironmentError):
            await second.reset_async()

    run(main())
    assert engine.calls == [["a"], ["a"], ["b"]]
    [thread] = engine.threads
    thread.join(10)
    assert not thread.is_alive()


def test_closing_a_fork_leaves_the_engine_to_the_original() -> None:
    async def main() -> None:
        env = await started()
        async with env.fork() as fork:
            await fork.step_async("a")
        assert (await env.step_async("a"))[0].startswith("Turn 1")

    run(main())


def test_one_event_loop_after_the_other(serve: Callable[[Engine], str]) -> None:
    engine = Engine()
    env = make_async(ID, model=serve(engine))
    env.reset(seed=0)
    first = run(env.step_async("a"))
    assert first[0].endswith("a")
    engine.gate.clear()
    with pytest.raises(TimeoutError):  # leaves a call behind that nobody waits for
        asyncio.run(asyncio.wait_for(env.step_async("lost"), 0.05))
    engine.gate.set()
    assert run(env.step_async("b"))[0].endswith("a+b")
    env.close()


def test_a_second_event_loop_at_once_is_refused(serve: Callable[[Engine], str]) -> None:
    model = serve(Engine())

    async def main() -> None:
        env, other = [await started(seed, model=model) for seed in range(2)]
        await env.step_async("a")
        with pytest.raises(RuntimeError, match="one loop for all environments"):
            await asyncio.to_thread(asyncio.run, other.step_async("a"))
        assert await other.step_async("a") == sync_env(1, model=model).step("a")

    run(main())


def test_time_limit_is_that_of_the_id() -> None:
    async def main() -> None:
        env = await started(max_episode_steps=2)
        assert (await env.step_async("a"))[2:4] == (False, False)
        assert (await env.step_async("a"))[2:4] == (False, True)
        with pytest.raises(ResetNeeded, match="max_episode_steps"):
            await env.step_async("a")
        assert env.fork().max_episode_steps == 2

    run(main())
    assert make_async(ID, model=MODEL).max_episode_steps == gym.spec(ID).max_episode_steps
    assert make_async(ID, model=MODEL, max_episode_steps=-1).max_episode_steps is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make_async("LLMWorld-Nowhere-v0"), NameNotFound, "Nowhere"),
        (lambda: make_async("RealWorld-ALFWorld-v0"), ValueError, "makes imagined worlds"),
        (lambda: make_async(ID, model=MODEL, max_batch=0), ValueError, "max_batch must be"),
        (lambda: make_async(ID, model=MODEL, split="nope"), ScenarioError, "no scenario of split"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_bad_calls() -> None:
    async def main() -> None:
        env = make_async(ID, model=MODEL)
        with pytest.raises(ResetNeeded):
            await env.step_async("a")
        await env.reset_async(seed=0)
        with pytest.raises(InvalidAction, match="must be a str"):
            await env.step_async(3)  # type: ignore[arg-type]
        with pytest.raises(ScenarioError, match="unknown scenario"):
            await env.reset_async(options={"scenario": "none"})
        await env.step_async("win")
        with pytest.raises(ResetNeeded, match="ended"):
            await env.step_async("a")

    run(main())


@pytest.mark.parametrize("anchor", ["every:2", "random:0.4", "look", "confidence<0.5"])
def test_anchored_equals_synchronous(anchor: str) -> None:
    kwargs: dict[str, Any] = {"anchor": anchor, "split": "valid_seen"}
    actions = ["look", "inventory", "a", "blank", "look", "b"]
    if anchor == "confidence<0.5":  # the fake model does not say how sure it is

        async def refused() -> None:
            unsure, sure = await started(**kwargs), await started()
            got = await asyncio.gather(
                unsure.step_async("a"), sure.step_async("a"), return_exceptions=True
            )
            assert isinstance(got[0], BackendError)
            assert isinstance(got[1], tuple)

        run(refused())
        return
    expected = [sync_trace(gym.make(ID, model=MODEL, **kwargs), seed, actions) for seed in range(3)]

    async def main() -> list[Any]:
        envs = [make_async(ID, model=MODEL, **kwargs) for _ in range(3)]
        order = random.Random(1)
        traces = await asyncio.gather(
            *(async_trace(env, seed, actions, order) for seed, env in enumerate(envs))
        )
        assert sum(env.stats.anchor_real_steps for env in envs) > 0
        for env in envs:
            await env.close_async()
        return list(traces)

    assert run(main()) == expected


def plain(trace: Any) -> Any:
    """Rounds the confidence: sums over other batches round otherwise."""
    if isinstance(trace, dict):
        return {key: plain(value) for key, value in trace.items()}
    if isinstance(trace, list | tuple):
        return [plain(value) for value in trace]
    return round(trace, 3) if isinstance(trace, float) else trace


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_embedded_model_greedy_and_sampled(temperature: float) -> None:
    kwargs: dict[str, Any] = {"model": None, "temperature": temperature, "max_tokens": 40}
    actions = ["go to drawer 1", "open drawer 1", "inventory"]
    expected = [
        sync_trace(gym.make(ID, **kwargs), seed, actions[seed:] + actions) for seed in range(3)
    ]

    async def main() -> list[Any]:
        order = random.Random(3)
        envs = [make_async(ID, **kwargs) for _ in range(3)]
        traces = [
            async_trace(env, seed, actions[seed:] + actions, order) for seed, env in enumerate(envs)
        ]
        return list(await asyncio.gather(*traces))

    assert plain(run(main())) == plain(expected)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_tiny_checkpoint_of_a_published_format(tmp_path: Path, temperature: float) -> None:
    folder = save_checkpoint(tmp_path, "qwen3", context=4096)
    kwargs: dict[str, Any] = {"model": str(folder), "temperature": temperature, "max_tokens": 6}
    candidates = ["look", "go to bed 1", "look", "inventory"]
    oracle = [world_of(sync_env(seed, **kwargs)).what_if(candidates) for seed in range(4)]

    async def main() -> list[Any]:
        envs = [await started(seed, **kwargs) for seed in (3, 1, 0, 2)]
        found = await asyncio.gather(*(env.what_if_async(candidates) for env in envs))
        return [found[i] for i in (2, 1, 3, 0)]

    assert run(main()) == oracle
    assert all(step.observation for steps in oracle for step in steps)

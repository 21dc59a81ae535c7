"""vLLM in process: our logic against a stand-in, and (`make test-vllm`) the engine itself."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from gym_llmworld.backends import load_backend
from gym_llmworld.backends.base import Engine
from gym_llmworld.backends.hf import HFBackend
from gym_llmworld.backends.vllm_engine import VLLMBackend
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, CheckpointError, ContextOverflow, MissingDependency
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import get_world
from tests.tiny_models import save_checkpoint, tiny_tokenizer

GREEDY = Sampling(max_tokens=12)
CONTEXT = 256


def chat(action: str = "look") -> list[Message]:
    return [
        Message("system", "You are in the middle of a room."),
        Message("user", "go to cabinet 1"),
        Message("assistant", "The cabinet 1 is closed."),
        Message("user", action),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("llama"), context=CONTEXT)


# --- against a stand-in --------------------------------------------------------------------------


@dataclass
class FakeLLM:
    """Answers every prompt with its own last token, and remembers what it was told."""

    model: str
    options: dict[str, Any]
    calls: list[list[tuple[list[int], Any]]] = field(default_factory=list)
    left_behind: int = 0
    trouble: BaseException | None = None

    @property
    def llm_engine(self) -> Any:
        config = types.SimpleNamespace(max_model_len=self.options["max_model_len"] or CONTEXT)
        core = types.SimpleNamespace(shutdown=lambda: None)
        return types.SimpleNamespace(
            model_config=config,
            engine_core=core,
            has_unfinished_requests=lambda: self.left_behind > 0,
            step=self.step,
        )

    def step(self) -> None:
        self.left_behind -= 1

    def get_tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.model)

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], params: Sequence[Any], *, use_tqdm: bool
    ) -> list[Any]:
        if self.trouble is not None:
            raise self.trouble
        assert not use_tqdm
        assert self.left_behind == 0, "answers of an interrupted call would be mixed in"
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        self.calls.append(list(zip(ids, params, strict=True)))
        return [self._output(prompt, param) for prompt, param in zip(ids, params, strict=True)]

    def _output(self, prompt: list[int], params: Any) -> Any:
        written = types.SimpleNamespace(
            token_ids=prompt[-1:],
            finish_reason="stop" if params.max_tokens > 1 else "length",
            logprobs=[{prompt[-1]: types.SimpleNamespace(logprob=-0.25)}],
        )
        return types.SimpleNamespace(
            outputs=[written], prompt_token_ids=prompt, num_cached_tokens=len(prompt) // 32 * 32
        )


Connect = Callable[..., tuple[VLLMBackend, FakeLLM]]


@pytest.fixture
def connect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Connect:
    made: list[FakeLLM] = []

    def load(model: str, **options: Any) -> FakeLLM:
        np.random.seed(0)  # as vLLM does
        random.seed(0)
        torch.manual_seed(0)
        made.append(FakeLLM(model, options))
        return made[-1]

    package: Any = types.ModuleType("vllm")
    package.LLM, package.SamplingParams = load, types.SimpleNamespace
    platforms: Any = types.ModuleType("vllm.platforms")
    platforms.current_platform = types.SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def connect(**options: Any) -> tuple[VLLMBackend, FakeLLM]:
        monkeypatch.setitem(sys.modules, "vllm", package)
        monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
        # The stand-in keeps nothing per process.
        monkeypatch.setattr(VLLMBackend, "_opened", None)
        return VLLMBackend(str(folder), **options), made[-1]

    return connect


def test_a_call_is_one_batch_in_order(connect: Connect) -> None:
    backend, llm = connect()
    assert isinstance(backend, Engine)
    results = backend.generate([chat("look"), chat("inventory")], [GREEDY, Sampling(max_tokens=1)])
    assert [r.finish_reason for r in results if isinstance(r, Completion)] == ["stop", "length"]
    assert all(isinstance(r, Completion) and r.logprobs == (-0.25,) for r in results)
    [requests] = llm.calls
    prompts = [prompt for prompt, _ in requests]
    local = HFBackend(llm.model).generate([chat("look"), chat("inventory")], [GREEDY] * 2)
    assert [len(p) for p in prompts] == [
        r.prompt_tokens for r in local if isinstance(r, Completion)
    ]
    stats = backend.stats
    assert (stats.calls, stats.requests, stats.generated_tokens) == (1, 2, 2)
    assert stats.prompt_tokens == sum(map(len, prompts))
    assert stats.cached_tokens == sum(len(p) // 32 * 32 for p in prompts)


def test_sampling_is_passed_on(connect: Connect) -> None:
    backend, llm = connect()
    sampled = Sampling(temperature=0.7, top_p=0.9, max_tokens=17, seed=5)
    backend.generate([chat(), chat()], [sampled, Sampling(top_p=0.5, seed=5)])
    (prompt, params), (_, greedy) = llm.calls[0]
    end = AutoTokenizer.from_pretrained(llm.model).convert_tokens_to_ids("<|im_end|>")
    assert vars(params) == {
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 5,
        "max_tokens": 17,
        "stop_token_ids": [end],
        "logprobs": 0,
        "detokenize": False,
    }
    assert (greedy.temperature, greedy.top_p, greedy.seed) == (0, 1.0, None)
    assert greedy.max_tokens == CONTEXT - len(prompt), "the end of the context bounds the answer"


def test_a_full_context_is_answered_in_its_place(connect: Connect) -> None:
    backend, llm = connect(max_context=80)
    assert (backend.max_context, llm.options["max_model_len"]) == (80, 80)
    a, b, c = backend.generate([chat(), chat("look " * 60), chat()], [GREEDY] * 3)
    assert isinstance(b, ContextOverflow)
    assert "limited to 80" in str(b)
    assert isinstance(a, Completion)
    assert a == c
    [overflow] = backend.generate([chat("look " * 60)], [GREEDY])
    assert isinstance(overflow, ContextOverflow)
    assert len(llm.calls) == 1, "nothing is asked for nothing"


def test_contents_cannot_spell_control_tokens(connect: Connect) -> None:
    backend, llm = connect()
    backend.generate([chat("<|im_end|>")], [GREEDY])
    end = AutoTokenizer.from_pretrained(llm.model).convert_tokens_to_ids("<|im_end|>")
    assert llm.calls[0][0][0].count(end) == 4


def test_what_an_interrupted_call_left_is_not_mixed_in(connect: Connect) -> None:
    backend, llm = connect()
    llm.trouble = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        backend.generate([chat()], [GREEDY])
    llm.trouble, llm.left_behind = None, 3
    assert isinstance(backend.generate([chat()], [GREEDY])[0], Completion)


def test_a_failed_engine_is_a_backend_error(connect: Connect) -> None:
    backend, llm = connect()
    llm.trouble = RuntimeError("CUDA error")
    with pytest.raises(BackendError, match=r"vLLM failed on .*: CUDA error"):
        backend.generate([chat()], [GREEDY])


def test_the_callers_random_numbers_are_left_alone(connect: Connect) -> None:
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    expected = random.random(), np.random.random(), torch.rand(1)
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    connect()
    assert (random.random(), np.random.random(), torch.rand(1)) == expected


def test_engine_options(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    _, llm = connect(dtype="bfloat16", max_num_seqs=512)
    assert llm.options == {
        "dtype": "bfloat16",
        "enforce_eager": True,
        "block_size": 32,
        "kv_cache_memory_bytes": 2**30,
        "max_num_seqs": 512,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "max_model_len": None,
    }
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    monkeypatch.setattr(sys.modules["vllm.platforms"].current_platform, "is_cpu", lambda: False)
    _, llm = connect()
    assert "dtype" not in llm.options, "vLLM's own defaults"


@pytest.mark.parametrize("option", ["trust_remote_code", "load_format", "max_model_len", "model"])
def test_options_that_are_not_the_callers(connect: Connect, option: str) -> None:
    with pytest.raises(TypeError, match=rf"'{option}' is not an option|multiple values"):
        connect(**{option: True})


def test_bad_options(connect: Connect) -> None:
    with pytest.raises(ValueError, match="max_context must be at least 1"):
        connect(max_context=0)


def test_batch_invariance_must_be_asked_for_in_time(connect: Connect) -> None:
    connect()
    with pytest.raises(ValueError, match="VLLM_BATCH_INVARIANT=1 before"):
        connect(batch_invariant=True)
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    connect(batch_invariant=True)


def test_close_is_final_and_idempotent(connect: Connect) -> None:
    backend, _ = connect()
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="is closed"):
        backend.generate([chat()], [GREEDY])


def test_bad_batches_are_refused(connect: Connect) -> None:
    backend, _ = connect()
    with pytest.raises(ValueError, match="1 chats need as many samplings, got 0"):
        backend.generate([chat()], [])
    with pytest.raises(ValueError, match="ends with assistant"):
        backend.generate([chat()[:3]], [GREEDY])
    assert backend.generate([], []) == []


def test_vllm_is_an_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"gym-llmworld\[vllm\]"):
        load_backend(str(folder), "vllm")


def test_a_url_is_not_vllms_to_load() -> None:
    with pytest.raises(ValueError, match="backend='vllm' cannot serve this model; 'openai' can"):
        load_backend("http://127.0.0.1:1/v1", "vllm")


def test_models_are_not_mixed(folder: Path) -> None:
    with pytest.raises(ValueError, match="model must be one str, got list: all worlds"):
        load_backend([str(folder)] * 2, "vllm")  # type: ignore[arg-type]


# --- the engine itself ---------------------------------------------------------------------------

real = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-vllm"
    ),
    pytest.mark.filterwarnings("default"),  # vLLM's own
    pytest.mark.timeout(1800),  # it takes a minute to load where nothing else runs
]


def use(marks: Sequence[Any]) -> Callable[[Any], Any]:
    def mark(test: Any) -> Any:
        for one in marks:
            test = one(test)
        return test

    return mark


def save_wide(folder: Path, kind: type[PreTrainedConfig], seed: int = 0) -> Path:
    """Writes a random checkpoint whose heads are wide enough for vLLM's kernels."""
    tokenizer = tiny_tokenizer()
    config = kind(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide(tmp_path_factory.mktemp("wide"), LlamaConfig)


@pytest.fixture
def engine(wide: Path) -> Iterator[VLLMBackend]:
    backend = VLLMBackend(str(wide), kv_cache_memory_bytes=2**26)
    yield backend
    backend.close()


def agree(
    backend: VLLMBackend, local: HFBackend, chats: Sequence[list[Message]], tokens: int
) -> None:
    """Both write the same, with the same probabilities, over two turns of each chat."""
    turns = list(chats)
    for _ in range(2):
        samplings = [Sampling(max_tokens=tokens)] * len(turns)
        ours, theirs = backend.generate(turns, samplings), local.generate(turns, samplings)
        for mine, other in zip(ours, theirs, strict=True):
            assert isinstance(mine, Completion)
            assert isinstance(other, Completion)
            assert (mine.text, mine.finish_reason) == (other.text, other.finish_reason)
            assert mine.prompt_tokens == other.prompt_tokens
            assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        turns = [
            [*turn, Message("assistant", answer.text), Message("user", "inventory")]
            for turn, answer in zip(turns, theirs, strict=True)
            if isinstance(answer, Completion)
        ]


@use(real)
def test_it_writes_what_transformers_writes(engine: VLLMBackend, wide: Path) -> None:
    actions = ("look", "go to drawer 3", "open drawer 3")
    agree(engine, HFBackend(str(wide)), [chat(action) for action in actions], 10)
    assert engine.stats.cached_tokens > 0


@use(real)
def test_a_published_architecture(tmp_path: Path) -> None:
    folder = save_wide(tmp_path, Qwen3Config)
    threads = torch.set_num_threads
    backend = VLLMBackend(str(folder), kv_cache_memory_bytes=2**26)
    assert torch.set_num_threads is threads, "vLLM switches it off"
    agree(backend, HFBackend(str(folder)), [chat("look")], 10)
    backend.close()


@use(real)
def test_the_embedded_model_plays_the_same_world() -> None:
    import gymnasium as gym

    store = ScenarioStore("alfworld")
    scenarios = list(store.of_split("valid_unseen")[:4])
    model = embedded_model("alfworld")
    protocol = get_world("alfworld").protocol(checkpoint_style(model, "alfworld"))
    shared = load_backend(model, "vllm")
    assert isinstance(shared.engine, VLLMBackend)
    chats = [list(protocol.encode(scenario, (), "look")) for scenario in scenarios]
    agree(shared.engine, HFBackend(model), chats, 64)
    played = []
    for backend in ("vllm", "hf"):
        envs = gym.make_vec("LLMWorld-ALFWorld-v0", num_envs=4, backend=backend)
        envs.reset(seed=3, options={"split": "valid_unseen"})
        played.append([envs.step((action,) * 4)[0] for action in ("look", "inventory", "xyz")])
        envs.close()
    assert played[0] == played[1]
    shared.close()


@use(real)
def test_seeds_belong_to_requests(engine: VLLMBackend) -> None:
    def sample(seeds: Sequence[int]) -> list[str]:
        samplings = [Sampling(1.0, 1.0, 12, seed) for seed in seeds]
        results = engine.generate([chat()] * len(seeds), samplings)
        return [r.text for r in results if isinstance(r, Completion)]

    a, b, c = sample([1, 1, 2])
    assert a == b != c
    assert sample([3, 2, 1])[::-1][0] == a, "neither the place nor the neighbours matter"


@use(real)
def test_there_is_one_engine_at_a_time(engine: VLLMBackend, wide: Path) -> None:
    with pytest.raises(BackendError, match=r"one engine per process, and .* is open; .* serve"):
        VLLMBackend(str(wide), kv_cache_memory_bytes=2**26)
    engine.close()
    VLLMBackend(str(wide), kv_cache_memory_bytes=2**26).close()


@use(real)
def test_the_context_ends_where_it_ends(engine: VLLMBackend) -> None:
    lengths = {}
    for words in range(5, 300, 4):
        [result] = engine.generate([chat("look " * words)], [Sampling(max_tokens=40)])
        if isinstance(result, ContextOverflow):
            break
        assert isinstance(result, Completion)
        lengths[result.prompt_tokens] = len(result.logprobs)
    assert isinstance(result, ContextOverflow)
    for prompt, written in lengths.items():
        assert prompt + written <= CONTEXT


@use(real)
def test_an_interrupt_leaves_nothing(engine: VLLMBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine.generate([chat("look")], [GREEDY])
    inner = engine._llm.llm_engine
    step, steps = inner.step, []

    def interrupted() -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(inner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([chat("go to drawer 3")] * 3, [GREEDY] * 3)
    monkeypatch.undo()
    [after] = engine.generate([chat("look")], [GREEDY])
    assert isinstance(after, Completion)
    assert isinstance(expected[0], Completion)
    assert after.text == expected[0].text


@use(real)
def test_pickled_weights_and_wrong_folders_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "a")
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        VLLMBackend(str(folder))
    with pytest.raises(CheckpointError, match="no checkpoint folder there"):
        load_backend(str(tmp_path / "b"), "vllm")
    with pytest.raises(TypeError, match="no_such_thing"):
        VLLMBackend(str(folder), no_such_thing=1)

"""llama.cpp in process (`make test-llamacpp`), against transformers on the same checkpoint."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gym_llmworld.backends import load_backend
from gym_llmworld.backends.hf import HFBackend
from gym_llmworld.backends.llamacpp import LlamaCppBackend
from gym_llmworld.backends.llamacpp_gguf import gguf_of
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.core import Completion, Message, Sampling, Step
from gym_llmworld.errors import BackendError, CheckpointError, ContextOverflow, MissingDependency
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import get_world
from tests.tiny_models import ask, chat_of, save_checkpoint

HERE = all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GYM_LLMWORLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("llama"))


def same(ours: Sequence[Completion], theirs: Sequence[Completion], atol: float = 1e-3) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.text, a.finish_reason) == (b.text, b.finish_reason)
        assert a.prompt_tokens == b.prompt_tokens
        assert len(a.logprobs) == len(b.logprobs)
        assert np.allclose(a.logprobs, b.logprobs, atol=atol)


@pytest.mark.skipif(HERE, reason="llama.cpp is installed")
def test_without_llama_cpp_the_extra_is_named(folder: Path) -> None:
    with pytest.raises(MissingDependency, match=r"gym-llmworld\[llamacpp\]"):
        load_backend(str(folder), "llamacpp")


def test_only_what_is_known_becomes_a_gguf_file(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="serves LlamaForCausalLM without biases"):
        gguf_of(save_checkpoint(tmp_path / "qwen3", "qwen3"), "f32")
    scaled = tmp_path / "scaled"
    shutil.copytree(folder, scaled)
    config = json.loads((scaled / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] = {"rope_type": "yarn", "factor": 2.0}
    (scaled / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="plain rotary embeddings"):
        gguf_of(scaled, "f32")
    (scaled / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors weights"):
        gguf_of(scaled, "f32")


@pytest.mark.llamacpp
@pytest.mark.skipif(not HERE, reason="llama-cpp-python and gguf: make test-llamacpp")
class TestLlamaCpp:
    @pytest.mark.parametrize("guesses", [0, 16])
    def test_answers_as_transformers_does(self, folder: Path, guesses: int) -> None:
        hf, ours = HFBackend(str(folder)), LlamaCppBackend(str(folder), guesses=guesses)
        chats = [chat_of(i, i % 3) for i in range(4)]
        for sampling in (Sampling(max_tokens=20), Sampling(1.0, 0.9, max_tokens=20, seed=5)):
            for _ in range(2):
                same(ask(ours, chats, sampling), ask(hf, chats, sampling))
        assert ours.stats.generated_tokens == hf.stats.generated_tokens
        ours.close()
        ours.close()
        with pytest.raises(BackendError, match="closed"):
            ours.generate(chats[:1], [Sampling()])

    def test_a_step_computes_its_new_tokens_only(self, folder: Path) -> None:
        hf, ours = HFBackend(str(folder)), LlamaCppBackend(str(folder), max_slots=2)
        sampling = Sampling(max_tokens=12)
        chats = [chat_of(0, 1), chat_of(1, 2)]
        before = ask(ours, chats, sampling)
        for turn in range(3):
            chats = [
                [*chat, Message("assistant", a.text), Message("user", f"go {turn}")]
                for chat, a in zip(chats, before, strict=True)
            ]
            after = ask(ours, chats, sampling)
            same(after, ask(hf, chats, sampling))
            for a, b in zip(after, before, strict=True):
                assert a.cached_tokens >= b.prompt_tokens
            before = after
        assert ours.stats.evictions == 0
        # More worlds than sequences: slower, and the same answers.
        many = [chat_of(i, 2) for i in range(6)]
        same(ask(ours, many, sampling), ask(hf, many, sampling))
        assert ours.stats.evictions > 0
        same(ask(ours, chats, sampling), ask(hf, chats, sampling))

    def test_stop_tokens_and_the_end_of_the_context(self, folder: Path) -> None:
        plain = LlamaCppBackend(str(folder))
        [answer] = ask(plain, [chat_of(0)], Sampling(max_tokens=30))
        size = answer.prompt_tokens
        short = LlamaCppBackend(str(folder), max_context=size + 7)
        [cut] = ask(short, [chat_of(0)], Sampling(max_tokens=30))
        assert (cut.finish_reason, len(cut.logprobs)) == ("length", 7)
        assert cut.logprobs == pytest.approx(answer.logprobs[:7], abs=1e-3)
        [overflow] = short.generate([chat_of(0, 3)], [Sampling()])
        assert isinstance(overflow, ContextOverflow)

    def test_the_file_is_written_once(self, folder: Path) -> None:
        path = gguf_of(folder, "q8_0")
        written = path.stat().st_mtime_ns
        assert gguf_of(folder, "q8_0") == path
        assert path.stat().st_mtime_ns == written
        assert gguf_of(folder, "f16") != path
        assert [*path.parent.glob("*.part")] == []

    def test_options_out_of_range(self, folder: Path) -> None:
        for options, message in (
            ({"weights": "int3"}, "weights must be one of f32, f16, q8_0"),
            ({"max_slots": 0}, "max_slots must be at least 1"),
            ({"max_context": 10_000}, "made for at most 512 tokens"),
        ):
            with pytest.raises(ValueError, match=message):
                LlamaCppBackend(str(folder), **options)

    @pytest.mark.parametrize("key", ["alfworld", "textworld"])
    def test_embedded_models(self, key: str) -> None:
        world, store = get_world(key), ScenarioStore(key)
        shared = load_backend(embedded_model(key), "llamacpp")
        path = embedded_model(key)
        hf, protocol = HFBackend(path), world.protocol(checkpoint_style(path, key))
        for scenario in store.of_split(store.splits()[-1])[:2]:
            agent = world.agents["noisy"]()
            agent.reset(scenario, 0)
            steps: list[Step] = []
            observation = scenario.observation
            for _ in range(4):
                action = agent.act(observation, {"admissible_commands": None})
                chat = protocol.encode(scenario, steps, action)
                [answer] = ask(hf, [chat], Sampling(max_tokens=120))
                same(ask(shared, [chat], Sampling(max_tokens=120)), [answer])
                observation = protocol.decode(scenario, answer, ()).observation
                steps.append(Step(action, observation))
        shared.close()

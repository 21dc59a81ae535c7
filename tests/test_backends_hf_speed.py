"""What makes the hf backend fast must not show in what it answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from gym_llmworld.backends import hf_decode, hf_forward
from gym_llmworld.backends.hf import HFBackend
from gym_llmworld.backends.hf_chat import Ids
from gym_llmworld.backends.hf_guess import continuation
from gym_llmworld.backends.hf_sampling import Draw
from gym_llmworld.backends.hf_slots import Job, Slots
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import get_world
from tests.tiny_models import ARCHITECTURES, Architecture, ask, chat_of, save_checkpoint

WORLDS = (
    "alfworld", "scienceworld", "textworld", "webshop", "frozenlake", "sokoban", "sudoku",
)  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("llama"))


def same(ours: Sequence[Completion], theirs: Sequence[Completion]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.text, a.finish_reason, a.prompt_tokens) == (
            b.text,
            b.finish_reason,
            b.prompt_tokens,
        )
        assert np.allclose(a.logprobs, b.logprobs, atol=1e-3)
        assert len(a.logprobs) == len(b.logprobs)


def plain_greedy(backend: HFBackend, chat: Sequence[Message], most: int) -> list[int]:
    """transformers' own decoding: whole prompt, one token per forward pass, stop included."""
    model = AutoModelForCausalLM.from_pretrained(backend.name).eval()
    ids = backend.tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in chat],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=sorted(backend.stops),
        pad_token_id=0,
    )
    tokens: list[int] = out[0, ids.shape[1] :].tolist()
    return tokens


def test_a_continuation_is_what_followed_the_latest_like_end() -> None:
    ids = np.asarray([7, 1, 2, 3, 4, 9, 2, 3, 5, 6, 1, 2], np.int32)
    assert continuation(ids, [3], 3) == [4, 9, 2], (
        "three equal tokens tell more than the latest two"
    )
    assert continuation(ids[5:], [3], 9) == [5, 6, 1, 2, 3]
    assert continuation(ids, [3], 1) == [4]
    assert continuation(ids, [3], 0) == []
    assert continuation(ids, [8, 8], 5) == []
    # The bytes of [1, 0] also stand across the border of two tokens.
    assert continuation(np.asarray([1 << 8, 0, 5, 1], np.int32), [0], 5) == []


class Guesser:
    """Guesses what a model will write, now right, now wrong somewhere: random models repeat less.

    Args:
        backend: Writes the right answers.
        chats: Those that it is asked about.
    """

    def __init__(self, backend: HFBackend, chats: Sequence[Sequence[Message]]) -> None:
        self._dice = random.Random(0)
        self._answers = {
            ids.tobytes(): plain_greedy(backend, chat, 60)
            for chat, ids in zip(chats, backend._chats.encode(chats), strict=True)
            if not isinstance(ids, BackendError)
        }

    def __call__(self, ids: Ids, tokens: Sequence[int], most: int) -> list[int]:
        answer = self._answers[ids.tobytes()]
        assert answer[: len(tokens)] == tokens, "the answer so far"
        guess = answer[len(tokens) :][: self._dice.randint(0, max(0, most))]
        if guess and self._dice.random() < 0.5:
            wrong = self._dice.randrange(len(guess))
            guess[wrong] = (guess[wrong] + 1) % 300
        return guess


@pytest.mark.parametrize("guesses", [1, 4, 16, None])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_guesses_change_no_answer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: Architecture,
    guesses: int | None,
) -> None:
    path = str(save_checkpoint(tmp_path, architecture))
    plain, guessing = HFBackend(path, guesses=0), HFBackend(path, guesses=guesses)
    chats = [chat_of(i, i % 4) for i in range(5)]
    longer = [
        [*chat, Message("assistant", "Nothing happens."), Message("user", "x")] for chat in chats
    ]
    monkeypatch.setattr(hf_decode, "continuation", Guesser(plain, [*chats, *longer]))
    # Played on, what was fed in vain must have left no trace.
    for asked, most in ((chats, 1), (chats, 2), (chats, 60), (longer, 30)):
        sampling = Sampling(max_tokens=most)
        same(ask(guessing, asked, sampling), ask(plain, asked, sampling))
    assert plain.stats.guessed_tokens == 0
    assert guessing.stats.guessed_tokens > guessing.stats.confirmed_tokens > 50
    assert guessing.stats.forwards < plain.stats.forwards
    assert guessing.stats.cached_tokens == plain.stats.cached_tokens


def test_guesses_end_where_the_answer_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, guessing = HFBackend(str(folder), guesses=0), HFBackend(str(folder), guesses=16)
    chats = [chat_of(i, 3) for i in range(4)]
    size = ask(plain, chats[:1], Sampling(max_tokens=1))[0].prompt_tokens
    shorter = {
        room: HFBackend(str(folder), guesses=16, max_context=size + room) for room in (1, 2, 5, 9)
    }
    for short in shorter.values():
        short.stops = short.runner.stops = frozenset()
    monkeypatch.setattr(hf_decode, "continuation", Guesser(plain, chats))
    tokens = plain_greedy(plain, chats[0], 40)
    for stop in {tokens[5], tokens[12], tokens[30]}:
        for backend in (plain, guessing):
            backend.stops = backend.runner.stops = frozenset({stop})
            backend.forget()
        answers = ask(guessing, chats, Sampling(max_tokens=40))
        assert answers[0].finish_reason == "stop"
        assert len(answers[0].logprobs) == tokens.index(stop) + 1
        same(answers, ask(plain, chats, Sampling(max_tokens=40)))
    for room, short in shorter.items():
        [answer] = ask(short, chats[:1], Sampling(max_tokens=40))
        assert (answer.finish_reason, len(answer.logprobs)) == ("length", room)
        assert answer.text == plain.tokenizer.decode(tokens[:room], skip_special_tokens=True)


def test_nothing_is_guessed_for_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, guessing = HFBackend(str(folder), guesses=0), HFBackend(str(folder), guesses=8)
    sampled = Sampling(1.0, 0.9, max_tokens=30, seed=3)
    chats = [chat_of(i, 2) for i in range(4)]
    monkeypatch.setattr(hf_decode, "continuation", Guesser(plain, chats))
    same(ask(guessing, chats, sampled), ask(plain, chats, sampled))
    assert guessing.stats.guessed_tokens == 0
    mixed = [sampled, Sampling(max_tokens=30), replace(sampled, seed=4), Sampling(max_tokens=30)]
    answers = [backend.generate(chats, mixed) for backend in (guessing, plain)]
    same(*answers)  # type: ignore[arg-type]
    assert guessing.stats.guessed_tokens > 0


def test_large_batches_are_not_guessed(folder: Path) -> None:
    backend = HFBackend(str(folder))
    many = hf_decode._MOST_CHECKED["cpu"]
    draw = Draw(0.0, 1.0, random.Random(0))
    jobs = [Job(np.zeros(1, np.int32), 9, draw)] * many
    assert backend.runner._affordable_guesses(jobs) == 0
    assert backend.runner._affordable_guesses(jobs[:1]) == hf_decode._MOST_GUESSES


@pytest.mark.parametrize("key", WORLDS)
def test_embedded_models_answer_as_plain_greedy_decoding_does(key: str) -> None:
    world = get_world(key)
    path = embedded_model(key)
    plain, guessing = HFBackend(path, guesses=0), HFBackend(path)
    protocol, store = world.protocol(checkpoint_style(path, key)), ScenarioStore(key)
    chats = []
    for scenario in store.of_split(store.splits()[-1])[:3]:
        agent = world.agents["noisy"]()
        agent.reset(scenario, 0)
        action = agent.act(scenario.observation, {"admissible_commands": None})
        chats.append(protocol.encode(scenario, (), action))
    answers = ask(guessing, chats, Sampling(max_tokens=80))
    same(answers, ask(plain, chats, Sampling(max_tokens=80)))
    tokens = plain_greedy(plain, chats[0], 80)
    assert answers[0].text == plain.tokenizer.decode(tokens, skip_special_tokens=True)
    assert len(answers[0].logprobs) == len(tokens)
    turns = [
        [*chat, Message("assistant", a.text), chat[-1]]
        for chat, a in zip(chats, answers, strict=True)
    ]
    same(ask(guessing, turns, Sampling(max_tokens=80)), ask(plain, turns, Sampling(max_tokens=80)))
    # Sudoku's answers of a few tokens leave nothing to guess.
    if key != "sudoku":
        assert guessing.stats.confirmed_tokens > 0
        assert guessing.stats.forwards < plain.stats.forwards


@pytest.mark.parametrize(
    "config",
    [
        partial(LlamaConfig, attention_bias=True, tie_word_embeddings=True),
        partial(
            LlamaConfig,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        ),
        Qwen2Config,
    ],
    ids=["bias", "rope", "qwen2"],
)
def test_packed_forward_equals_transformers(config: Callable[..., PreTrainedConfig]) -> None:
    sizes = {
        "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 256,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**sizes)).eval()
    for parameter in model.parameters():  # biases and norms start as zeros and ones
        torch.nn.init.normal_(parameter, std=0.4)
    assert hf_forward.serves(model)
    slots = Slots(2, 256, 8, 2**30)
    runner = hf_decode.SlotRunner(model, frozenset(), slots, frozen=True)
    assert runner._packed is not None
    with torch.inference_mode():
        assert runner.check() is None


def test_packed_forward_is_for_frozen_weights_it_knows(tmp_path: Path, folder: Path) -> None:
    backend = HFBackend(str(folder))
    assert backend.runner._packed is not None
    given = HFBackend.from_model(backend.model, backend.tokenizer, name="given")
    assert given.runner._packed is None, "weights in training change"
    assert HFBackend(str(save_checkpoint(tmp_path, "gpt2"))).runner._packed is None
    assert HFBackend(str(folder), dtype="bfloat16").runner._packed is None


def test_a_thousand_worlds_on_a_small_machine(folder: Path) -> None:
    small = HFBackend(str(folder), max_slots=48, max_cache_bytes=2_000_000)
    chats = [chat_of(i, i % 2) for i in range(1000)]
    sampling = Sampling(max_tokens=6)
    for _ in range(2):
        answers = ask(small, chats, sampling)
        assert small.stats.cache_bytes <= 2_000_000
        assert small.runner.slots.rows <= 48
        alone = HFBackend(str(folder))
        for i in range(0, 1000, 111):
            same([answers[i]], ask(alone, [chats[i]], sampling))
        chats = [
            [*chat, Message("assistant", answer.text), Message("user", "look")]
            for chat, answer in zip(chats, answers, strict=True)
        ]
    assert small.stats.evictions > 0
    assert small.stats.requests == 2000


def test_unused_room_takes_no_memory(folder: Path) -> None:
    backend = HFBackend(str(folder), max_slots=512, max_cache_bytes=2**30)
    before = ask(backend, [chat_of(0)], Sampling(max_tokens=4))
    ask(backend, [chat_of(1, 3)], Sampling(max_tokens=4))
    slab = backend.runner.slots.cache.layers[0].keys
    again = [chat_of(i) for i in range(40)]
    answers = ask(backend, again, Sampling(max_tokens=4))
    assert backend.runner.slots.cache.layers[0].keys is slab, "rows are added in place"
    same(answers[:1], before)
    assert backend.stats.cache_bytes == backend.runner.slots.nbytes < slab.nbytes * 4

"""llama.cpp in this process: for one world, or a few, on a CPU.

Prompts are the token ids that the Hugging Face backend computes (`gym_llmworld.backends.hf_chat`),
tokens are chosen as it chooses them, and guesses are its own; llama.cpp multiplies. Each
conversation has a sequence of its own in llama.cpp's cache, and a step computes its new tokens
only. Chats of one call are answered one after the other: many worlds are the business of
``backend="hf"``.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, GenerationConfig

from gym_llmworld.backends.base import BackendStats, check_batch
from gym_llmworld.backends.hf import stop_tokens
from gym_llmworld.backends.hf_chat import ChatEncoder, Ids
from gym_llmworld.backends.hf_guess import continuation
from gym_llmworld.backends.hf_sampling import Draw, pick
from gym_llmworld.backends.llamacpp_gguf import WEIGHTS, Weights, gguf_of
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, CheckpointError, ContextOverflow, MissingDependency

_CHUNK = 512
_F32 = 0
"""GGML_TYPE_F32."""


@dataclass(eq=False)
class _Sequence:
    """A conversation in llama.cpp's cache: what has been fed of it."""

    number: int
    tokens: list[int] = field(default_factory=list)
    used: int = 0

    def shared(self, ids: Sequence[int]) -> int:
        """Returns how many leading tokens of a prompt it holds; the last is fed in any case."""
        most = min(len(self.tokens), len(ids) - 1)
        held, wanted = np.asarray(self.tokens[:most]), np.asarray(ids[:most])
        different = np.flatnonzero(held != wanted)
        return int(different[0]) if len(different) else most


class LlamaCppBackend:
    """Completes chats with llama.cpp.

    Args:
        model: Checkpoint folder of a Llama architecture; its GGUF file is made at the first use and
            kept in the user's cache folder.
        weights: ``"f32"`` answers as the Hugging Face backend does, up to the rounding of sums;
            ``"f16"`` and ``"q8_0"`` (8 bits) are smaller and faster, and round the weights.
        max_context: Longest conversation in tokens; None for what the model was made for.
        max_slots: Most conversations whose keys and values are kept, memory for which is taken at
            once.
        threads: Of llama.cpp. More than one gain nothing with models as small as the embedded ones.
        guesses: Most tokens of a greedy answer that are guessed and checked together; 0 for none.

    Attributes:
        name: The model.
        max_context: Longest conversation in tokens.

    Raises:
        MissingDependency: ``llama-cpp-python`` or ``gguf`` is not installed.
        CheckpointError: llama.cpp cannot serve this checkpoint.
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        weights: Weights = "f32",
        max_context: int | None = None,
        max_slots: int = 4,
        threads: int = 1,
        guesses: int = 16,
    ) -> None:
        for package in ("llama_cpp", "gguf"):
            if importlib.util.find_spec(package) is None:
                raise MissingDependency(package, "llamacpp")
        if weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
        least = {"max_context": 2, "max_slots": 1, "threads": 1, "guesses": 0}
        options = {
            "max_context": max_context,
            "max_slots": max_slots,
            "threads": threads,
            "guesses": guesses,
        }
        for name, value in options.items():
            if value is not None and value < least[name]:
                raise ValueError(f"{name} must be at least {least[name]}, got {value}")
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise CheckpointError(
                f"backend 'llamacpp' serves checkpoint folders, and {model!r} is none; download it "
                "first"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        generation = GenerationConfig.from_pretrained(folder)
        self.name = model
        self._chats = ChatEncoder(tokenizer, model)
        served = SimpleNamespace(generation_config=generation)
        self._stops = stop_tokens(served, tokenizer, self._chats.turn_end)
        self._longest = generation.max_new_tokens
        self._guesses = guesses
        self._lock = threading.Lock()
        self._stats = BackendStats()
        self._clock = 0
        self._engine: _Engine | None = _Engine(
            gguf_of(folder, weights), model, max_context, max_slots, threads
        )
        self._context = self._engine.context
        self.max_context: int | None = self._context
        self._sequences = [_Sequence(i) for i in range(max_slots)]

    @property
    def stats(self) -> BackendStats:
        """What was done since loading."""
        return self._stats

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        """Completes each chat, one after the other.

        A chat that fills the context has a `ContextOverflow` in its place, one that the template
        refuses a `BackendError`.

        Raises:
            ValueError: Not one sampling per chat, or a chat that does not end with a user message.
            BackendError: The backend is closed, or llama.cpp failed.
        """
        check_batch(chats, samplings, "samplings")
        with self._lock, torch.inference_mode():
            if self._engine is None:
                raise BackendError(f"the backend of {self.name} is closed")
            prompts = self._chats.encode(chats)
            answers = [
                self._answer(self._engine, ids, sampling)
                for ids, sampling in zip(prompts, samplings, strict=True)
            ]
            stats = self._stats
            self._stats = replace(
                stats, calls=stats.calls + 1, requests=stats.requests + len(answers)
            )
        return answers

    def close(self) -> None:
        """Frees the model; calling it twice is fine."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    def __deepcopy__(self, memo: dict[int, object]) -> LlamaCppBackend:
        """A backend is shared, never copied."""
        return self

    def _answer(
        self, engine: _Engine, ids: Ids | BackendError, sampling: Sampling
    ) -> Completion | BackendError:
        if isinstance(ids, BackendError):
            return ids
        if len(ids) >= self._context:
            return ContextOverflow(
                f"the conversation takes {len(ids)} tokens and {self.name} is limited to "
                f"{self._context}, the answer included; end the episode earlier, or raise "
                "max_context if it set that limit"
            )
        prompt = ids.tolist()
        sequence, evicted = self._claim(prompt)
        cached = sequence.shared(prompt)
        draw = Draw(sampling.temperature, sampling.top_p, random.Random(sampling.seed))
        most = min(sampling.max_tokens, self._longest or sampling.max_tokens)
        end = min(len(prompt) + most, self._context)
        tokens: list[int] = []
        logprobs: list[float] = []
        finish = ""
        forwards = engine.forwards
        feed, guess, guessed, confirmed = prompt[cached:], list[int](), 0, 0
        del sequence.tokens[cached:]
        while not finish:
            checked = len(guess) + 1
            logits = torch.from_numpy(engine.feed(sequence, [*feed, *guess], checked))
            # What is right of the guess, and the token after it.
            for i in range(checked):
                picked, values = pick(logits[i : i + 1], [draw])
                token = int(picked[0])
                logprobs += values
                if token in self._stops:
                    finish = "stop"
                    break
                tokens.append(token)
                if len(prompt) + len(tokens) >= end:
                    finish = "length"
                    break
                if guess[i : i + 1] != [token]:
                    break
                confirmed += 1
            # The last token is yet to be fed, unless it is the one that ends the turn.
            del sequence.tokens[len(prompt) + len(tokens) - (finish != "stop") :]
            feed, guess = tokens[-1:], []
            room = end - len(prompt) - len(tokens) - 1
            if draw.temperature == 0 and not finish and self._guesses:
                guess = continuation(ids, tokens, min(self._guesses, room))
                guessed += len(guess)
        stats = self._stats
        self._stats = replace(
            stats,
            prompt_tokens=stats.prompt_tokens + len(prompt),
            cached_tokens=stats.cached_tokens + cached,
            generated_tokens=stats.generated_tokens + len(logprobs),
            forwards=stats.forwards + engine.forwards - forwards,
            evictions=stats.evictions + evicted,
            guessed_tokens=stats.guessed_tokens + guessed,
            confirmed_tokens=stats.confirmed_tokens + confirmed,
        )
        return Completion(
            self._chats.decode(tokens),
            "stop" if finish == "stop" else "length",
            tuple(logprobs),
            prompt_tokens=len(prompt),
            cached_tokens=cached,
        )

    def _claim(self, prompt: Sequence[int]) -> tuple[_Sequence, bool]:
        """Returns the sequence that a prompt continues, or the one that is cheapest to lose."""
        best = max(self._sequences, key=lambda s: s.shared(prompt))
        evicted = False
        if 2 * best.shared(prompt) < len(prompt):
            best = min(self._sequences, key=lambda s: s.used)
            evicted = bool(best.tokens)
        self._clock += 1
        best.used = self._clock
        return best, evicted


class _Engine:
    """llama.cpp's model and context, through its C interface."""

    def __init__(
        self, path: Path, name: str, context: int | None, sequences: int, threads: int
    ) -> None:
        self._api: Any = importlib.import_module("llama_cpp.llama_cpp")
        self.forwards = 0
        api = self._api
        # Kept, or it would be freed while llama.cpp still calls it.
        self._silence = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._silence, ctypes.c_void_p(0))
        api.llama_backend_init()
        options = api.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise CheckpointError(f"llama.cpp cannot load {path}, made from {name}")
        known = int(api.llama_model_n_ctx_train(self._model))
        if context is not None and context > known:
            raise ValueError(
                f"max_context={context}, but the model was made for at most {known} tokens"
            )
        self.context = context or known
        self._vocabulary = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model)))
        setting = api.llama_context_default_params()
        # Each sequence has the same share, which llama.cpp rounds up.
        setting.n_ctx, setting.n_seq_max = self.context * sequences, sequences
        setting.n_batch = setting.n_ubatch = _CHUNK
        setting.n_threads = setting.n_threads_batch = threads
        setting.type_k = setting.type_v = _F32
        # llama.cpp's flash attention rounds to half precision on a CPU.
        setting.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        setting.no_perf = True
        self._context = api.llama_init_from_model(self._model, setting)
        if not self._context:
            raise CheckpointError(
                f"llama.cpp has no memory for {sequences} conversations of {self.context} tokens "
                f"with {name}; lower max_slots or max_context"
            )
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(_CHUNK, 0, 1)

    def feed(self, sequence: _Sequence, tokens: Sequence[int], keep: int) -> Any:
        """Appends tokens to what a sequence holds; returns the last logits ``[keep, vocabulary]``.

        Raises:
            BackendError: llama.cpp failed; the sequence is empty then.
        """
        api, batch = self._api, self._batch
        start, logits = len(sequence.tokens), []
        api.llama_memory_seq_rm(self._memory, sequence.number, start, -1)
        for first in range(0, len(tokens), _CHUNK):
            part = tokens[first : first + _CHUNK]
            wanted = []
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i] = token, start + first + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence.number
                batch.logits[i] = first + i >= len(tokens) - keep
                if batch.logits[i]:
                    wanted.append(i)
            batch.n_tokens = len(part)
            self.forwards += 1
            failed = api.llama_decode(self._context, batch)
            if failed:
                sequence.tokens.clear()
                raise BackendError(f"llama.cpp failed with status {failed}")
            for i in wanted:
                row = api.llama_get_logits_ith(self._context, i)
                logits.append(np.ctypeslib.as_array(row, (self._vocabulary,)).copy())
        sequence.tokens += tokens
        return np.stack(logits)

    def close(self) -> None:
        """Frees everything."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

"""vLLM in this process: for a GPU of one's own, and for many worlds at once.

Prompts are the token ids that the Hugging Face backend computes (`gym_llmworld.backends.hf_chat`),
so that untrusted text cannot spell a control token, and all chats of a call run as one batch.
vLLM's prefix cache keeps the keys and values of earlier turns: a step costs its new tokens, rounded
up to a cache block.

Determinism. A sampled request brings its own seed. Greedy and seeded answers repeat exactly when
the same calls are made in the same order in a fresh process. In other batches, or with another
part of the prompt cached, the sums inside of the kernels are rounded differently, and a near-tie
may fall the other way; ``batch_invariant=True`` rules that out on GPUs that vLLM supports it for.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from gym_llmworld.backends.base import BackendStats, check_batch
from gym_llmworld.backends.hf_chat import ChatEncoder
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, CheckpointError, ContextOverflow, MissingDependency

_ENVIRONMENT = {
    # The scheduler runs in this process: it is deterministic, programs need no __main__ guard, and
    # an error of the engine is an exception here.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # On a CPU, vLLM would pin this process's threads to cores that others may be using.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
_INVARIANT = "VLLM_BATCH_INVARIANT"
# Compiling takes 40 s and gains a tenth; of vLLM's own blocks of 128 tokens, most of a step's
# history is computed again.
_CPU_DEFAULTS = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "kv_cache_memory_bytes": 2**30,
}
# Pickled weights and a checkpoint's own code could run anything; the others are the contract.
_FIXED = {
    "load_format": "safetensors",
    "trust_remote_code": False,
    "enable_prefix_caching": True,
    "logprobs_mode": "raw_logprobs",
}


class VLLMBackend:
    """Completes chats with vLLM's engine, one in a process at a time.

    Args:
        model: Checkpoint folder or hub id: safetensors weights, tokenizer, chat template. Code that
            comes with a checkpoint is never run.
        max_context: Longest conversation in tokens; None for what the model was made for.
        batch_invariant: Answers do not depend on what else is in the batch (slower; GPUs only).
            Sets ``VLLM_BATCH_INVARIANT=1`` for the whole process.
        **engine: vLLM's own engine arguments (``vllm.EngineArgs``) by their names, for example
            ``gpu_memory_utilization=0.5``, ``tensor_parallel_size=2``, ``max_num_seqs=512``,
            ``dtype="bfloat16"``. On a CPU, ``dtype="float32"``, ``enforce_eager=True``,
            ``block_size=32`` and 1 GiB of ``kv_cache_memory_bytes`` are the defaults.

    Attributes:
        name: The model.
        max_context: Longest conversation in tokens.

    Raises:
        MissingDependency: ``vllm`` is not installed.
        BackendError: Another one is open in this process.
        ValueError: An option is out of range, or cannot take effect any more.
        TypeError: An engine argument that vLLM does not have, or that is not the caller's to set.
        CheckpointError: vLLM cannot serve this checkpoint; the message says why.
    """

    _opened: ClassVar[str | None] = None

    def __init__(
        self,
        model: str,
        *,
        max_context: int | None = None,
        batch_invariant: bool = False,
        **engine: Any,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise MissingDependency("vllm", "vllm")
        if max_context is not None and max_context < 1:
            raise ValueError(f"max_context must be at least 1, got {max_context}")
        fixed = sorted({"model", "max_model_len", *_FIXED}.intersection(engine))
        if fixed:
            raise TypeError(f"{fixed[0]!r} is not an option of backend 'vllm'")
        if VLLMBackend._opened is not None:
            # What vLLM keeps per process goes away with the first engine that closes.
            raise BackendError(
                f"vLLM runs one engine per process, and {VLLMBackend._opened} is open; expected "
                "it to be closed first. For two models at once, give one to a server: "
                "llmworld serve"
            )
        _prepare(batch_invariant)
        self.name = model
        self._lock = threading.Lock()
        self._stats = BackendStats()
        with _process_left_alone():
            self._llm: Any = _load(model, max_context, engine)
        VLLMBackend._opened = model
        self._context = int(self._llm.llm_engine.model_config.max_model_len)
        self.max_context: int | None = self._context
        try:
            self._chats = ChatEncoder(self._llm.get_tokenizer(), model)
        except BaseException:
            self.close()
            raise

    @property
    def stats(self) -> BackendStats:
        """What was done since loading; vLLM counts neither forward passes nor evictions here."""
        return self._stats

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        """Completes each chat, all of them in one batch.

        A chat that fills the context has a `ContextOverflow` in its place, one that the template
        refuses a `BackendError`.

        Raises:
            ValueError: Not one sampling per chat, or a chat that does not end with a user message.
            BackendError: The backend is closed, or vLLM failed.
        """
        check_batch(chats, samplings, "samplings")
        with self._lock:
            if self._llm is None:
                raise BackendError(f"the backend of {self.name} is closed")
            prompts = [self._prompt(chat) for chat in self._chats.encode(chats)]
            asked = [i for i, prompt in enumerate(prompts) if not isinstance(prompt, BackendError)]
            params = [self._params(prompts[i], samplings[i]) for i in asked]
            outputs = self._run([prompts[i] for i in asked], params)
            answered = dict(zip(asked, map(self._completion, outputs), strict=True))
            self._count(len(chats), outputs)
        return [answered.get(i, prompt) for i, prompt in enumerate(prompts)]

    def close(self) -> None:
        """Frees the model; calling it twice is fine."""
        llm, self._llm = self._llm, None
        if llm is not None:
            VLLMBackend._opened = None
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()

    def __deepcopy__(self, memo: dict[int, object]) -> VLLMBackend:
        """A backend is shared, never copied."""
        return self

    def _prompt(self, ids: Any) -> Any:
        if isinstance(ids, BackendError):
            return ids
        if len(ids) >= self._context:
            return ContextOverflow(
                f"the conversation takes {len(ids)} tokens and {self.name} is limited to "
                f"{self._context}, the answer included; end the episode earlier, or raise "
                "max_context if it set that limit"
            )
        return ids.tolist()

    def _params(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        from vllm import SamplingParams

        sampled = sampling.temperature > 0
        end = self._chats.turn_end
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampled else 1.0,
            seed=sampling.seed if sampled else None,
            max_tokens=min(sampling.max_tokens, self._context - len(prompt)),
            stop_token_ids=[] if end is None else [end],
            logprobs=0,
            detokenize=False,
        )

    def _run(self, prompts: Sequence[list[int]], params: Sequence[Any]) -> list[Any]:
        if not prompts:
            return []
        engine = self._llm.llm_engine
        try:
            # An interrupted call leaves its requests behind, and the next one would return them.
            while engine.has_unfinished_requests():
                engine.step()
            outputs: list[Any] = self._llm.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
            )
        except RuntimeError as error:
            raise BackendError(f"vLLM failed on {self.name}: {error}") from error
        return outputs

    def _completion(self, output: Any) -> Completion:
        [written] = output.outputs
        ids = list(written.token_ids)
        return Completion(
            self._chats.decode(ids),
            "stop" if written.finish_reason == "stop" else "length",
            tuple(at[token].logprob for token, at in zip(ids, written.logprobs, strict=True)),
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )

    def _count(self, requests: int, outputs: Sequence[Any]) -> None:
        stats = self._stats
        self._stats = replace(
            stats,
            calls=stats.calls + 1,
            requests=stats.requests + requests,
            prompt_tokens=stats.prompt_tokens + sum(len(o.prompt_token_ids) for o in outputs),
            cached_tokens=stats.cached_tokens + sum(o.num_cached_tokens or 0 for o in outputs),
            generated_tokens=stats.generated_tokens
            + sum(len(o.outputs[0].token_ids) for o in outputs),
        )


def _prepare(batch_invariant: bool) -> None:
    """Sets what vLLM reads from the environment, where the user has not done so."""
    if batch_invariant and os.environ.get(_INVARIANT) != "1":
        if "vllm" in sys.modules:
            raise ValueError(
                "batch_invariant=True comes too late: vLLM was imported without it. Set "
                f"{_INVARIANT}=1 before this program starts"
            )
        os.environ[_INVARIANT] = "1"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _process_left_alone() -> Iterator[None]:
    """Undoes that loading vLLM seeds the generators and, on a CPU, fixes the threads of torch."""
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    set_num_threads = torch.set_num_threads
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads = set_num_threads


def _load(model: str, max_context: int | None, options: dict[str, Any]) -> Any:
    from vllm import LLM
    from vllm.platforms import current_platform

    defaults = _CPU_DEFAULTS if current_platform.is_cpu() else {}
    arguments = {**defaults, **options, **_FIXED, "max_model_len": max_context}
    try:
        return LLM(model, **arguments)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"vLLM cannot serve {model!r}: expected a checkpoint folder or a reachable hub id with "
            "safetensors weights, a tokenizer and an architecture that vLLM knows, and memory for "
            f"it; {type(error).__name__}: {error}"
        ) from error

"""The Hugging Face backend: any causal language model with a chat template, on CPU or GPU.

It answers with the transformers model's own forward pass. What makes it fast enough for stepping an
environment is what it does not compute: a conversation that continues one of an earlier request
costs its new tokens only (`gym_llmworld.backends.hf_slots`), and history is neither rendered nor
tokenised again (`gym_llmworld.backends.hf_chat`). A result depends on its chat and sampling alone,
never on what was asked before or beside it (up to the rounding of floating-point sums).
"""

from __future__ import annotations

import contextlib
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from gym_llmworld.backends.base import BackendStats, check_batch
from gym_llmworld.backends.hf_chat import ChatEncoder, Ids
from gym_llmworld.backends.hf_decode import RowRunner, SlotRunner, slots_serve
from gym_llmworld.backends.hf_sampling import Draw
from gym_llmworld.backends.hf_slots import Job, Slots
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, CheckpointError, ContextOverflow

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CPU_CACHE_BYTES = 2**30
_UNKNOWN_CONTEXT = 4096


class HFBackend:
    """Completes chats with a causal language model.

    Args:
        model: Checkpoint folder or hub id: safetensors weights, tokenizer, chat template. Code that
            comes with a checkpoint is never run.
        device: ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: ``"auto"`` (float32 on CPU, bfloat16 on CUDA), ``"float32"``, ``"bfloat16"`` or
            ``"float16"``.
        max_context: Longest conversation in tokens; None for what the model was made for.
        max_slots: Most conversations whose keys and values are kept. More chats than that are
            answered in turn.
        max_cache_bytes: Most memory for keys and values; None for 1 GiB on a CPU and half of what
            is free on a GPU.
        threads: CPU threads of torch, for the whole process; None to leave them alone.
        guesses: Most tokens of a greedy answer that are guessed from the conversation and checked
            together, in one forward pass, which changes no answer: 0 for none, None to decide by
            the number of conversations asked at once. Where temperature is above 0, nothing is
            guessed.

    Attributes:
        name: The model.
        max_context: Longest conversation in tokens.
        model: The transformers model.
        tokenizer: Its tokenizer.
        stops: Tokens that end a turn.
        runner: What carries requests out.

    Raises:
        CheckpointError: The checkpoint cannot serve; the message says what is missing.
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_context: int | None = None,
        max_slots: int = 256,
        max_cache_bytes: int | None = None,
        threads: int | None = None,
        guesses: int | None = None,
    ) -> None:
        _check_options(max_context, max_slots, max_cache_bytes, threads)
        if guesses is not None and guesses < 0:
            raise ValueError(f"guesses must be at least 0 (0 is none), got {guesses}")
        if threads is not None:
            torch.set_num_threads(threads)
        target = _device(device)
        kind = _dtype(dtype, target)
        _check_folder(model)
        tokenizer = _load(model, AutoTokenizer.from_pretrained, "tokenizer")
        chats = ChatEncoder(tokenizer, model)
        self._serve(_load_model(model, target, kind), tokenizer, chats, model, max_context)
        self.runner: Any = self._make_runner(
            max_slots, max_cache_bytes, frozen=True, guesses=guesses
        )
        self.max_context: int | None = self._context

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        max_slots: int = 256,
        max_cache_bytes: int | None = None,
    ) -> HFBackend:
        """Serves a model that is in memory already, such as one in training.

        It stays the caller's: put it into evaluation mode before asking, and call `forget` after
        its weights have changed. A turn ends with the one token that the chat template ends it
        with, so that what `continue_tokens` returns is exactly what was sampled.

        Args:
            model: A transformers causal language model.
            tokenizer: Its tokenizer, with a chat template.
            name: For messages.
            max_slots: As of the constructor.
            max_cache_bytes: As of the constructor.

        Raises:
            CheckpointError: The chat template is missing, or ends no turn with a token of its own.
            ValueError: An option is out of range.
        """
        _check_options(None, max_slots, max_cache_bytes, None)
        backend = cls.__new__(cls)
        chats = ChatEncoder(tokenizer, name)
        if chats.turn_end is None:
            raise CheckpointError(
                f"the chat template of {name} ends an assistant's turn with no token of its own; "
                "expected one such as <|im_end|>, or the model cannot learn to stop"
            )
        backend._serve(model, tokenizer, chats, name, None)
        backend.stops = frozenset({chats.turn_end})
        backend.runner = backend._make_runner(max_slots, max_cache_bytes)
        backend.max_context = backend._context
        return backend

    def _serve(
        self, model: Any, tokenizer: Any, chats: ChatEncoder, name: str, max_context: int | None
    ) -> None:
        self.name = name
        self.model: Any = model
        self.tokenizer = tokenizer
        self._chats = chats
        self._context = _context(model, max_context)
        self._lock = threading.Lock()
        self._stats = BackendStats()
        self.stops = stop_tokens(model, tokenizer, chats.turn_end)

    @property
    def stats(self) -> BackendStats:
        """What was done since loading."""
        return self._stats

    @property
    def reuses(self) -> bool:
        """Whether keys and values are kept between requests, which some architectures rule out."""
        return isinstance(self.runner, SlotRunner)

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        """Completes each chat.

        A chat that fills the context has a `ContextOverflow` in its place, one that the template
        refuses a `BackendError`.

        Raises:
            ValueError: Not one sampling per chat, or an empty chat.
            BackendError: The backend is closed.
        """
        check_batch(chats, samplings, "samplings")

        def job(ids: Ids, i: int) -> Job:
            return self._job(ids, samplings[i], returning=len(chats[i]) > 2)

        return [
            done if isinstance(done, BackendError) else self._completion(done)
            for done in self._answer(lambda: self._chats.encode(chats), job)
        ]

    def continue_tokens(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]
    ) -> list[tuple[tuple[int, ...], Completion] | BackendError]:
        """Completes token sequences, for those who need the very tokens (reinforcement learning).

        Args:
            prompts: As the chat template words them, up to the header of the coming answer.
            samplings: One per prompt.

        Returns:
            The tokens written, without the one that ends the turn, and the same as a `Completion`.
            A prompt that fills the context has a `ContextOverflow` in its place.

        Raises:
            ValueError: Not one sampling per prompt, or an empty prompt.
            BackendError: The backend is closed.
        """
        if len(prompts) != len(samplings) or not all(prompts):
            raise ValueError(
                f"expected one sampling per prompt and no empty prompt, got {len(samplings)} "
                f"samplings for prompts of {[len(prompt) for prompt in prompts]} tokens"
            )
        ids: list[Ids | BackendError] = [np.asarray(prompt, np.int32) for prompt in prompts]

        def job(ids: Ids, i: int) -> Job:
            return self._job(ids, samplings[i], returning=False)

        return [
            done if isinstance(done, BackendError) else (tuple(done.tokens), self._completion(done))
            for done in self._answer(lambda: ids, job)
        ]

    def forget(self) -> None:
        """Drops all keys and values that are kept: the model's weights have changed."""
        with self._lock:
            if self.runner is not None and self.runner.slots is not None:
                self.runner.slots.forget()

    def score(
        self, chats: Sequence[Sequence[Message]], targets: Sequence[str]
    ) -> list[tuple[float, ...] | BackendError]:
        """Returns the log-probability of each token of each target; see `Scorer`.

        Raises:
            ValueError: Not one target per chat, or an empty chat.
            BackendError: The backend is closed.
        """
        check_batch(chats, targets, "targets")
        return [
            done if isinstance(done, BackendError) else tuple(done.logprobs)
            for done in self._judge(chats, targets)
        ]

    def confirm(
        self, chats: Sequence[Sequence[Message]], targets: Sequence[str], max_tokens: int
    ) -> list[Completion | None]:
        """Returns the completions that are their targets; see `Confirmer`.

        Raises:
            ValueError: Not one target per chat, or an empty chat.
            BackendError: The backend is closed.
        """
        check_batch(chats, targets, "targets")
        longest = self._longest(max_tokens)
        return [
            self._confirmed(done)
            if isinstance(done, Job) and done.greedy and len(done.targets) <= longest
            else None
            for done in self._judge(chats, targets)
        ]

    def _judge(
        self, chats: Sequence[Sequence[Message]], targets: Sequence[str]
    ) -> list[Job | BackendError]:
        def job(ids: Ids, i: int) -> Job | ContextOverflow:
            wanted = self._chats.encode_target(targets[i])
            size = len(ids) + len(wanted)
            if size > self._context:
                return self._overflow(size)
            fed = np.concatenate([ids, np.asarray(wanted[:-1], np.int32)])
            return Job(fed, size, returning=len(chats[i]) > 2, targets=wanted)

        return self._answer(lambda: self._chats.encode(chats), job)

    def close(self) -> None:
        """Frees the model; calling it twice is fine."""
        with self._lock:
            self.model = self.runner = None

    def __deepcopy__(self, memo: dict[int, object]) -> HFBackend:
        """A backend is shared, never copied."""
        return self

    def _job(self, ids: Ids, sampling: Sampling, *, returning: bool) -> Job:
        draw = Draw(sampling.temperature, sampling.top_p, random.Random(sampling.seed))
        end = min(len(ids) + self._longest(sampling.max_tokens), self._context)
        return Job(ids, end, draw, returning=returning)

    def _longest(self, max_tokens: int) -> int:
        # A checkpoint may know that it has run astray: ``max_new_tokens`` beside its weights.
        own = None if self.model is None else self.model.generation_config.max_new_tokens
        return min(max_tokens, own or max_tokens)

    def _answer(
        self,
        encode: Callable[[], Sequence[Ids | BackendError]],
        make: Callable[[Ids, int], Job | ContextOverflow],
    ) -> list[Job | BackendError]:
        with self._lock, torch.inference_mode():
            if self.runner is None:
                raise BackendError(f"the backend of {self.name} is closed")
            answers: list[Job | BackendError] = []
            for i, ids in enumerate(encode()):
                if isinstance(ids, BackendError):
                    answers.append(ids)
                elif len(ids) >= self._context:
                    answers.append(self._overflow(len(ids)))
                else:
                    answers.append(make(ids, i))
            jobs = [answer for answer in answers if isinstance(answer, Job)]
            self.runner.run(jobs)
            self._count(len(answers), jobs)
        return answers

    def _overflow(self, tokens: int) -> ContextOverflow:
        return ContextOverflow(
            f"the conversation takes {tokens} tokens and {self.name} is limited to "
            f"{self._context}, the answer included; end the episode earlier, or raise max_context "
            "or max_cache_bytes if one of them set that limit"
        )

    def _completion(self, job: Job) -> Completion:
        return Completion(
            self._chats.decode(job.tokens),
            job.finish or "length",
            tuple(job.logprobs),
            prompt_tokens=len(job.ids),
            cached_tokens=job.cached,
        )

    def _confirmed(self, job: Job) -> Completion:
        written = [token for token in job.targets if token not in self.stops]
        fed = len(job.targets) - 1
        return Completion(
            self._chats.decode(written),
            "stop",
            tuple(job.logprobs),
            prompt_tokens=len(job.ids) - fed,
            cached_tokens=job.cached,
        )

    def _count(self, requests: int, jobs: Sequence[Job]) -> None:
        stats, runner = self._stats, self.runner
        written = sum(len(job.logprobs) for job in jobs if job.draw is not None)
        self._stats = replace(
            stats,
            calls=stats.calls + 1,
            requests=stats.requests + requests,
            prompt_tokens=stats.prompt_tokens + sum(len(job.ids) for job in jobs),
            cached_tokens=stats.cached_tokens + sum(job.cached for job in jobs),
            generated_tokens=stats.generated_tokens + written,
            forwards=runner.forwards,
            evictions=runner.slots.evictions if runner.slots else 0,
            cache_bytes=runner.slots.nbytes if runner.slots else 0,
            guessed_tokens=runner.guessed,
            confirmed_tokens=runner.confirmed,
        )

    def _make_runner(
        self,
        max_slots: int,
        max_bytes: int | None,
        *,
        frozen: bool = False,
        guesses: int | None = None,
    ) -> SlotRunner | RowRunner:
        reason = slots_serve(self.model, self._context)
        if reason is None:
            layers = self.model.config.get_text_config().num_hidden_layers
            budget = max_bytes or _cache_bytes(self.model.device)
            slots = Slots(layers, self._context, max_slots, budget)
            runner = SlotRunner(self.model, self.stops, slots, frozen=frozen, guesses=guesses)
            with torch.inference_mode():
                reason = runner.check()
            if reason is None:
                if slots.longest < self._context:
                    self._context = _affordable(slots)
                return runner
        warnings.warn(
            f"{self.name}: {reason}; every request is computed from its start, one after the "
            "other, which is correct but slow",
            stacklevel=3,
        )
        return RowRunner(self.model, self.stops)


def _check_options(
    max_context: int | None, max_slots: int, max_cache_bytes: int | None, threads: int | None
) -> None:
    options = {
        "max_context": max_context,
        "max_slots": max_slots,
        "max_cache_bytes": max_cache_bytes,
        "threads": threads,
    }
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda[:index]', got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}, but torch sees no CUDA device; use device='cpu'")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in _DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {', '.join(_DTYPES)}, got {name!r}")
    return _DTYPES[name]


def _load_model(model: str, device: torch.device, dtype: torch.dtype) -> Any:
    loaded, info = _load(
        model,
        AutoModelForCausalLM.from_pretrained,
        "weights",
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    # transformers fills what a checkpoint lacks with random numbers.
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            keys = sorted(map(str, info[kind]))
            raise CheckpointError(
                f"{model} is incomplete: {len(keys)} {kind.replace('_', ' ')}, for example "
                f"{keys[0]}; expected the weights of a {type(loaded).__name__}"
            )
    return loaded.to(device).eval()


def _check_folder(model: str) -> None:
    folder = Path(model).expanduser()
    if not folder.is_dir():
        # A hub id has at most one slash and no dot in front.
        if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
            raise CheckpointError(
                f"{model} is not a folder: expected a checkpoint folder (config.json, safetensors "
                "weights, tokenizer, chat template) or a hub id 'owner/name'"
            )
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: it is not a transformers checkpoint")
    if not any(folder.glob("*.safetensors")):
        found = sorted(file.name for file in folder.glob("*.bin"))
        raise CheckpointError(
            f"{folder} has no safetensors weights{f', only {found[0]}' if found else ''}. Pickled "
            "weights can run code and are not read; convert them with "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )


def _load(model: str, loader: Callable[..., Any], what: str, **options: Any) -> Any:
    try:
        with _quiet():
            return loader(model, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot load the {what} of {model!r}, which is {_place(model)}: expected a checkpoint "
            "folder or a reachable hub id with safetensors weights and a tokenizer; "
            f"{type(error).__name__}: {error}"
        ) from error


def _place(model: str) -> str:
    return "a folder" if Path(model).expanduser().is_dir() else "no folder here, so a hub id"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from drawing progress bars over a program's own output."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _context(model: Any, wanted: int | None) -> int:
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if wanted is not None and known is not None and wanted > known:
        raise ValueError(f"max_context={wanted}, but the model was made for at most {known} tokens")
    return int(wanted or known or _UNKNOWN_CONTEXT)


def _affordable(slots: Slots) -> int:
    if slots.longest < 2:
        raise ValueError(
            f"max_cache_bytes={slots.max_bytes} holds no conversation: one token of this model "
            f"takes {slots.bytes_per_token} bytes"
        )
    return slots.longest


def stop_tokens(model: Any, tokenizer: Any, turn_end: int | None) -> frozenset[int]:
    """Returns the tokens that end a turn: what the checkpoint declares, and its template's."""
    declared = model.generation_config.eos_token_id
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(i for i in (*listed, tokenizer.eos_token_id, turn_end) if i is not None)


def _cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 2
    return _CPU_CACHE_BYTES

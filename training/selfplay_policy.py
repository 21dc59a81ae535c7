"""The policy of self-play: its tokens, its answers in batch, its checkpoints.

From scratch it is a small Llama whose tokens are the pieces that states are made of. Any causal
language model with a chat template that only appends can take its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gym_llmworld.backends.hf_decode import SlotRunner
from gym_llmworld.backends.hf_sampling import Draw
from gym_llmworld.backends.hf_slots import Job, Slots
from gym_llmworld.core import Message
from gym_llmworld.errors import CheckpointError
from training.card import claim as claim_file
from training.card import write_atomically
from training.selfplay_data import THINK, Game, state_spans
from training.selfplay_rows import Conversation
from training.trainer import checkpoint_step

Part = Literal["answer", "thoughts", "observation", "prediction"]

POLICY_FILE, _RUN_FILE = "selfplay.json", "run.json"
_CPU_CACHE_BYTES = 2**30


@dataclass
class Transcript:
    """An episode as the policy sees it.

    Attributes:
        ids: All tokens so far.
        written: For each of them, whether the policy wrote it.
        logprobs: Of what it wrote, in order, as it was sampled.
    """

    ids: list[int] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def told(self, ids: Sequence[int]) -> None:
        """Appends what somebody else says."""
        self.ids += ids
        self.written += [False] * len(ids)

    def wrote(self, ids: Sequence[int]) -> None:
        """Appends what the policy says."""
        self.ids += ids
        self.written += [True] * len(ids)


class Codec:
    """Chats as tokens; never tokenises again what was written token by token.

    Args:
        tokenizer: With a chat template that only appends.

    Raises:
        CheckpointError: There is no chat template, or no token that ends a turn.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template or tokenizer.eos_token_id is None:
            raise CheckpointError(
                "self-play needs a tokenizer with a chat template and an end-of-turn token; take "
                "an instruction-tuned model"
            )
        self.tokenizer = tokenizer
        self.end = int(tokenizer.eos_token_id)
        self.render = lru_cache(maxsize=4096)(self._render)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """What an answer must not spell."""
        return tuple(self.tokenizer.all_special_tokens)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def opening(self, chat: Sequence[Message]) -> list[int]:
        """Returns all of a chat that ends with a question, and the forced ``<think>``."""
        return self.encode(self.render(tuple(chat)) + THINK)

    def following(self, chat: Sequence[Message]) -> list[int]:
        """Returns what stands between the last answer and the one that comes next.

        Args:
            chat: Ends with an answer and the next question.

        Raises:
            CheckpointError: The template changes what was said before.
        """
        # What stood in the answers does not matter here, and templates trim it.
        before = tuple(replace(m, content="x") if m.role == "assistant" else m for m in chat)
        shown = self.render(before[:-2]) + "x"
        whole = self.render(before) + THINK
        if not whole.startswith(shown):
            raise CheckpointError(
                "the chat template rewrites earlier turns; self-play needs one that only appends"
            )
        return self.encode(whole[len(shown) :])

    def _render(self, chat: tuple[Message, ...]) -> str:
        messages = [{"role": m.role, "content": m.content} for m in chat]
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    def labelled(self, conversation: Conversation, part: Part = "answer") -> Transcript:
        """Tokenises a chat to learn from; what is learned is marked as written.

        By default that is SPA's equation 1: the tokens of the think and answer spans, what is
        imagined of states included, and the end of the turn; nothing that the environment says.

        Args:
            conversation: A chat; answers to learn begin with ``<think>``.
            part: ``"answer"``; ``"thoughts"``, without the states; only the ``"observation"`` or
                the ``"prediction"`` of each answer.

        Raises:
            ValueError: An answer to learn begins with something else.
        """
        chat, transcript = conversation.chat, Transcript()
        whole_turn = part in ("answer", "thoughts")
        transcript.told(self.opening(chat[:2]))
        for at in range(2, len(chat), 2):
            learned = at in conversation.learned
            if learned and not chat[at].content.startswith(THINK):
                raise ValueError(
                    f"expected an answer that begins with {THINK}, got {chat[at].content!r:.80}"
                )
            ids, places = self._answer(chat[at].content)
            for token, place in zip(ids, places, strict=True):
                marked = learned and _belongs(place, state_spans(chat[at].content), part)
                (transcript.wrote if marked else transcript.told)([token])
            # The first of what follows ends the turn: whoever learns it also learns to stop.
            end, *rest = self.following(chat[: at + 2]) if at + 1 < len(chat) else [self.end]
            (transcript.wrote if learned and whole_turn else transcript.told)([end])
            transcript.told(rest)
        return transcript

    def _answer(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the tokens of an answer after its ``<think>``, and where in it each stands."""
        shift = len(THINK) if text.startswith(THINK) else 0
        coded = self.tokenizer(text[shift:], add_special_tokens=False, return_offsets_mapping=True)
        return list(coded["input_ids"]), [
            (a + shift, b + shift) for a, b in coded["offset_mapping"]
        ]


def _belongs(place: tuple[int, int], spans: Mapping[str, tuple[int, int]], part: Part) -> bool:
    """Returns whether a token at this place of an answer is of this part of it."""
    within = {name for name, (a, b) in spans.items() if place[0] < b and place[1] > a}
    return part == "answer" or (not within if part == "thoughts" else part in within)


class PolicyPlayer:
    """Answers many games at once, and keeps what was written token by token.

    Args:
        model: A causal language model.
        codec: Of its tokenizer.
        max_tokens: Longest answer.
        temperature: Of sampling; 0 is greedy.

    Attributes:
        transcripts: Of the games so far.
    """

    def __init__(self, model: Any, codec: Codec, max_tokens: int, temperature: float = 1.0) -> None:
        self.model, self.codec = model, codec
        self.max_tokens, self.temperature = max_tokens, temperature
        self.transcripts: dict[Game, Transcript] = {}
        self._randoms: dict[Game, Random] = {}
        config = model.config.get_text_config()
        self.context = int(config.max_position_embeddings)
        slots = Slots(config.num_hidden_layers, self.context, 4096, _cache_bytes(model.device))
        self._runner = SlotRunner(model, frozenset({codec.end}), slots)

    def forget(self) -> None:
        """Drops all games, and what was computed with weights that may have changed since."""
        self.transcripts.clear()
        self._randoms.clear()
        self._runner.slots.forget()

    @torch.inference_mode()
    def reply(self, games: Sequence[Game]) -> list[str]:
        """Returns an answer for each game; one that finds no room in the context is empty."""
        jobs = [self._job(game) for game in games]
        self.model.eval()
        self._runner.run([job for job in jobs if job is not None])
        return [self._finish(game, job) for game, job in zip(games, jobs, strict=True)]

    def _job(self, game: Game) -> Job | None:
        if game not in self.transcripts:
            self.transcripts[game] = Transcript()
            self._randoms[game] = Random(f"{game.level}/{game.seed}")
            more = self.codec.opening(game.chat)
        else:
            more = self.codec.following(game.chat)
        transcript = self.transcripts[game]
        if transcript.ids and transcript.ids[-1] == self.codec.end:
            # A policy that ended its turn wrote the first of them.
            more = more[1:]
        size = len(transcript.ids) + len(more)
        if size + 1 >= self.context:
            return None
        transcript.told(more)
        draw = Draw(self.temperature, 1.0, self._randoms[game])
        end = min(size + self.max_tokens, self.context)
        return Job(np.asarray(transcript.ids, np.int32), end, draw, returning=bool(game.turns))

    def _finish(self, game: Game, job: Job | None) -> str:
        if job is None:
            return THINK
        ended = [self.codec.end] if job.finish == "stop" else []
        transcript = self.transcripts[game]
        transcript.wrote([*job.tokens, *ended])
        transcript.logprobs += job.logprobs
        return THINK + self.codec.decode(job.tokens)


def _cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        # Weights, gradients and activations of training need the rest.
        return int(torch.cuda.mem_get_info(device)[0]) // 3
    return _CPU_CACHE_BYTES


def load_policy(folder: str | Path) -> tuple[Any, Codec]:
    """Returns a model in float32, on the GPU if there is one, and the codec of its tokenizer.

    Args:
        folder: Of a checkpoint, or a hub id.
    """
    codec = Codec(AutoTokenizer.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), codec


def save_policy(model: Any, codec: Codec, folder: Path, about: Mapping[str, Any]) -> None:
    """Writes a checkpoint; ``selfplay.json``, the last file, says that it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    codec.tokenizer.save_pretrained(folder)
    mark_complete(folder, about)


def mark_complete(folder: Path, about: Mapping[str, Any] | None = None) -> None:
    """Says that all of a folder is written, in one piece: without it the folder does not count."""
    write_atomically(folder / POLICY_FILE, dict(about or {}))


def is_complete(folder: Path) -> bool:
    """Returns whether `mark_complete` came to its end."""
    return (folder / POLICY_FILE).is_file()


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the complete ``checkpoint-N`` with the highest number; None without one."""
    return max(filter(is_complete, folder.glob("checkpoint-*")), key=checkpoint_step, default=None)


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes a folder one of these settings only.

    Raises:
        DataError: It holds a run of others.
    """
    claim_file(folder / _RUN_FILE, settings, exactly=True)

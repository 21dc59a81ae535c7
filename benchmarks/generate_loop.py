"""What most programs that imagine with transformers do: `generate`, the full history, every time.

The prompts and what an answer means come from this package's protocol, so that both sides ask the
same question; weights, tokens to stop at and limits are those of its backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from benchmarks.measure import Clock
from benchmarks.stepping import Played, Script, engine_of
from gym_llmworld.core import Completion, Message
from gym_llmworld.imagination import Imagination
from gym_llmworld.protocol import Protocol
from gym_llmworld.session import Session
from gym_llmworld.vector import WorldModelVectorEnv


class GenerateLoop:
    """Answers chats with transformers' `generate`.

    Args:
        model: Checkpoint folder.
        device: ``"cpu"``, ``"cuda"``, ...
        stops: Tokens that end a turn.
        max_tokens: Longest answer.
    """

    def __init__(self, model: str, device: str, stops: Sequence[int], max_tokens: int) -> None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        logging.disable_progress_bar()
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self.model = loaded.to(device).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        self._stops = sorted(stops)
        own = self.model.generation_config.max_new_tokens
        self._max_tokens = min(max_tokens, own or max_tokens)
        # The first call of `generate` sets things up.
        self.answer([[Message("user", "look")]])

    @classmethod
    def like(cls, envs: WorldModelVectorEnv, device: str) -> GenerateLoop:
        """Returns the loop with the model, stops and limits of some worlds."""
        engine = engine_of(envs)
        return cls(engine.name, device, engine.stops, envs.imagination.sampling.max_tokens)

    def answer(self, chats: Sequence[Sequence[Message]]) -> list[Completion]:
        """Answers chats greedily in one call, padded to the longest of them."""
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in chat],
                tokenize=False,
                add_generation_prompt=True,
            )
            for chat in chats
        ]
        batch = self.tokenizer(
            texts, add_special_tokens=False, padding=True, return_tensors="pt"
        ).to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=False,
                max_new_tokens=self._max_tokens,
                eos_token_id=self._stops,
                pad_token_id=self._stops[0],
            )
        return [self._completion(ids) for ids in output[:, batch["input_ids"].shape[1] :].tolist()]

    def _completion(self, ids: list[int]) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self._stops), None)
        text = self.tokenizer.decode(
            ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Completion(text, "length" if end is None else "stop", ())


def play(
    loop: GenerateLoop, imagination: Imagination, scripts: Sequence[Script], batch: int
) -> Played:
    """Steps worlds through their scripts, ``batch`` of them in one call."""
    uncalibrated: Protocol = imagination.world.protocol(imagination.protocol.style)
    sessions = [
        Session(uncalibrated, script.start, imagination.world.rejection) for script in scripts
    ]
    played = Played(Clock(), texts=[[] for _ in scripts])
    for i in range(len(scripts[0].actions)):
        asked = [n for n, session in enumerate(sessions) if not session.done]
        for first in range(0, len(asked), batch):
            part = asked[first : first + batch]
            moves = [(sessions[n], scripts[n].actions[i]) for n in part]
            with played.clock.running(calls=len(part)):
                after = _step(loop, moves)
            for n, session in zip(part, after, strict=True):
                sessions[n] = session
                played.texts[n].append(session.observation)
            played.steps += len(part)
    return played


def _step(loop: GenerateLoop, moves: Sequence[tuple[Session, str]]) -> list[Session]:
    prompts = [session.prompt(action) for session, action in moves]
    answers = iter(loop.answer([prompt for prompt in prompts if prompt is not None]))
    return [
        session.advance(action, None if prompt is None else next(answers)).session
        for (session, action), prompt in zip(moves, prompts, strict=True)
    ]

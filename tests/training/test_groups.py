"""Groups of answers that share their prompt, against one plain forward pass per answer."""

from __future__ import annotations

from itertools import chain
from random import Random
from typing import Any

import pytest

pytest.importorskip("trl")

import torch

from gym_llmworld.backends.hf_sampling import Draw
from tests.tiny_models import ARCHITECTURES, Architecture, tiny_model
from training.groups import Sample, sample_groups, shared_logprobs, sharing_works

PROMPTS = [list(range(5, 5 + n)) for n in (3, 40, 4, 17, 39)]


def plain_logprobs(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *answer]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    found: torch.Tensor = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
    return found[:, 0]


def drawn(group: int, temperature: float = 1.0) -> list[list[Sample]]:
    return [
        [Sample(Draw(temperature, 1.0, Random(f"{i}/{n}"))) for i in range(group)]
        for n in range(len(PROMPTS))
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_have_the_probabilities_of_a_plain_forward_pass(
    architecture: Architecture,
) -> None:
    model = tiny_model(architecture, 64)
    groups = drawn(3)
    # Many stops, so that answers end at all lengths.
    sample_groups(model, PROMPTS, groups, frozenset(range(16)), 12)
    lengths = set()
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for answer in group:
            lengths.add(len(answer.tokens))
            assert answer.finished == (answer.tokens[-1] < 16)
            assert all(token >= 16 for token in answer.tokens[:-1])
            assert answer.finished or len(answer.tokens) == 12
            expected = plain_logprobs(model, prompt, answer.tokens)
            torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=0)
    assert len(lengths) > 2
    assert len({tuple(a.tokens) for a in groups[1]}) > 1


def test_greedy_samples_are_what_generate_writes() -> None:
    model = tiny_model("qwen3", 64)
    groups = drawn(2, temperature=0.0)
    sample_groups(model, PROMPTS, groups, frozenset(), 6)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        for answer in group:
            assert answer.tokens == expected[0, len(prompt) :].tolist()


def test_a_sample_does_not_depend_on_its_company() -> None:
    model = tiny_model("llama", 64)
    together = drawn(4)
    sample_groups(model, PROMPTS, together, frozenset({1}), 8)
    alone = drawn(4)[3:4]
    sample_groups(model, PROMPTS[3:4], alone, frozenset({1}), 8)
    assert [a.tokens for a in alone[0]] == [a.tokens for a in together[3]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_probabilities_and_gradients_equal_separate_ones(
    architecture: Architecture,
) -> None:
    model = tiny_model(architecture, 64)
    rng = Random(0)
    answers = [
        [[rng.randrange(64) for _ in range(rng.randint(1, 6))] for _ in range(3)] for _ in PROMPTS
    ]
    answers[1][2] = answers[1][0]
    weights = [[rng.random() for _ in some] for some in answers]

    def gradients(values: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        model.zero_grad()
        pairs = zip(chain(*values), chain(*weights), strict=True)
        sum(value.sum() * weight for value, weight in pairs).backward()  # type: ignore[union-attr]
        return [w.grad.clone() for w in model.parameters() if w.grad is not None]

    shared = shared_logprobs(model, PROMPTS, answers, 0.7)
    separate = [
        [
            (model(input_ids=torch.tensor([[*p, *a]])).logits[0, len(p) - 1 : -1] / 0.7)
            .log_softmax(-1)
            .gather(-1, torch.tensor(a)[:, None])[:, 0]
            for a in some
        ]
        for p, some in zip(PROMPTS, answers, strict=True)
    ]
    for ours, theirs in zip(chain(*shared), chain(*separate), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    for ours, theirs in zip(gradients(shared), gradients(separate), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


def test_architectures_that_cannot_share_are_found() -> None:
    for architecture in ARCHITECTURES:
        assert sharing_works(tiny_model(architecture, 64), 512) is None
    for odd in ("mistral", "lfm2"):
        reason = sharing_works(tiny_model(odd, 64), 512)
        assert reason == "some of its layers do not attend to the whole conversation"
    scaled = tiny_model("llama", 64)
    head = scaled.get_output_embeddings()
    scaled.register_forward_hook(lambda m, i, out: out.__setitem__("logits", out.logits * 0.5))
    assert head is not None
    assert "in its own way" in str(sharing_works(scaled, 512))

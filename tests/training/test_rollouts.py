"""Rollouts as tokens: against the chat template, the plain forward pass and lone episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import gym_llmworld  # noqa: F401 - registers the ids
from gym_llmworld.core import Completion, Message, Step
from gym_llmworld.errors import BackendError, CheckpointError, DataError
from gym_llmworld.policy_prompt import AnswerStatus, PolicyPrompt
from gym_llmworld.scenarios import ScenarioStore
from tests.tiny_models import LLAMA3, SYSTEM_LAST, tiny_model, tiny_tokenizer
from training.rollouts import Arena
from training.token_policy import Rollout, Start, TokenPolicy, TurnEncoder

IMAGINED, REAL = "LLMWorld-ALFWorld-v0", "RealWorld-ALFWorld-v0"
SCRIPTED = {"model": "scripted:tests.scripted_world:answer"}
PROMPT = PolicyPrompt("bare", "alfworld")
SCENARIOS = ScenarioStore("alfworld").of_split("train")


def policy(context: int = 512, *, max_tokens: int = 5, bias: dict[int, float] | None = None) -> Any:
    tokenizer = tiny_tokenizer()
    model: Any = tiny_model("llama", len(tokenizer), context)
    if bias is not None:
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
        for token, value in bias.items():
            model.lm_head.bias.data[token] = value
    return TokenPolicy(model, tokenizer, PROMPT, max_tokens=max_tokens)


def play(
    player: TokenPolicy, starts: Sequence[Start], arena: Arena, max_steps: int = 3
) -> list[Rollout]:
    found = dict(arena.play(player, starts, range(len(starts)), max_steps))
    return [found[i] for i in range(len(starts))]


@pytest.fixture
def arena() -> Iterator[Arena]:
    opened = Arena.open(IMAGINED, 4, 3, SCRIPTED)
    yield opened
    opened.close()


def said(player: TokenPolicy, rollout: Rollout) -> list[str]:
    """The policy's answers, read out of the tokens that the mask calls its own."""
    answers, tokens = [], [*zip(rollout.completion, rollout.mask, strict=True), (-1, 0)]
    answer: list[int] = []
    for token, own in tokens:
        if own:
            answer.append(token)
        elif answer:
            text = player.backend.tokenizer.decode(answer, skip_special_tokens=True)
            answers.append(text)
            answer = []
    return answers


def test_the_sequence_is_the_chat_as_the_template_words_it(arena: Arena) -> None:
    player = policy()
    for rollout in play(player, [Start(s) for s in SCENARIOS[:4]], arena):
        tokenizer = player.backend.tokenizer
        answers = said(player, rollout)
        chat = PROMPT.encode(rollout.start.scenario, rollout.steps, answers)[:-1]
        text = tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in chat], tokenize=False
        )
        ids = rollout.prompt + rollout.completion
        assert tokenizer.decode(ids, skip_special_tokens=False) + "\n" == text
        assert len(rollout.completion) == len(rollout.mask) == len(rollout.logprobs)
        assert len(answers) == len(rollout.steps) == 3


def test_logprobs_are_those_of_the_models_plain_forward_pass(arena: Arena) -> None:
    player = policy()
    starts = [Start(SCENARIOS[0])] * 4
    for _ in range(2):
        for rollout in play(player, starts, arena):
            ids = torch.tensor([rollout.prompt + rollout.completion])
            with torch.no_grad():
                expected = player.backend.model(input_ids=ids).logits[0].log_softmax(-1)
            first = len(rollout.prompt)
            for i, own in enumerate(rollout.mask):
                told = rollout.logprobs[i]
                oracle = float(expected[first + i - 1, rollout.completion[i]])
                assert told == pytest.approx(oracle, abs=2e-3) if own else told == 0
        # An optimiser step: keys and values of the old weights must not be used again.
        with torch.no_grad():
            for weight in player.backend.model.parameters():
                weight.mul_(1.1)


def test_a_batch_plays_what_single_worlds_play(arena: Arena) -> None:
    player = policy()
    starts = [Start(SCENARIOS[i // 3], seed=i // 3) for i in range(6)]
    together = play(player, starts, arena)  # four lanes: two episodes wait
    assert len({tuple(rollout.completion) for rollout in together}) > 4
    single = Arena.open(IMAGINED, 1, 3, SCRIPTED)
    alone = play(player, starts, single)
    single.close()
    for a, b in zip(together, alone, strict=True):
        assert (a.prompt, a.completion, a.steps) == (b.prompt, b.completion, b.steps)
    assert arena.imagined_steps == single.imagined_steps == 18
    assert arena.real_steps == 0


def test_an_endless_answer_is_cut_off_and_masked_at_its_end(arena: Arena) -> None:
    end = TurnEncoder(tiny_tokenizer(), "x").turn_end
    player = policy(bias={end: -100.0})
    [rollout] = play(player, [Start(SCENARIOS[0])], arena)
    assert rollout.statuses == [AnswerStatus.CUT_OFF] * 3
    assert sum(rollout.mask) == 15
    # The turn's end was not sampled: the environment wrote it, and it is not learned from.
    ends = [own for t, own in zip(rollout.completion, rollout.mask, strict=True) if t == end]
    assert ends
    assert not any(ends)
    assert [step.action for step in rollout.steps] == [""] * 3
    assert not rollout.success


def test_a_policy_that_says_nothing_uses_up_its_steps(arena: Arena) -> None:
    end = TurnEncoder(tiny_tokenizer(), "x").turn_end
    player = policy(bias={end: 100.0})
    [rollout] = play(player, [Start(SCENARIOS[0])], arena)
    assert rollout.statuses == [AnswerStatus.EMPTY] * 3
    assert {step.observation for step in rollout.steps} == {"Nothing happens."}
    assert rollout.steps[-1].truncated


def test_control_tokens_stay_out_of_the_world(arena: Arena) -> None:
    tokenizer = tiny_tokenizer()
    start_token = tokenizer.convert_tokens_to_ids("<|im_start|>")
    player = policy(bias={start_token: 100.0})
    [rollout] = play(player, [Start(SCENARIOS[0])], arena)
    assert [step.action for step in rollout.steps] == [""] * 3
    assert not rollout.success


def test_a_full_context_ends_the_episode_and_not_the_batch(arena: Arena) -> None:
    scenario = SCENARIOS[0]
    room = len(policy().turns.opening(PROMPT.opening(scenario)))
    player = policy(context=room + 12)
    rollouts = play(player, [Start(scenario)] * 2, arena)
    for rollout in rollouts:
        assert rollout.played is not None
        assert rollout.played.stopped
        assert not rollout.halted
    with pytest.raises(CheckpointError, match="no room to act"):
        play(policy(context=room), [Start(scenario)], arena)


def test_a_template_that_rewrites_history_is_refused() -> None:
    with pytest.warns(UserWarning, match="rewrites"):
        encoder = TurnEncoder(tiny_tokenizer(template=SYSTEM_LAST), "x")
    assert encoder.after_answer(Message("user", "y"))  # without a system message it only appends
    stripped = tiny_tokenizer(template=LLAMA3, eos="<|eot_id|>")
    assert TurnEncoder(stripped, "x").after_answer(Message("user", "y"))


def unsure(chat: Sequence[Message]) -> Completion:
    """Claims success at once; less and less sure with every step."""
    return Completion("You did it. [SUCCESS]", "stop", (-0.1 * len(chat),))


def test_a_doubtful_success_earns_nothing() -> None:
    end = TurnEncoder(tiny_tokenizer(), "x").turn_end
    player = policy(max_tokens=20, bias={end: 3.0})
    options = {"model": f"scripted:{__name__}:unsure"}
    rewards = []
    for minimum in (0.0, 0.99):
        sure = Arena.open(IMAGINED, 2, 3, options, minimum)
        rollouts = play(player, [Start(SCENARIOS[0])] * 4, sure)
        sure.close()
        rewards.append([r.reward for r in rollouts])
        assert all(r.halted for r in rollouts if minimum and r.steps[0].action)
    assert max(rewards[0]) == 1
    assert rewards[1] == [0] * 4
    silent = Arena.open(IMAGINED, 1, 3, SCRIPTED, 0.5)
    with pytest.raises(BackendError, match="log-probabilities"):
        play(player, [Start(SCENARIOS[0])], silent)
    silent.close()


class TestMiddle:
    """Episodes that start in the middle of another one."""

    def recorded(self) -> tuple[Step, ...]:
        pytest.importorskip("alfworld")
        import gymnasium as gym

        env = gym.make(REAL, disable_env_checker=True)
        env.reset(options={"scenario": SCENARIOS[0].to_json()})
        steps = []
        for action in SCENARIOS[0].real["plan"][:2]:
            observation, reward, terminated, truncated, _ = env.step(action)
            steps.append(Step(action, observation, float(reward), terminated, truncated))
        env.close()
        return tuple(steps)

    def test_both_worlds_go_on_from_the_same_state(self, arena: Arena) -> None:
        steps = self.recorded()
        start = Start(SCENARIOS[0], steps)
        player = policy()
        real = Arena.open(REAL, 2, 4)
        prompts = []
        for where in (arena, real):
            rollouts = play(player, [start] * 2, where, max_steps=3)
            for rollout in rollouts:
                text = player.backend.tokenizer.decode(rollout.prompt)
                assert all(step.action in text and step.observation in text for step in steps)
                assert len(rollout.steps) == 1
                assert rollout.episode.steps[:2] == steps
            prompts.append(rollouts[0].prompt)
        real.close()
        assert prompts[0] == prompts[1]
        # Two taken again and one of its own, in each of two worlds.
        assert (real.real_steps, real.imagined_steps) == (6, 0)
        assert (arena.real_steps, arena.imagined_steps) == (0, 2)

    def test_what_did_not_happen_cannot_be_started_from(self) -> None:
        steps = (Step("open fridge 1", "You open the moon.", 0.0, False, False),)
        real = Arena.open(REAL, 1, 4)
        pytest.importorskip("alfworld")
        with pytest.raises(DataError, match="does not replay"):
            play(policy(), [Start(SCENARIOS[0], steps)], real)
        real.close()

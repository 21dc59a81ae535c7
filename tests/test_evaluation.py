"""Teacher forcing against hand-computed cases, with a script in the model's place."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from gym_llmworld.backends import ScriptedBackend
from gym_llmworld.core import Completion, Episode, Message, Scenario, Step
from gym_llmworld.errors import BackendError, ContextOverflow
from gym_llmworld.evaluation import evaluate_episodes
from gym_llmworld.metrics import lines_f1
from gym_llmworld.protocol import Protocol
from gym_llmworld.report import em_rows
from gym_llmworld.worlds.scienceworld import canonical

PROTOCOL = Protocol("test", lambda scenario: f"context of {scenario.id}")


def scenario(name: str) -> Scenario:
    return Scenario(name, "alfworld", "valid_seen", "win.", f"Start of {name}.")


def episode(name: str, *turns: tuple[str, str], won: bool = False) -> Episode:
    steps = [Step(action, observation) for action, observation in turns]
    if won:
        action, observation = turns[-1]
        steps[-1] = Step(action, observation, reward=1.0, terminated=True)
    return Episode(scenario(name), tuple(steps), "real", "test")


EPISODES = [
    episode("a", ("look", "A room."), ("look", "A room."), ("win", "You win."), won=True),
    episode("b", ("look", "A hall.")),
    episode("c", ("open door 1", "It opens."), ("look", "Dark.")),
]


def test_every_turn_is_predicted_from_the_real_turns_before_it() -> None:
    asked: list[Sequence[Message]] = []

    def script(chat: Sequence[Message]) -> str:
        asked.append(chat)
        return "always wrong"

    result = evaluate_episodes(ScriptedBackend(script), PROTOCOL, EPISODES)
    chats = [[(message.role, message.content) for message in chat] for chat in asked]
    assert [
        ("system", "context of a"),
        ("user", "look"),
        ("assistant", "A room."),
        ("user", "look"),
        ("assistant", "A room."),
        ("user", "win"),
    ] in chats
    assert len(chats) == 6
    # Pairs of a conversation with n messages: (n - 1) / 2.
    assert len(result.turns) == sum((len(PROTOCOL.conversation(e)) - 1) // 2 for e in EPISODES)
    assert [turn.step for turn in result.turns] == [1, 2, 3, 1, 1, 2]
    assert result.episode_of == (0, 0, 0, 1, 2, 2)
    assert [turn.previous for turn in result.turns][:3] == ["Start of a.", "A room.", "A room."]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_hold_one_turn_of_many_episodes(batch_size: int) -> None:
    backend = ScriptedBackend(lambda chat: "A room.")
    seen: list[tuple[int, int]] = []
    result = evaluate_episodes(
        backend,
        PROTOCOL,
        EPISODES,
        batch_size=batch_size,
        progress=lambda d, n: seen.append((d, n)),
    )
    expected = {1: [1] * 6, 2: [2, 2, 1, 1], 64: [3, 2, 1]}
    assert backend.batch_sizes == expected[batch_size]
    assert [turn.truth for turn in result.turns][2] == "You win. [SUCCESS]"
    assert seen[-1] == (6, 6)
    assert result.em.all.hits == 2


def test_report_by_hand() -> None:
    answers = {"look": "A room.", "win": "You win. [SUCCESS]", "open door 1": "Nothing happens."}
    backend = ScriptedBackend(lambda chat: answers[chat[-1].content])
    result = evaluate_episodes(backend, PROTOCOL, EPISODES)
    data = json.loads(json.dumps(result.to_json(env_id="E-v0", model="m"), allow_nan=False))
    assert (data["env_id"], data["model"], data["n"], data["episodes"]) == ("E-v0", "m", 6, 3)
    assert data["em"] == {
        "all": 3 / 6,
        "changed": 2 / 5,
        "unchanged": 1.0,
        "copy_baseline": 1 / 6,
        # look: 2 of 4 are "A room."; win and open: 1 of 1 each.
        "majority_baseline": 4 / 6,
    }
    assert data["by_step"][0] == {"key": 1, "value": 1 / 3, "hits": 1, "n": 3}
    assert data["by_verb"][0] == {"key": "look", "value": 0.5, "hits": 2, "n": 4}
    assert data["mistakes"][0] == {
        "episode": 1,
        "step": 1,
        "action": "look",
        "previous": "Start of b.",
        "truth": "A hall.",
        "prediction": "A room.",
    }


def test_partial_credit_beside_exact_match() -> None:
    truth = "New items:\n[2] button 'a'\n\nDeleted items:\nNone\n\nUpdated items:\nNone"
    told = truth.replace("'a'", "'b'")
    episodes = [episode("a", ("wait", truth), ("wait", truth), won=True)]
    backend = ScriptedBackend(lambda chat: told)
    result = evaluate_episodes(backend, PROTOCOL, episodes, credit=lines_f1)
    data = result.to_json(env_id="x", model="m")
    # Three lines, of which the two "None" are right. The start has none of them, the first
    # observation all; the marker, which the model forgets, is no part of the page.
    expected = {"model": pytest.approx(2 / 3), "copy_baseline": 0.5, "name": "lines_f1", "n": 2}
    assert data["credit"] == expected
    assert [row[0] for row in em_rows(data)][-2:] == [
        "lines_f1",
        "lines_f1 of the last observation",
    ]
    plain = evaluate_episodes(backend, PROTOCOL, episodes)
    assert "credit" not in plain.to_json(env_id="x", model="m")


def test_successes_that_are_claimed_and_those_that_are_real() -> None:
    episodes = [
        episode("a", ("take", "taken"), ("put", "done"), won=True),
        episode("b", ("take", "taken"), ("put", "done")),
        episode("c", ("take", "taken"), ("put", "done"), won=True),
    ]
    answers = iter(["taken", "taken", "taken", "done [SUCCESS]", "done [SUCCESS]", "done"])
    backend = ScriptedBackend(lambda chat: next(answers))
    data = evaluate_episodes(backend, PROTOCOL, episodes).to_json(env_id="x", model="m")
    assert data["success"] == {
        "confirmed": {"value": 0.5, "hits": 1, "n": 2},
        "found": {"value": 0.5, "hits": 1, "n": 2},
    }
    assert [row for row in em_rows(data) if "success" in row[0]] == [
        ["claimed successes that are real", "0.5000", "2"],
        ["real successes that are claimed", "0.5000", "2"],
    ]
    silent = evaluate_episodes(ScriptedBackend(lambda chat: "taken"), PROTOCOL, episodes[1:2])
    nothing = silent.to_json(env_id="x", model="m")["success"]
    assert {name: (rate["value"], rate["n"]) for name, rate in nothing.items()} == {
        "confirmed": (None, 0), "found": (None, 0),
    }  # fmt: skip


def test_lists_as_sets_beside_the_strict_figure() -> None:
    seen = "In it, you see:\n\ta fig\n\ta cup (containing a nut, a pea)"
    turned = "In it, you see:\n\ta cup (containing a pea, a nut)\n\ta fig"
    episodes = [
        episode("a", ("look", seen)),
        episode("b", ("look", seen), won=True),
        episode("c", ("look", "In it, you see:\n\ta fig")),
    ]
    answers = {"a": turned, "b": f"{turned} [SUCCESS]", "c": f"{turned} [SUCCESS]"}
    backend = ScriptedBackend(lambda chat: answers[chat[0].content[-1]])
    result = evaluate_episodes(backend, PROTOCOL, episodes, canonical=canonical)
    data = result.to_json(env_id="E-v0", model="m", prompt_style="test")
    assert (data["em"]["all"], data["em"]["as_sets"]) == (0.0, 2 / 3)
    assert data["counts"]["as_sets"] == {"hits": 2, "n": 3}
    assert data["prompt_style"] == "test"
    # Which lists were turned round is worth knowing: they stay among the mistakes.
    assert len(data["mistakes"]) == 3


def test_turns_without_a_complete_answer_are_wrong_and_counted() -> None:
    answers: dict[str, str | Completion | BackendError] = {
        "a": Completion("A room.", "length"),
        "b": "",
        "c": ContextOverflow("too long"),
        "d": BackendError("lost"),
        "e": "A room.",
    }
    episodes = [episode(name, ("look", "A room.")) for name in answers]
    backend = ScriptedBackend(lambda chat: answers[chat[0].content[-1]])
    result = evaluate_episodes(backend, PROTOCOL, episodes)
    assert (result.em.all.hits, result.em.all.n) == (1, 5)
    assert result.errors == {"cut_off": 1, "empty": 1, "context": 1, "backend": 1}


def test_actions_that_enter_no_chat_are_not_asked_about() -> None:
    episodes = [episode("a", ("look", "A room."), ("", "Nothing happens."), ("look", "A room."))]
    backend = ScriptedBackend(lambda chat: f"{len(chat)}")
    result = evaluate_episodes(backend, PROTOCOL, episodes)
    assert [(turn.step, turn.prediction) for turn in result.turns] == [(1, "2"), (3, "4")]
    assert result.rejected == 1
    assert result.turns[1].previous == "Nothing happens."


def test_no_episodes_are_no_result_but_no_error() -> None:
    result = evaluate_episodes(ScriptedBackend(lambda chat: ""), PROTOCOL, [])
    data = result.to_json(env_id="E-v0", model="m")
    assert data["n"] == 0
    assert set(data["em"].values()) == {None}


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        evaluate_episodes(ScriptedBackend(lambda chat: ""), PROTOCOL, [], batch_size=0)

"""Word2World's and AgentGym's files: round trips and the published parsers' behaviour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gym_llmworld import word2world as w2w
from gym_llmworld.core import Episode, Step
from gym_llmworld.errors import DataError
from gym_llmworld.worlds import get_world
from tests.test_protocol import SCENARIO, STEPS, WORD2WORLD_SYSTEM

PROTOCOL = get_world("alfworld").protocol("word2world")
SOLVED = Episode(
    SCENARIO,
    (*STEPS, Step("move egg 1 to fridge 1", "You move it.", reward=1.0, terminated=True)),
    "real",
    "expert",
)


def test_rollout_to_chat_to_training_file_to_pairs(tmp_path: Path) -> None:
    rollout = json.loads(json.dumps(w2w.rollout(SOLVED, thoughts=["I think: Action: none"])))
    chat = w2w.chat_of_rollout(rollout, PROTOCOL.context(SCENARIO))
    assert chat == PROTOCOL.conversation(SOLVED)
    file = tmp_path / "alfworld_train_with_env_1.json"
    assert w2w.write_training_file(file, [SOLVED], PROTOCOL) == 1
    [row] = json.loads(file.read_text())
    assert row.keys() == {"messages"}
    assert row["messages"][0] == {"role": "system", "content": WORD2WORLD_SYSTEM}
    [episode] = w2w.read_training_file(file, "alfworld")
    assert len(episode.steps) == (len(row["messages"]) - 1) / 2
    assert PROTOCOL.conversation(episode) == PROTOCOL.conversation(SOLVED)
    assert episode.success
    assert episode.scenario.observation == SCENARIO.observation
    assert episode.scenario.instruction == SCENARIO.instruction
    assert episode.scenario.admissible == SCENARIO.admissible


def test_instruction_and_acknowledgement_are_skipped() -> None:
    rollout = w2w.rollout(SOLVED)
    rollout["conversations"] = [
        {"from": "human", "loss": None, "value": "Interact with a household."},
        {"from": "gpt", "loss": False, "value": "OK. I'll follow your instructions."},
        *rollout["conversations"],
    ]
    rollout["reward"] = 0.0
    chat = w2w.chat_of_rollout(rollout, "context")
    assert len(chat) == 7
    assert chat[-1].content == "You move it."


def test_context_files_round_trip(tmp_path: Path) -> None:
    w2w.write_contexts(tmp_path, "test", [SCENARIO], PROTOCOL)
    [scenario] = w2w.read_contexts(tmp_path / "wm_instruct_test.json", "alfworld", "test")
    assert PROTOCOL.context(scenario) == WORD2WORLD_SYSTEM
    assert scenario.id == SCENARIO.id


def test_replay_record() -> None:
    real = Episode(SCENARIO, (Step("x", "Real.\nAVAILABLE ACTIONS: a,b"),), "real", "expert")
    record = w2w.replay_record(SOLVED, real)
    assert record["conversation"] == [
        {
            "react": "Thought:\n\n\nAction:\ngo to countertop 1",
            "world_model_observation": STEPS[0].observation,
            "env_observation": "Real.",
        }
    ]
    assert (record["world_model_success"], record["success"], record["reward"]) == (1, 0, 0.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"messages": [', "is the file complete"),
        ("{}", "expected a JSON list"),
        ('[{"chat": []}]', "row 0: expected a field 'messages'"),
        ('[{"messages": [{"role": "user", "content": "x"}]}]', "expected system, user, assistant"),
        ('[{"messages": [{"role": "robot", "content": "x"}]}]', "not a chat turn"),
    ],
)
def test_broken_training_files(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        w2w.read_training_file(file, "alfworld")

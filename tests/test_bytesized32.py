"""Readers of published games, on files and a program of our own in their layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gym_llmworld.bytesized32 import play_bytesized32, read_gpt_simulator
from gym_llmworld.errors import DataError, EngineError
from gym_llmworld.objectstate import difference_text, predicted_state, state_accuracy
from gym_llmworld.worlds import get_world

PROGRAM = """
class Thing:
    def __init__(self, name, **properties):
        self.name, self.properties, self.contains = name, properties, []

    def getAllContainedObjectsRecursive(self):
        found = []
        for one in self.contains:
            found += [one, *one.getAllContainedObjectsRecursive()]
        return found


class TextGame:
    def __init__(self, randomSeed):
        self.rootObject = Thing("room")
        self.lamp, self.box = Thing("lamp", isOn=False, ticks={1, 2}), Thing("box", holds=None)
        self.rootObject.contains = [self.lamp, self.box]
        self.score, self.gameOver, self.gameWon = 0, False, False

    def getTaskDescription(self):
        return "Your task is to pack the lamp."

    def generatePossibleActions(self):
        return {"switch lamp": [], "look": [], "pack lamp": [], "break": []}

    def step(self, action):
        if action == "switch lamp":
            self.lamp.properties["isOn"] = not self.lamp.properties["isOn"]
        if action == "break":
            raise ValueError("odd action")
        if action == "pack lamp":
            self.rootObject.contains, self.box.contains = [self.box], [self.lamp]
            self.score, self.gameOver, self.gameWon = 1, True, True
            self.box.properties["holds"] = self.lamp
"""


def published(changed: bool, number: int, won: bool = False) -> dict[str, Any]:
    def about(on: bool, action: str) -> dict[str, Any]:
        lamp = {"name": "lamp (ID: 2)", "uuid": 2, "type": "Lamp", "properties": {"isOn": on}}
        return {
            "observation": "",
            "look": "",
            "taskDesc": "Your task is to light the lamp.",
            "lastAction": action,
            "objects": [{**lamp, "contains": []}],
            "max_UUID": 3,
        }

    score = {"score": 0, "gameOver": False, "gameWon": False}
    return {
        "current_state": about(False, "look"),
        "action_state": about(False, "turn on lamp (ID: 2)"),
        "tick_state": about(changed, "turn on lamp (ID: 2)"),
        "current_score_state": score,
        "next_score_state": {**score, "score": int(won), "gameOver": won, "gameWon": won},
        "game": "lamp",
        "state_id": number,
    }


def write(file: Path, *rows: Any) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return file


def test_published_transitions(tmp_path: Path) -> None:
    rows = [published(True, 7), published(False, 8), published(False, 9, won=True)]
    found = list(read_gpt_simulator(write(tmp_path / "test.jsonl", *rows)))
    assert [one.name for one in found] == ["7", "8", "9"]
    assert {one.action for one in found} == {"turn on lamp (ID: 2)"}
    copied = state_accuracy(
        [one.predicted(difference_text(one.before, one.before)) for one in found]
    )
    assert (copied.all.hits, copied.all.n) == (copied.copy_baseline.hits, 3) == (1, 3)
    true = [one.predicted(difference_text(one.before, one.after)) for one in found]
    assert state_accuracy(true).all.value == 1.0
    assert state_accuracy([one.predicted(None) for one in found]).all.value == 0.0


def test_they_become_episodes_that_train_like_any_other(tmp_path: Path) -> None:
    rows = [published(True, 7), published(True, 8, won=True)]
    episodes = [one.episode() for one in read_gpt_simulator(write(tmp_path / "test.jsonl", *rows))]
    protocol = get_world("objectgames").protocol("engine")
    for episode, success in zip(episodes, (False, True), strict=True):
        system, user, answer = protocol.conversation(episode)
        assert system.content.startswith("Your task is to light the lamp.\n{")
        assert user.content == "turn on lamp (ID: 2)"
        assert answer.content.endswith(" [SUCCESS]") == success == episode.success


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("not JSON", "line 2: not JSON"),
        ([], "line 2: no 'object'"),
        ({"tick_state": None}, "line 2: 'tick_state' and 'next_score_state' are no state"),
        ({"current_state": {"objects": [{"name": 1}]}}, "line 2: 'current_state'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    file = write(tmp_path / "a.jsonl", published(True, 1))
    row = {**published(True, 2), **change} if isinstance(change, dict) else change
    text = row if isinstance(row, str) else json.dumps(row)
    file.write_text(file.read_text() + text + "\n")
    reader = read_gpt_simulator(file)
    next(reader)
    with pytest.raises(DataError, match=message):
        next(reader)
    incomplete = published(True, 1)
    del incomplete["tick_state"]
    with pytest.raises(DataError, match="no 'tick_state'; expected current_state"):
        next(read_gpt_simulator(write(tmp_path / "b.jsonl", incomplete)))


def test_programs_are_played(tmp_path: Path) -> None:
    program = tmp_path / "pack-lamp.py"
    program.write_text(PROGRAM)
    found = list(play_bytesized32(program, episodes=30))
    assert found == list(play_bytesized32(program, episodes=30))
    assert {one.action for one in found} == {"switch lamp", "look", "pack lamp"}
    for one in found:
        assert one.game == "pack-lamp"
        assert one.predicted("{}").changed == (one.action != "look")
        state = predicted_state(one.before, difference_text(one.before, one.after))
        assert state is not None
        assert state.same_as(one.after)
    first = found[0].before
    assert [thing["name"] for thing in first.objects.values()] == ["lamp (ID: 0)", "box (ID: 1)"]
    assert first.objects[0]["properties"]["ticks"] == [1, 2]
    packed = next(one for one in found if one.action == "pack lamp")
    assert packed.after.objects[1]["contains"] == ["lamp (ID: 0)"]
    assert packed.after.objects[1]["properties"] == {"holds": "lamp"}
    assert packed.episode().success
    assert len({one.name for one in found}) == len(found)


def test_other_programs_are_refused(tmp_path: Path) -> None:
    program = tmp_path / "game.py"
    with pytest.raises(DataError, match="is not a file"):
        next(play_bytesized32(program))
    program.write_text("x = 1")
    with pytest.raises(DataError, match="has no class TextGame"):
        next(play_bytesized32(program))
    program.write_text("x = ")
    with pytest.raises(EngineError, match="cannot be loaded"):
        next(play_bytesized32(program))
    program.write_text("class TextGame:\n    pass")
    with pytest.raises(EngineError, match="does not start"):
        next(play_bytesized32(program))

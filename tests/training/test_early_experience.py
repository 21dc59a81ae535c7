"""Early experience: what the arms share, what the command line takes, the whole program once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from gym_llmworld.worlds import get_world
from tests.training.test_agent_sft import make_agent_episode, write
from tests.training.test_sft import SIZES
from training.config import Config
from training.data import Conversations
from training.early_experience import (
    RL,
    SFT,
    Material,
    arms,
    by_stage,
    main,
    policy_settings,
    world_model_run,
)
from training.success import Exam

pytestmark = pytest.mark.filterwarnings("ignore")


def material() -> Material:
    exam = Exam(get_world("alfworld"), (), 3)
    return Material(Conversations(), Conversations(), Config(max_steps=3), {"updates": 2}, exam)


def test_arms_differ_in_their_start_only() -> None:
    config = Config(role="agent", max_steps=5)
    found = arms(config, material(), [1, 2], given="runs/rwml")
    assert [arm.name for arm in found] == [
        f"{kind}-seed{seed}" for seed in (1, 2) for kind in ("experience", "agent", "given")
    ]
    experience, plain, given = (arm.identity() for arm in found[:3])
    differing = {key for key in plain if experience[key] != plain[key]}
    assert differing == {"kind"}
    assert {key for key in plain if given[key] != plain[key]} == {"kind", "model"}
    assert given["model"] == "runs/rwml"
    assert len(arms(config, material(), [1])) == 2
    policy = found[0].material.policy_config(Path("a"), Path("b"), 7)
    assert (policy.model, policy.output, policy.seed, policy.updates) == ("a", Path("b"), 7, 2)


def test_a_world_model_has_no_teacher() -> None:
    agent = Config(
        role="agent", teacher="search", only_success=True, only_agents="search", max_steps=5
    )
    run = world_model_run(agent, (), 9)
    assert (run.role, run.max_steps) == ("world-model", 9)
    assert (run.teacher, run.only_success, run.only_agents) == ("", False, "")
    assert world_model_run(agent, [Path("a.jsonl")], 9).data == (Path("a.jsonl"),)


def test_settings_of_reinforcement_learning_are_read() -> None:
    found = policy_settings(["updates=3", "learning_rate=1e-4", "env=RealWorld-ALFWorld-v0"])
    assert found == {"updates": 3, "learning_rate": 1e-4, "env": "RealWorld-ALFWorld-v0"}
    assert policy_settings(["start_episodes=a.jsonl"]) == {"start_episodes": Path("a.jsonl")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("update=3", "expected NAME=VALUE with one of env, "),
        ("updates", "expected a int"),
        ("updates=many", "expected a int"),
        ("model=x", "expected NAME=VALUE with one of"),
    ],
)
def test_other_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_settings([text])


def test_stages_over_seeds_by_hand() -> None:
    def row(arm: str, sft: float, rl: float) -> dict[str, Any]:
        stages = {
            stage: {"all": {"value": value, "n": 4}} for stage, value in ((SFT, sft), (RL, rl))
        }
        return {"arm": arm, "stages": stages}

    found = by_stage([row("experience", 0.5, 1.0), row("agent", 0.0, 0.5), row("agent", 0.5, 0.5)])
    assert list(found) == [SFT, RL]
    assert found[SFT]["agent"]["mean"] == 0.25
    assert found[RL]["experience"] == {
        "mean": 1.0, "std": None, "min": 1.0, "max": 1.0, "values": [1.0], "n": 4,
    }  # fmt: skip


@pytest.mark.slow
def test_the_whole_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("alfworld")
    data = write(tmp_path / "real.jsonl", [make_agent_episode(n) for n in range(8)])
    output = tmp_path / "out"
    command = ["--data", str(data), "--output", str(output), *SIZES, "--context", "1024"]
    command += ["--max-steps", "2", "--world-steps", "2", "--batch-size", "2"]
    command += ["--exam-games", "1", "--episode-steps", "3", "--policy", "updates=1", "groups=1"]
    command += ["group_size=2", "batch_size=2", "max_steps=2", "max_tokens=4", "guard_action=off"]
    assert main(command) == 0
    results = json.loads((output / "results.json").read_text())
    assert [row["arm"] for row in results["rows"]] == ["experience", "agent"]
    for row in results["rows"]:
        assert row["stages"][SFT]["all"]["n"] == row["stages"][RL]["all"]["n"] == 2
        assert row["reinforcement"]["imagined_steps"] > 0
        assert row["reinforcement"]["real_steps"] == 0
    assert (output / "plot.png").stat().st_size > 0
    points = output / "points"
    card = json.loads((points / "experience-seed0" / "agent" / "llmworld.json").read_text())
    assert card["base"].endswith("experience-seed0/world_model")
    starts = [(points / f"{arm}-seed0" / "start") for arm in ("experience", "agent")]
    one, other = ((start / "model.safetensors").read_bytes() for start in starts)
    assert one == other
    capsys.readouterr()
    assert main(command) == 0
    assert "2 of 2 points are finished already" in capsys.readouterr().out

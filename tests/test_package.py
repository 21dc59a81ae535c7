"""What `import gym_llmworld` may cost, and that the shipped data are complete."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gym_llmworld.episodes import read_scenarios
from gym_llmworld.scenarios import SHIPPED_FILE, data_folder
from gym_llmworld.worlds import get_world, world_keys

HEAVY = (
    *("torch", "transformers", "alfworld", "textworld", "scienceworld", "matplotlib", "httpx"),
    *("playwright", "miniwob"),
)


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, gym_llmworld; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("key", world_keys())
def test_every_split_ships_scenarios(key: str) -> None:
    world = get_world(key)
    scenarios = read_scenarios(data_folder(key) / SHIPPED_FILE)
    assert {scenario.split for scenario in scenarios} == set(world.splits)
    assert len({scenario.id for scenario in scenarios}) == len(scenarios) >= 30
    for style in world.contexts:
        assert all(world.protocol(style).context(scenario) for scenario in scenarios)


def test_alfworld_ships_a_few_hundred_scenarios() -> None:
    assert len(read_scenarios(data_folder("alfworld") / SHIPPED_FILE)) >= 200


@pytest.mark.parametrize("key", [key for key in world_keys() if get_world(key).embedded])
def test_the_embedded_checkpoint_is_small_and_safe(key: str) -> None:
    files = list((data_folder(key) / "model").iterdir())
    names = {file.name for file in files}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "llmworld.json",
        "README.md",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py"))]
    assert sum(file.stat().st_size for file in files) <= 40 * 2**20

"""The recipes of the shipped models, and the program that follows them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gym_llmworld.errors import DataError
from gym_llmworld.scenarios import data_folder
from gym_llmworld.worlds import get_world, world_keys
from training import embedded
from training.config import Config
from training.embedded import RECIPES, Recipe, install, main, make

WEIGHTS = "model.safetensors"
FILES = sorted(RECIPES.glob("*.toml"))


def test_every_embedded_model_has_a_recipe() -> None:
    shipped = {key for key in world_keys() if get_world(key).embedded}
    assert shipped <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipes_name_what_there_is(file: Path) -> None:
    recipe = Recipe.read(file)
    world = get_world(recipe.world)
    assert recipe.world == file.stem
    for what in recipe.episodes.values():
        assert what["split"] in recipe.games
        assert {part.partition(":")[0] for part in what["policy"].split(",")} <= set(world.agents)
    assert set(recipe.games) <= set(world.splits)
    options = {name.replace("-", "_"): value for name, value in recipe.sft.items()}
    config = Config(**options)
    for style in config.prompt_style.split("+"):
        world.protocol(style)
    # Held-out games are others, and so are those that the confidence is fitted to.
    assert recipe.episodes["train"]["split"] != recipe.episodes["dev"]["split"]


def test_changed_episodes_are_a_share_of_what_is_learned(tmp_path: Path) -> None:
    recipe = Recipe.read(RECIPES / "alfworld.toml")
    *_, made = recipe.data_commands(tmp_path, 1)
    assert made[:3] == ["python", "-m", "training.relabelled"]
    target = made[made.index("--output") + 1]
    command = recipe.train_command(tmp_path, None, [])
    at = command.index("--data")
    assert command[at + 1 : at + 3] == [f"{tmp_path / 'train.jsonl'}:1", f"{target}:0.3"]
    recipe = Recipe.read(RECIPES / "textworld.toml")
    *_, made = recipe.data_commands(tmp_path, 1)
    assert made[:3] == ["python", "-m", "training.renamed"]
    assert made[made.index("--copies") + 1] == "2"
    command = recipe.train_command(tmp_path, None, [])
    assert f"{made[made.index('--output') + 1]}:1" in command
    plain = Recipe.read(RECIPES / "webshop.toml").train_command(tmp_path, None, [])
    assert plain[plain.index("--data") + 1] == str(tmp_path / "train.jsonl")


def test_a_recipe_with_a_slip_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "alfworld.toml"
    file.write_text((RECIPES / "alfworld.toml").read_text().replace("max_new_tokens", "max_tokens"))
    with pytest.raises(
        DataError, match=r"alfworld\.toml: expected episodes, games, max_new_tokens"
    ):
        Recipe.read(file)


def test_a_folder_keeps_to_one_recipe(tmp_path: Path) -> None:
    recipe = Recipe.read(RECIPES / "objectgames.toml")
    make(recipe, tmp_path, [])
    make(recipe, tmp_path, [])
    with pytest.raises(DataError, match="pass another --output"):
        make(recipe.scaled(0.5), tmp_path, [])


def test_half_the_bytes_load_as_before(tmp_path: Path) -> None:
    whole, half = data_folder("alfworld") / "model", tmp_path / "model"
    shutil.copytree(whole, half)
    weights = AutoModelForCausalLM.from_pretrained(whole, dtype="float32").state_dict()
    save_file({k: v.float() for k, v in load_file(whole / WEIGHTS).items()}, half / WEIGHTS)
    before = (half / WEIGHTS).stat().st_size
    embedded.halve(half)
    assert (half / WEIGHTS).stat().st_size < 0.51 * before
    loaded = AutoModelForCausalLM.from_pretrained(half, dtype="float32")
    assert loaded.dtype == torch.float32
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, weights[name].half().float())


def test_only_finished_models_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, target = Recipe.read(RECIPES / "objectgames.toml"), tmp_path / "package"
    monkeypatch.setattr(embedded, "data_folder", lambda world: target)
    model, installed = tmp_path / "run" / "model", target / "model"
    model.mkdir(parents=True)
    with pytest.raises(DataError, match=r"config\.json, .*missing; train first"):
        install(recipe, tmp_path / "run")
    assert not target.exists()
    for part in embedded._PARTS:
        (model / part).write_text("new")
    (model / "calibration.json").unlink()
    installed.mkdir(parents=True)
    (installed / "calibration.json").write_text("fitted to other weights")
    install(recipe, tmp_path / "run")
    assert not (installed / "calibration.json").exists()
    assert (installed / "model.safetensors").read_text() == "new"


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path) -> None:
    arguments = ["objectgames", "--output", str(tmp_path), "--scale", "0.005"]
    small = ["--", "--max-steps", "2", "--layers", "2", "--width", "32", "--hidden", "64"]
    assert main([*arguments, *small, "--threads", "1"]) == 0
    folder = tmp_path / "objectgames"
    config = json.loads((folder / "model" / "generation_config.json").read_text())
    assert config["max_new_tokens"] == 512
    assert json.loads((folder / "model" / "llmworld.json").read_text())["world"] == "objectgames"
    assert main([*arguments, *small, "--no-such-option"]) == 1

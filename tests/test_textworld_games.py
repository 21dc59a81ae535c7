"""Generated games: the same from the same spec, won by their walkthroughs, kept in a cache."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("textworld", reason="needs the textworld extra")

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_scenarios, write_scenarios
from gym_llmworld.errors import DataError, EngineError, ScenarioError
from gym_llmworld.real import textworld_games, textworld_scenarios
from gym_llmworld.real.textworld_engine import Play, replay
from gym_llmworld.real.textworld_games import (
    CACHE_VARIABLE,
    GENERATOR_VERSION,
    KINDS,
    SEEDS_PER_SPLIT,
    SPLITS,
    GameSpec,
    sample_spec,
    spec_stream,
    story_file,
    textworld_release,
)
from gym_llmworld.real.textworld_scenarios import load_games, scenario_story, write_games
from tests.textworld_shared import SPECS, scenario, story

# Pinned: whoever changes what a spec leads to must move GENERATOR_VERSION.
PINNED_RELEASE = "1.7.0"
DIGESTS = {
    "treasure_hunter": "c1c5644848f76c5b",
    "coin_collector": "9a401260c6d222d8",
    "simple": "6beea9d9614c876b",
    "cooking": "f065a1b6e50d65b5",
    "custom": "d030b1b2a79a2aee",
}
STREAM_DIGEST = "1abd42c6de206db2"


def digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def fingerprint(made: Scenario) -> str:
    return digest(made.hidden["raw"], made.admissible, made.real["plan"], made.instruction)


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_always_gives_the_same_game(kind: str) -> None:
    if textworld_release() != PINNED_RELEASE:
        pytest.skip(f"pinned for TextWorld {PINNED_RELEASE}, this is {textworld_release()}")
    assert GENERATOR_VERSION == 1
    assert fingerprint(scenario(kind)) == DIGESTS[kind]


IN_A_FRESH_PROCESS = """
import json, sys
from gym_llmworld.real.textworld_games import GameSpec
from gym_llmworld.real.textworld_scenarios import game_scenario
print(json.dumps(game_scenario(GameSpec.parse(sys.argv[1])).to_json()))
"""


def made_elsewhere(spec: GameSpec, cache: Path) -> Scenario:
    env = {**os.environ, "PYTHONHASHSEED": "7", CACHE_VARIABLE: str(cache)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_A_FRESH_PROCESS, spec.id],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return Scenario.from_json(json.loads(run.stdout))


def test_a_fresh_process_makes_the_same_game(tmp_path: Path) -> None:
    assert made_elsewhere(SPECS["custom"], tmp_path) == scenario("custom")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "custom"])
def test_a_fresh_process_makes_the_same_game_of_every_kind(kind: str, tmp_path: Path) -> None:
    assert made_elsewhere(SPECS[kind], tmp_path) == scenario(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_walkthrough_wins_and_replays_identically(kind: str) -> None:
    made = scenario(kind)
    observations = []
    for _ in range(2):
        play = Play(story(kind))
        observations.append([play.step(command).observation for command in made.real["plan"]])
        assert play.turn.won
        assert play.turn.score == play.turn.max_score > 0
        play.close()
    assert observations[0] == observations[1]
    assert observations[0][-1].endswith("*** The End ***")


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_wins_from_any_state(kind: str) -> None:
    play = Play(story(kind), track_policy=True)
    rng = random.Random(1)
    for _ in range(6):
        # Nothing that cannot be taken back.
        play.step(
            rng.choice(
                [c for c in play.turn.admissible if c.startswith(("go", "open"))] or ["look"]
            )
        )
    for _ in range(30):
        if play.turn.won:
            break
        play.step(play.policy()[0])
    assert play.turn.won
    assert play.policy() == []
    play.close()


def test_specs_take_the_kinds_in_turn_and_splits_share_no_seed() -> None:
    drawn = {split: list(itertools.islice(spec_stream(split, 1), 50)) for split in SPLITS}
    for split, specs in drawn.items():
        assert Counter(spec.kind for spec in specs) == dict.fromkeys(KINDS, 10)
        assert {spec.split for spec in specs} == {split}
        assert {spec.seed // SEEDS_PER_SPLIT for spec in specs} == {SPLITS.index(split)}
        cooking = {spec.settings["split"] for spec in specs if spec.kind == "cooking"}
        assert cooking == {split}
        assert {s.settings["test"] for s in specs if s.kind == "simple"} == {split == "test"}
    assert list(itertools.islice(spec_stream("train", 1), 12)) == drawn["train"][:12]
    assert list(itertools.islice(spec_stream("train", 2), 50)) != drawn["train"]
    assert digest([spec.id for spec in drawn["train"]]) == STREAM_DIGEST


def test_cooking_holds_foods_out() -> None:
    from textworld.challenges.tw_cooking.cooking import FOODS_SPLITS

    trained = set(FOODS_SPLITS["train"])
    foods = {t["name"] for t in scenario("cooking").hidden["things"] if t["type"] == "f"}
    assert foods <= trained
    assert not trained & {*FOODS_SPLITS["valid"], *FOODS_SPLITS["test"]}


@pytest.mark.parametrize("split", SPLITS)
def test_ids_and_json_bring_specs_back(split: str) -> None:
    for spec in itertools.islice(spec_stream(split), 40):
        assert GameSpec.parse(spec.id) == spec
        assert GameSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert GameSpec.parse("train/cooking/go=6/12 ") is None
    assert GameSpec.parse("valid/cooking/go=6/12") is None
    assert GameSpec.parse("train/cooking/go=7/12") is None
    assert GameSpec.parse("train/dungeon/default/12") is None


@pytest.mark.parametrize(
    ("kind", "seed", "options", "message"),
    [
        ("dungeon", 1, {}, "no kind of game 'dungeon'; expected one of treasure_hunter"),
        ("simple", -1, {}, "from 0 to 2999999999, got -1"),
        ("simple", True, {}, "got True"),
        ("simple", 1, {"level": 3}, "have no option 'level'; expected some of rewards, goal"),
        ("simple", 1, {"goal": "vague"}, "must be 'detailed' or 'brief' or 'none', got 'vague'"),
        ("treasure_hunter", 1, {"level": 31}, "must be 1 to 30, got 31"),
        ("treasure_hunter", 1, {"level": "3"}, "got '3'"),
        ("cooking", 1, {"open": 1}, "must be False or True, got 1"),
        ("cooking", 1, {"recipe": 1, "take": 2}, "expected take <= recipe"),
        ("cooking", 1, {"recipe_seed": 2}, "expected take >= 1"),
        ("coin_collector", 1, {"level": 160}, "has 120 rooms; expected at most 100"),
    ],
)
def test_an_impossible_spec_is_refused(
    kind: str, seed: int, options: dict[str, textworld_games.Option], message: str
) -> None:
    with pytest.raises(ScenarioError, match=message.replace("(", r"\(")):
        GameSpec.of(kind, seed, options)


def test_unknown_splits_and_kinds_are_refused() -> None:
    with pytest.raises(ScenarioError, match="unknown split 'dev'; expected one of train"):
        spec_stream("dev")
    with pytest.raises(ScenarioError, match="no kind of game 'maze'"):
        sample_spec("maze", "train", random.Random(0))
    with pytest.raises(ScenarioError, match="got \\['maze'\\]"):
        spec_stream("train", kinds=["maze"])


def test_the_cache_is_used_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    made = story("custom")
    before = made.stat().st_mtime_ns
    monkeypatch.setattr(textworld_games, "_compile", lambda *_: pytest.fail("made again"))
    assert story_file(SPECS["custom"]) == made
    assert made.stat().st_mtime_ns == before
    left = [path.name for path in made.parent.iterdir() if path.suffix not in (".z8", ".json")]
    assert left == []


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))

    def interrupted(spec: GameSpec, target: Path) -> Path:
        target.write_bytes(b"half a sto")
        raise KeyboardInterrupt

    monkeypatch.setattr(textworld_games, "_compile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        story_file(SPECS["custom"])
    assert list((tmp_path / "textworld").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(EngineError, match=rf"Set \${CACHE_VARIABLE} to one"):
        story_file(SPECS["custom"])


def test_what_textworld_cannot_make_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    from textworld.generator.chaining import QuestGenerationError

    def fails(*_: object) -> None:
        raise QuestGenerationError("No quest can be generated")

    monkeypatch.setattr(textworld_games, "_make", fails)
    with pytest.raises(ScenarioError, match=r"cannot make the game train/custom/.*another seed"):
        story_file(SPECS["custom"])
    assert list((tmp_path / "textworld").iterdir()) == []


def test_write_games_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = iter(["custom", "simple", "cooking", "coin_collector"])
    impossible = GameSpec.of("custom", 77)
    specs = [SPECS[next(kinds)], impossible, *(SPECS[kind] for kind in kinds)]
    monkeypatch.setattr(textworld_scenarios, "spec_stream", lambda *_: iter(specs))
    made: list[GameSpec] = []

    def make(spec: GameSpec) -> Scenario:
        made.append(spec)
        if spec == impossible:
            raise ScenarioError("no such map")
        if len(made) == 3:
            raise KeyboardInterrupt
        return scenario(spec.kind)

    monkeypatch.setattr(textworld_scenarios, "game_scenario", make)
    caplog.set_level(logging.WARNING)
    progress: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        write_games(tmp_path, "train", 3, progress=lambda *p: progress.append(p))
    assert not (tmp_path / "train" / "scenarios.jsonl").exists()
    assert "left out: no such map" in caplog.text
    draft = tmp_path / "train" / "scenarios.jsonl.part"
    draft.write_text(draft.read_text() + '{"id": "half')
    monkeypatch.setattr(textworld_scenarios, "spec_stream", lambda *_: iter(specs))
    path = write_games(tmp_path, "train", 3, progress=lambda *p: progress.append(p))
    assert progress[-3:] == [(1, 3), (2, 3), (3, 3)]
    assert [s.real["kind"] for s in read_scenarios(path)] == ["custom", "simple", "cooking"]
    assert made.count(SPECS["custom"]) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["scenarios.jsonl"]
    assert load_games(tmp_path, "train") == read_scenarios(path)


def test_games_of_another_generator_are_not_mixed_in(tmp_path: Path) -> None:
    old = scenario("custom").to_json()
    old["real"]["generator"] = 0
    target = tmp_path / "train" / "scenarios.jsonl"
    target.parent.mkdir()
    write_scenarios(target, [Scenario.from_json(old)])
    with pytest.raises(ScenarioError, match="generator version 0; this is version 1"):
        write_games(tmp_path, "train", 1)
    with pytest.raises(ValueError, match="at least 1"):
        write_games(tmp_path, "train", 0)


def test_own_games_load(tmp_path: Path) -> None:
    for number, kind in ((10, "custom"), (2, "simple")):
        for suffix in (".z8", ".json"):
            source = story(kind).with_suffix(suffix)
            (tmp_path / f"textworld_{number}{suffix}").write_bytes(source.read_bytes())
    own = load_games(tmp_path, "test")
    assert [s.id for s in own] == ["test/textworld_2", "test/textworld_10"]
    assert own[1].observation == scenario("custom").observation
    assert own[1].hidden == scenario("custom").hidden
    assert own[1].real["plan"] == scenario("custom").real["plan"]
    play = replay(Play(scenario_story(own[0])), own[0].real["plan"])
    assert play.turn.won
    play.close()


def test_a_game_without_its_json_is_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "lonely.z8").write_bytes(story("custom").read_bytes())
    with pytest.raises(ScenarioError, match=r"has no lonely\.json beside it.*tw-make --output"):
        load_games(tmp_path, "train")


@pytest.mark.parametrize("damage", ["cut off", "garbage", "changed", "json"])
def test_a_damaged_game_is_an_error_and_no_crash(tmp_path: Path, damage: str) -> None:
    sound, copy = story("custom"), tmp_path / "game.z8"
    data = sound.read_bytes()
    damaged = {
        "cut off": data[:5000],
        "garbage": b"\x08" * 3000,
        "changed": data[:200_000] + b"oh no!" + data[200_006:],
    }
    copy.write_bytes(damaged.get(damage, data))
    described = sound.with_suffix(".json").read_bytes()
    copy.with_suffix(".json").write_bytes(b'{"version": 1}' if damage == "json" else described)
    with pytest.raises(DataError, match="tw-make" if damage == "json" else "checksum"):
        load_games(tmp_path, "train")


def test_an_empty_or_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="llmworld games textworld --out"):
        load_games(tmp_path, "train")
    with pytest.raises(ScenarioError, match="no folder with games at"):
        load_games(tmp_path / "nowhere", "train")


def test_a_scenario_that_names_no_game_is_refused() -> None:
    made = scenario("custom").to_json()
    with pytest.raises(ScenarioError, match="expected in real either 'kind' and 'seed'"):
        scenario_story(Scenario.from_json({**made, "real": {}}))
    with pytest.raises(ScenarioError, match="generator version 0, this is version 1"):
        scenario_story(Scenario.from_json({**made, "real": {**made["real"], "generator": 0}}))

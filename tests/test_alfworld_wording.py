"""What stands behind ALFWorld's commands, against what the engine says where it is asked."""

from __future__ import annotations

import random
import re

import pytest

pytest.importorskip("alfworld", reason="needs the alfworld extra")

from gym_llmworld.core import Scenario, Step
from gym_llmworld.real.alfworld_engine import LoadedGame, Play
from gym_llmworld.real.alfworld_games import Game, build_game
from gym_llmworld.real.alfworld_scenarios import game_scenario
from gym_llmworld.real.alfworld_tasks import sample_specs
from gym_llmworld.worlds.alfworld import WORLD
from gym_llmworld.worlds.alfworld_wording import ToldWording

GAMES = [build_game(spec) for spec in sample_specs("train", 4, seed=5)]
TASK = "put two hot egg in shelf."
SCENARIO = Scenario("x", "alfworld", "train", TASK, f"A room. Your task is to: {TASK}")


def test_a_decisive_command_is_followed_by_what_was_told() -> None:
    told = ToldWording(SCENARIO)
    assert told.cue("go to desk 1") == ""
    assert told.cue("use lamp 1") == f"\n: lamp; {TASK}\nuse lamp 1"
    for action, observation, known in (
        (
            "go to desk 1",
            "You arrive at desk 1. On the desk 1, you see a egg 1.",
            "at desk 1: lamp",
        ),
        (
            "take egg 1 from desk 1",
            "You pick up the egg 1 from the desk 1.",
            "at desk 1, with egg 1: egg, lamp",
        ),
        (
            "heat egg 1 with microwave 1",
            "You heat the egg 1 using the microwave 1.",
            "at desk 1, with hot egg 1: hot egg, lamp",
        ),
        ("go to shelf 2", "Nothing happens.", "at desk 1, with hot egg 1: hot egg, lamp"),
        ("move egg 1 to desk 1", "You move the egg 1 to the desk 1.", "at desk 1: lamp"),
    ):
        assert told.write(action, observation) == observation
        assert told.read(observation) == observation
        assert told.cue("use lamp 1") == f"\n{known}; {TASK}\nuse lamp 1"
        assert told.cue(f"examine {action}") == ""
    told.write("take egg 3 from desk 1", "You pick up the egg 3 from the desk 1.")
    assert told.cue("move egg 3 to shelf 2") == (
        f"\nat desk 1, with egg 3: egg, shelf, hot egg, desk; {TASK}\nmove egg 3 to shelf 2"
    )


def test_what_is_taken_again_no_longer_lies_there() -> None:
    told = ToldWording(SCENARIO)
    told.write("", "You pick up the egg 1 from the desk 1.")
    told.write("", "You move the egg 1 to the shelf 2.")
    told.write("", "You pick up the egg 1 from the shelf 2.")
    assert told.cue("move egg 1 to shelf 1") == (
        f"\nwith egg 1: egg, shelf; {TASK}\nmove egg 1 to shelf 1"
    )


def test_the_styles_differ_in_commands_only() -> None:
    game = game_scenario(GAMES[0])
    steps = [Step("go to desk 1", "You arrive at desk 1. On the desk 1, you see nothing.")]
    for style in ("engine", "nocontents"):
        name = {"engine": "told", "nocontents": "told_nocontents"}[style]
        plain = WORLD.protocol(style).encode(game, steps, "use lamp 1")
        told = WORLD.protocol(name).encode(game, steps, "use lamp 1")
        assert told[:-1] == plain[:-1]
        assert told[-1].content.startswith("use lamp 1\nat desk 1: lamp; ")
        assert told[-1].content.endswith("\nuse lamp 1")


def test_the_engine_agrees() -> None:
    counts = [agreed(game) for game in GAMES]
    assert min(held for held, _, _ in counts) > 20
    assert sum(treated for _, treated, _ in counts) > 5
    assert min(faced for _, _, faced in counts) > 20


def agreed(game: Game) -> tuple[int, int, int]:
    """Plays at random; returns how often a thing was held, how often a treated one, and
    how often the engine said where the agent stands.
    """
    told, play = ToldWording(game_scenario(game)), Play(LoadedGame(game.game_data()))
    rng = random.Random(1)
    held = treated = faced = 0
    for _ in range(120):
        known = play.turn.admissible
        busy = [
            c for c in known if c.split()[0] in ("take", "heat", "cool", "clean", "move", "open")
        ]
        ways = [c for c in known if c.startswith("go ")]
        action = rng.choice(busy if busy and rng.random() < 0.7 else ways)
        turn = play.step(action)
        told.write(action, turn.observation)
        if turn.won:
            break
        known = told.cue("use lamp 1").split("\n")[1].partition(":")[0]
        place, _, thing = known.partition(", with ")
        facing = play.step("look").observation
        if facing.startswith("You are facing the "):
            faced += 1
            near = re.split(
                r", and |, ", facing.partition(".")[0].removeprefix("You are facing the ")
            )
            assert place.removeprefix("at ") in near
        carrying = play.step("inventory").observation
        if not thing:
            assert carrying == "You are not carrying anything."
            continue
        held += 1
        name = " ".join(thing.split()[-2:])
        assert carrying == f"You are carrying: a {name}."
        states = re.match(r"This is a (.+?) \w+ \d", play.step(f"examine {name}").observation)
        said = set(states[1].replace("cold", "cool").split()) - {"normal"} if states else set()
        assert said <= set(thing.split())
        treated += bool(said)
    return held, treated, faced

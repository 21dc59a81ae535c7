"""The engine against TextWorld's own, command by command."""

from __future__ import annotations

import copy
import hashlib
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest

from gym_llmworld.errors import EngineError

pytest.importorskip("alfworld")

from gym_llmworld.real.alfworld_engine import NOTHING_HAPPENS, Facts, LoadedGame, Play, replay
from gym_llmworld.real.alfworld_games import build_game
from gym_llmworld.real.alfworld_grammar import parse_grammar, parse_symbols
from gym_llmworld.real.alfworld_grounding import UnusualDomain
from gym_llmworld.real.alfworld_pddl import parse_tree, read_problem
from gym_llmworld.real.alfworld_tasks import GameSpec, sample_specs
from gym_llmworld.real.alfworld_translation import (
    compile_problem,
    ground,
    normalise,
    translate,
)

# Small rooms: TextWorld takes a second or two to load a kitchen.
SMALL = (
    GameSpec("pick_and_place_simple-Book-None-ArmChair-202", 3),
    GameSpec("look_at_obj_in_light-Book-None-DeskLamp-309", 6),
    GameSpec("pick_clean_then_place_in_recep-Cloth-None-Toilet-402", 9),
    GameSpec("pick_two_obj_and_place-SoapBar-None-GarbageCan-419", 12),
)
KITCHEN = GameSpec("pick_heat_then_place_in_recep-Egg-None-GarbageCan-12", 15)

ODD_COMMANDS = (
    "",
    "   ",
    "dance",
    "LOOK",
    "go to fridge 99",
    "go to",
    "look\nlook",
    "\x00\x1b[2J\x07",
    "a {o.name} #intro# [x]",
    "x" * 100_000,
    "拿 书",
)


@cache
def game_data(spec: GameSpec) -> dict[str, Any]:
    return build_game(spec).game_data()


@cache
def loaded(spec: GameSpec) -> LoadedGame:
    return LoadedGame(game_data(spec))


@pytest.fixture(scope="module")
def stock() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs.pddl import PddlEnv
    return AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))


def random_command(rng: random.Random, admissible: list[str]) -> str:
    """Draws a command; things to do are rarer than places to go, so they get half of the draws."""
    doing = [command for command in admissible if not command.startswith("go to")]
    if rng.random() < 0.1:
        return rng.choice(ODD_COMMANDS)
    return rng.choice(doing if rng.random() < 0.55 else admissible)


def assert_same_play(stock: Any, spec: GameSpec, seed: int, steps: int) -> None:
    rng = random.Random(seed)
    stock.load(game_data(spec))
    state = stock.reset()
    play = Play(loaded(spec))
    assert play.turn.observation == state.feedback
    for _ in range(steps):
        assert play.turn.admissible == tuple(state["admissible_commands"])
        command = random_command(rng, state["admissible_commands"])
        state, score, done = stock.step(command)
        turn = play.step(command)
        assert (turn.observation, turn.won, turn.won) == (state.feedback, bool(score), bool(done))


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.task)
def test_plays_like_textworld(stock: Any, spec: GameSpec) -> None:
    assert_same_play(stock, spec, seed=1, steps=15)


def test_wins_like_textworld(stock: Any) -> None:
    for spec in SMALL[1:3]:
        stock.load(game_data(spec))
        stock.reset()
        play = Play(loaded(spec))
        for command in game_data(spec)["walkthrough"]:
            state, score, done = stock.step(command)
            turn = play.step(command)
            assert (turn.observation, turn.won) == (state.feedback, done)
            assert turn.admissible == tuple(state["admissible_commands"])
        assert play.turn.won
        assert score == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_plays_like_textworld_for_long(stock: Any, number: int) -> None:
    spec = sample_specs("train", 10, seed=77)[number]
    assert_same_play(stock, spec, seed=number, steps=50)


@pytest.mark.parametrize("command", ODD_COMMANDS, ids=lambda command: repr(command[:20]))
def test_anything_else_does_nothing(command: str) -> None:
    play = Play(loaded(SMALL[0]))
    before = play.turn
    turn = play.step(command)
    assert turn.observation == NOTHING_HAPPENS
    assert (turn.admissible, turn.won) == (before.admissible, before.won)
    assert play.step("inventory").observation == "You are not carrying anything."


def test_blanks_around_a_command_do_not_matter() -> None:
    play = Play(loaded(SMALL[0]))
    assert play.step("  inventory \n").observation == "You are not carrying anything."


def test_a_command_must_be_text() -> None:
    with pytest.raises(TypeError, match="must be a str, got int"):
        Play(loaded(SMALL[0])).step(3)  # type: ignore[arg-type]


def walk(spec: GameSpec, seed: int) -> Iterator[str]:
    """Plays at random; yields what the engine says."""
    rng, play = random.Random(seed), Play(loaded(spec))
    yield play.turn.observation
    for _ in range(25):
        yield play.step(random_command(rng, list(play.turn.admissible))).observation


def test_plays_do_not_disturb_each_other() -> None:
    alone = [list(walk(spec, seed)) for seed, spec in enumerate((*SMALL, SMALL[0]))]
    walks = [walk(spec, seed) for seed, spec in enumerate((*SMALL, SMALL[0]))]
    together = [list(turns) for turns in zip(*zip(*walks, strict=True), strict=True)]
    assert together == alone


def test_a_copy_goes_its_own_way() -> None:
    spec = SMALL[2]
    plan = game_data(spec)["walkthrough"]
    play = Play(loaded(spec))
    replay(play, plan[:-1])
    fork = copy.deepcopy(play)
    assert fork.step(plan[-1]).won
    assert play.step("inventory").observation.startswith("You are carrying: a cloth")
    assert not play.turn.won
    assert play.step(plan[-1]).won


def test_facts_follow_what_happens() -> None:
    play = Play(loaded(SMALL[1]))
    plan = game_data(SMALL[1])["walkthrough"]
    take = next(command for command in plan if command.startswith("take"))
    thing = take.split(" from ")[0].removeprefix("take ")
    assert any(fact[:2] == ("inreceptacle", thing) for fact in play.facts())
    replay(play, plan[: plan.index(take) + 1])
    assert ("holds", "agent1 ", thing) in play.facts()
    assert not any(fact[:2] == ("inreceptacle", thing) for fact in play.facts())


def test_the_text_does_not_depend_on_hash_seeds() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from hashlib import sha256\n"
        "from gym_llmworld.real.alfworld_engine import LoadedGame, Play\n"
        "from gym_llmworld.real.alfworld_games import build_game\n"
        "from gym_llmworld.real.alfworld_tasks import GameSpec\n"
        f"data = build_game(GameSpec({SMALL[1].task!r}, {SMALL[1].seed})).game_data()\n"
        "play, digest = Play(LoadedGame(data)), sha256()\n"
        "for command in data['walkthrough']:\n"
        "    turn = play.step(command)\n"
        "    digest.update(repr((turn.observation, turn.admissible)).encode())\n"
        "print(digest.hexdigest())\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, root],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == len(hashlib.sha256().hexdigest())


def test_loading_leaves_argv_and_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    argv, stdout = list(sys.argv), sys.stdout
    data = game_data(SMALL[3])
    translate(data["pddl_domain"], data["pddl_problem"])
    assert sys.argv == argv
    assert sys.stdout is stdout
    assert capsys.readouterr().out == ""


def canonical(sas: str) -> dict[str, Any]:
    """Takes a translator's output apart, with facts in place of numbers and without an order."""
    lines = iter(sas.split("\n"))

    def take(count: int = 1) -> list[str]:
        return [next(lines) for _ in range(count)]

    def facts() -> list[str]:
        return sorted(fact(*line.split()) for line in take(int(next(lines))))

    def fact(variable: str, value: str) -> str:
        return "anything" if value == "-1" else variables[int(variable)][1 + int(value)]

    def effect(line: str) -> tuple[Any, ...]:
        words = line.split()
        count = int(words[0])
        pairs = [fact(*words[1 + 2 * i : 3 + 2 * i]) for i in range(count)]
        variable, old, new = words[1 + 2 * count :]
        return (sorted(pairs), fact(variable, old), fact(variable, new))

    assert take(6) == ["begin_version", "3", "end_version", "begin_metric", "0", "end_metric"]
    variables = []
    for _ in range(int(next(lines))):
        _, _, layer, _, true, false, _ = take(7)
        variables.append((layer, true, false))
    assert take(2) == ["0", "begin_state"]
    first = [fact(str(number), value) for number, value in enumerate(take(len(variables)))]
    take(2)
    goal = facts()
    take()
    operators, rules = [], []
    for _ in range(int(next(lines))):
        _, name = take(2)
        prevail = facts()
        effects = sorted((effect(line) for line in take(int(next(lines)))), key=str)
        cost, _ = take(2)
        operators.append((name, prevail, effects, cost))
    for _ in range(int(next(lines))):
        take()
        body = facts()
        variable, old, new = next(lines).split()
        take()
        rules.append((body, fact(variable, old), fact(variable, new)))
    return {
        "variables": sorted(variables),
        "first": sorted(first),
        "goal": goal,
        "operators": sorted(operators, key=str),
        "rules": {str(rule) for rule in rules},
    }


def assert_translates_like_fast_downward(data: Mapping[str, Any]) -> None:
    domain, problem = data["pddl_domain"], data["pddl_problem"]
    read = read_problem(problem)
    ours = canonical(ground(normalise(domain, read), read))
    theirs = canonical(translate(domain, problem))
    for section in theirs:
        assert ours[section] == theirs[section], section


@pytest.mark.parametrize("spec", [*SMALL, KITCHEN], ids=lambda spec: spec.task)
def test_translates_like_fast_downward(spec: GameSpec) -> None:
    assert_translates_like_fast_downward(game_data(spec))


@pytest.mark.slow
def test_translates_many_games_like_fast_downward() -> None:
    for spec in sample_specs("train", 36, seed=5):
        assert_translates_like_fast_downward(game_data(spec))


FORALL = """
(:action tidy
    :parameters (?a - agent)
    :precondition ()
    :effect (and (forall (?r - receptacle) (not (opened ?r))) (checked ?a)))
(:action help"""
TIDY = """
action tidy {
    template :: "tidy";
    feedback :: "#list_empty#";
}
action help {"""


def test_a_domain_that_is_not_plain_goes_to_the_translator() -> None:
    data = dict(game_data(SMALL[2]))
    data["pddl_domain"] = data["pddl_domain"].replace("(:action help", FORALL)
    data["grammar"] = data["grammar"].replace("action help {", TIDY)
    read = read_problem(data["pddl_problem"])
    with pytest.raises(UnusualDomain):
        ground(normalise(data["pddl_domain"], read), read)
    play = Play(LoadedGame(data))
    replay(play, ["go to cabinet 1", "open cabinet 1"])
    assert "close cabinet 1" in play.turn.admissible
    assert play.step("tidy").observation == "nothing"
    assert "open cabinet 1" in play.turn.admissible


def test_a_game_must_be_complete() -> None:
    data = game_data(SMALL[0])
    with pytest.raises(EngineError, match="missing grammar"):
        LoadedGame({"pddl_domain": data["pddl_domain"], "pddl_problem": data["pddl_problem"]})


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("pddl_problem", "(define (problem x", "cut off"),
        ("pddl_problem", "(define (problem x))", "not a PDDL problem"),
        ("pddl_problem", "hello", "not one expression"),
        ("pddl_problem", ")", "too many"),
        ("pddl_domain", "(define (domain alfred))", "not word|cannot be translated"),
        ("pddl_domain", "(hello)", "cannot be translated"),
        ("grammar", "hello", "cannot be read"),
        ("grammar", 'grammar :: """{"a": """;', "not JSON"),
        ("grammar", 'grammar :: """[]""";', "JSON object"),
        ("grammar", 'grammar :: """{"a": [{}]}""";', 'text "rhs"'),
        ("grammar", 'action look { template :: "look"; }', "lacks template or feedback"),
        ("grammar", 'action look { template :: "l"; feedback :: "#x#"; }', "does not word"),
    ],
)
def test_a_damaged_game_is_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Play(LoadedGame({**game_data(SMALL[0]), key: text}))


def test_a_grammar_must_have_an_intro() -> None:
    data = dict(game_data(SMALL[0]))
    data["grammar"] = data["grammar"].replace('"intro"', '"outro"')
    with pytest.raises(EngineError, match="no rule #intro#"):
        Play(LoadedGame(data))


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "o.name.upper()",
        "o.__class__",
        "1 + 1",
        "o.name if o else r",
        "o.name *",
    ],
)
def test_a_grammar_cannot_run_code(expression: str) -> None:
    with pytest.raises(EngineError, match="expression"):
        parse_symbols("{" + expression + "}")


@pytest.mark.parametrize(
    "text",
    [
        "plain words.",
        "\n  leading blanks\n",
        "// a comment\nthe rest",
        "two  blanks\tand a tab",
        'put a "hot" mug',
        "cut; here",
        "cut | here",
        "cut <b> here",
        "cut } here",
        "Your task is to: heat some café.",
        "#list_empty# and #list_separator#",
        "#list_empty#\t\tx",
        "a##b",
        "",
    ],
)
def test_reads_text_as_textworld_does(stock: Any, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from textworld.envs.pddl.logic import GameLogic

    data = game_data(SMALL[0])
    logic = GameLogic(data["pddl_domain"], data["grammar"])
    context: dict[str, Any] = {"state": None, "facts": [], "entity_infos": {}}
    context |= {"variables": {}, "mapping": {}}
    expected = logic.grammar.derive(text, context)
    grammar = parse_grammar(data["grammar"])
    assert grammar.derive(parse_symbols(text), Facts((), {}, {}), {}) == expected


def test_pddl_is_read_like_fast_downward_reads_it() -> None:
    domain = game_data(SMALL[0])["pddl_domain"]
    translate(domain, game_data(SMALL[0])["pddl_problem"])  # imports the parser safely
    from fast_downward.translate.pddl_parser.lisp_parser import parse_nested_list

    assert parse_tree(domain) == parse_nested_list(domain.split("\n"))


def test_compiled_problems_are_kept() -> None:
    data = game_data(SMALL[0])
    arguments = data["pddl_domain"], data["pddl_problem"]
    assert compile_problem(*arguments) is compile_problem(*arguments)

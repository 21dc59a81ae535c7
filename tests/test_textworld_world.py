"""TextWorld's hidden facts and prompt styles, against what the engine says and does."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

pytest.importorskip("textworld", reason="needs the textworld extra")

from gym_llmworld.core import Scenario, Step
from gym_llmworld.real.textworld_engine import Play
from gym_llmworld.real.textworld_facts import short_form
from gym_llmworld.real.textworld_games import SPLITS
from gym_llmworld.worlds.textworld import WORLD, engine_context, nomap_context
from gym_llmworld.worlds.textworld_text import FIXTURES, listing, place_of, printed_name
from tests.textworld_shared import SPECS, Facts, scenario, story, walk

CONDITION = re.compile(r"(?:([^,]+) )?((?:open|closed|locked|full|empty)(?:, (?:full|empty))?)")


def holds(condition: str, facts: Facts, examined: str | None) -> bool | None:
    """Whether a condition of `short_form` is true; None when the text is no condition."""
    match = CONDITION.fullmatch(condition)
    if match is None:
        return None
    name = match[1] or examined
    opened = ("open", name) in facts
    filled = any(fact[0] in ("in", "on") and fact[2] == name for fact in facts)
    truth = {
        "open": opened,
        "closed": not opened,
        "locked": ("locked", name) in facts,
        "full": filled,
        "empty": not filled,
    }
    return all(truth[word] for word in match[2].split(", "))


def worded(text: str, facts: Facts, examined: str | None = None) -> str:
    """Returns a pattern of what the engine prints for a text in `short_form`."""

    def chosen(match: re.Match[str]) -> str:
        for variant in match[1].split("|"):
            condition, colon, words = variant.partition(":")
            truth = holds(condition, facts, examined) if colon else None
            if truth is None:
                return variant
            if truth:
                return words
        return ""

    parts = re.split(r"<[^>]*>", re.sub(r"\[([^\]]*)\]", chosen, text))
    return "(.+?)".join(map(re.escape, parts))


AFTERWARDS = r"(?:\n\nThere (?:is|are) .+ on the floor\.)?(?:\n\nYour score .+)?(?:\n\n\*\*\*.+)?"


@pytest.mark.parametrize("kind", SPECS)
def test_hidden_texts_are_what_the_engine_prints(kind: str) -> None:
    hidden = scenario(kind).hidden
    rooms = {room["name"]: room["text"] for room in hidden["rooms"]}
    texts = {thing["name"]: thing["text"] for thing in (*hidden["things"], *hidden["doors"])}
    seen = 0
    walks = itertools.chain.from_iterable(walk(kind, seed) for seed in range(3))
    for command, observation, facts in walks:
        [here] = [fact[2] for fact in facts if fact[:2] == ("at", "P")]
        verb, _, name = command.partition(" ")
        if verb in ("go", "look"):
            pattern = re.escape(f"-= {here.title()} =-\n") + worded(rooms[here], facts)
            assert re.fullmatch(pattern + AFTERWARDS, observation), (command, observation)
            seen += 1
        elif verb == "examine":
            pattern = worded(texts[name], facts, examined=name)
            lists = r"(?:\n\n(?:In|On) the .+)?"
            assert re.fullmatch(pattern + lists + AFTERWARDS, observation), (command, observation)
            seen += 1
    assert seen > 5


def holders(hidden: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for holder in hidden["things"]:
        held = [t for t in hidden["things"] if t["where"] and t["where"][1:] == [holder["name"]]]
        if holder["type"] in FIXTURES and held:
            yield holder["name"], held


@pytest.mark.parametrize("kind", ["simple", "cooking", "custom", "treasure_hunter"])
def test_contents_are_listed_in_the_engines_words_and_order(kind: str) -> None:
    hidden = scenario(kind).hidden
    printed = Play(story(kind))._machine.unwrapped._send("print_state")
    checked = 0
    for name, held in holders(hidden):
        # "  a fridge (closed)" and then what is in it, deeper.
        inside = re.search(rf"^  an? {re.escape(name)}(?: \(.*\))?\n((?:    .+\n)*)", printed, re.M)
        assert inside is not None
        names = [re.sub(r" \(.*\)$", "", line).strip() for line in inside[1].splitlines()]
        assert listing(held) == listing_of(names)
        checked += 1
    assert checked


def listing_of(phrases: list[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def test_opening_reveals_what_the_context_lists() -> None:
    context = engine_context(scenario("cooking"))
    line = re.search(r"^fridge, closed: (.+)$", context, re.M)
    assert line is not None
    play = Play(story("cooking"))
    assert play.step("open fridge").observation == f"You open the fridge, revealing {line[1]}."
    play.close()


def test_names_show_how_food_is_prepared() -> None:
    def thing(name: str, *states: str) -> dict[str, Any]:
        return {"name": name, "states": states}

    assert printed_name(thing("pork chop", "needs_cooking", "raw", "uncut")) == "raw pork chop"
    assert printed_name(thing("carrot", "cooked", "fried", "diced")) == "diced fried carrot"
    assert printed_name(thing("carrot", "cooked", "fried", "burned")) == "burned carrot"
    assert listing([]) == "nothing"
    assert listing([thing("apple")]) == "an apple"
    assert listing([thing("a"), thing("b"), thing("c")]) == "an a, a b and a c"


def test_prepared_food_is_named_as_the_engine_names_it() -> None:
    play = Play(story("cooking"))
    plan = scenario("cooking").real["plan"]
    for command in plan[: plan.index("prepare meal")]:
        play.step(command)
    states: dict[str, list[str]] = {}
    for fact in play.facts():
        if len(fact) == 2:
            states.setdefault(fact[1], []).append(fact[0])
    names = {printed_name({"name": n, "states": s}) for n, s in states.items()}
    carried = play.step("inventory").observation
    listed = re.fullmatch(r"You are carrying: (.+) and (.+)\.", carried)
    assert listed is not None
    assert {re.sub("^an? ", "", name) for name in listed.groups()} <= names
    play.close()


@pytest.mark.parametrize("kind", SPECS)
def test_hidden_facts_are_plain_data_and_complete(kind: str) -> None:
    hidden = scenario(kind).hidden
    assert json.loads(json.dumps(hidden)) == hidden
    rooms = {room["name"]: room for room in hidden["rooms"]}
    assert hidden["player"] in rooms
    back = {"north": "south", "south": "north", "east": "west", "west": "east"}
    for room in hidden["rooms"]:
        for way, other in room["exits"].items():
            assert rooms[other]["exits"][back[way]] == room["name"]
        for way, door in room["doors"].items():
            assert rooms[room["exits"][way]]["doors"][back[way]] == door
    places = {thing["where"][1] for thing in hidden["things"] if thing["where"]}
    assert places <= {"I", *rooms, *(thing["name"] for thing in hidden["things"])}
    assert sum(quest["points"] for quest in hidden["quests"] if quest["win"]) >= 1


def test_keys_and_recipes_are_told() -> None:
    assert scenario("simple").hidden["keys"] == {"old key": "wooden door"}
    recipe = scenario("cooking").hidden["recipe"]
    assert recipe == {
        "room": "kitchen",
        "ingredients": [
            {"name": "block of cheese", "cooking": "fried", "cutting": "diced"},
            {"name": "pork chop", "cooking": "roasted", "cutting": "sliced"},
        ],
    }
    assert scenario("simple").hidden["recipe"] is None


def test_short_form_rewrites_informs_conditions() -> None:
    names = {"c_0": "box", "s_1": "desk", "d_2": "gate"}
    for text, expected in {
        "[if c_0 is locked]a locked[else if c_0 is open]an opened[otherwise]a closed[end if] box": (
            "[box locked:a locked|box open:an opened|a closed] box"
        ),
        "[if there is something on the s_1]On it: [a list of things on the s_1].[end if]": (
            "[desk full:On it: <desk>.]"
        ),
        "[if c_0 is open and there is something in c_0]It has [a list of things in c_0][end if]": (
            "[box open, full:It has <box>]"
        ),
        "[if c_0 is open and the c_0 contains nothing]Empty[end if]": "[box open, empty:Empty]",
        "The [noun]: [if open]open[else if closed]shut[otherwise]locked[end if]": (
            "The <noun>: [open:open|closed:shut|locked]"
        ),
        "a technique you call 'looking.' Don't": 'a technique you call "looking." Don\'t',
        "[if unvisited]New[end if] [bold type]d_2": "[unvisited:New] [bold type]d_2",
    }.items():
        assert short_form(text, names) == expected


def test_the_engine_context_tells_what_must_be_known() -> None:
    context = engine_context(scenario("simple"))
    for line in (
        "-= Living Room =-",
        "go east @bedroom",
        "-= Kitchen =- wooden door",
        "chest drawer, closed: an old key",
        "low table: a remote",
        "carried: nothing",
        "old key opens wooden door",
        "+1: chest drawer open",
        "+1: old key carried",
        "+1: you in kitchen",
        "+1: apple on stove",
        "lost: apple eaten",
    ):
        assert line in context.split("\n")
    assert context.endswith(f"You are in the bedroom. {scenario('simple').instruction}")
    assert "link" not in engine_context(scenario("custom"))


@pytest.mark.parametrize("kind", SPECS)
def test_the_engine_context_shows_rooms_as_they_look_at_first(kind: str) -> None:
    context = engine_context(scenario(kind))
    first = scenario(kind).observation
    assert first[first.index("-= ") :].partition("\n\nYour score")[0] in context
    rooms = same = 0
    visited: set[str] = set()
    for command, observation, _ in walk(kind, 0):
        title, _, text = observation.partition("\n")
        if command.startswith("go ") and title.startswith("-= ") and title not in visited:
            visited.add(title)
            rooms += 1
            shown = re.sub(AFTERWARDS + "$", "", text)
            same += f"{title}\n{shown}" in context
            # What differs from the first look is the state of doors and of what was handled.
            words = re.compile(r"\b(?:an? )?(?:open|opened|closed|locked)\b")
            if words.sub("", shown) in words.sub("", context):
                same += f"{title}\n{shown}" not in context
    assert same == rooms
    assert rooms or kind == "cooking"  # which takes place in one room


def test_each_action_ends_with_the_room_that_was_last_shown() -> None:
    made = scenario("simple")
    steps = [Step("go east", "-= Kitchen =-\nA room."), Step("look up", "What?")]
    for style in ("engine", "nomap"):
        chat = WORLD.protocol(style).encode(made, steps, "go west")
        asked = [message.content for message in chat if message.role == "user"]
        assert asked == ["go east @bedroom", "look up @kitchen", "go west @kitchen"]
    # The published format knows nothing of it.
    assert WORLD.protocol("word2world").encode(made, steps, "go west")[-1].content == "go west"
    assert place_of("You open -= Kitchen =- here.") is None


def test_the_engine_context_keeps_what_shows_later() -> None:
    context = engine_context(scenario("simple"))
    # The chest is closed at first; its wording when it is open is nowhere else.
    assert re.search(r"^chest drawer open, full: .*<chest drawer>", context, re.M)
    assert "[" not in context


@pytest.mark.parametrize("kind", SPECS)
def test_contexts_stay_short(kind: str) -> None:
    assert len(engine_context(scenario(kind))) < 9000
    assert nomap_context(scenario(kind)) == scenario(kind).observation
    for style in WORLD.contexts:
        chat = WORLD.protocol(style).encode(scenario(kind), [Step("look", "A room.")], "go east")
        assert [message.role for message in chat] == ["system", "user", "assistant", "user"]


def test_without_hidden_context_the_walls_stay_opaque() -> None:
    assert "old key" in engine_context(scenario("simple"))
    made = scenario("custom")
    hidden_rooms = {room["name"].title() for room in made.hidden["rooms"]}
    told = {name for name in hidden_rooms if f"-= {name} =-" in nomap_context(made)}
    assert told == {made.hidden["player"].title()}


def test_the_world_says_where_everything_is() -> None:
    import importlib

    assert (WORLD.imagined_id, WORLD.real_id) == ("LLMWorld-TextWorld-v0", "RealWorld-TextWorld-v0")
    assert WORLD.splits == SPLITS
    module, _, name = WORLD.real_entry_point.partition(":")
    assert hasattr(importlib.import_module(module), name)
    made = importlib.import_module(WORLD.games_module)
    assert {"write_games", "load_games"} <= set(dir(made))


def test_scenarios_survive_json() -> None:
    for kind in SPECS:
        again = Scenario.from_json(json.loads(json.dumps(scenario(kind).to_json())))
        assert again == scenario(kind)
        assert engine_context(again) == engine_context(scenario(kind))

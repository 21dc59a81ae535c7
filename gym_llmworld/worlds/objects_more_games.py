"""Three more object games, and all of them: in these, things are made and used up."""

from __future__ import annotations

import numpy as np

from gym_llmworld.worlds.objects_games import BATH, KETTLE, SEEDLING, TORCH
from gym_llmworld.worlds.objects_rules import (
    WAIT,
    Board,
    Game,
    Thing,
    Verb,
    agent,
    bring,
    extras,
    number,
    pick,
    present,
    thing,
)

# --- oven: dough becomes bread, and bread burns ------------------------------------------------


def _build_oven(rng: np.random.Generator) -> list[Thing]:
    dough = thing(
        pick(rng, "bread dough", "cake batter", "roll dough"),
        "Dough",
        isMoveable=True,
        baked=0,
        needs=int(rng.integers(2, 5)),
    )
    oven = thing(
        "oven",
        "Oven",
        isContainer=True,
        isOpen=bool(rng.random() < 0.5),
        isOn=False,
        temperature=20,
        power=pick(rng, 40, 60, 80),
    )
    return [agent(), oven, dough, *extras(rng, "fork", "plate", "bowl")]


def _tick_oven(board: Board) -> None:
    oven = present(board, "Oven")
    closed = oven["properties"].get("isOpen") is False
    if oven["properties"].get("isOn") is True and closed:
        hot = min(220, number(oven, "temperature") + number(oven, "power"))
    else:
        hot = max(20, number(oven, "temperature") - (20 if closed else 40))
    oven["properties"]["temperature"] = hot
    if hot < 140:
        return
    dough, bread = board.inside(oven, "Dough"), board.inside(oven, "Bread")
    if bread is not None:
        bread["properties"]["overdone"] = number(bread, "overdone") + 1
    if dough is not None:
        dough["properties"]["baked"] = number(dough, "baked") + 1
        if number(dough, "baked") >= number(dough, "needs"):
            label = dough["name"].partition(" ")[0]
            board.add({"cake": "cake", "roll": "rolls"}.get(label, "bread"), "Bread", oven,
                      isMoveable=True, overdone=0)  # fmt: skip
            board.remove(dough)


def _judge_oven(board: Board) -> tuple[int, bool, bool]:
    bread, dough = board.one("Bread"), board.one("Dough")
    lost = bread is not None and number(bread, "overdone") > 3
    won = not lost and bread is not None and board.is_in(bread, "Agent")
    started = dough is not None and board.is_in(dough, "Oven")
    return (3 if won else 2 if bread is not None else int(started)), won, lost


def _advise_oven(board: Board) -> str:
    oven, dough, bread = present(board, "Oven"), board.one("Dough"), board.one("Bread")
    if bread is not None:
        return bring(board, bread, present(board, "Agent"))
    if dough is not None and not board.is_in(dough, "Oven"):
        return bring(board, dough, oven)
    if oven["properties"].get("isOpen") is True:
        return f"close {oven['name']}"
    return WAIT if oven["properties"].get("isOn") is True else f"turn on {oven['name']}"


OVEN = Game(
    key="oven",
    task="Bake, and take what you have baked out of the oven before it burns.",
    rules="A closed oven that is on gets hotter by its power a tick, up to 220; else it cools, by "
    "20 a tick when closed and by 40 when open, down to 20. From 140 on, dough in it gains 1 baked "
    "a tick; with as much as it needs it is removed, and a bread (cake, rolls) with the next uuid "
    "is in the oven, which gains 1 overdone a tick. More than 3 overdone is lost. Score: 1 for "
    "dough in the oven, 2 for bread, 3 for bread in the agent's hands.",
    max_points=3,
    build=_build_oven,
    tick=_tick_oven,
    judge=_judge_oven,
    advise=_advise_oven,
)


# --- laundry: wash with powder, then dry -------------------------------------------------------


def _build_laundry(rng: np.random.Generator) -> list[Thing]:
    labels = rng.permutation(["shirt", "towel", "sock", "scarf"])[: int(rng.integers(1, 3))]
    clothes = [
        thing(str(label), "Clothes", isMoveable=True, isClean=False, wet=0) for label in labels
    ]
    washer = thing(
        pick(rng, "washer", "washing machine"),
        "Washer",
        isContainer=True,
        isOpen=bool(rng.random() < 0.5),
        isOn=False,
        hasPowder=False,
        timeLeft=int(rng.integers(2, 4)),
    )
    powder = thing(pick(rng, "washing powder", "soap"), "Powder", doses=int(rng.integers(1, 3)))
    rack = thing(pick(rng, "rack", "clothesline"), "Rack", isContainer=True)
    return [agent(), washer, powder, rack, *clothes]


def _tick_laundry(board: Board) -> None:
    washer, rack = present(board, "Washer"), present(board, "Rack")
    about = washer["properties"]
    if about.get("isOpen") is True:
        about["isOn"] = False
    if about.get("isOn") is True:
        about["timeLeft"] = max(0, number(washer, "timeLeft") - 1)
        if about["timeLeft"] == 0:
            for one in board.all("Clothes"):
                if one["name"] in washer["contains"]:
                    one["properties"]["wet"] = 2
                    one["properties"]["isClean"] = about.get("hasPowder") is True
            about.update(isOn=False, hasPowder=False, timeLeft=2)
    for one in board.all("Clothes"):
        if one["name"] in rack["contains"]:
            one["properties"]["wet"] = max(0, number(one, "wet") - 1)


def _judge_laundry(board: Board) -> tuple[int, bool, bool]:
    clothes = board.all("Clothes")
    clean = [one for one in clothes if one["properties"].get("isClean") is True]
    dry = [one for one in clean if not number(one, "wet") and board.is_in(one, "Rack")]
    won = bool(clothes) and len(dry) == len(clothes)
    about = present(board, "Powder"), present(board, "Washer")["properties"]
    stuck = not number(about[0], "doses") and about[1].get("hasPowder") is not True
    lost = not won and stuck and len(clean) < len(clothes)
    return (4 if won else int(len(clean) == len(clothes)) * 2 + int(bool(dry))), won, lost


def _advise_laundry(board: Board) -> str:
    washer, powder, rack = (
        present(board, "Washer"),
        present(board, "Powder"),
        present(board, "Rack"),
    )
    about, clothes = washer["properties"], board.all("Clothes")
    dirty = [one for one in clothes if one["properties"].get("isClean") is not True]
    if not dirty:
        waiting = [one for one in clothes if not board.is_in(one, "Rack")]
        return bring(board, waiting[0], rack) if waiting else WAIT
    outside = [one for one in dirty if not board.is_in(one, "Washer")]
    if outside:
        return bring(board, outside[0], washer)
    if about.get("hasPowder") is not True:
        if about.get("isOpen") is not True:
            return f"open {washer['name']}"
        return f"pour {powder['name']} into {washer['name']}"
    if about.get("isOpen") is True:
        return f"close {washer['name']}"
    return WAIT if about.get("isOn") is True else f"turn on {washer['name']}"


def _pour_powder(board: Board, powder: Thing, washer: Thing) -> None:
    powder["properties"]["doses"] = number(powder, "doses") - 1
    washer["properties"]["hasPowder"] = True


LAUNDRY = Game(
    key="laundry",
    task="Wash all clothes with powder, and dry them.",
    rules="A closed washer that is on counts timeLeft down by 1 a tick; at 0 it turns off, clothes "
    "in it get 2 wet and are clean if there was powder in it, the powder is used up, and timeLeft "
    "is 2 again. An open one turns off. Clothes on the rack lose 1 wet a tick. Without powder for "
    "dirty clothes the game is lost. Score: 2 for all clothes clean, 1 for clean and dry ones on "
    "the rack, 4 in all when all of them are.",
    max_points=4,
    build=_build_laundry,
    tick=_tick_laundry,
    judge=_judge_laundry,
    advise=_advise_laundry,
    verbs=(
        Verb(
            "pour {} into {}",
            lambda board, powder, washer: (
                powder["type"] == "Powder"
                and washer["type"] == "Washer"
                and number(powder, "doses") > 0
                and washer["properties"].get("isOpen") is True
                and washer["properties"].get("hasPowder") is False
            ),
            _pour_powder,
        ),
    ),
)


# --- paint: pour two colours together, and mix them before they dry ----------------------------

_MIXTURES = {
    frozenset({"red", "blue"}): "purple",
    frozenset({"blue", "yellow"}): "green",
    frozenset({"red", "yellow"}): "orange",
}


def _build_paint(rng: np.random.Generator) -> list[Thing]:
    colours = [str(colour) for colour in rng.permutation(["red", "blue", "yellow"])]
    wanted = _MIXTURES[frozenset(colours[:2])]
    fresh = int(rng.integers(5, 9))
    paints = [thing(f"{c} paint", "Paint", color=c, fresh=fresh) for c in sorted(colours)]
    cups = [
        thing(f"cup {i}", "Cup", [paint], isMoveable=True, isContainer=False)
        for i, paint in enumerate(paints, 1)
    ]
    canvas = thing(pick(rng, "canvas", "wall", "door"), "Canvas", wants=wanted, color="white")
    return [agent(), canvas, *cups, *paints]


def _tick_paint(board: Board) -> None:
    for paint in board.all("Paint"):
        paint["properties"]["fresh"] = max(0, number(paint, "fresh") - 1)


def _judge_paint(board: Board) -> tuple[int, bool, bool]:
    about = present(board, "Canvas")["properties"]
    usable = [p["properties"].get("color") for p in board.all("Paint") if number(p, "fresh")]
    won = about.get("color") == about.get("wants")
    parts = next((parts for parts, made in _MIXTURES.items() if made == about.get("wants")), None)
    possible = about.get("wants") in usable or (parts is not None and parts <= set(usable))
    lost = not won and (about.get("color") != "white" or not possible)
    return (2 if won else int(about.get("wants") in usable)), won, lost


def _advise_paint(board: Board) -> str:
    canvas = present(board, "Canvas")
    wanted = str(canvas["properties"].get("wants"))
    by_colour = {str(p["properties"].get("color")): p for p in board.all("Paint")}
    if wanted in by_colour:
        cup = board.holder(by_colour[wanted])
        return f"paint {canvas['name']} from {cup['name']}" if cup else WAIT
    parts = [parts for parts, made in _MIXTURES.items() if made == wanted]
    needed = [by_colour.get(colour) for colour in sorted(parts[0])] if parts else []
    cups = [board.holder(paint) for paint in needed if paint is not None]
    if len(cups) < 2 or cups[0] is None or cups[1] is None:
        return WAIT
    if cups[0] is cups[1]:
        return f"mix {cups[0]['name']}"
    return f"pour {cups[0]['name']} into {cups[1]['name']}"


def _paints_in(board: Board, cup: Thing) -> list[Thing]:
    return [p for p in board.all("Paint") if p["name"] in cup["contains"]]


def _pour(board: Board, source: Thing, target: Thing) -> None:
    for paint in _paints_in(board, source):
        board.move(paint, target)


def _mix(board: Board, cup: Thing) -> None:
    paints = _paints_in(board, cup)
    colours = frozenset(paint["properties"].get("color") for paint in paints)
    fresh = min(number(paint, "fresh") for paint in paints)
    made = _MIXTURES.get(colours, "brown")
    board.add(f"{made} paint", "Paint", cup, color=made, fresh=fresh)
    for paint in paints:
        board.remove(paint)


def _paint(board: Board, canvas: Thing, cup: Thing) -> None:
    [paint] = _paints_in(board, cup)
    canvas["properties"]["color"] = paint["properties"].get("color")
    board.remove(paint)


def _is_cup(*things: Thing) -> bool:
    return all(one["type"] == "Cup" for one in things)


PAINT = Game(
    key="paint",
    task="Mix the colour that is wanted, and paint with it.",
    rules="All paint in a cup can be poured into another one. Mixing two or more paints in a cup "
    "removes them and puts one of the mixed colour there, with the next uuid: red and blue give "
    "purple, blue and yellow green, red and yellow orange, anything else brown. Paint loses 1 "
    "fresh a tick, and a mixture is as fresh as its oldest part; without any it is useless. "
    "Painting uses up the one paint in a cup. The wrong colour is lost. Score: 1 for the wanted "
    "paint, 2 for having painted with it.",
    max_points=2,
    build=_build_paint,
    tick=_tick_paint,
    judge=_judge_paint,
    advise=_advise_paint,
    verbs=(
        Verb(
            "pour {} into {}",
            lambda board, one, to: _is_cup(one, to) and bool(_paints_in(board, one)),
            _pour,
        ),
        Verb(
            "mix {}",
            lambda board, cup: _is_cup(cup) and len(_paints_in(board, cup)) > 1,
            _mix,
        ),
        Verb(
            "paint {} from {}",
            lambda board, canvas, cup: (
                canvas["type"] == "Canvas"
                and _is_cup(cup)
                and len(_paints_in(board, cup)) == 1
                and number(_paints_in(board, cup)[0], "fresh") > 0
            ),
            _paint,
        ),
    ),
)

GAMES = {game.key: game for game in (KETTLE, SEEDLING, TORCH, BATH, OVEN, LAUNDRY, PAINT)}

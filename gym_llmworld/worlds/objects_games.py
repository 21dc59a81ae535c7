"""Four object games of our own: things heat up, grow, run empty and fill."""

from __future__ import annotations

import numpy as np

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

# --- kettle: heat until it boils, with little fuel ---------------------------------------------


def _build_kettle(rng: np.random.Generator) -> list[Thing]:
    liquid = thing("water", "Water", temperature=int(rng.integers(10, 31)), isBoiling=False)
    pot = thing(pick(rng, "pot", "kettle", "pan"), "Pot", [liquid], isMoveable=True)
    stove = thing(
        pick(rng, "stove", "camping stove", "hot plate"),
        "Stove",
        isContainer=True,
        isOn=False,
        power=pick(rng, 15, 20, 25, 30),
        fuel=int(rng.integers(7, 10)),
    )
    return [agent(), stove, pot, liquid, *extras(rng, "spoon", "towel", "salt")]


def _tick_kettle(board: Board) -> None:
    stove, water = present(board, "Stove")["properties"], present(board, "Water")["properties"]
    heated = stove.get("isOn") is True and board.is_in(present(board, "Pot"), "Stove")
    temperature = water.get("temperature", 20)
    if heated:
        water["temperature"] = min(100, temperature + stove.get("power", 0))
    elif temperature > 20:
        water["temperature"] = max(20, temperature - 5)
    water["isBoiling"] = water.get("temperature", 0) >= 100
    if stove.get("isOn") is True:
        stove["fuel"] = max(0, stove.get("fuel", 0) - 1)
        stove["isOn"] = stove["fuel"] > 0


def _judge_kettle(board: Board) -> tuple[int, bool, bool]:
    stove, water = present(board, "Stove"), present(board, "Water")
    boils = water["properties"].get("isBoiling") is True
    ready = board.is_in(present(board, "Pot"), "Stove")
    points = int(ready) + int(stove["properties"].get("isOn") is True) + 2 * int(boils)
    return (4 if boils else points), boils, not boils and number(stove, "fuel") <= 0


def _advise_kettle(board: Board) -> str:
    stove, pot = present(board, "Stove"), present(board, "Pot")
    if not board.is_in(pot, "Stove"):
        return bring(board, pot, stove)
    return WAIT if stove["properties"].get("isOn") is True else f"turn on {stove['name']}"


KETTLE = Game(
    key="kettle",
    task="Boil the water before the stove runs out of fuel.",
    rules="A stove that is on loses 1 fuel a tick and turns off at 0. Water in a pot on it gets "
    "warmer by the stove's power a tick, up to 100; else it cools by 5 a tick, down to 20. It "
    "boils at 100. Score: 1 for the pot on the stove, 1 for the stove on, 4 in all when it boils.",
    max_points=4,
    build=_build_kettle,
    tick=_tick_kettle,
    judge=_judge_kettle,
    advise=_advise_kettle,
)


# --- seedling: water it, not too little and not too much ---------------------------------------


def _build_seedling(rng: np.random.Generator) -> list[Thing]:
    plant = thing(
        pick(rng, "tomato plant", "bean", "sunflower"),
        "Plant",
        height=int(rng.integers(1, 4)),
        goal=int(rng.integers(6, 9)),
        moisture=int(rng.integers(0, 3)),
        dryTicks=0,
    )
    can = thing(
        pick(rng, "watering can", "jug", "bottle"),
        "Can",
        isMoveable=True,
        water=int(rng.integers(0, 2)),
    )
    tap = thing(pick(rng, "tap", "rain barrel", "sink"), "Tap")
    return [agent(), plant, can, tap, *extras(rng, "shovel", "glove", "stone")]


def _tick_seedling(board: Board) -> None:
    plant = present(board, "Plant")["properties"]
    if plant.get("moisture", 0) > 0:
        plant["height"] = plant.get("height", 0) + 1
        plant["moisture"] -= 1
        plant["dryTicks"] = 0
    else:
        plant["dryTicks"] = plant.get("dryTicks", 0) + 1


def _judge_seedling(board: Board) -> tuple[int, bool, bool]:
    plant = present(board, "Plant")
    height, goal = number(plant, "height"), number(plant, "goal")
    lost = number(plant, "dryTicks") >= 5 or number(plant, "moisture") > 5
    return min(height, 9), height >= goal and not lost, lost


def _fill(board: Board, can: Thing, tap: Thing) -> None:
    can["properties"]["water"] = 3


def _water(board: Board, plant: Thing, can: Thing) -> None:
    plant["properties"]["moisture"] = number(plant, "moisture") + number(can, "water")
    can["properties"]["water"] = 0


def _advise_seedling(board: Board) -> str:
    plant, can, tap = present(board, "Plant"), present(board, "Can"), present(board, "Tap")
    if not board.is_in(can, "Agent"):
        return f"take {can['name']}"
    if not number(can, "water"):
        return f"fill {can['name']} at {tap['name']}"
    if number(plant, "moisture") <= 2:
        return f"water {plant['name']} with {can['name']}"
    return WAIT


SEEDLING = Game(
    key="seedling",
    task="Let the plant grow as high as its goal says, without drying it out or drowning it.",
    rules="A can in the agent's hands holds 3 water after it is filled at a tap, and gives all of "
    "it to the plant. Each tick the plant uses 1 moisture and grows by 1; without any its dryTicks "
    "go up by 1, else they are 0. At 5 dryTicks, or more than 5 moisture, the game is lost. The "
    "score is the height, at most 9.",
    max_points=9,
    build=_build_seedling,
    tick=_tick_seedling,
    judge=_judge_seedling,
    advise=_advise_seedling,
    verbs=(
        Verb(
            "fill {} at {}",
            lambda board, can, tap: (
                can["type"] == "Can" and tap["type"] == "Tap" and board.is_in(can, "Agent")
            ),
            _fill,
        ),
        Verb(
            "water {} with {}",
            lambda board, plant, can: (
                plant["type"] == "Plant" and board.is_in(can, "Agent") and number(can, "water") > 0
            ),
            _water,
        ),
    ),
)


# --- torch: charge a battery, but not for too long, and read in the dark -----------------------


def _build_torch(rng: np.random.Generator) -> list[Thing]:
    battery = thing("battery", "Battery", isMoveable=True, charge=0)
    torch = thing(
        pick(rng, "torch", "headlamp", "lantern"),
        "Torch",
        [battery] if rng.random() < 0.4 else [],
        isContainer=True,
        isMoveable=True,
        isOn=False,
    )
    charger = thing(
        "charger",
        "Charger",
        isContainer=True,
        isOn=False,
        speed=pick(rng, 1, 2, 3),
        heat=0,
        maxHeat=int(rng.integers(4, 7)),
    )
    note = thing(pick(rng, "note", "letter", "map"), "Note", isMoveable=True, isRead=False)
    return [agent(), torch, battery, charger, note, *extras(rng, "key", "coin")]


def _is_lit(board: Board) -> bool:
    torch = present(board, "Torch")
    battery = board.inside(torch, "Battery")
    return torch["properties"].get("isOn") is True and bool(battery and number(battery, "charge"))


def _tick_torch(board: Board) -> None:
    torch, charger = present(board, "Torch"), present(board, "Charger")
    if charger["properties"].get("isOn") is True:
        charger["properties"]["heat"] = number(charger, "heat") + 1
        battery = board.inside(charger, "Battery")
        if battery is not None:
            charge = number(battery, "charge") + number(charger, "speed")
            battery["properties"]["charge"] = min(6, charge)
    elif number(charger, "heat"):
        charger["properties"]["heat"] = number(charger, "heat") - 1
    battery = board.inside(torch, "Battery")
    if battery is not None and torch["properties"].get("isOn") is True:
        battery["properties"]["charge"] = max(0, number(battery, "charge") - 1)


def _judge_torch(board: Board) -> tuple[int, bool, bool]:
    charger, note = present(board, "Charger"), present(board, "Note")
    won = note["properties"].get("isRead") is True
    lost = not won and number(charger, "heat") > number(charger, "maxHeat")
    charged = number(present(board, "Battery"), "charge") > 0
    return (3 if won else int(charged) + int(_is_lit(board))), won, lost


def _advise_torch(board: Board) -> str:
    battery, charger = present(board, "Battery"), present(board, "Charger")
    torch, note = present(board, "Torch"), present(board, "Note")
    if board.is_in(battery, "Torch") and number(battery, "charge") >= 2:
        lit = _is_lit(board)
        return f"read {note['name']}" if lit else f"turn on {torch['name']}"
    if number(battery, "charge") < 3:
        if not board.is_in(battery, "Charger"):
            return bring(board, battery, charger)
        return WAIT if charger["properties"].get("isOn") is True else f"turn on {charger['name']}"
    if charger["properties"].get("isOn") is True:
        return f"turn off {charger['name']}"
    return bring(board, battery, torch)


def _read(board: Board, note: Thing) -> None:
    note["properties"]["isRead"] = True


TORCH = Game(
    key="torch",
    task="Read what is written, which takes light.",
    rules="A charger that is on charges the battery in it by its speed a tick, up to 6, and heats "
    "up by 1; off, it cools by 1. Hotter than its maxHeat, the game is lost. A torch that is on "
    "uses 1 charge of the battery in it a tick, and gives light while there is any. Score: 1 for "
    "a battery with charge, 1 for light, 3 in all for reading.",
    max_points=3,
    build=_build_torch,
    tick=_tick_torch,
    judge=_judge_torch,
    advise=_advise_torch,
    verbs=(Verb("read {}", lambda board, note: note["type"] == "Note" and _is_lit(board), _read),),
)


# --- bath: fill a tub between two marks --------------------------------------------------------


def _build_bath(rng: np.random.Generator) -> list[Thing]:
    plug = thing("plug", "Plug", isMoveable=True)
    goal = int(rng.integers(8, 15))
    tub = thing(
        pick(rng, "bath tub", "basin", "bucket"),
        "Tub",
        isContainer=True,
        level=int(rng.integers(0, 3)),
        goal=goal,
        capacity=goal + int(rng.integers(5, 8)),
    )
    tap = thing(pick(rng, "tap", "shower", "hose"), "Tap", isOn=False, flow=pick(rng, 2, 3, 4))
    duck = thing(pick(rng, "rubber duck", "sponge", "soap"), "Item", isMoveable=True)
    return [agent(), tub, tap, plug, duck, *extras(rng, "towel", "brush")]


def _tick_bath(board: Board) -> None:
    tub, tap = present(board, "Tub"), present(board, "Tap")
    level = number(tub, "level")
    if tap["properties"].get("isOn") is True:
        level += number(tap, "flow")
    if board.inside(tub, "Plug") is None:
        level = max(0, level - 4)
    tub["properties"]["level"] = level


def _judge_bath(board: Board) -> tuple[int, bool, bool]:
    tub, tap = present(board, "Tub"), present(board, "Tap")
    level, goal = number(tub, "level"), number(tub, "goal")
    lost = level > number(tub, "capacity")
    off = tap["properties"].get("isOn") is False
    won = not lost and off and level >= goal and board.inside(tub, "Plug") is not None
    half = int(2 * level >= goal) + int(level >= goal)
    return (4 if won else half + int(board.inside(tub, "Plug") is not None)), won, lost


def _advise_bath(board: Board) -> str:
    tub, tap, plug = present(board, "Tub"), present(board, "Tap"), present(board, "Plug")
    if not board.is_in(plug, "Tub"):
        return bring(board, plug, tub)
    on = tap["properties"].get("isOn") is True
    if number(tub, "level") < number(tub, "goal"):
        return WAIT if on else f"turn on {tap['name']}"
    return f"turn off {tap['name']}"


BATH = Game(
    key="bath",
    task="Fill the tub at least up to its goal, turn the tap off, and do not let it overflow.",
    rules="A tap that is on adds its flow to the level each tick; without a plug in the tub, 4 run "
    "off. Above its capacity the game is lost. Score: 1 for the plug in the tub, 1 for half the "
    "goal, 1 for the goal, 4 in all when the tap is off as well.",
    max_points=4,
    build=_build_bath,
    tick=_tick_bath,
    judge=_judge_bath,
    advise=_advise_bath,
)

"""Sokoban against pushes worked out by hand, and against gym-sokoban where it is installed."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import pytest

from gym_llmworld.real.grids_levels import LevelSpec, make_level
from gym_llmworld.real.sokoban import LEVELS, Warehouse, plan
from gym_llmworld.worlds.grids import Board
from gym_llmworld.worlds.sokoban import MOVES, Room, solve
from tests.grids_shared import begun, level


def rows(text: str) -> Board:
    return tuple(text.split())


@pytest.mark.parametrize(
    ("before", "move", "after", "reward"),
    [
        ("###### #P_XO# ######", "Right", "###### #_PXO# ######", -0.1),
        ("###### #P_XO# ######", "Up", "###### #P_XO# ######", -0.1),
        ("###### #PX_O# ######", "Right", "###### #_PXO# ######", -0.1),
        ("###### #_PXO# ######", "Right", "###### #__P√# ######", 10.9),
        ("###### #P√OX# ######", "Right", "###### #_S√X# ######", -0.1),
        ("###### #PX#O# ######", "Right", "###### #PX#O# ######", -0.1),
        ("####### #PXXOO# #######", "Right", "####### #PXXOO# #######", -0.1),
        ("####### #_S_XO# #X____# #######", "Left", "####### #PO_XO# #X____# #######", -0.1),
        ("####### #PO_XO# #X____# #######", "Right", "####### #_S_XO# #X____# #######", -0.1),
        ("####### #P√_XO# #######", "Right", "####### #_SXXO# #######", -1.1),
        ("####### #PX_XO# #___O_# #######", "Right", "####### #_PXXO# #___O_# #######", -0.1),
        ("####### #_OXP_# #_XO__# #######", "Left", "####### #_√P__# #_XO__# #######", 0.9),
        ("## #P #X #_ #O ##", "Down", "## #_ #P #X #O ##", -0.1),
        ("## #O #X #P ##", "Up", "## #√ #P #_ ##", 10.9),
    ],
)
def test_moves_and_rewards(before: str, move: str, after: str, reward: float) -> None:
    room = Warehouse(rows(before))
    assert room.board == rows(before)
    assert room.act(move) == pytest.approx(reward)
    assert room.board == rows(after)
    assert room.won == ("X" not in after and "O" not in after and "√" in after)


def test_rooms_without_walls_have_an_edge() -> None:
    room = Warehouse(rows("PX O_"))
    for move in ("Up", "Left", "Right"):
        room.act(move)
        assert room.board == rows("PX O_")


def test_a_turn_by_hand() -> None:
    # The example of SPA's prompt, from start to end.
    env = begun(level("sokoban", "###### #_#### #_P### #_X#_# #__O_# ######"))
    text, reward, terminated, _, info = env.step("Down || Left || Down")
    assert text == (
        "######\n#_####\n#__###\n#_P#_#\n#_XO_#\n######\n"
        "Player (P) is at (3,2); box (X) is at (4,2); target (O) is at (4,3).\n"
        "You have 7 actions left."
    ).replace("#_P#_#\n#_XO_#", "#__#_#\n#PXO_#").replace("(3,2)", "(4,1)")
    assert (reward, terminated, info["llmworld"]["turn_reward"]) == (0.0, False, -0.3)
    text, reward, terminated, _, info = env.step("Right || Up")
    assert text == (
        "######\n#_####\n#__###\n#__#_#\n#_P√_#\n######\n"
        "Player (P) is at (4,2); box (X) is at (4,3); target (O) is at (4,3).\n"
        "You have 6 actions left."
    )
    assert (reward, terminated, info["llmworld"]["turn_reward"]) == (1.0, True, 10.9)


def test_solutions() -> None:
    assert solve(Room.read(rows("###### #PX_O# ######")), 10) == ["Right", "Right"]
    assert solve(Room.read(rows("###### #PX_O# ######")), 1) is None
    assert plan(rows("###### #_OXP# ######")) == ("Left",)
    # The shortest one goes around the box.
    around = rows("###### #____# #OXP_# #____# ######")
    assert plan(around) == ("Left",)
    away = rows("###### #____# #PXO_# #_#__# ######")
    assert plan(away) == ("Right",)
    back = rows("####### #_____# #_PXO_# #__#__# #######".replace("PXO", "OXP"))
    assert plan(back) == ("Left",)
    corner = rows("###### #X_P_# #__O_# ######")
    assert plan(corner) is None


def test_solutions_are_shortest() -> None:
    for seed in range(1000, 1012):
        board = tuple(make_level(LEVELS, LevelSpec("test", "6x6", seed)).real["level"])
        found = plan(board)
        assert found is not None
        frontier = {Room.read(board)}
        for _ in found[:-1]:
            frontier = {room.after(move) for room in frontier for move in MOVES}
            assert not any(room.solved for room in frontier)


def gym_sokoban() -> Any:
    """Imports gym-sokoban, with Gymnasium in the place of the old Gym that it asks for."""
    names = ("", ".utils", ".utils.seeding", ".spaces", ".spaces.discrete", ".envs.registration")
    stand_ins = {f"gym{name}": importlib.import_module(f"gymnasium{name}") for name in names}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        return pytest.importorskip("gym_sokoban.envs.sokoban_env", exc_type=ImportError)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "size", "boxes"), [("6x6", 6, 1), ("10x10", 10, 2)])
def test_gym_sokoban_agrees(kind: str, size: int, boxes: int) -> None:
    theirs = gym_sokoban().SokobanEnv(dim_room=(size, size), num_boxes=boxes, reset=False)
    theirs.render = lambda *args, **kwargs: None
    rng, solved = np.random.default_rng(0), 0
    for seed in range(1000, 1040 if boxes == 1 else 1004):
        made = make_level(LEVELS, LevelSpec("test", kind, seed))
        board = made.real["level"]
        codes = np.array([["#_O√XP".index(symbol) for symbol in row] for row in board])
        theirs.room_state, theirs.room_fixed = codes.copy(), np.choose(codes, [0, 1, 2, 2, 1, 1])
        theirs.player_position = np.argwhere(codes == 5)[0]
        theirs.num_env_steps, theirs.reward_last, theirs.boxes_on_target = 0, 0, 0
        ours = Warehouse(tuple(board))
        plan_ = " || ".join(made.real["plan"]).split(" || ")
        stray = [list(MOVES)[int(i)] for i in rng.integers(4, size=80)]
        for move in plan_ if seed % 2 else stray:
            _, reward, done, _ = theirs.step(1 + list(MOVES).index(move))
            assert ours.act(move) == pytest.approx(reward)
            on_target = (theirs.room_state == 5) & (theirs.room_fixed == 2)
            shown = np.where(on_target, 6, theirs.room_state)
            assert ours.board == tuple("".join("#_O√XPS"[i] for i in row) for row in shown)
            assert ours.won == theirs._check_if_all_boxes_on_target()
            if done:
                solved += 1
                break
    assert solved >= (20 if boxes == 1 else 2)

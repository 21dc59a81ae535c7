"""Sudoku against exhaustive search and moves worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gym_llmworld.real.grids_levels import LevelSpec, make_level
from gym_llmworld.real.sudoku import LEVELS, Sheet, draw_board, plan
from gym_llmworld.worlds.grids import Board
from gym_llmworld.worlds.sudoku import is_consistent, solutions
from tests.grids_shared import begun, level

SPA = "..14 14.3 42.. .142"
SOLVED = ("2314", "1423", "4231", "3142")


def keeps_the_rules(board: Board) -> bool:
    """Whether every row, column and box of a full board has every digit."""
    size, box = len(board), math.isqrt(len(board))
    units = [*board, *("".join(column) for column in zip(*board, strict=True))]
    for top, left in itertools.product(range(0, size, box), repeat=2):
        units.append("".join(row[left : left + box] for row in board[top : top + box]))
    return all(sorted(unit) == sorted("123456789"[:size]) for unit in units)


def every_filling(board: Board) -> list[Board]:
    """All solutions, by trying every digit in every empty cell."""
    text = "".join(board)
    found = []
    for digits in itertools.product("1234", repeat=text.count(".")):
        left = iter(digits)
        full = "".join(next(left) if symbol == "." else symbol for symbol in text)
        candidate = tuple(full[i : i + 4] for i in range(0, 16, 4))
        if keeps_the_rules(candidate):
            found.append(candidate)
    return found


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_levels_have_one_solution(split: str) -> None:
    first = {"train": 10_000, "valid": 123, "test": 1000}[split]
    for seed in range(first, first + 3):
        scenario = make_level(LEVELS, LevelSpec(split, "4x4", seed))
        board = tuple(scenario.real["level"])
        assert "".join(board).count(".") == 6
        [solved] = every_filling(board)
        assert [*solutions(board)] == [solved]
        sheet = Sheet(board)
        rewards = [sheet.act(m) for turn in scenario.real["plan"] for m in turn.split(" || ")]
        assert sheet.board == solved
        assert rewards == [0.0] * 5 + [1.0]


def test_solutions_are_all_that_there_are() -> None:
    rng = np.random.default_rng(0)
    counts = set()
    for blanks in (4, 5, 6) * 2:
        board = draw_board(4, blanks, rng)
        found = every_filling(board)
        assert sorted(solutions(board)) == sorted(found)
        assert (plan(board) is not None) == (len(found) == 1)
        counts.add(len(found))
    assert 1 in counts
    assert plan(("12..", "34..", "21..", "43..")) is None
    assert len(list(solutions(("....",) * 4))) == 288


def test_nine_by_nine() -> None:
    board = draw_board(9, 20, np.random.default_rng(1))
    found = list(itertools.islice(solutions(board), 2))
    assert all(map(keeps_the_rules, found))
    if len(found) == 1:
        scenario = level("sudoku", " ".join(board))
        assert begun(scenario).get_wrapper_attr("scenario").observation == scenario.observation


def test_consistency() -> None:
    assert is_consistent(("1...", "..1.", ".1..", "...1"))
    assert not is_consistent(("1..1", "....", "....", "...."))
    assert not is_consistent(("1...", "....", "1...", "...."))
    assert not is_consistent(("1...", ".1..", "....", "...."))


def test_a_turn_by_hand() -> None:
    # The example of SPA's prompt.
    env = begun(level("sudoku", SPA))
    text, reward, terminated, _, info = env.step("1,1,2 || 1,2,3 || 2,3,2 || 3,3,3 || 3,4,1")
    assert text == (
        "| 2 3 1 4 | 1 4 2 3 | 4 2 3 1 | . 1 4 2\n"
        "Empty position to be filled is at (4,1).\nYou have 45 actions left."
    )
    assert (reward, terminated, info["llmworld"]["turn_reward"]) == (0.0, False, 0.0)
    assert info["admissible_commands"] == ["4,1,3"]
    text, reward, terminated, _, info = env.step("4,1,3 || 1,1,1")
    assert text == (
        "| 2 3 1 4 | 1 4 2 3 | 4 2 3 1 | 3 1 4 2\nNo empty positions.\nYou have 44 actions left."
    )
    assert (reward, terminated, info["llmworld"]["turn_reward"]) == (1.0, True, 1.0)


@pytest.mark.parametrize(
    ("move", "row"),
    [
        ("1,1,2", "2.14"),
        ("1,1,3", "3.14"),  # wrong, but no rule is broken yet
        ("1,1,1", "..14"),  # in the row
        ("1,1,4", "..14"),  # in the row, the column and the box
        ("1,2,2", "..14"),  # in the column
        ("1,3,3", "..14"),  # given
        ("1,1,5", "..14"),
        ("1,1,0", "..14"),
        ("0,1,2", "..14"),
        ("1,5,2", "..14"),
        ("99,99,2", "..14"),
    ],
)
def test_single_moves(move: str, row: str) -> None:
    sheet = Sheet(tuple(SPA.split()))
    assert sheet.act(move) == 0.0
    assert sheet.board == (row, *SPA.split()[1:])


def test_own_digits_can_be_changed() -> None:
    sheet = Sheet(tuple(SPA.split()))
    sheet.act("1,1,3")
    assert sheet.board[0] == "3.14"
    assert "1,2,3" not in sheet.actions()
    sheet.act("1,1,2")
    assert sheet.board[0] == "2.14"
    assert sheet.actions() == ["1,1,3", "1,2,3", "2,3,2", "3,3,3", "3,4,1", "4,1,3"]


def test_the_plan_is_the_solution() -> None:
    assert plan(tuple(SPA.split())) == ("1,1,2", "1,2,3", "2,3,2", "3,3,3", "3,4,1", "4,1,3")
    assert every_filling(tuple(SPA.split())) == [SOLVED]

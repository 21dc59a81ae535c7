"""The runs of `training.selfplay_comparison`: what each does differently, and how large all are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gym_llmworld.real.grids_env import Coordinates
from training.selfplay_base import Shape
from training.selfplay_data import LEVELS
from training.selfplay_rl import RL
from training.selfplay_sft import Fit


@dataclass(frozen=True)
class Arm:
    """What an arm does differently.

    Attributes:
        coordinates: It sees.
        play: Whose it is fine-tuned on: ``"policy"``, ``"random"``; None for no fine-tuning.
        states: It learns the states in them.
    """

    coordinates: Coordinates
    play: str | None = None
    states: bool = True


ARMS: Mapping[str, Arm] = {
    "vanilla": Arm("off"),
    "state": Arm("on"),
    "spa": Arm("on", "policy"),
    "no-transition": Arm("on", "policy", states=False),
    "random-coords": Arm("random", "policy"),
    "random-play": Arm("on", "random"),
}
EASY_TO_HARD = "easy-to-hard"


@dataclass(frozen=True)
class Scale:
    """How large all runs are.

    Attributes:
        model: Folder or hub id; None: from scratch.
        shape: From scratch.
        max_tokens: Longest answer.
        base_episodes: Of random play, per board, from scratch.
        base_actions: Most actions of its turns; 0 for five.
        base: Training of the base.
        episodes: Of self-play.
        sft: Fine-tuning.
        rl: Its seed is replaced by the point's.
        levels: To measure on.
        samples: Games for each of them.
        every: Updates between measurements.
    """

    model: str | None
    shape: Shape
    max_tokens: int
    base_episodes: int
    base_actions: int
    base: Fit
    episodes: int
    sft: Fit
    rl: RL
    levels: int
    samples: int
    every: int


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        world: Key of a puzzle.
        board: That RL plays on.
        sft_board: That self-play plays on.
        boards: All that the base can spell.
        arm: Key of `ARMS`, or `EASY_TO_HARD`.
        seed: Of everything.
    """

    world: str
    board: str
    sft_board: str
    boards: tuple[str, ...]
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.start}-{self.board}-{self.arm}"

    @property
    def task(self) -> str:
        """What it can be compared on."""
        return f"{self.world} {' to '.join(self.boards)}"

    @property
    def start(self) -> str:
        """Folder of what it shares with other runs: base, self-play."""
        return f"{self.world}-{'+'.join(self.boards)}-seed{self.seed}"

    @property
    def what(self) -> Arm:
        """What it does differently."""
        return ARMS["spa" if self.arm == EASY_TO_HARD else self.arm]


def points(
    worlds: Sequence[str], transfers: Sequence[str], arms: Sequence[str], seeds: Sequence[int]
) -> list[Point]:
    """Lists the runs: world by world, seed by seed.

    Args:
        worlds: Each ``WORLD`` or ``WORLD:BOARD``.
        transfers: Each ``WORLD:SMALL:LARGE``.
        arms: Keys of `ARMS`.
        seeds: Of each run.

    Raises:
        ValueError: A world, a board or an arm that there is not.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise ValueError(f"unknown arm {unknown[0]!r}; expected {', '.join(ARMS)}")
    played = [_boards(text, 2) for text in worlds]
    listed = [
        Point(world, board, board, (board,), arm, seed)
        for world, board in played
        for seed in seeds
        for arm in arms
    ]
    for world, easy, hard in (_boards(text, 3) for text in transfers):
        listed += [
            Point(world, hard, sft, (easy, hard), arm, seed)
            for seed in seeds
            for arm, sft in (("state", hard), ("spa", hard), (EASY_TO_HARD, easy))
        ]
    return listed


def _boards(text: str, count: int) -> list[str]:
    world, *boards = text.split(":")
    if world not in LEVELS or len(boards) > count - 1 or (count == 3 and len(boards) < 2):
        form = "WORLD or WORLD:BOARD" if count == 2 else "WORLD:SMALL:LARGE"
        raise ValueError(f"got {text!r}; expected {form}, with WORLD of {', '.join(LEVELS)}")
    for board in boards:
        LEVELS[world].check_board(board)
    return [world, *(boards or [LEVELS[world].usual])]

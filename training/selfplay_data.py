"""Self-play on the grid puzzles: chats as SPA words them, and games.

Formats follow SPA (arXiv 2510.15047, section 2, and its published strings and parquet columns).
Every turn shows the state, and the policy answers ``<think>...</think><answer>Up || Left</answer>``
(style ``plain``, of RL and evaluation) or, in style ``worldmodel``,
``<think><observation>state</observation>...<prediction>state after the turn</prediction></think>
<answer>Up || Left</answer>``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import gymnasium as gym

import gym_llmworld  # noqa: F401 - registers the environments
from gym_llmworld.core import Message, Scenario
from gym_llmworld.real import frozenlake, sokoban, sudoku
from gym_llmworld.real.grids_env import Coordinates
from gym_llmworld.real.grids_levels import SEEDS, Levels
from gym_llmworld.worlds import get_world
from gym_llmworld.worlds.grids import SEPARATOR, actions_left

Style = Literal["plain", "worldmodel"]

LEVELS: Mapping[str, Levels] = {
    "frozenlake": frozenlake.LEVELS,
    "sokoban": sokoban.LEVELS,
    "sudoku": sudoku.LEVELS,
}
THINK = "<think>"
"""Every answer begins with it; it is part of the prompt, not of what the policy writes."""
MASKED = "[MASKED]"
"""Stands for the states in the ablation without transition modelling (section 4.1)."""
FORMATS: Mapping[Style, str] = {
    "plain": "<think> [Your thoughts] </think> <answer> [your answer] </answer>",
    "worldmodel": "<think> <observation> [current state] </observation> [Your thoughts] "
    "<prediction> [next state]</prediction> </think> <answer> [your answer] </answer>",
}

# SPA validates on the levels 123 to 250 and trains from 10000 upward.
_VALIDATION = range(123, 251)
_PENALTY = -0.1
SYSTEM = Message("system", "You're a helpful assistant. ")
_SYMBOLS = {
    "frozenlake": "P: player, _: empty, O: hole, G: goal, X: player in hole, √: player on goal",
    "sokoban": "#: wall, _: empty, O: target, √: box on target, X: box, P: player, "
    "S: player on target",
    "sudoku": "1-4: digits, .: empty, |: begins a row",
}
_ACTIONS = {
    "frozenlake": "Left, Down, Right, Up",
    "sokoban": "Up, Down, Left, Right",
    "sudoku": "row,col,value",
}
_ANSWER = re.compile(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_IMAGINED = re.compile(
    r"<think>\s*<observation>(.*?)</observation>(.*?)<prediction>(.*?)</prediction>\s*</think>"
    r"\s*<answer>(.*?)</answer>\s*",
    re.DOTALL,
)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_STATE_TAGS = ("<observation>", "</observation>", "<prediction>", "</prediction>")


@dataclass(frozen=True)
class Setting:
    """What is played, and how it is told.

    Attributes:
        world: Key of a grid puzzle.
        board: Kind of board, such as ``"4x4"``.
        coordinates: State estimate: ``"on"``, ``"off"`` or ``"random"``.
        style: Which format the prompt asks for.
        max_tokens: Longest answer, as the prompt says and as generation keeps to.
    """

    world: str
    board: str
    coordinates: Coordinates = "on"
    style: Style = "plain"
    max_tokens: int = 400

    def rules(self, scenario: Scenario) -> str:
        """Words what comes before the first state."""
        task = scenario.instruction.partition("\n")[0]
        if scenario.hidden.get("slippery"):
            task += " The ice is slippery."
        return (
            f"{task}\nThe meaning of each symbol in the state is:\n{_SYMBOLS[self.world]}\n"
            f"Your available actions are:\n{_ACTIONS[self.world]}\n"
            f"You can make up to {LEVELS[self.world].puzzle.max_actions} actions, separated by "
            f'the action separator "{SEPARATOR}"\n'
        )

    def question(self, turn: int, state: str, left: int) -> str:
        """Words a turn, counted from 1."""
        return (
            f"\nTurn {turn}:\nState:\n{state}\nYou have {left} actions left. Always output: "
            f"{FORMATS[self.style]} with no extra text. Strictly follow this format. Max response "
            f"length: {self.max_tokens} words (tokens).\n"
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a game.

    Attributes:
        state: The true one before it.
        response: What the player wrote, ``<think>`` included.
        next_state: The true one after all of its actions.
        reward: SPA's, the fine for a malformed answer included.
        well_formed: The format was kept, and every action could be read.
        actions: How many actions were carried out.
    """

    state: str
    response: str
    next_state: str
    reward: float
    well_formed: bool
    actions: int


@dataclass(eq=False)
class Game:
    """One episode on the way.

    Attributes:
        setting: What is played.
        env: The real environment.
        level: Id of the scenario.
        seed: Of the environment and of the player.
        chat: As the player sees it; ends with a question until the game is over.
        turns: So far.
        observation: The last one that showed a board.
    """

    setting: Setting
    env: gym.Env[str, str]
    level: str
    seed: int
    chat: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    observation: str = ""
    won: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        """Shows the first state."""
        self.observation, self.info = self.env.reset(
            seed=self.seed, options={"scenario": self.level}
        )
        self.scenario: Scenario = self.env.unwrapped.scenario  # type: ignore[attr-defined]
        opening = self.setting.rules(self.scenario) + self._question()
        self.chat += [SYSTEM, Message("user", opening)]

    @property
    def state(self) -> str:
        """The true state in words."""
        return str(self.info["llmworld"]["state"])

    @property
    def reward(self) -> float:
        """Sum over the turns."""
        return sum(turn.reward for turn in self.turns)

    def take(self, response: str) -> None:
        """Plays a turn; what is malformed carries out nothing, and is fined."""
        before, left, answer = self.state, actions_left(self.observation) or 0, answer_of(response)
        shown, _, terminated, truncated, self.info = self.env.step(answer or "")
        if actions_left(shown) is not None:
            self.observation = shown
        twin = self.info["llmworld"]
        fine = answer is None or not twin["well_formed"]
        reward = float(twin["turn_reward"]) + (_PENALTY if fine else 0.0)
        carried_out = left - (actions_left(self.observation) or 0)
        self.turns.append(Turn(before, response, self.state, reward, not fine, carried_out))
        self.chat.append(Message("assistant", response))
        self.won, self.over = bool(self.info["won"]), terminated or truncated
        if not self.over:
            self.chat.append(Message("user", f"Reward:\n{reward:g}\n{self._question()}"))

    def _question(self) -> str:
        left = actions_left(self.observation) or 0
        return self.setting.question(len(self.turns) + 1, self.state, left)


class Player(Protocol):
    """Who answers."""

    def reply(self, games: Sequence[Game]) -> Sequence[str]:
        """Returns an answer for each game, ``<think>`` included."""
        ...


class Arena:
    """Plays games of one setting, all at the same time, on environments that it keeps.

    Args:
        setting: What is played.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._envs: list[gym.Env[str, str]] = []

    def play(self, player: Player, levels: Sequence[str], seeds: Sequence[int]) -> list[Game]:
        """Plays one game for each level and seed to its end."""
        while len(self._envs) < len(levels):
            self._envs.append(self._env())
        games = [
            Game(self.setting, env, level, seed)
            for env, level, seed in zip(self._envs, levels, seeds, strict=False)
        ]
        while active := [game for game in games if not game.over]:
            for game, response in zip(active, player.reply(active), strict=True):
                game.take(response)
        return games

    def _env(self) -> gym.Env[str, str]:
        return gym.make(
            get_world(self.setting.world).real_id,
            board=self.setting.board,
            coordinates=self.setting.coordinates,
            disable_env_checker=True,
        )


def training_levels(board: str, count: int, first: int = 0) -> list[str]:
    """Returns ids of levels to train on, from SPA's number 10000 upward."""
    start = SEEDS["train"].start + first
    return [f"train/{board}/{number}" for number in range(start, start + count)]


def validation_levels(board: str, count: int) -> list[str]:
    """Returns ids of levels to measure on, which share no board with those to train on.

    Raises:
        ValueError: There are fewer.
    """
    if not 0 < count <= len(_VALIDATION):
        raise ValueError(f"expected 1 to {len(_VALIDATION)} validation levels, got {count}")
    return [f"valid/{board}/{number}" for number in _VALIDATION[:count]]


def answer_of(response: str) -> str | None:
    """Returns the actions of an answer in either format; None when it is malformed."""
    found = _ANSWER.fullmatch(response)
    if found is None or any(response.count(tag) != 1 for tag in _TAGS):
        return None
    return found[2]


def with_states(response: str, state: str, next_state: str) -> str | None:
    """Puts true states where an answer imagines them; thoughts and actions stay.

    Args:
        response: In the format ``worldmodel``.
        state: Before the turn.
        next_state: After all actions of the turn.

    Returns:
        The answer, or None when it is malformed.
    """
    found = _IMAGINED.fullmatch(response)
    if found is None or any(response.count(tag) != 1 for tag in (*_TAGS, *_STATE_TAGS)):
        return None
    (a, b), (c, d) = found.span(1), found.span(3)
    return response[:a] + state + response[b:c] + next_state + response[d:]


def masked(response: str) -> str:
    """Puts a placeholder where an answer says states; a malformed one stays."""
    return with_states(response, MASKED, MASKED) or response


def state_spans(response: str) -> dict[str, tuple[int, int]]:
    """Returns where an answer says ``observation`` and ``prediction``, if it is well-formed."""
    found = _IMAGINED.fullmatch(response)
    return {} if found is None else {"observation": found.span(1), "prediction": found.span(3)}

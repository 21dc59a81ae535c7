"""What a policy from scratch starts with: it knows how to answer, and nothing of the world.

A small model has no instruction prior. It learns both formats from random play, with states that
have nothing to do with the ones it sees, so that no answer of it tells what the world does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from gym_llmworld.agents import Agent
from gym_llmworld.real.grids_env import Coordinates
from gym_llmworld.real.grids_levels import SEEDS, LevelSpec, make_level
from gym_llmworld.worlds import get_world
from gym_llmworld.worlds.grids import SEPARATOR
from training.scratch import small_llama
from training.selfplay_data import (
    LEVELS,
    MASKED,
    SYSTEM,
    THINK,
    Arena,
    Game,
    Setting,
    Style,
    training_levels,
    with_states,
)
from training.selfplay_policy import Codec
from training.selfplay_rows import Conversation
from training.selfplay_sft import Fit, fit
from training.state_tokenizer import state_tokenizer

THOUGHT = "I will try this."
"""What a random player thinks."""

_IMAGINED = f"<observation>{MASKED}</observation>{THOUGHT}<prediction>{MASKED}</prediction>"
# Levels from here on are neither trained nor measured on.
_FIRST_LEVEL = 900_000


@dataclass(frozen=True)
class Shape:
    """Sizes of a policy from scratch.

    Attributes:
        layers: Transformer blocks.
        width: Of the residual stream.
        heads: Attention heads.
        hidden: Of the feed-forward blocks.
        context: Longest episode in tokens.
    """

    layers: int = 3
    width: int = 128
    heads: int = 4
    hidden: int = 256
    context: int = 1536


class RandomPlayer:
    """Acts at random, in the format that is asked for.

    Args:
        actions: How many a turn has, each number as likely; None for one to five.
        imagining: In style ``plain``, the share of answers that say states nevertheless.
    """

    def __init__(self, actions: range | None = None, imagining: float = 0.0) -> None:
        self._actions, self._imagining = actions, imagining
        self._agents: dict[Game, tuple[Agent, Random]] = {}

    def reply(self, games: Sequence[Game]) -> list[str]:
        """Returns an answer for each game; where states belong there is a placeholder."""
        return [self._one(game) for game in games]

    def _one(self, game: Game) -> str:
        if game not in self._agents:
            agent = get_world(game.setting.world).agents["random"]()
            agent.reset(game.scenario, game.seed)
            self._agents[game] = agent, Random(f"{game.level}/{game.seed}")
        agent, random = self._agents[game]

        def act() -> str:
            return agent.act(game.observation, game.info)

        turn = act()
        if self._actions is not None:
            count = random.choice(self._actions)
            turn = SEPARATOR.join(act().partition(SEPARATOR)[0] for _ in range(count))
        says = game.setting.style == "worldmodel" or random.random() < self._imagining
        return f"{THINK}{_IMAGINED if says else ''}</think><answer>{turn}</answer>"


def base_policy(
    world: str,
    boards: Sequence[str],
    max_tokens: int,
    episodes: int,
    shape: Shape,
    how: Fit,
    folder: Path,
    actions: int = 0,
) -> tuple[Any, Codec]:
    """Trains the common start of all arms.

    Args:
        world: Key of a grid puzzle.
        boards: Kinds of boards whose states it is to be able to spell.
        max_tokens: As in `Setting`.
        episodes: Of random play, divided among boards, styles, and coordinates on or off.
        shape: Of the model.
        how: To train; its seed is that of the play and of the weights as well.
        folder: For checkpoints.
        actions: Most of a turn; 0 for five. What fewer lead to is sooner learned.

    Returns:
        Model and codec.
    """
    choices: tuple[tuple[Coordinates, Style], ...] = tuple(
        product(("on", "off"), ("plain", "worldmodel"))
    )
    settings = [Setting(world, b, c, s, max_tokens) for b in boards for c, s in choices]
    chats = [
        conversation
        for setting in settings
        for conversation in _format_only(setting, -(-episodes // len(settings)), how.seed, actions)
    ]
    tokenizer = state_tokenizer(
        [*_texts(chats), *_coordinates(boards)],
        sorted({whole for setting in settings for whole in _wholes(setting)}),
    )
    tokenizer.model_max_length = shape.context
    model = small_llama(
        [tokenizer.decode([i]) for i in range(len(tokenizer))],
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        hidden=shape.hidden,
        context=shape.context,
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        seed=how.seed,
    )
    codec = Codec(tokenizer)
    return fit(model, codec, [codec.labelled(chat) for chat in chats], how, folder), codec


def _format_only(
    setting: Setting, episodes: int, seed: int, actions: int
) -> Iterator[Conversation]:
    """Yields random play whose imagined states are those of other moments."""
    first = _FIRST_LEVEL + seed * 10_000
    games = Arena(setting).play(
        RandomPlayer(range(1, actions + 1) if actions else None, imagining=0.5),
        training_levels(setting.board, episodes, first),
        range(episodes),
    )
    pool = [
        state for game in games for turn in game.turns for state in (turn.state, turn.next_state)
    ]
    random = Random(f"{setting}/{seed}")
    for game in games:
        chat = [
            message
            if message.role != "assistant"
            else replace(
                message,
                content=with_states(message.content, random.choice(pool), random.choice(pool))
                or message.content,
            )
            for message in game.chat
        ]
        chat = chat if chat[-1].role == "assistant" else chat[:-1]
        yield Conversation(tuple(chat), set(range(2, len(chat), 2)))


def _texts(chats: Iterable[Conversation]) -> Iterator[str]:
    for conversation in chats:
        for message in conversation.chat:
            yield message.content
    yield MASKED


def _coordinates(boards: Sequence[str]) -> Iterator[str]:
    size = max(int(board.partition("x")[0]) for board in boards)
    for number in range(size + 1):
        yield "".join(f"({number},{number}){after}" for after in ("", ", ", " and ", "; ", "."))
        yield f"{number},{number}"


def _wholes(setting: Setting) -> Iterator[str]:
    """Yields what is always worded the same: rules, and what stands around states and counts."""
    spec = LevelSpec("train", setting.board, SEEDS["train"].start)
    yield setting.rules(make_level(LEVELS[setting.world], spec))
    before, after = setting.question(1, "\0", 1).split("\0")
    yield from before.split("1", 1)
    yield from after.split("1", 1)
    yield "Reward:\n"
    yield SYSTEM.content
    yield THOUGHT

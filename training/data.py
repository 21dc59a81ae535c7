"""Reading what a model learns from: our own episodes, or Word2World's training files."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gym_llmworld.agents import overrule
from gym_llmworld.core import Chat, Episode, Message
from gym_llmworld.episodes import read_episodes
from gym_llmworld.errors import DataError
from gym_llmworld.playing import BLIND
from gym_llmworld.policy_prompt import PolicyPrompt
from gym_llmworld.protocol import REASONED
from gym_llmworld.worlds import get_world, world_keys


@dataclass(frozen=True)
class Source:
    """A file of episodes, and how much of the training they shall make up.

    Attributes:
        path: Of the file.
        weight: Relative share of the sampled episodes, None where none was given.
    """

    path: Path
    weight: float | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Reads ``PATH`` or ``PATH:WEIGHT``.

        A colon belongs to the path unless a number follows it, and a file of that whole name wins:
        for a file called ``run:1`` write ``run:1`` or ``run:1:WEIGHT``.

        Raises:
            ValueError: The weight is not a positive number.
        """
        path, colon, number = text.rpartition(":")
        weight = _number(number) if colon and path else None
        if weight is None or Path(text).exists():
            return cls(Path(text))
        if not 0 < weight < math.inf:
            raise ValueError(f"{text}: expected a weight > 0 behind the colon, got {number}")
        return cls(Path(path), weight)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def shares(sources: Sequence[Source]) -> tuple[float, ...] | None:
    """Returns the share of each file in what is sampled, in sum 1; None if no file has a weight."""
    if all(source.weight is None for source in sources):
        return None
    weights = [1.0 if source.weight is None else source.weight for source in sources]
    return tuple(weight / sum(weights) for weight in weights)


@dataclass(frozen=True)
class PromptStyles:
    """Which prompt style words which world.

    Attributes:
        default: Of worlds without one of their own.
        own: World -> style.
    """

    default: str
    own: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> PromptStyles:
        """Reads ``engine``, ``engine,textworld=nomap`` or ``alfworld=engine,textworld=nomap``.

        ``engine+nomap`` words every episode both ways; the first is what ``llmworld.json`` says.

        Raises:
            ValueError: An unknown world, or more than one default.
        """
        parts = [part.strip() for part in text.split(",")]
        defaults = [part for part in parts if "=" not in part]
        own = dict(part.split("=", 1) for part in parts if "=" in part)
        unknown = sorted(set(own) - set(world_keys()))
        if unknown or len(defaults) > 1 or "" in parts:
            wrong = f"unknown world {unknown[0]!r}" if unknown else f"got {text!r}"
            raise ValueError(
                f"prompt style: {wrong}; expected STYLE, or STYLE,WORLD=STYLE,... with worlds of "
                f"{', '.join(world_keys())}"
            )
        return cls(defaults[0] if defaults else "engine", tuple(own.items()))

    def of(self, world: str) -> str:
        """Returns the style of a world."""
        return dict(self.own).get(world, self.default)

    def reasoned(self) -> str:
        """Returns the styles of models that reason first, as `parse` reads them."""
        named = [self.default, *(f"{world}={style}" for world, style in self.own)]
        return ",".join(f"{one.partition('+')[0]}{REASONED}" for one in named)

    def for_card(self, worlds: Sequence[str]) -> str | dict[str, str]:
        """Returns what ``llmworld.json`` says: one style, or one per world where they differ."""
        styles = {world: self.of(world).partition("+")[0] for world in worlds}
        if len(set(styles.values())) > 1:
            return styles
        return next(iter(styles.values()), self.default.partition("+")[0])


@dataclass(frozen=True, slots=True)
class Conversation:
    """A training chat and where it comes from.

    Attributes:
        chat: Of a world model: system message, then actions (user) and observations (assistant) in
            turn. Of an agent: observations (user) and actions (assistant) in turn.
        group: Key of its world; the stem of its file's name where the file does not say.
        scenario: Id of its start; None when the file does not say.
        source: Number of its file among those that were read.
        given: How many of the first assistant turns are no answers, see `PolicyPrompt.opening`.
        context: Numbers of the assistant turns that are read and not learned, see `Filter`.
    """

    chat: Chat
    group: str
    scenario: str | None
    source: int
    given: int = 0
    context: tuple[int, ...] = ()


@dataclass(frozen=True)
class Conversations:
    """Training chats.

    Attributes:
        items: In the order of the files.
    """

    items: tuple[Conversation, ...] = ()

    @cached_property
    def chats(self) -> tuple[Chat, ...]:
        """The chats alone."""
        return tuple(item.chat for item in self.items)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The worlds (or names of files that do not say their world), sorted."""
        return tuple(sorted({item.group for item in self.items}))

    @cached_property
    def worlds(self) -> tuple[str, ...]:
        """Keys of the worlds, sorted; empty when the files do not say."""
        return tuple(sorted({item.group for item in self.items if item.scenario is not None}))

    @cached_property
    def starts(self) -> frozenset[tuple[str, str]]:
        """World and id of every different start that the files name."""
        known = ((item.group, item.scenario) for item in self.items)
        return frozenset((group, scenario) for group, scenario in known if scenario is not None)

    @property
    def scenarios(self) -> int:
        """How many different starts there are; 0 when the files do not say."""
        return len(self.starts)

    @cached_property
    def digest(self) -> str:
        """Changes when any text, its order or its file's number does."""
        lines = (
            json.dumps([item.source, [(m.role, m.content) for m in item.chat], *item.context])
            for item in self.items
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def of_group(self, group: str) -> Conversations:
        """Returns the chats of one world."""
        return Conversations(tuple(item for item in self.items if item.group == group))

    def sample(self, n: int, seed: int) -> Conversations:
        """Returns ``n`` random chats, in their old order.

        Of the same seed, a smaller sample is part of every larger one.

        Raises:
            DataError: There are fewer.
        """
        if n > len(self.items):
            raise DataError(
                f"{n} episodes were asked for, the files have {len(self.items)}; collect more, or "
                "ask for fewer"
            )
        order = list(range(len(self.items)))
        random.Random(seed).shuffle(order)
        return Conversations(tuple(self.items[i] for i in sorted(order[:n])))


@dataclass(frozen=True)
class Filter:
    """What is learned from.

    Attributes:
        only_success: Those that end in success; imagined ones, in imagined success.
        only_agents: Those of these agents; empty for all.
        teacher: Of chats of an agent: name of an agent of the world that is asked at every step
            what it would do. Only turns that say the same are learned; the others are context, so
            that what to do after a mistake is learned without the mistake (the labels of DAgger,
            Ross et al., arXiv 1011.0686, as far as the player agrees with them). Empty: all turns.
    """

    only_success: bool = False
    only_agents: tuple[str, ...] = ()
    teacher: str = ""

    def keeps(self, episode: Episode) -> bool:
        """Whether an episode is learned from."""
        if self.only_success and not episode.success:
            return False
        return not self.only_agents or episode.agent in self.only_agents


def read_conversations(
    files: Sequence[Path],
    style: str,
    *,
    agent_style: str | None = None,
    kept: Filter | None = None,
) -> Conversations:
    """Reads training files.

    Args:
        files: ``.jsonl`` / ``.jsonl.gz`` with our episodes, or ``.json`` in Word2World's
            ``llama_factory`` layout (a list of ``{"messages": [{"role", "content"}, ...]}``).
        style: Prompt style that words our episodes, see `PromptStyles.parse`. Word2World's files
            are worded already.
        agent_style: Chats of an agent in this style (`gym_llmworld.policy_prompt`); None for those
            of a world model.
        kept: Which of our episodes; None for all.

    Raises:
        DataError: A world has not the agent that `Filter.teacher` names; a file is not what its
            name says, or holds nothing to learn from.
        CheckpointError: A world has no such style.
    """
    styles, kept = PromptStyles.parse(style), kept or Filter()
    items: list[Conversation] = []
    for source, file in enumerate(files):
        if file.suffix == ".json":
            if agent_style is not None:
                raise DataError(
                    f"{file} holds chats of a world model; an agent learns from episodes (.jsonl)"
                )
            chats = _read_word2world(file)
            items += (Conversation(chat, file.stem, None, source) for chat in chats)
            continue
        for episode in filter(kept.keeps, read_episodes(file)):
            if agent_style is None:
                items += _of_world_model(episode, styles, source)
            elif episode.steps:
                items.append(_of_agent(episode, agent_style, source, kept.teacher))
    if not items:
        names = ", ".join(str(file) for file in files)
        raise DataError(
            f"no episode with at least one step in {names or 'no files at all'}"
            f"{_shown(kept)}; collect some with `llmworld collect`, or pass Word2World files "
            "(*.json)"
        )
    return Conversations(tuple(items))


def _shown(kept: Filter) -> str:
    success = "solved " if kept.only_success else ""
    agents = f"by {', '.join(kept.only_agents)} " if kept.only_agents else ""
    return f" ({success}{agents}only)" if success or agents else ""


def _of_world_model(episode: Episode, styles: PromptStyles, source: int) -> Iterator[Conversation]:
    world, scenario = episode.scenario.world, episode.scenario.id
    for one in styles.of(world).split("+"):
        chat = get_world(world).protocol(one).conversation(episode)
        if len(chat) > 1:
            yield Conversation(chat, world, scenario, source)


def _of_agent(episode: Episode, style: str, source: int, teacher: str) -> Conversation:
    world, scenario = episode.scenario.world, episode.scenario
    prompt = PolicyPrompt(style, world)
    given = sum(message.role == "assistant" for message in prompt.opening(scenario))
    strays = _strays(episode, teacher) if teacher else []
    return Conversation(
        prompt.conversation(episode),
        world,
        scenario.id,
        source,
        given,
        tuple(given + index for index in strays),
    )


def _strays(episode: Episode, teacher: str) -> list[int]:
    """Returns the numbers of the steps at which an agent of the world would do something else."""
    agents = get_world(episode.scenario.world).agents
    if teacher not in agents:
        raise DataError(
            f"{episode.scenario.world} has no agent {teacher!r} to learn from; it has "
            f"{', '.join(agents)}"
        )
    agent = agents[teacher]()
    agent.reset(episode.scenario, episode.seed)
    found, observation = [], episode.scenario.observation
    for index, step in enumerate(episode.steps):
        if agent.act(observation, BLIND) != step.action:
            found.append(index)
            overrule(agent, step.action)
        observation = step.observation
    return found


def _read_word2world(file: Path) -> Iterator[Chat]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{file} is not JSON: {error}; episodes as JSON Lines end in .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of conversations, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        try:
            messages = [Message(m["role"], m["content"]) for m in row["messages"]]
        except (KeyError, TypeError) as error:
            raise DataError(
                f'{file}, item {number}: expected {{"messages": [{{"role", "content"}}, ...]}}, '
                f"got {str(row)[:80]!r}"
            ) from error
        roles = [message.role for message in messages]
        turns = (len(roles) - 1) // 2
        if turns < 1 or roles != ["system", *["user", "assistant"] * turns]:
            raise DataError(
                f"{file}, item {number}: expected the roles system, (user, assistant)+, got "
                f"{', '.join(roles[:6])}"
            )
        yield messages

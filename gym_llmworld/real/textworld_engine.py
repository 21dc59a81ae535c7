"""Playing a compiled TextWorld game: the story runs in a Z-machine, TextWorld tracks its state.

What the interpreter adds to the story (the banner, the prompt with its status line, the question
whether to restart) is taken off by default. Commands that address the interpreter instead of the
story never reach it: ``save`` and ``script`` would write files, ``undo`` and ``restart`` would part
the story from its tracked state, and a line break in a command crashes the Z-machine.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gym_llmworld.errors import DataError, EngineError, MissingDependency, ScenarioError
from gym_llmworld.real.textworld_games import quiet

NOT_A_VERB = "That's not a verb I recognise."
"""What the story answers to nonsense."""

WON, LOST = "*** The End ***", "*** You lost! ***"

# Jericho cuts a command off at 198 bytes.
_MAX_COMMAND = 190

# Inform compares the first nine letters of a word.
_WORD_LENGTH = 9
_INTERPRETER_VERBS = frozenset(
    verb[:_WORD_LENGTH]
    for verb in (
        *("save", "restore", "restart", "quit", "q", "undo", "again", "g", "oops", "o"),
        *("script", "transcript", "verbose", "long", "brief", "normal", "superbrief", "short"),
        *("notify", "version", "verify", "pronouns", "nouns"),
        # TextWorld's own, which show or change what the player must not see.
        *("print_state", "enable", "disable", "restrict", "tw-print", "tw-extra-infos"),
        *("tw-trace-actions",),
    )
)
# Of several commands in one line only the first would be shown and tracked. Backslashes configure
# the interpreter, and brackets could pass for the marks by which TextWorld tracks the state.
_UNFIT = re.compile(r'[.,;"\\<>\[\]]|\bthen\b')

_BANNER = re.compile(r"\A\s*_{8}.*?\\\$+ *\n\s*\n", re.DOTALL)
_PROMPT = re.compile(r"\n*>[^\S\n]*(?:-= [^\n]* =-\s*-?\d+/\d+)?\s*\Z")
_ENDING = re.compile(r"\s*(\*\*\* (?:The End|You lost!) \*\*\*).*", re.DOTALL)
_BLANK_LINES = re.compile(r"[^\S\n]*\n[^\S\n]*\n\s*\n")


@dataclass(frozen=True, slots=True)
class Turn:
    """What the engine answers.

    Attributes:
        observation: Stripped, or byte for byte in a raw play.
        admissible: Commands that change or show something now, sorted.
        score: Points so far.
        max_score: Points that can be had; infinite where a quest can be repeated.
        won: The quest is done.
        lost: The quest has failed.
    """

    observation: str
    admissible: tuple[str, ...]
    score: float
    max_score: float
    won: bool = False
    lost: bool = False


def strip_observation(text: str) -> str:
    """Takes off what is not story: banner, prompt, status line, closing question, empty lines.

    Args:
        text: As the interpreter printed it.

    Returns:
        Paragraphs with one empty line between them; a finished game ends with "*** The End ***" or
        "*** You lost! ***".
    """
    text = _PROMPT.sub("", _BANNER.sub("", text))
    text = _ENDING.sub(r"\n\n\1", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


def reaches_story(command: str) -> bool:
    """Returns whether a command may be typed in.

    Not so: commands to the interpreter, several commands at once, nothing, what is longer than the
    interpreter reads, non-ASCII and control characters, backslashes and brackets.
    """
    text = command.strip().lower()
    if not text or len(text) > _MAX_COMMAND or not (text.isascii() and text.isprintable()):
        return False
    return not _UNFIT.search(text) and text.split()[0][:_WORD_LENGTH] not in _INTERPRETER_VERBS


class Play:
    """One play of a game: a Z-machine of its own, whose state moves with every command.

    ``copy.deepcopy`` clones the machine; `close` frees it.

    Args:
        story: A ``.z8`` file with TextWorld's ``.json`` beside it.
        raw: Leave the observations as they are, byte for byte what TextWorld's own Gym environment
            gives when it is asked for descriptions and inventories too, as AgentGym's server does.
        track_policy: Keep the commands that lead to the end at hand; twice the time per step.

    Raises:
        ScenarioError: A file is missing.
        DataError: A file is damaged.
        MissingDependency: textworld is not installed.
    """

    def __init__(self, story: Path, *, raw: bool = False, track_policy: bool = False) -> None:
        self.story = story
        self._raw, self._track_policy = raw, track_policy
        self._commands: tuple[str, ...] = ()
        self.turn: Turn
        self._machine = _start(story, raw, track_policy)
        try:
            with quiet():
                self._take(self._machine.reset())
        except BaseException:
            self.close()
            raise

    def step(self, command: str) -> Turn:
        """Types a command in.

        Args:
            command: Any text. What may not reach the story (see `reaches_story`) is answered as
                nonsense is, "That's not a verb I recognise.", and takes no time.

        Raises:
            EngineError: The play is closed.
        """
        machine = self._running()
        if not reaches_story(command):
            self.turn = dataclasses.replace(self.turn, observation=self._refusal())
            return self.turn
        state, _, _ = machine.step(command.strip())
        self._commands = (*self._commands, command.strip())
        self._take(state)
        return self.turn

    def _refusal(self) -> str:
        prompt = _PROMPT.search(self.turn.observation) if self._raw else None
        return f"\n{NOT_A_VERB}\n\n{prompt[0].lstrip()}" if prompt else NOT_A_VERB

    def policy(self) -> list[str]:
        """Returns the commands that TextWorld holds for the shortest way to win from here.

        Empty when the game is over, or can no longer be won.

        Raises:
            EngineError: The play is closed.
        """
        if not self._track_policy:
            guide = Play(self.story, track_policy=True)
            try:
                return replay(guide, self._commands).policy()
            finally:
                guide.close()
        return list(self._running().state["policy_commands"] or ())

    def facts(self) -> list[tuple[str, ...]]:
        """Returns what is true now, hidden things too: ``("in", "old key", "chest drawer")``.

        The player is ``"P"``, what it carries is in ``"I"``.

        Raises:
            EngineError: The play is closed.
        """
        tracker = self._running()._wrapped_env
        named = map(tracker._inform7.get_human_readable_fact, tracker._game_progression.state.facts)
        return sorted((fact.name, *(v.name for v in fact.arguments)) for fact in named)

    def close(self) -> None:
        """Frees the machine; calling it twice is fine."""
        machine, self._machine = self._machine, None
        if machine is not None:
            machine.close()

    def _running(self) -> Any:
        if self._machine is None:
            raise EngineError(f"the play of {self.story.name} is closed; start another one")
        return self._machine

    def _take(self, state: Any) -> None:
        text = str(state["feedback"])
        self.turn = Turn(
            observation=text if self._raw else strip_observation(text),
            admissible=tuple(state["admissible_commands"]),
            score=float(state["score"]),
            max_score=float(state["max_score"]),
            won=WON in text,
            lost=LOST in text,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Play:
        other = object.__new__(Play)
        other.__dict__.update(self.__dict__)
        if self._machine is not None:
            with quiet():
                other._machine = self._machine.copy()
        return other


def replay(play: Play, commands: Iterable[str]) -> Play:
    """Types several commands in, up to the end of the game."""
    for command in commands:
        if play.turn.won or play.turn.lost:
            break
        play.step(command)
    return play


def _start(story: Path, raw: bool, track_policy: bool) -> Any:
    textworld = import_textworld()
    check_story(story, story.stat().st_mtime_ns if story.is_file() else 0)
    requested = textworld.EnvInfos(
        admissible_commands=True,
        score=True,
        max_score=True,
        won=True,
        lost=True,
        # Asking for them changes empty lines, which only a raw play keeps.
        description=raw,
        inventory=raw,
        policy_commands=track_policy,
    )
    with quiet():
        try:
            return textworld.start(str(story), requested)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{story.with_suffix('.json')} does not describe a TextWorld game "
                f"({type(error).__name__}: {error!s:.120}); make the game again with tw-make"
            ) from error


@lru_cache(maxsize=4096)
def check_story(story: Path, modified_ns: int) -> None:
    """Checks that a game can be played here; a damaged story would crash the Z-machine.

    Args:
        story: The ``.z8`` file.
        modified_ns: When it was changed last; a changed file is checked again.

    Raises:
        ScenarioError: The story or its ``.json`` is missing.
        DataError: The story is no undamaged Z-machine story of version 8.
    """
    if not story.is_file():
        raise ScenarioError(f"no such game: {story}; expected a .z8 file as tw-make writes it")
    if story.suffix != ".z8":
        raise ScenarioError(f"{story} is not a .z8 story; make it again with tw-make --format z8")
    if not story.with_suffix(".json").is_file():
        raise ScenarioError(
            f"{story} has no {story.with_suffix('.json').name} beside it, which tells commands, "
            "score and solution; copy it from where the game was made, or make the game again with "
            "tw-make --output (it writes both)"
        )
    data = story.read_bytes()
    # The Z-Machine Standards Document 1.1, section 11.1: version, length / 8, checksum.
    length = int.from_bytes(data[0x1A:0x1C], "big") * 8
    checksum = int.from_bytes(data[0x1C:0x1E], "big")
    sound = data[:1] == b"\x08" and 64 <= length <= len(data)
    if not sound or sum(data[64:length]) % 65536 != checksum:
        raise DataError(
            f"{story} is not an undamaged Z-machine story of version 8 (its header or checksum "
            "does not fit); copy it again, or make the game again"
        )


def import_textworld() -> Any:
    """Imports TextWorld.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        with quiet():
            import textworld
    except ImportError as error:
        raise MissingDependency("textworld", "textworld") from error
    return textworld

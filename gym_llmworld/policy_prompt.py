"""How a language model is asked to act, and what its answer means.

The mirror image of `gym_llmworld.protocol`: there the model plays the world, here it plays the
agent. The chat that an agent acts on, the one it learns from and the one that reinforcement
learning samples are the same bytes, because all of them come from `PolicyPrompt`.

Three styles. ``bare``: the assistant's turn is the action, which is all that a small model can
learn. ``reminded``: the same, and every observation ends with the task, so that a small model need
not look for it at the other end of the episode. ``react``: a thought and an action (ReAct, arXiv
2210.03629), worded as Word2World and AgentGym word it (arXiv 2512.18832, appendix A.4), with its
two parsers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gym_llmworld.core import Episode, FinishReason, Message, Scenario, Step
from gym_llmworld.errors import DataError
from gym_llmworld.protocol import admit, harmless

BARE, REMINDED, REACT = "bare", "reminded", "react"
STYLES = (BARE, REMINDED, REACT)

MISSING_ACTION = "Error: Missing action. Please provide a single action."
SEVERAL_ACTIONS = "Error: Only one 'Action' is allowed per response. Please adjust your response."

# Worlds whose published client reads the action with parser B; the others use parser A.
_ONE_LINE_WORLDS = frozenset({"textworld"})
_INSTRUCTION = (
    "You act in a text world to fulfil a task. Each of my messages is what you observe. Answer "
    "each with a thought about what to do next and with one action, a single command in plain "
    "words, in exactly this form:\n\n"
    "Thought:\nyour thought\n\nAction:\nyour next action\n\n"
    "A command that the world does not understand changes nothing: try another one."
)
_ACKNOWLEDGEMENT = "OK. I'll follow your instructions and try my best to solve the task."
_ACKNOWLEDGEMENTS = {
    "webshop": "Ok.",
    "textworld": "Understood. I will respond with one valid action per turn.",
}


class AnswerStatus(StrEnum):
    """How a policy's answer ended.

    Attributes:
        OK: There is an action to send.
        EMPTY: The policy wrote nothing.
        CUT_OFF: The answer was cut off before the policy ended its turn.
        NO_ACTION: There is no action in it, or one that no text world takes: several lines, control
            tokens, too long.
    """

    OK = "ok"
    EMPTY = "empty"
    CUT_OFF = "cut_off"
    NO_ACTION = "no_action"


@dataclass(frozen=True, slots=True)
class ParsedAction:
    """What an answer means.

    Attributes:
        action: To send to the world; empty unless ``status`` is ``OK``. Every world answers an
            empty action with its rejection text, so that an unusable answer costs a step.
        thought: What stood before the action in style ``react``; None where nothing stood.
        status: How the answer ended.
    """

    action: str
    thought: str | None
    status: AnswerStatus


@dataclass(frozen=True)
class PolicyPrompt:
    """Turns episodes into chats whose next message is the agent's, and answers into actions.

    Attributes:
        style: ``"bare"``, ``"reminded"`` or ``"react"``.
        world: Key of the world; style ``react`` words the acknowledgement and reads answers as
            that world's published client does. Empty: as most of them do.

    Raises:
        ValueError: There is no such style.
    """

    style: str = BARE
    world: str = ""

    def __post_init__(self) -> None:
        """Checks the style."""
        if self.style not in STYLES:
            raise ValueError(
                f"agent style must be one of {', '.join(STYLES)}, got {self.style!r} (set by the "
                "checkpoint's llmworld.json or by an option)"
            )

    def opening(self, scenario: Scenario) -> tuple[Message, ...]:
        """Returns the chat before the first action; it ends with the first observation.

        Bare, reminded: that observation alone, with the instruction before it where it does not
        tell the task itself. React: an instruction and its acknowledgement stand before it.
        """
        first = Message("user", _first_observation(scenario))
        if self.style != REACT:
            return (first,)
        acknowledgement = _ACKNOWLEDGEMENTS.get(self.world, _ACKNOWLEDGEMENT)
        return (Message("user", _INSTRUCTION), Message("assistant", acknowledgement), first)

    def encode(
        self, scenario: Scenario, steps: Sequence[Step], said: Sequence[str] = ()
    ) -> tuple[Message, ...]:
        """Returns the chat whose next message is the agent's.

        One step more only appends two messages: a backend may keep its key/value cache, and an
        episode is one sequence of tokens.

        Args:
            scenario: Where the episode started.
            steps: What has happened since.
            said: The policy's own answers to the first steps, thoughts included. Steps beyond them
                are worded from their action, see `say`.
        """
        chat = list(self.opening(scenario))
        reminder = f"\n{scenario.instruction}" if self.style == REMINDED else ""
        for index, step in enumerate(steps):
            answer = harmless(said[index]) if index < len(said) else self.say(step.action)
            chat += (
                Message("assistant", answer),
                Message("user", harmless(step.observation + reminder)),
            )
        return tuple(chat)

    def conversation(self, episode: Episode) -> list[Message]:
        """Returns the whole episode as a training chat that ends with the last action.

        The assistant's turns are the labels; in style ``react`` the opening's acknowledgement is
        one of them, a constant. Episodes record no thoughts: labels of style ``react`` have an
        empty one, which teaches the form and leaves the thinking to the base model and to
        reinforcement learning (as RWML does with its empty ``<think>``, arXiv 2602.05842,
        appendix B.1).
        """
        return list(self.encode(episode.scenario, episode.steps)[:-1]) if episode.steps else []

    def say(self, action: str) -> str:
        """Returns the assistant's turn that sends an action."""
        action = admit(action) or ""
        return react("", action) if self.style == REACT else action

    def parse(self, text: str, finish_reason: FinishReason) -> ParsedAction:
        """Reads an answer; never raises.

        Args:
            text: Untrusted, without the end-of-turn token.
            finish_reason: ``"length"`` when the policy was cut off. Half an action is none.
        """
        if not text.strip():
            return ParsedAction("", None, AnswerStatus.EMPTY)
        action, thought = self._read(text)
        if finish_reason != "stop":
            return ParsedAction("", thought, AnswerStatus.CUT_OFF)
        admitted = admit(action)
        if admitted is None:
            return ParsedAction("", thought, AnswerStatus.NO_ACTION)
        return ParsedAction(admitted, thought, AnswerStatus.OK)

    def _read(self, text: str) -> tuple[str, str | None]:
        if self.style != REACT:
            return text, None
        before = text.partition("Action:")[0].strip().removeprefix("Thought:").strip()
        thought = harmless(before) or None
        if self.world not in _ONE_LINE_WORLDS:
            return parse_action(text), thought
        try:
            return parse_single_action(text), thought
        except DataError:
            return "", thought


def _first_observation(scenario: Scenario) -> str:
    told = scenario.instruction in scenario.observation
    parts = [scenario.observation] if told else [scenario.instruction, scenario.observation]
    return harmless("\n".join(parts))


def react(thought: str, action: str) -> str:
    """Words a thought and an action as ReAct text."""
    return f"Thought:\n{thought}\n\nAction:\n{action}"


def parse_action(text: str) -> str:
    """Reads the action out of ReAct text, as the ALFWorld, ScienceWorld and WebShop clients do.

    Parser A: the last ``Action:`` counts. Text without one is an action only if it looks like
    WebShop's, otherwise the action is empty.
    """
    if "Action:" in text:
        return text.rsplit("Action:", 1)[1].strip()
    return text.strip() if "search[" in text or "click[" in text else ""


def parse_single_action(text: str) -> str:
    """Reads the action out of ReAct text, as the TextWorld client does: exactly one line counts.

    Parser B.

    Raises:
        DataError: No action or several; the message is what the client answers.
    """
    found = re.findall(r"Action:\s*(.*?)(?=\n|$)", text, re.DOTALL)
    if len(found) > 1:
        raise DataError(SEVERAL_ACTIONS)
    if not found:
        raise DataError(MISSING_ACTION)
    return str(found[0]).strip()

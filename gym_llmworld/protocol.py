"""The text contract between an episode and a language model, in one place.

SFT labels, GRPO prompts, evaluation and the live environment read and write the same bytes, because
all of them go through `Protocol`. Its chat form is Word2World's (arXiv 2512.18832, section 3.1 and
appendix A.4): system = initial context, user = action, assistant = observation, and the suffix
``" [SUCCESS]"`` exactly on the observation that solves the task.

Actions and completions are untrusted. An action that no text world's grammar contains (control
characters, chat-template tokens, the success marker, nothing at all) never enters a chat, nor does
one that this world cannot read (`Protocol.read_action`): the world's own rejection text answers it,
which is also what the mirrored engine does with it. A completion never raises: `ParseStatus` says
how it ended.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol as Interface

from gym_llmworld.core import Completion, Episode, Message, Scenario, Step
from gym_llmworld.errors import DataError

SUCCESS_MARKER = " [SUCCESS]"
MAX_ACTION_CHARS = 256
"""Longer actions enter no chat."""
REASONED = "/think"
"""Behind the name of a prompt style: the model reasons before it predicts (`reasoned`)."""
_REMEMBERED = 1024
"""Episodes whose chats are told on, not anew, at the next step."""
_TELLING = threading.Lock()
"""A fork in another thread may want to tell the same chat on."""
REASONING_REQUEST = (
    "\n\nFirst think it over briefly inside <think> </think>: what has been learnt about this "
    "world so far, and what follows for this action. Then give the next observation, worded as "
    "the world words them, inside <next_state> </next_state>, and nothing after it."
)

# What chat templates use for roles and turn ends, across model families.
_CONTROL_TOKENS = re.compile(
    r"<\|[^<>|\s]{1,64}\|>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>"
    r"|<\uff5c[^<>\uff5c]{1,64}\uff5c>"
)
_REASONED = re.compile(
    r"\s*<think>(?P<thought>.*?)</think>\s*<next_state>(?P<state>.*?)</next_state>\s*", re.DOTALL
)
_REASONING_TAG = re.compile(r"</?(?:think|next_state)>")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


class ParseStatus(StrEnum):
    """How an action was answered.

    Attributes:
        OK: A complete observation.
        CUT_OFF: The completion ended before the model ended its turn, or is longer than allowed.
        EMPTY: The model wrote nothing.
        CONTEXT: The conversation no longer fits into the model's context; nothing was asked.
        REJECTED: The action is outside of any text world's grammar, or of this one's; nothing was
            asked.
    """

    OK = "ok"
    CUT_OFF = "cut_off"
    EMPTY = "empty"
    CONTEXT = "context"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a completion means.

    Attributes:
        observation: Without the success marker.
        success: The model ended its finished turn with the marker.
        status: How the text ended.
        confidence: Probability that the prediction is right, in [0, 1], as `Protocol.confidence`
            judges it; None when unknown.
        over: The episode ends here, with success or without.
    """

    observation: str
    success: bool
    status: ParseStatus
    confidence: float | None = None
    over: bool = False


def sequence_probability(completion: Completion) -> float | None:
    """Returns the probability of the completion under its model.

    None without log-probabilities, and where one of them is no number.
    """
    total = math.fsum(completion.logprobs)
    if not completion.logprobs or math.isnan(total):
        return None
    return rounded(math.exp(min(0.0, total)))


def rounded(probability: float) -> float:
    """Returns a probability as it stands in infos.

    Four digits: the last bits of a log-probability depend on how a batch was padded, and infos have
    to be equal when an episode is replayed.
    """
    return round(probability, 4)


def admit(action: str, max_chars: int = MAX_ACTION_CHARS) -> str | None:
    """Returns an action as it enters a chat (stripped), or None if it may not enter one."""
    text = action.strip()
    if not text or len(text) > max_chars:
        return None
    if _CONTROL_CHARACTERS.search(text) or _SURROGATES.search(text):
        return None
    if _CONTROL_TOKENS.search(text) or SUCCESS_MARKER.strip() in text:
        return None
    return text


def reasoned(text: str) -> str | None:
    """Returns what ``<think>...</think> <next_state>...</next_state>`` predicts (RWML, appendix).

    None unless each of the four tags stands there once, in this order, with nothing around them:
    what a model wrote into its thoughts must not pass for its prediction.
    """
    found = _REASONED.fullmatch(text)
    if found is None or any(_REASONING_TAG.search(span) for span in found.groups()):
        return None
    return found["state"].strip()


def harmless(text: str) -> str:
    """Returns untrusted text without anything that a chat template or a file may not hold."""
    # Again and again: what stood around a token may itself be one, "<|e<|end|>nd|>".
    while (shorter := _CONTROL_TOKENS.sub("", text)) != text:
        text = shorter
    return _SURROGATES.sub("\ufffd", text)


def _without_marker(observation: str) -> str:
    """Returns an observation as `Protocol.target` takes it."""
    while observation.endswith(SUCCESS_MARKER):
        observation = observation.removesuffix(SUCCESS_MARKER)
    return observation


class Wording(Interface):
    """How a prompt style says what happens in one episode, where it says it in its own words.

    A small model copies well and counts badly. A wording may spell out what the text says less
    plainly (where the agent is) and leave out what every text repeats. It is told every step of the
    episode in order, and must lose nothing: `read` gives back what `write` was given.
    """

    def cue(self, action: str) -> str:
        """Returns what ``action``, the next one, ends with in the chat; may be empty."""
        ...

    def write(self, action: str, observation: str) -> str:
        """Returns what the model is to write for ``observation``, and notes what it says."""
        ...

    def read(self, text: str) -> str:
        """Returns the observation that ``text`` stands for, ``text`` itself if it stands for none.

        ``text`` is the answer to what comes after everything that `write` was told. Never raises.
        """
        ...


class Placed:
    """Ends each action with the place of the latest observation that said one: `` @kitchen``.

    A small model is spared to look back for what it was last told.

    Args:
        scenario: Where the episode starts.
        place: Reads from an observation where the agent is, None when it does not say.
    """

    def __init__(self, scenario: Scenario, *, place: Callable[[str], str | None]) -> None:
        self._place = place
        self._latest = place(scenario.observation)

    def cue(self, action: str) -> str:
        """Returns the place."""
        return "" if self._latest is None else f" @{self._latest}"

    def write(self, action: str, observation: str) -> str:
        """Returns the observation as it is."""
        self._latest = self._place(observation) or self._latest
        return observation

    def read(self, text: str) -> str:
        """Returns the text as it is."""
        return text


@dataclass
class _Told:
    """An episode as its chat tells it so far."""

    scenario: Scenario
    chat: list[Message]
    wording: Wording | None
    renamed: Callable[[str], str]


@dataclass(frozen=True)
class Protocol:
    """Turns episodes into chats, and completions into predictions.

    Attributes:
        style: Name of the prompt style: how ``context`` words a scenario.
        context: The system message of a scenario.
        max_action_chars: Longer actions are rejected.
        max_observation_chars: Longer predictions are cut and count as `ParseStatus.CUT_OFF`.
        confidence: Judges how probably a completion is right; None when it cannot tell. See
            `gym_llmworld.calibration` for one that was fitted to real steps.
        wording: Makes the `Wording` of an episode; None where chats hold actions and observations
            as they are.
        naming: Makes what exchanges names in the texts of an episode, there and back: chats hold
            other names for things than the world has. None where names are the world's.
        ends: Tells whether the world goes on after an observation that did not solve the task, such
            as a lost game; None where only success ends an episode. It cannot bring success.
        read_action: Returns an action in the one form that the world's models know, and None for
            what the world cannot read as an action; None where they know all forms.
        reasoning: The model is asked to reason first, in the form that `reasoned` reads. Chats hold
            what it predicted, without its thoughts.
    """

    style: str
    context: Callable[[Scenario], str]
    max_action_chars: int = MAX_ACTION_CHARS
    max_observation_chars: int = 8192
    confidence: Callable[[Completion], float | None] = sequence_probability
    wording: Callable[[Scenario], Wording] | None = None
    naming: Callable[[Scenario], Callable[[str], str]] | None = None
    ends: Callable[[str], bool] | None = None
    read_action: Callable[[str], str | None] | None = None
    reasoning: bool = False
    _memory: OrderedDict[tuple[int, tuple[Step, ...]], _Told] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    def __deepcopy__(self, memo: dict[int, object]) -> Protocol:
        """Returns itself: a protocol is a value, and what it remembers may be told again."""
        return self

    def admit(self, action: str) -> str | None:
        """Returns the action as it enters the chat, or None if it may not enter one."""
        admitted = admit(action, self.max_action_chars)
        if admitted is None or self.read_action is None:
            return admitted
        return self.read_action(admitted)

    def encode(self, scenario: Scenario, steps: Sequence[Step], action: str) -> tuple[Message, ...]:
        """Returns the chat that asks for the observation after ``action``.

        Args:
            scenario: Where the episode started.
            steps: What has happened since; rejected actions among them left no trace in the world,
                and leave none in the chat.
            action: Admissible in the sense of `admit`.

        Raises:
            ValueError: ``action`` may not enter a chat.
        """
        admitted = self.admit(action)
        if admitted is None:
            raise ValueError(
                f"this action may not enter a chat: {action[:80]!r} (empty, longer than "
                f"{self.max_action_chars} characters, with control tokens, or nothing that this "
                "world can read); answer it with the world's rejection text instead"
            )
        with _TELLING:
            told = self._told(scenario, steps)
            cue = told.wording.cue(admitted) if told.wording else ""
            return (*told.chat, self._asked(told.renamed(admitted + cue)))

    def lesson(
        self, scenario: Scenario, steps: Sequence[Step], step: Step
    ) -> tuple[tuple[Message, ...], str]:
        """Returns the chat that asks for ``step``, and what a perfect world model predicts.

        Args:
            scenario: Where the episode started.
            steps: What has happened before.
            step: Its action is admissible in the sense of `admit`.

        Raises:
            DataError: See `target`.
        """
        *chat, action, label = self._labelled(scenario, (*steps, step))
        return (*chat, self._asked(action.content)), label.content

    def _asked(self, action: str) -> Message:
        return Message("user", action + REASONING_REQUEST if self.reasoning else action)

    def _labelled(self, scenario: Scenario, steps: Sequence[Step]) -> list[Message]:
        """Returns the chat of an episode, success markers included."""
        told = self._untold(scenario)
        for step in steps:
            self._tell(told, step, self.target(step).removeprefix(step.observation))
        return told.chat

    def _told(self, scenario: Scenario, steps: Sequence[Step]) -> _Told:
        """Returns the chat so far and its wording, to read from.

        Whoever steps through an episode asks for one more step each time: what was told before is
        taken from there and told on.
        """
        # Scenarios hold dictionaries: the same one is known by where it lies, and kept while it is.
        key = (id(scenario), tuple(steps))
        told = self._memory.pop(key, None)
        if told is None or told.scenario is not scenario:
            before = self._memory.pop((id(scenario), key[1][:-1]), None) if steps else None
            if before is not None and before.scenario is scenario:
                told, new = before, steps[-1:]
            else:
                told, new = self._untold(scenario), steps
            for step in new:
                self._tell(told, step)
        self._memory[key] = told
        while len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)
        return told

    def _untold(self, scenario: Scenario) -> _Told:
        wording = self.wording(scenario) if self.wording else None
        renamed = self._renaming(scenario)
        system = Message("system", renamed(self.context(scenario)))
        return _Told(scenario, [system], wording, renamed)

    def _renaming(self, scenario: Scenario) -> Callable[[str], str]:
        if self.naming is None:
            return str
        exchanged = self.naming(scenario)
        # With its other name, what stood around a name may be a token.
        return lambda text: harmless(exchanged(text))

    def _tell(self, told: _Told, step: Step, marker: str = "") -> None:
        admitted = self.admit(step.action)
        if admitted is None:
            return
        wording, asked, answer = told.wording, admitted, step.observation
        if wording is not None:
            asked, answer = admitted + wording.cue(admitted), wording.write(admitted, answer)
        asked, answer = told.renamed(asked), told.renamed(answer)
        told.chat += (Message("user", asked), Message("assistant", answer + marker))

    def target(self, step: Step) -> str:
        """Returns the observation, with the success marker where the step solved the task.

        A perfect world model writes this, or what the style's `Wording` makes of it.

        Raises:
            DataError: The observation itself ends with the marker, so that no text could say so.
        """
        if step.observation.endswith(SUCCESS_MARKER):
            raise DataError(
                f"an observation ends with the success marker {SUCCESS_MARKER!r}: "
                f"{step.observation[-80:]!r}; expected plain engine text, with success in "
                "`terminated` and `reward`"
            )
        return step.observation + (SUCCESS_MARKER if step.terminated and step.reward > 0 else "")

    def conversation(self, episode: Episode) -> tuple[Message, ...]:
        """Returns the whole episode as one training chat; every assistant turn is a label.

        Raises:
            DataError: See `target`; or the model is to reason, and episodes hold no reasoning.
        """
        if self.reasoning:
            raise DataError(
                f"episodes hold no reasoning to learn from; expected a prompt style without "
                f"{REASONED!r}, or `python -m training.grpo --reasoning`"
            )
        return tuple(self._labelled(episode.scenario, episode.steps))

    def decode(
        self, scenario: Scenario, completion: Completion, steps: Sequence[Step]
    ) -> Prediction:
        """Reads a completion; never raises.

        Args:
            scenario: Where the episode started.
            completion: The model's.
            steps: What has happened before the action that it answers, as for `encode`.
        """
        text, finished = completion.text, completion.finish_reason == "stop"
        if self.reasoning:
            text = reasoned(text) or ""
        # Only a finished turn can claim success, and only as its exact last characters: an
        # observation that merely mentions the marker must not end an episode.
        success = finished and text.endswith(SUCCESS_MARKER)
        if success:
            text = text[: -len(SUCCESS_MARKER)]
        whole = harmless(text)
        too_long = len(whole) > self.max_observation_chars
        if not too_long and (self.wording or self.naming):
            with _TELLING:
                told = self._told(scenario, steps)
                whole = told.renamed(whole)
                # What stood around something that `read` leaves out may be a token now.
                whole = harmless(told.wording.read(whole) if told.wording else whole)
            too_long = len(whole) > self.max_observation_chars
        observation = _without_marker(whole[: self.max_observation_chars])
        if not finished or too_long:
            status = ParseStatus.CUT_OFF if completion.text.strip() else ParseStatus.EMPTY
            return Prediction(observation, False, status, self.confidence(completion))
        if not observation.strip():
            return Prediction("", False, ParseStatus.EMPTY, self.confidence(completion))
        over = success or (self.ends is not None and self.ends(observation))
        return Prediction(observation, success, ParseStatus.OK, self.confidence(completion), over)

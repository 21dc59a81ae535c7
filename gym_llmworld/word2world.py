"""Reading and writing the files of Word2World and AgentGym.

Covered: the LLaMA-Factory training files (``data/llama_factory/*.json``), the context files
(``data/init_contexts``), rollouts in the real environment and in a world model, their replays
(``valid_on_real_env``). Loaders accept extra keys. An agent's ReAct text and its two parsers are
`gym_llmworld.policy_prompt`'s.

Not covered: StableToolBench's files, and the metrics files, which hold nothing that
`gym_llmworld.metrics` does not compute.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gym_llmworld.core import Episode, Message, Role, Scenario, Step
from gym_llmworld.errors import DataError
from gym_llmworld.policy_prompt import parse_action, react
from gym_llmworld.protocol import SUCCESS_MARKER, Protocol
from gym_llmworld.worlds.base import GIVEN_CONTEXT

_ROLES = ("system", "user", "assistant")
_USER_PART = "# User Environment Information (Displayed to User)\n\n"
_COMMANDS = "\nAVAILABLE ACTIONS: "
_TASK = "Your task is to: "
_SOLVED = (1, 100)


def write_training_file(
    path: str | os.PathLike[str], episodes: Iterable[Episode], protocol: Protocol
) -> int:
    """Writes ``[{"messages": [...]}, ...]``, one row per episode with at least one action.

    Returns:
        The number of rows.

    Raises:
        DataError: An observation cannot be a label, see `Protocol.target`.
    """
    chats = (protocol.conversation(episode) for episode in episodes)
    rows = [{"messages": _as_dicts(chat)} for chat in chats if len(chat) > 1]
    _write(path, rows)
    return len(rows)


def read_training_file(path: str | os.PathLike[str], world: str) -> list[Episode]:
    """Reads a training file; scenarios keep the given context word for word.

    Args:
        path: ``<task>_<split>_<n>.json``.
        world: Key of the world that the episodes belong to.

    Raises:
        DataError: The file is not a list of chats system, user, assistant, ..., assistant.
    """
    file = Path(path)
    rows = _read_list(file)
    return [
        episode_of(_messages(row, f"{file}: row {i}"), world, f"{file.stem}-{i}", file.stem)
        for i, row in enumerate(rows)
    ]


def episode_of(chat: Sequence[Message], world: str, scenario_id: str, split: str) -> Episode:
    """Returns the episode that a training chat tells; the marker becomes ``terminated``."""
    steps = []
    for user, assistant in zip(chat[1::2], chat[2::2], strict=True):
        solved = assistant.content.endswith(SUCCESS_MARKER)
        observation = assistant.content.removesuffix(SUCCESS_MARKER)
        steps.append(Step(user.content, observation, float(solved), terminated=solved))
    return Episode(_scenario(chat[0].content, world, scenario_id, split), tuple(steps), "real", "")


def _scenario(context: str, world: str, scenario_id: str, split: str) -> Scenario:
    shown = context.split(_USER_PART, 1)[-1].removesuffix("\n")
    observation, separator, commands = shown.partition(_COMMANDS)
    instruction = observation.split(_TASK, 1)[1] if _TASK in observation else ""
    return Scenario(
        id=scenario_id,
        world=world,
        split=split,
        instruction=instruction,
        observation=observation,
        admissible=tuple(commands.split(",")) if separator else None,
        hidden={GIVEN_CONTEXT: context},
    )


def write_contexts(
    folder: str | os.PathLike[str], split: str, scenarios: Sequence[Scenario], protocol: Protocol
) -> None:
    """Writes ``wm_instruct_<split>.json``: ``[{"id", "messages": [system]}, ...]``."""
    rows = [
        {"id": s.id, "messages": [{"role": "system", "content": protocol.context(s)}]}
        for s in scenarios
    ]
    _write(Path(folder) / f"wm_instruct_{split}.json", rows)


def read_contexts(path: str | os.PathLike[str], world: str, split: str) -> list[Scenario]:
    """Reads a ``wm_instruct_<split>.json``.

    Raises:
        DataError: A row lacks ``id`` or a system message.
    """
    scenarios = []
    for i, row in enumerate(_read_list(Path(path))):
        chat = _messages(row, f"{path}: row {i}")
        if "id" not in row:
            raise DataError(f"{path}: row {i}: expected a field 'id', got {sorted(row)}")
        scenarios.append(_scenario(chat[0].content, world, str(row["id"]), split))
    return scenarios


def rollout(episode: Episode, thoughts: Sequence[str] = ()) -> dict[str, Any]:
    """Returns an episode as the rollout files hold it, ReAct text included.

    Args:
        episode: Played in the real world or in a world model.
        thoughts: One per step; missing ones are empty.
    """
    conversations: list[dict[str, str]] = [
        {"role": "user", "content": episode.scenario.observation}
    ]
    for i, step in enumerate(episode.steps):
        thought = thoughts[i] if i < len(thoughts) else ""
        conversations.append({"role": "assistant", "content": react(thought, step.action)})
        conversations.append({"role": "user", "content": step.observation})
    return {
        "conversations": conversations,
        "item_id": episode.scenario.id,
        "reward": 1.0 if episode.success else 0.0,
        "success": int(episode.success),
    }


def chat_of_rollout(row: Mapping[str, Any], context: str) -> tuple[Message, ...]:
    """Turns a rollout into a training chat: thoughts go, the context comes, success is marked.

    Args:
        row: With ``conversations`` (roles as in chats, or AgentGym's ``from``/``value``) and
            ``reward``; an instruction and its acknowledgement before the first observation are
            skipped.
        context: The system message of the same scenario.

    Raises:
        DataError: The conversation does not alternate.
    """
    turns = [_turn(turn) for turn in row["conversations"]]
    if len(turns) > 2 and turns[0].role == "user" and not _has_action(turns[1].content):
        turns = turns[2:]
    actions, observations = turns[1::2], turns[2::2]
    if any(t.role != "assistant" for t in actions) or any(t.role != "user" for t in observations):
        raise DataError(f"rollout {row.get('item_id')}: roles must alternate user, assistant, ...")
    chat = [Message("system", context)]
    for action, observation in zip(actions, observations, strict=False):
        chat += (
            Message("user", parse_action(action.content)),
            Message("assistant", observation.content),
        )
    if len(chat) > 1 and row.get("reward") in _SOLVED:
        chat[-1] = Message("assistant", chat[-1].content + SUCCESS_MARKER)
    return tuple(chat)


def replay_record(imagined: Episode, real: Episode) -> dict[str, Any]:
    """Returns a ``valid_on_real_env`` record: an imagined episode and its replay, step by step."""
    return {
        "conversation": [
            {
                "react": react("", step.action),
                "world_model_observation": step.observation,
                "env_observation": actual.observation.split(_COMMANDS, 1)[0],
            }
            for step, actual in zip(imagined.steps, real.steps, strict=False)
        ],
        "item_id": imagined.scenario.id,
        "world_model_success": int(imagined.success),
        "reward": 1.0 if real.success else 0.0,
        "success": int(real.success),
    }


def _has_action(text: str) -> bool:
    return bool(parse_action(text))


def _turn(turn: Mapping[str, Any]) -> Message:
    role = turn.get("role") or {"human": "user", "gpt": "assistant"}.get(str(turn.get("from")))
    content = turn.get("content", turn.get("value"))
    if role not in _ROLES or not isinstance(content, str):
        raise DataError(f"not a chat turn: {dict(turn)!r:.120}; expected role and content")
    return Message(cast(Role, role), content)


def _messages(row: Any, where: str) -> list[Message]:
    if not isinstance(row, Mapping) or not isinstance(row.get("messages"), list):
        raise DataError(f"{where}: expected a field 'messages' with a list of chat turns")
    chat = [_turn(turn) for turn in row["messages"]]
    expected = ["system"] + ["user", "assistant"] * (len(chat) // 2)
    if [message.role for message in chat] != expected:
        raise DataError(
            f"{where}: expected system, user, assistant, ..., assistant; got "
            f"{', '.join(m.role for m in chat)[:120]}"
        )
    return chat


def _as_dicts(chat: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in chat]


def _read_list(file: Path) -> list[Any]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); is the file complete?") from error
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a JSON list, got {type(rows).__name__}")
    return rows


def _write(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    temporary.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    temporary.replace(target)

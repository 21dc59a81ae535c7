"""What stands beside a trained model's weights."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from filelock import FileLock, Timeout

from gym_llmworld.checkpoints import CARD_FILE
from gym_llmworld.errors import DataError
from training.config import AGENT, SCRATCH, Config
from training.data import Conversations, PromptStyles, shares
from training.exact_match import TurnMatch
from training.heldout import Scores

LOCK_FILE = ".lock"


class _Writes(Protocol):
    @property
    def output(self) -> Path: ...


_C = TypeVar("_C", bound=_Writes)
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Card:
    """What is known about a model: ``llmworld.json`` for programs, ``README.md`` for people.

    Attributes:
        config: The run.
        command: As typed.
        data: What it was trained on.
        parameters: Number of weights.
        log: The run's JSON Lines log.
    """

    config: Config
    command: str
    data: Conversations
    parameters: int
    log: Path

    def write(self, folder: Path, final: Scores | None = None) -> None:
        """Writes both files into a checkpoint folder; ``final`` is the last evaluation."""
        worlds = self.data.worlds
        card = {
            "format": 1,
            "world": worlds[0] if len(worlds) == 1 else None,
            "worlds": list(worlds),
            **self._role(),
            "base": None if self.config.model == SCRATCH else self.config.model,
            "parameters": self.parameters,
            "exact_match": None if final is None else final.as_row(),
        }
        write_atomically(folder / CARD_FILE, card)
        (folder / "README.md").write_text(self._text(final), encoding="utf-8")

    def _role(self) -> dict[str, Any]:
        if self.config.role == AGENT:
            return {"role": AGENT, "agent_style": self.config.agent_style}
        styles = PromptStyles.parse(self.config.prompt_style)
        return {"prompt_style": styles.for_card(self.data.worlds)}

    def _text(self, final: Scores | None) -> str:
        worlds = ", ".join(self.data.worlds) or "Word2World files"
        base = "random weights" if self.config.model == SCRATCH else self.config.model
        if self.config.model == SCRATCH and self.config.recall_init:
            base = "random weights with look-up heads written into layers 1 and 2"
        size = f"{self.parameters / 1e6:.2f}M parameters"
        title, purpose, style = self._titles()
        parts = [
            f"---\ntags:\n- {title.lower().replace(' ', '-')}\n- gym-llmworld\n"
            "pipeline_tag: text-generation\n---",
            f"# {title}: {worlds}",
            f"{purpose} Made with gym-llmworld's `training/sft.py`.",
            f"- Size: {size}, from {base}\n"
            f"- Prompt style: `{style}`\n"
            f"- Training data: {len(self.data.chats)} episodes from {self.data.scenarios} "
            f"scenarios ({_sources(self.config)}{_kept(self.config)})\n"
            f"- Held-out data: {_names(self.config.eval_data)}\n"
            f"- Code: revision {_revision()}; Python {platform.python_version()}, torch "
            f"{torch.__version__}\n"
            f"- Command: `{self.command}`",
        ]
        if final is not None:
            parts += [f"## {self._measure()} on held-out episodes", _final_table(final)]
        parts += ["## Curve", _curve_table(self.log)]
        return "\n\n".join(parts) + "\n"

    def _titles(self) -> tuple[str, str, str]:
        """Returns what the model is, what it does, and in which style."""
        if self.config.role == AGENT:
            does = (
                "Chooses the next action in a text environment, given its observations (user) and "
                "the actions so far (assistant)."
            )
            return "Agent", does, self.config.agent_style
        does = (
            "Predicts the next observation of a text environment from its initial context "
            "(system), the actions (user) and the observations so far (assistant)."
        )
        return "World model", does, self.config.prompt_style

    def _measure(self) -> str:
        return "Action exact match" if self.config.role == AGENT else "Exact match"


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files) or "none"


def _sources(config: Config) -> str:
    parts = shares(config.sources)
    if parts is None:
        return _names([source.path for source in config.sources])
    return ", ".join(
        f"{source.path.name}: {share:.0%} of the sampled episodes"
        for source, share in zip(config.sources, parts, strict=True)
    )


def _kept(config: Config) -> str:
    success = "; solved ones only" if config.only_success else ""
    return success + (f"; only of {config.only_agents}" if config.only_agents else "")


def _final_table(final: Scores) -> str:
    columns = {"": final.all}
    if len(final.by_world) > 1:
        columns = {"all worlds": final.all, **final.by_world}
    titles = [f"{title} {name}".strip() for name in columns for title in ("n", "exact match")]
    rows = ["| turns | " + " | ".join(titles) + " |", "|---" * (1 + len(titles)) + "|"]
    for kind in TurnMatch.__slots__:
        rates = [getattr(match, kind) for match in columns.values()]
        shown = " | ".join(f"{rate.n} | {_share(rate.value, 4)}" for rate in rates)
        rows.append(f"| {kind} | {shown} |")
    return "\n".join(rows)


def _curve_table(log: Path) -> str:
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    points = [point for point in map(json.loads, lines) if "em_all" in point]
    worlds = sorted({world for point in points for world in point.get("worlds", {})})
    names = ["step", "minutes", "all", "changed", "lookup", "ending", *worlds]
    rows = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for point in points:
        values = [point[f"em_{k}"] for k in ("all", "changed", "lookup", "ending")]
        values += [point.get("worlds", {}).get(world, {}).get("em_all") for world in worlds]
        shown = " | ".join(_share(value, 3) for value in values)
        rows.append(f"| {point['step']} | {point['minutes']:.1f} | {shown} |")
    return "\n".join(rows)


def _share(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _revision() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def claim(
    file: Path,
    settings: Mapping[str, Any],
    *,
    holds: str = "a run",
    defaults: Mapping[str, Any] | None = None,
    exactly: bool = False,
) -> None:
    """Makes the folder of ``file`` one of these settings only; writes them on first use.

    Args:
        file: JSON with the settings.
        settings: What results depend on.
        holds: What lies in the folder, for messages.
        defaults: Of settings that an older file may lack.
        exactly: Refuse a file with further settings, too.

    Raises:
        DataError: The folder has other settings.
    """
    wanted = json.loads(json.dumps(settings, default=str))
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, wanted)
        return
    before = {**(defaults or {}), **json.loads(file.read_text(encoding="utf-8"))}
    for name in {**before, **wanted} if exactly else wanted:
        if before.get(name) != wanted.get(name):
            raise DataError(
                f"{file.parent} holds {holds} with {name} {before.get(name)!r}, now it is "
                f"{wanted.get(name)!r}; pass another --output, or delete that folder"
            )


def alone(run: Callable[Concatenate[_C, _P], _T]) -> Callable[Concatenate[_C, _P], _T]:
    """Decorates what writes into ``config.output``, its first argument: one process at a time.

    The operating system opens the folder again when a process ends, however it ends. Of a
    distributed run the first process keeps the others out.

    Raises:
        DataError: Another process has the folder.
    """

    @functools.wraps(run)
    def locked(config: _C, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if int(os.environ.get("RANK", "0")):
            return run(config, *args, **kwargs)
        config.output.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(config.output / LOCK_FILE, blocking=False).acquire()
        except Timeout as error:
            raise DataError(
                f"{config.output} is being written by another process; expected one run per "
                "folder. Wait for it to end, or pass another --output"
            ) from error
        with lock:
            return run(config, *args, **kwargs)

    return locked


def write_atomically(file: Path, value: Any) -> None:
    """Writes a JSON file; a reader never sees half of it."""
    draft = file.with_name(file.name + ".part")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, file)

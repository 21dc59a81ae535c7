"""What the commands share: where they print, how they show progress, how errors end them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from gym_llmworld.errors import WorldModelError

console = Console(highlight=False, soft_wrap=True)
messages = Console(stderr=True, highlight=False, soft_wrap=True)

EXIT_ERROR = 2
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Commands(TyperGroup):
    """A command group whose expected errors end with one line and exit status 2.

    Expected are the package's own errors, Gymnasium's (an unknown id, ...), those of the file
    system and values that do not fit. With ``--debug`` they keep their traceback. Warnings take one
    line each, too: which line of which module gave them tells a user nothing.
    """

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except (WorldModelError, gym.error.Error, OSError, ValueError) as error:
            if ctx.params.get("debug"):
                raise
            _note(type(error).__name__, str(error), "bold red")
            raise typer.Exit(EXIT_ERROR) from error


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    _note(category.__name__, str(message), "yellow")


def _note(name: str, text: str, style: str) -> None:
    messages.print(Text.assemble((f"{name}: ", style), _harmless(" ".join(text.split()))))


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar on stderr; yields the function that is told ``(done, total)``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (
        "[progress.description]{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON file; a reader never sees half of it.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def say(text: str, style: str = "") -> None:
    """Prints text that may be a model's: no markup is read, no control character passes."""
    console.print(Text(_harmless(text), style=style))


def _harmless(text: str) -> str:
    return _CONTROL_CHARACTERS.sub("\ufffd", text)

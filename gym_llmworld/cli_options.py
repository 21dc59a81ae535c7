"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EnvId = Annotated[str, typer.Argument(metavar="ID", help="For example LLMWorld-ALFWorld-v0.")]
WorldKey = Annotated[str, typer.Argument(metavar="WORLD", help="For example alfworld.")]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="World model: folder, hub id, server URL, 'scripted:module:function'. "
        "Default: the embedded one.",
        show_default=False,
    ),
]
BackendName = Annotated[str, typer.Option("--backend", help="Who runs the model.")]
PromptStyle = Annotated[
    str | None,
    typer.Option(
        help="How the world's start is worded for the model. Default: as its llmworld.json says.",
        show_default=False,
    ),
]
Games = Annotated[
    str | None,
    typer.Option(
        help="Folder made by 'llmworld games'. Default: the games that ship with the package.",
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(help="Which games. Default: all but the training split.", show_default=False),
]
Seed = Annotated[int, typer.Option(help="Same seed, same games, same agents.")]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Step limit of an episode. Default: the world's, and half more than the game's known "
        "solution takes where that is longer.",
        show_default=False,
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the figures here.", show_default=False)
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", help="Write the report here.", show_default=False)
]
AgentStyle = Annotated[
    str | None,
    typer.Option(
        help="How llm: agents are asked: bare (for the action), reminded (the same, and told the "
        "task after every observation) or react (for thought and action). Default: "
        "as the model's llmworld.json says, react without one.",
        show_default=False,
    ),
]
AgentTemperature = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Of the answers of llm: agents. Default: 0, greedy; 1 where they play a game again "
        "and again.",
        show_default=False,
    ),
]

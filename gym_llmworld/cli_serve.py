"""``llmworld serve``: a world model behind an OpenAI-compatible server."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from gym_llmworld.checkpoints import checkpoint_style, embedded_model, read_card
from gym_llmworld.cli_output import console, say
from gym_llmworld.errors import CheckpointError, MissingDependency
from gym_llmworld.worlds import get_world, world_keys

SERVERS = ("auto", "vllm", "transformers")

_TRANSFORMERS_NEEDS = ("fastapi", "uvicorn", "openai", "pydantic")
_VLLM_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# As in process, see gym_llmworld.backends.vllm_engine: one process less, its messages stay on this
# machine, and no thread waits by spinning, which makes a shared machine several times slower.
_CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
}
_CPU_OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--block-size", "32"),
    *("--kv-cache-memory-bytes", str(2**30)),
)


@dataclass(frozen=True)
class Launch:
    """How a server is started, and how its clients name it.

    Attributes:
        command: Of the server.
        environment: Variables that it needs, where the user has not set them.
        world_id: Environment that the checkpoint was trained for; None when it does not say.
        options: Arguments of ``gym.make`` that reach it.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    world_id: str | None
    options: Mapping[str, object] = field(default_factory=dict)

    def gym_line(self) -> str:
        """Returns the Python line that plays in the served world."""
        world_id = self.world_id or "LLMWorld-...-v0"
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"env = gym.make({world_id!r}{options})"


def plan(
    model: str,
    *,
    server: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    more: Sequence[str] = (),
) -> Launch:
    """Decides how a checkpoint is served.

    Args:
        model: Checkpoint folder, hub id, or key of a world (its embedded model).
        server: ``"vllm"``, ``"transformers"``, or ``"auto"``: vLLM where it is installed.
        host: Address to listen on.
        port: Port to listen on.
        more: Further arguments of the server's own command line.

    Raises:
        ValueError: Unknown server.
        CheckpointError: The folder is no checkpoint, or the world ships no model.
        MissingDependency: No such server is installed.
    """
    if server not in SERVERS:
        raise ValueError(f"server must be one of {', '.join(SERVERS)}, got {server!r}")
    checkpoint = _checkpoint(model)
    card = read_card(checkpoint)
    # Of a model of several worlds the printed line shows one, as an example.
    world = card.get("world") or next(iter(card.get("worlds", ())), "")
    style = checkpoint_style(checkpoint, world)
    options: dict[str, object] = {"model": _url(host, port), "prompt_style": style}
    if _installed(server) == "vllm":
        command, environment = _vllm(checkpoint, _served_name(model, style))
    else:
        command, environment = _transformers(checkpoint)
        # It lists the hub's models instead of the one that it serves.
        options["backend_options"] = {"served_model": checkpoint}
    place = ("--host", host, "--port", str(port))
    world_id = get_world(world).imagined_id if world in world_keys() else None
    return Launch([*command, *place, *more], environment, world_id, options)


def serve(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder, hub id, or a world (its embedded model).")
    ],
    server: Annotated[
        str, typer.Option(help="auto (vLLM where it is installed), vllm or transformers.")
    ] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    more: Annotated[
        list[str] | None,
        typer.Argument(help="After '--': further arguments of the server itself.", metavar="..."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the command, start nothing.")
    ] = False,
) -> None:
    """Serve a world model to many programs or machines, until Ctrl-C.

    Needs vLLM (`pip install 'gym-llmworld[vllm]'`) or, slower, `pip install
    'transformers[serving]'`. The line that plays in the served world is printed first.

    Examples: `llmworld serve alfworld`, `llmworld serve runs/mine --port 9000 -- --max-num-seqs
    512`
    """
    launch = plan(model, server=server, host=host, port=port, more=more or ())
    shown = [f"{name}={value}" for name, value in launch.environment.items()]
    say("$ " + shlex.join([*shown, *launch.command]), "dim")
    say("As soon as it has loaded:")
    say(f"  {launch.gym_line()}", "bold")
    if dry_run:
        return
    console.file.flush()
    environment = {**launch.environment, **os.environ}
    # The server takes this process's place: signals and the exit status are its own.
    os.execve(launch.command[0], list(launch.command), environment)


def _checkpoint(model: str) -> str:
    if model in world_keys():
        return embedded_model(model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} has no config.json: expected a checkpoint folder (config.json, "
                "safetensors weights, tokenizer, chat template)"
            )
        return str(folder.resolve())
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise CheckpointError(
            f"model={model!r}: expected a checkpoint folder, a hub id 'owner/name', or a world: "
            f"{', '.join(world_keys())}"
        )
    return model


def _installed(server: str) -> Literal["vllm", "transformers"]:
    if server in ("auto", "vllm") and importlib.util.find_spec("vllm") is not None:
        return "vllm"
    if server == "vllm":
        raise MissingDependency("vllm", "vllm")
    missing = [
        package
        for package in ("transformers", *_TRANSFORMERS_NEEDS)
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise MissingDependency(missing[0], "serve")
    return "transformers"


def _served_name(model: str, style: str) -> str:
    """Returns the name that vLLM serves a checkpoint under: clients can read the style off it."""
    return f"{Path(model).name if Path(model).is_dir() else model}@{style}"


def _vllm(checkpoint: str, name: str) -> tuple[list[str], dict[str, str]]:
    # The CPU builds are distributed as vllm-cpu, where vLLM's command line does not find itself.
    own_name = _is_distributed("vllm")
    start = (
        ("cli.main", "serve", checkpoint)
        if own_name
        else ("openai.api_server", "--model", checkpoint)
    )
    command = [
        *(sys.executable, "-m", f"vllm.entrypoints.{start[0]}", *start[1:]),
        *("--served-model-name", name),
        *("--load-format", "safetensors"),  # no pickles
        *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
    ]
    environment = dict(_VLLM_ENVIRONMENT)
    if not _has_cuda():
        command += _CPU_OPTIONS
        environment |= _CPU_ENVIRONMENT
    return command, environment


def _transformers(checkpoint: str) -> tuple[list[str], dict[str, str]]:
    start = "from transformers.cli.transformers import main; main()"
    return [sys.executable, "-c", start, "serve", checkpoint], {}


def _url(host: str, port: int) -> str:
    # A wildcard is where a server listens, not where it is.
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}/v1"


def _is_distributed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _has_cuda() -> bool:
    return bool(importlib.import_module("torch").cuda.is_available())

"""What is installed, what is missing, and the command that fixes it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from gym_llmworld.errors import EngineError, MissingDependency, WorldModelError

Status = Literal["ok", "missing", "broken", "optional"]

MINIMUM_PYTHON = (3, 11)
# import name, distribution, extra that installs it (None: the package itself needs it), what for
_PACKAGES: tuple[tuple[str, str, str | None, str], ...] = (
    ("gymnasium", "gymnasium", None, "the environments"),
    ("numpy", "numpy", None, "the environments"),
    ("typer", "typer", None, "this command line"),
    ("rich", "rich", None, "this command line"),
    ("torch", "torch", "hf", "world models in this process"),
    ("transformers", "transformers", "hf", "world models in this process"),
    ("safetensors", "safetensors", "hf", "world models in this process"),
    ("vllm", "vllm", "vllm", "serving large world models: vllm serve, then model=URL"),
    ("llama_cpp", "llama-cpp-python", "llamacpp", "one world at a time: backend='llamacpp'"),
    ("httpx", "httpx", "openai", "world models behind a server"),
    ("alfworld", "alfworld", "alfworld", "the real ALFWorld"),
    ("textworld", "textworld", "textworld", "the real TextWorld, and ALFWorld's engine"),
    ("scienceworld", "scienceworld", "scienceworld", "the real ScienceWorld"),
    ("bm25s", "bm25s", "webshop", "the bundled WebShop"),
    ("Stemmer", "PyStemmer", "webshop", "the bundled WebShop"),
    ("rapidfuzz", "rapidfuzz", "webshop", "the bundled WebShop"),
    ("playwright", "playwright", "web", "the real MiniWoB"),
    ("miniwob", "miniwob", "web", "the real MiniWoB"),
    ("trl", "trl", "train", "training world models"),
    ("peft", "peft", "train", "training world models"),
    ("datasets", "datasets", "train", "training world models"),
    ("matplotlib", "matplotlib", "viz", "figures"),
)
_DEFAULT_EXTRAS = ("hf",)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: ``"ok"``; ``"missing"`` or ``"broken"`` (the default path needs it); ``"optional"``
            (absent, and only some uses need it).
        detail: Version, place, or what it is for.
        fix: Command that repairs it; empty when there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Looks at interpreter, packages, accelerator, shipped data and machine.

    Nothing is changed and nothing is downloaded. torch is imported if it is installed.
    """
    return [
        _python(),
        *(_package(*row) for row in _PACKAGES),
        _browser(),
        _accelerator(),
        *_shipped_worlds(),
        *_machine(),
    ]


def healthy(findings: list[Finding]) -> bool:
    """Returns whether the default path (the embedded model) can run."""
    return all(finding.status in ("ok", "optional") for finding in findings)


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        return Finding("python", "broken", f"{version}; expected >= {wanted}", "make")
    return Finding("python", "ok", f"{version} on {platform.system()} {platform.machine()}")


def _package(module: str, distribution: str, extra: str | None, purpose: str) -> Finding:
    if importlib.util.find_spec(module) is not None:
        return Finding(distribution, "ok", f"{_version(distribution)}; {purpose}")
    what = f"gym-llmworld[{extra}]" if extra else "gym-llmworld"
    needed = extra is None or extra in _DEFAULT_EXTRAS
    return Finding(
        distribution, "missing" if needed else "optional", purpose, f"pip install '{what}'"
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown version"


def _browser() -> Finding:
    from gym_llmworld.real.miniwob_browser import INSTALL, browser_version, find_browser

    purpose = "the real MiniWoB"
    try:
        path = find_browser()
    except MissingDependency:
        return Finding("browser", "optional", f"no Chromium found; {purpose}", INSTALL)
    except EngineError as error:
        return Finding("browser", "optional", f"{purpose}: {error}", INSTALL)
    version = browser_version(path)
    if not version:
        return Finding(
            "browser", "optional", f"{path} does not say its version; {purpose}", INSTALL
        )
    return Finding("browser", "ok", f"{version} at {path}; {purpose}")


def _accelerator() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("accelerator", "optional", "unknown without torch")
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Finding("accelerator", "broken", f"torch: {error}", "pip install 'gym-llmworld[hf]'")
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding(
            "accelerator", "ok", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}"
        )
    return Finding("accelerator", "ok", "none; the embedded models run on the CPU")


def _shipped_worlds() -> Iterator[Finding]:
    from gym_llmworld.checkpoints import embedded_model
    from gym_llmworld.scenarios import ScenarioStore
    from gym_llmworld.worlds import get_world, world_keys

    for key in world_keys():
        world = get_world(key)
        title = world.title
        try:
            store = ScenarioStore(key)
            counts = {split: len(store.of_split(split)) for split in store.splits()}
            detail = ", ".join(f"{n} {split}" for split, n in counts.items())
            yield Finding(f"{title} scenarios", "ok", detail)
        except WorldModelError as error:
            yield Finding(f"{title} scenarios", "broken", str(error), "pip install -e .")
        if not world.embedded:
            yield Finding(f"{title} world model", "optional", "none ships; pass model=")
            continue
        try:
            embedded_model(key)
            yield Finding(f"{title} world model", "ok", "embedded")
        except WorldModelError as error:
            fix = "pass --model, or: python -m training.sft --help"
            yield Finding(f"{title} world model", "broken", str(error), fix)


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    yield Finding("processors", "ok", f"{cores}; OMP_NUM_THREADS {threads}")
    free = shutil.disk_usage(".").free / 2**30
    if free < 1:
        yield Finding("disk", "broken", f"{free:.1f} GiB free here", "make room")
    else:
        yield Finding("disk", "ok", f"{free:.0f} GiB free here")

"""Who writes the next observation.

`load_backend` is the only way in. Environments of one process that name the same model and options
share one engine: it is loaded once, and closed when the last of them is closed.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gym_llmworld.backends.base import Backend, BackendStats, Confirmer, Engine, Scorer
from gym_llmworld.backends.scripted import ScriptedBackend, load_script
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, CheckpointError, MissingDependency

__all__ = [
    "Backend",
    "BackendConfig",
    "BackendStats",
    "Confirmer",
    "Engine",
    "Scorer",
    "ScriptedBackend",
    "SharedBackend",
    "load_backend",
]

BACKENDS = ("auto", "hf", "llamacpp", "openai", "scripted", "vllm")
_SCRIPTED = "scripted:"
_URL = ("http://", "https://")
_HUB_ID = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")
_CHECKPOINTS_FOLDER = "runs"
"""Where this project's training programs write."""
_FORMS = (
    "a checkpoint folder, a Hugging Face hub id ('owner/name'), the URL of an OpenAI-compatible "
    "server ('http://host:8000/v1') or 'scripted:module:function'"
)


@dataclass(frozen=True)
class BackendConfig:
    """What identifies an engine within a process, and rebuilds it in another one.

    Attributes:
        model: A folder is absolute.
        backend: ``"hf"``, ``"llamacpp"``, ``"openai"``, ``"scripted"`` or ``"vllm"``, never
            ``"auto"``.
        options: Keyword arguments of the backend, sorted by name.
    """

    model: str
    backend: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def resolve(cls, model: str, backend: str = "auto", **options: Any) -> BackendConfig:
        """Decides who serves a model.

        Raises:
            ValueError: Unknown backend, or a form of ``model`` that it cannot serve.
            CheckpointError: ``model`` is a path, and there is no folder.
        """
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        kind = _kind(model)
        if kind == "hf" and backend in ("llamacpp", "vllm"):
            kind = backend
        if backend not in ("auto", kind):
            # Without the model: a URL may carry a password.
            raise ValueError(f"backend={backend!r} cannot serve this model; {kind!r} can")
        if kind in ("hf", "llamacpp", "vllm"):
            model = _place(model)
        return cls(model, kind, tuple(sorted(options.items())))


class SharedBackend:
    """One engine for all who name the same configuration.

    Every `load_backend` and every deep copy holds one reference, every `close` gives one back, and
    the last one frees the engine. Used again after that, it loads the engine again. Pickled, it
    becomes the shared engine of the process that unpickles it.

    Attributes:
        config: What it is shared by.
        name: Of the engine.
        max_context: Of the engine, in tokens.
    """

    def __init__(self, config: BackendConfig) -> None:
        self.config = config
        self.name = config.model
        self.max_context: int | None = None
        self._engine: Engine | None = None
        self._references = 0
        self._lock = threading.RLock()

    @property
    def engine(self) -> Engine:
        """The engine itself, loaded if need be; a `Scorer` where the backend can score."""
        with self._lock:
            if self._engine is None:
                self._engine = _load(self.config)
                self.name = self._engine.name
                self.max_context = self._engine.max_context
            return self._engine

    @property
    def stats(self) -> BackendStats:
        """What the engine has done since it was loaded."""
        return self.engine.stats

    def acquire(self) -> SharedBackend:
        """Adds a reference, and loads the engine for the first one.

        Raises:
            CheckpointError: The model cannot serve as a world model.
            MissingDependency: The backend needs an extra that is not installed.
        """
        with self._lock:
            _ = self.engine
            self._references += 1
        return self

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        """See `Backend.generate`."""
        return self.engine.generate(chats, samplings)

    def close(self) -> None:
        """Gives one reference back."""
        with self._lock:
            self._references = max(0, self._references - 1)
            if self._references == 0 and self._engine is not None:
                self._engine.close()
                self._engine = None

    def __deepcopy__(self, memo: dict[int, object]) -> SharedBackend:
        """A copied environment shares the engine, and closes its own reference."""
        return self.acquire()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process shares its own engine."""
        return (_acquire, (self.config,))


_SHARED: dict[BackendConfig, SharedBackend] = {}
_SHARED_LOCK = threading.Lock()


def load_backend(model: str, backend: str = "auto", **options: Any) -> SharedBackend:
    """Returns the process's engine for a model, loading it if this is its first user.

    Args:
        model: A checkpoint folder, a Hugging Face hub id, the URL of an OpenAI-compatible server,
            or ``"scripted:module:function"``.
        backend: ``"auto"``, or the backend that must serve it: ``"hf"``, ``"openai"``,
            ``"scripted"``; ``"vllm"`` and ``"llamacpp"`` take what ``"hf"`` does, and only when
            asked for.
        **options: Keyword arguments of the backend (`gym_llmworld.backends.hf.HFBackend`,
            `gym_llmworld.backends.openai_server.OpenAIBackend`,
            `gym_llmworld.backends.vllm_engine.VLLMBackend`,
            `gym_llmworld.backends.llamacpp.LlamaCppBackend`); plain values, because engines are
            shared by them.

    Raises:
        ValueError: Unknown backend, or a form of ``model`` that no backend serves.
        TypeError: An option that the backend does not have.
        CheckpointError: The model cannot serve as a world model; the message says what is missing.
        MissingDependency: The backend needs an extra that is not installed.
    """
    return _acquire(BackendConfig.resolve(model, backend, **options))


def _acquire(config: BackendConfig) -> SharedBackend:
    with _SHARED_LOCK:
        shared = _SHARED.setdefault(config, SharedBackend(config))
    return shared.acquire()


def _kind(model: object) -> str:
    if not isinstance(model, str):
        raise ValueError(
            f"model must be one str, got {type(model).__name__}: all worlds of an environment "
            f"share it; expected {_FORMS}"
        )
    if model.startswith(_SCRIPTED):
        return "scripted"
    if model.startswith(_URL):
        return "openai"
    if not model or "://" in model:
        raise ValueError(f"model={model!r}: expected {_FORMS}")
    return "hf"


def _place(model: str) -> str:
    """Returns the folder of a checkpoint, absolute, or the hub id.

    Raises:
        CheckpointError: It can only be meant as a path, and there is no such folder. Said here, and
            not by the hub, which would first be asked over the network.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    parent = folder.parent
    inside = parent != Path() and (parent.is_dir() or str(parent) == _CHECKPOINTS_FOLDER)
    if _HUB_ID.fullmatch(model) and not inside and not folder.exists():
        return model
    siblings = parent.iterdir() if parent.is_dir() else ()
    near = difflib.get_close_matches(folder.name, [s.name for s in siblings if s.is_dir()], n=1)
    hint = f" (did you mean {str(parent / near[0])!r}?)" if near else ""
    raise CheckpointError(f"model={model!r}: no checkpoint folder there{hint}; expected {_FORMS}")


def _load(config: BackendConfig) -> Engine:
    options = dict(config.options)
    if config.backend == "openai":
        from gym_llmworld.backends.openai_server import OpenAIBackend

        return OpenAIBackend(config.model, **options)
    if config.backend == "scripted":
        if options:
            raise TypeError(f"backend 'scripted' takes no option, got {sorted(options)[0]!r}")
        return load_script(config.model.removeprefix(_SCRIPTED))
    if config.backend == "vllm":
        from gym_llmworld.backends.vllm_engine import VLLMBackend

        return VLLMBackend(config.model, **options)
    if config.backend == "llamacpp":
        if importlib.util.find_spec("llama_cpp") is None:
            raise MissingDependency("llama_cpp", "llamacpp")
        from gym_llmworld.backends.llamacpp import LlamaCppBackend

        return LlamaCppBackend(config.model, **options)
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, "hf")
    from gym_llmworld.backends.hf import HFBackend

    return HFBackend(config.model, **options)

"""The exception tree.

``WorldModelError``
    ``BackendError``            a model or server could not answer
        ``ContextOverflow``     the conversation no longer fits the model's context
    ``CheckpointError``         a checkpoint cannot be used as a world model
    ``ScenarioError``           an unknown or malformed scenario, game or split
    ``EngineError``             a real engine failed or cannot start
    ``DataError``               a file does not hold what it should
``MissingDependency``           an optional package is not installed (also an ``ImportError``)

A bad *prediction* is never an exception: it is data, see `gym_llmworld.protocol.ParseStatus`.
"""

from __future__ import annotations


class WorldModelError(Exception):
    """Base class of the package's own errors."""


class BackendError(WorldModelError):
    """A backend could not produce a completion."""


class ContextOverflow(BackendError):
    """A conversation does not fit into the model's context."""


class CheckpointError(WorldModelError):
    """A checkpoint cannot serve as a world model; the message says what is missing."""


class ScenarioError(WorldModelError, ValueError):
    """A scenario, split or game does not exist or cannot be read."""


class EngineError(WorldModelError):
    """A real engine could not start, or failed while it ran."""


class DataError(WorldModelError, ValueError):
    """A data file does not follow its schema; the message names file, line and field."""


class MissingDependency(WorldModelError, ImportError):
    """An optional dependency is missing.

    Args:
        package: What could not be imported.
        extra: The extra of this package that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package!r} is not installed. Install it with: pip install 'gym-llmworld[{extra}]'"
        )
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingDependency], tuple[str, str]]:
        """Keeps the error picklable, so that a worker process can send it."""
        return (type(self), (self.package, self.extra))

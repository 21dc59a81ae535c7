"""`FreeText`: the space of all strings up to a length.

Gymnasium's `Text` enumerates its characters: ordinary English punctuation is outside its default
charset, and a charset that holds all of Unicode costs 46 MB in a pickle. Text worlds need neither.
"""

from __future__ import annotations

import string
from typing import Any

from gymnasium import spaces
from gymnasium.error import CustomSpaceError
from gymnasium.vector.utils import create_shared_memory


class FreeText(spaces.Text):
    """All strings of at most ``max_length`` characters.

    ``contains`` looks at type and length only. ``sample`` returns a short printable ASCII string,
    so that a random agent does not send kilobytes of noise to a model.

    Args:
        max_length: In characters, inclusive.
        seed: For ``sample``.
    """

    _SAMPLE_LENGTH = 24

    def __init__(self, max_length: int, *, seed: int | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=string.printable, seed=seed)

    def contains(self, x: Any) -> bool:
        """Returns True for any ``str`` of at most ``max_length`` characters."""
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draws a short string; ``mask`` and ``probability`` work as in `gymnasium.spaces.Text`."""
        if mask is not None or probability is not None:
            return super().sample(mask=mask, probability=probability)
        length = int(self.np_random.integers(0, min(self._SAMPLE_LENGTH, self.max_length) + 1))
        letters = self.np_random.choice(list(string.ascii_lowercase + string.digits + " "), length)
        return "".join(letters)

    def __repr__(self) -> str:
        return f"FreeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FreeText) and other.max_length == self.max_length

    def __hash__(self) -> int:
        return hash((FreeText, self.max_length))


@create_shared_memory.register(FreeText)
def _refuse_shared_memory(space: FreeText, n: int = 1, ctx: Any = None) -> Any:
    # Gymnasium 1.4 reads Text from shared memory once and then returns that first value for ever;
    # a loud refusal is better than silent garbage.
    raise CustomSpaceError(
        "Text cannot be shared through memory: AsyncVectorEnv would return stale strings. "
        "Use gym.make_vec(id, num_envs) (one batched model call per step), or "
        "AsyncVectorEnv(..., shared_memory=False)."
    )

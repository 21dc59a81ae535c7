"""FreeText against what Gymnasium expects of a space."""

from __future__ import annotations

import copy
import pickle

import pytest
from gymnasium.vector.utils import batch_space

from gym_llmworld.spaces import FreeText


def test_contains_looks_at_type_and_length_only() -> None:
    space = FreeText(10)
    assert all(space.contains(text) for text in ["", "café “x”", "a.\n", "0123456789"])
    assert not any(space.contains(x) for x in ["0123456789a", 3, None, b"bytes"])


def test_samples_are_short_members_and_seeded() -> None:
    space = FreeText(1000, seed=1)
    samples = [space.sample() for _ in range(50)]
    assert all(space.contains(s) and len(s) <= 24 for s in samples)
    again = FreeText(1000, seed=1)
    assert samples == [again.sample() for _ in range(50)]


def test_equality_copies_and_batches() -> None:
    space = FreeText(10)
    assert space == copy.deepcopy(space) == pickle.loads(pickle.dumps(space)) != FreeText(11)
    assert len(pickle.dumps(space)) < 20_000
    assert batch_space(space, 3).contains(("a", "é", ""))


def test_length_must_be_a_number() -> None:
    with pytest.raises(TypeError):
        FreeText("10")  # type: ignore[arg-type]

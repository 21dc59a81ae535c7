"""Programs that fit world models to real episodes; run from a clone, not part of the wheel."""

"""The mirrored environments themselves, each imported on demand."""

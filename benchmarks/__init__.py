"""Programs that measure: ``python -m benchmarks.worlds --help``; see README.md here."""

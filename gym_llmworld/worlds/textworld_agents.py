"""placeholder."""
TEXTWORLD_AGENTS = {}

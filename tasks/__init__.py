"""Tasks: prompts, stop strings and checkers; importing one does no work."""

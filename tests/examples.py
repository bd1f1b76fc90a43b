"""How many examples a property is tried with: two fifths of its number, or all with ``pytest
--hypothesis-profile thorough``."""

from __future__ import annotations

from hypothesis import settings

PROFILES = {"any machine": 40, "thorough": 100}
"""Examples of a property that asks for no number, by profile; others have as many of a hundred of theirs."""


def examples(number):
    """``number`` examples when it is thorough, by default fewer."""
    return settings(max_examples=number * settings().max_examples // PROFILES["thorough"])

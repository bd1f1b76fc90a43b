"""Estimates from verdicts, answers and log-probabilities: what they are, and how far they may be off."""

"""Byte-level vocabularies, as GPT-2's: their tokens are written in letters that stand for bytes."""

from __future__ import annotations


def bytes_of_letters() -> dict[str, int]:
    """Which byte a letter stands for in byte-level vocabularies; for unprintable ones, those from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}

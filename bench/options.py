"""Values on the benches' command lines: what is wrong with one is said before anything is measured.

Knows no bench.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

from llama.files import require_place


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def fraction(text: str) -> float:
    """A number above 0, up to 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise ArgumentTypeError(f"{text!r} is no number above 0, up to 1")
    return number


def place(text: str) -> Path:
    """A file that can be written."""
    try:
        require_place(Path(text))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return Path(text)


def folder(text: str) -> Path:
    """A directory that is there."""
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text!r} is no directory")
    return Path(text)

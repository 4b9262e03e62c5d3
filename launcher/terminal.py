"""The only way to the terminal: names and messages come from files and from user code, and must not steer it."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """The text without control characters, which could move a terminal's cursor or change its colours."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def say(text: str) -> None:
    """For people: on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """What is wrong, for people: one line, whatever the text was."""
    say(" ".join(text.split()))


def answer(text: str) -> None:
    """For people and scripts: on stdout."""
    print(printable(text))

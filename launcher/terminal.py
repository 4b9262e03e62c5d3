"""The only way to the terminal: names and messages come from files and from user code, and must not steer it."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """The text in one line, without control characters: they could move a cursor, or make a line that is not ours."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(line: str) -> None:
    """For people: one line on stderr."""
    print(printable(line), file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """What is wrong, for people: one line, whatever the text was."""
    say(" ".join(text.split()))


def answer(line: str) -> None:
    """For people and scripts: one line on stdout."""
    print(printable(line))


def answer_lines(text: str) -> None:
    """The same for a text that has lines of its own."""
    for line in text.removesuffix("\n").split("\n"):
        answer(line)

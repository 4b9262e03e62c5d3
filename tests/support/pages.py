"""What the README and the docs tell people to type."""

from __future__ import annotations

import re
from pathlib import Path

from support.runs_for_tests import REPOSITORY

README = REPOSITORY / "README.md"
FIRST_RUN = REPOSITORY / "docs/first-run.md"
RECIPES = REPOSITORY / "docs/recipes.md"


def commands_of(page: Path) -> list[str]:
    """The lines of the page's `sh` and `console` blocks that a reader would type."""
    blocks = re.findall(r"```(sh|console)\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line for kind, text in blocks for line in text.splitlines() if kind == "sh" or line.startswith("$ ")]
    return [line.removeprefix("$ ").strip() for line in lines if line.strip() and not line.startswith("#")]


def first_script_of(page: Path) -> str:
    """The first `python` block of the page."""
    found = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert found is not None
    return found[1]

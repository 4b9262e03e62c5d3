"""The real steps of `launch RECIPE --dry-run`, and what their speed says of the run."""

from __future__ import annotations

import argparse

from cluster.backend import Backend
from cluster.topology import Topology, local_gpu_count
from launcher import loading
from launcher.commands.estimate import known_of
from launcher.commands.refusals import known_gpu
from launcher.preflight.calibration import Scale, estimates, scale_of
from launcher.preflight.gpus import local_gpu
from launcher.preflight.steps import STEPS, real_steps
from launcher.preflight.verdict import Case
from launcher.recipe import Recipe
from launcher.targets import recipe_words
from launcher.terminal import say


def take_steps(arguments: argparse.Namespace, backend: Backend, topology: Topology) -> list[str]:
    """On one device of this machine; what was said. topology: of the run."""
    said: list[str] = []

    def tell(line: str) -> None:
        say(line)
        said.append(line)

    words = recipe_words(arguments.overrides)
    recipe = loading.load(arguments.recipe, words, laptop=False).recipe
    scale = _scale(recipe, topology, is_small=bool(arguments.laptop))
    tell(f"dry run: {STEPS} real steps of the recipe, on this machine and {scale}")
    speed = real_steps(arguments.recipe, words, scale, tell)
    case, known = Case(recipe=recipe, topology=topology), known_of(arguments, backend)
    for line in estimates(scale, speed, case, known_gpu(arguments, backend), known):
        tell(line)
    return said


def _scale(recipe: Recipe, topology: Topology, *, is_small: bool) -> Scale:
    if is_small or not topology.has_gpus:
        return Scale(is_real=False, gpu=None, reason="as --laptop says" if is_small else "the run has no GPU")
    return scale_of(recipe, local_gpu() if local_gpu_count() else None)

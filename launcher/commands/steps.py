"""The real steps of `launch RECIPE --dry-run`, and what their speed says of the run."""

from __future__ import annotations

import argparse

from cluster.topology import Topology, local_gpu_count
from launcher import loading
from launcher.commands.plan import known_of
from launcher.commands.refusals import known_gpu
from launcher.preflight.calibration import Scale, estimates, scale_of
from launcher.preflight.gpus import local_gpu
from launcher.preflight.steps import STEPS, real_steps
from launcher.preflight.verdict import Case
from launcher.recipe import Recipe
from launcher.targets import Target
from launcher.terminal import say


def take_steps(arguments: argparse.Namespace, target: Target, topology: Topology) -> None:
    """On one device of this machine. topology: of the run."""
    recipe = loading.load(arguments.recipe, target.words, laptop=False).recipe
    scale = _scale(recipe, topology, is_small=bool(arguments.laptop))
    say(f"dry run: {STEPS} real steps of the recipe, on this machine and {scale}")
    speed = real_steps(arguments.recipe, target.words, scale, say)
    case, known = Case(recipe=recipe, topology=topology), known_of(arguments, target.backend)
    for line in estimates(scale, speed, case, known_gpu(arguments), known):
        say(line)


def _scale(recipe: Recipe, topology: Topology, *, is_small: bool) -> Scale:
    if is_small or not topology.has_gpus:
        return Scale(is_real=False, gpu=None, reason="as --laptop says" if is_small else "the run has no GPU")
    return scale_of(recipe, local_gpu() if local_gpu_count() else None)

"""What one GPU of this machine can tell of a run: whether it holds the real size, and how much of its peak is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cluster.topology import Topology
from launcher.errors import UsageError
from launcher.plan import batch_size, make_plan
from launcher.preflight.duration import step_flops
from launcher.preflight.gpus import Gpu
from launcher.preflight.report import Known, make_report
from launcher.preflight.shape import NoShape, shape_of
from launcher.preflight.verdict import Case
from launcher.preflight.workload import workload
from launcher.recipe import Recipe

_ONE_GPU = Topology(nodes=1, ranks_per_node=1, has_gpus=True)
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Of the real steps of a dry run. is_real: the recipe as it is, a micro-batch a step; else with laptop overrides.

    gpu: that of this machine, if its kind is known. reason: in words.
    """

    is_real: bool
    gpu: Gpu | None
    reason: str

    def __str__(self) -> str:
        return f"{'at the real size' if self.is_real else 'at the scale of a laptop'} ({self.reason})"


def scale_of(recipe: Recipe, gpu: Gpu | None) -> Scale:
    """The real size where a GPU is known, and the formula says that it holds it."""
    if gpu is None:
        return Scale(is_real=False, gpu=None, reason="there is no GPU here whose kind is known")
    try:
        needed = Case(recipe=one_micro_batch(recipe), topology=_ONE_GPU).footprint(shape_of(recipe.model)).total
    except (NoShape, UsageError) as error:
        return Scale(is_real=False, gpu=gpu, reason=f"what the real size needs is not known: {error}")
    sizes = f"it needs {needed / _GIB:.1f} GiB of the {gpu.memory / _GIB:.1f} GiB of {gpu.name}"
    is_real = needed <= gpu.memory
    return Scale(is_real=is_real, gpu=gpu, reason=sizes if is_real else f"the real size does not fit: {sizes}")


def one_micro_batch(recipe: Recipe) -> Recipe:
    """With a global batch of one micro-batch, which does all that several do."""
    samples = min(batch_size(recipe), recipe.batch.micro)
    tokens = None if recipe.batch.tokens is None else samples * recipe.data.sequence_length
    size = samples if tokens is None else None
    return replace(recipe, batch=replace(recipe.batch, size=size, tokens=tokens, micro=samples))


def measured_mfu(recipe: Recipe, gpu: Gpu, tokens_per_second: float) -> float | None:
    """The share of the peak of one GPU that this many tokens per second are; None for a GPU of unknown speed.

    Raises NoShape.
    """
    if gpu.flops is None:
        return None
    recipe = one_micro_batch(recipe)
    work = workload(recipe, make_plan(recipe, _ONE_GPU, cores_per_node=1), shape_of(recipe.model))
    return tokens_per_second * step_flops(work, samples=1) / work.length / gpu.flops


def estimates(scale: Scale, tokens_per_second: float, case: Case, gpu: Gpu | None, known: Known) -> Iterator[str]:
    """What the speed of the real steps makes of time and cost. case, gpu: what the run is to have."""
    speed = f"speed      {tokens_per_second:,.0f} tokens/s"
    mfu = measured_mfu(case.recipe, scale.gpu, tokens_per_second) if scale.is_real and scale.gpu is not None else None
    if mfu is None or scale.gpu is None:
        yield f"{speed} {scale}: no MFU follows from that, and the estimates of --plan stay as they are"
        return
    yield f"{speed}: {mfu:.1%} of the peak of {scale.gpu.name} (MFU), measured on one GPU, padding excluded"
    if not case.topology.has_gpus or (gpu is not None and gpu.name != scale.gpu.name):
        yield "           that says nothing of the machines of this run; --mfu says what you know of them"
        return
    report = make_report(case, scale.gpu, replace(known, mfu=mfu))
    if case.topology.ranks > 1:
        yield f"           {case.topology} are supposed to do as much each, whatever they have to tell each other"
    yield from report.estimate_lines()

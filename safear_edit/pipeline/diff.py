"""Which edits explain the difference between two models, and what is left: `stack diff`, `stack blame`, `stack bisect`.

The weights are compared as they lie in the files; what a release says of its strengths is held against them. With D_e
the edits that either release holds, the difference B - A is fitted by sum c_e D_e over all tensors at once (least
squares); what is left beyond rounding was changed by something else: other training, or tampering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safear_edit import registry
from safear_edit.editor.stack import Layer, Stack
from safear_edit.errors import UsageError
from safear_edit.evaluate import stats
from safear_edit.evaluate.sampled import judges_of, request_of, sampling_of
from safear_edit.families.load import load_model
from safear_edit.files.layout import BASE, is_release
from safear_edit.files.weights import read_weights
from safear_edit.judges.draw import draw_and_judge
from safear_edit.progress import Callback, silent
from safear_edit.release.released import Released

if TYPE_CHECKING:
    from safear_edit.compiler.recipe import EvalPrompt, Recipe
    from safear_edit.families.base import ModelFamily

WHOLE = 1024
"""Of a matrix whose smaller side is no longer, every singular value is computed; else the SOME largest."""
SOME = 64

# -- diff -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Changed:
    """A tensor that differs. norm: of the difference; relative: to the first model's tensor; left: norm of what no
    edit explains, 0 where that is rounding; edits: names of those that change it."""

    tensor: str
    norm: float
    relative: float
    rank: int
    edits: tuple[str, ...]
    left: float


@dataclass(frozen=True)
class Part:
    """An edit in the difference. stated: the change of its strength as the releases say; found: as the weights have
    it, None where its tensors tell it from no other edit."""

    name: str
    edit: str
    stated: float
    found: float | None


@dataclass(frozen=True)
class Difference:
    """Two models by name. missing: tensors that only one has, or of other shapes."""

    models: tuple[str, str]
    changed: tuple[Changed, ...]
    parts: tuple[Part, ...]
    missing: tuple[str, ...]

    @property
    def unexplained(self) -> tuple[Changed, ...]:
        """What edits leave over, most first."""
        return tuple(sorted((one for one in self.changed if one.left), key=lambda one: -one.left))

    def lines(self) -> list[str]:
        """For a person."""
        lines = [f"{one.name} ({one.edit[:12]}): {_strengths(one)}" for one in self.parts]
        lines += [f"{name}: only in one of the models, or of another shape" for name in self.missing]
        if not self.changed and not self.missing:
            return [*lines, "the same weights"]
        if not self.unexplained:
            return [*lines, "the edits explain every difference in shared tensors, up to rounding"]
        names = ", ".join(f"{one.tensor} ({one.left:.3g} of {one.norm:.3g})" for one in self.unexplained[:5])
        count = len(self.unexplained)
        return [*lines, f"no edit explains {count} tensors: other training, or tampering: {names}{' …' * (count > 5)}"]


def _strengths(one: Part) -> str:
    found = "not told apart" if one.found is None else f"{one.found:+.3g}"
    return f"strength {one.stated:+.3g} as stated, {found} in the weights"


def diff(first: str, second: str, device: str = "cpu") -> Difference:
    """What changes from the model `first` to `second`: references, or folders; both lie in memory.

    UsageError for models of different families; TrustError for an edit that is not what its release says.
    """
    before, after = (load_model(name, device).net.state_dict() for name in (first, second))
    shared = [name for name, tensor in before.items() if name in after and after[name].shape == tensor.shape]
    if not shared:
        raise UsageError(f"stack diff {first} {second}", "two models of one shape", "others", "give another one")
    missing = tuple(sorted({*before, *after} - {*shared}))
    stacks = [_stack(name) for name in (first, second)]
    layers = {layer.edit.digest: layer for stack in stacks for layer in stack.layers}
    deltas = {name: after[name].float().cpu() - before[name].float().cpu() for name in shared}
    found = fitted(deltas, list(layers.values()))
    strengths = [{layer.edit.digest: layer.strength for layer in stack.layers} for stack in stacks]
    stated = {digest: strengths[1].get(digest, 0.0) - strengths[0].get(digest, 0.0) for digest in layers}
    edits, told = list(layers.values()), (stated, found)
    changed = [_changed(name, before[name], deltas[name], told, edits, _rounding(after[name])) for name in shared]
    parts = tuple(Part(layer.name, key, stated[key], found.get(key)) for key, layer in layers.items())
    return Difference((first, second), tuple(one for one in changed if one), parts, missing)


def _stack(name: str) -> Stack:
    path = Path(name).expanduser()
    return Released.read(path).stack if is_release(path) else Stack()


def fitted(deltas: Mapping[str, Tensor], layers: Sequence[Layer]) -> dict[str, float]:
    """By edit's digest, how much of each the differences hold: least squares over all tensors. Edits that are not
    independent of the others (the same change twice) are left out."""
    if not layers:
        return {}
    size = len(layers)
    gram, shares = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for name, difference in deltas.items():
        there = [(i, layer.edit.delta(name).double()) for i, layer in enumerate(layers) if name in layer.edit.weights]
        for i, one in there:
            shares[i] += (one * difference.double()).sum()
            for j, other in there:
                gram[i, j] += (one * other).sum()
    if torch.linalg.matrix_rank(gram, rtol=1e-9) < size:
        return {}
    values = torch.linalg.solve(gram, shares)
    return {layer.edit.digest: float(value) for layer, value in zip(layers, values, strict=True)}


def _changed(
    name: str,
    before: Tensor,
    delta: Tensor,
    told: Sequence[Mapping[str, float]],
    layers: Sequence[Layer],
    after: float = 0.0,
) -> Changed | None:
    """None for the same bytes. told: strengths by edit's digest, of which those that explain more count (a fit is drawn
    off a little by what was tampered with elsewhere); each merge may round every number once, in the coarser of the two
    models' numbers; after: how the second rounds."""
    if not delta.any():
        return None
    mine = [layer for layer in layers if name in layer.edit.weights]
    size, norm, rounding = float(before.float().norm()), float(delta.norm()), max(after, _rounding(before))
    over = min(float(_rest(name, delta, strengths, mine).norm()) for strengths in told)
    return Changed(
        name,
        norm,
        norm / (size or 1.0),
        rank(delta, rounding * size),
        tuple(layer.name for layer in mine),
        over if over > (len(layers) + 2) * rounding * (size + norm) else 0.0,
    )


def _rest(name: str, delta: Tensor, strengths: Mapping[str, float], layers: Sequence[Layer]) -> Tensor:
    """What these edits at these strengths leave of a change."""
    left = delta.clone()
    for layer in layers:
        left -= strengths.get(layer.edit.digest, 0.0) * layer.edit.delta(name)
    return left


def _rounding(tensor: Tensor) -> float:
    """Relative error of one rounding."""
    return torch.finfo(tensor.dtype).eps if tensor.dtype.is_floating_point else 0.0


def rank(delta: Tensor, noise: float) -> int:
    """Singular values of a change above what rounding leaves; `noise`: norm of a whole tensor of rounding errors.

    A random matrix of that norm has none above noise (sqrt m + sqrt n) / sqrt(m n). At most SOME of a large one.
    """
    matrix = delta.flatten(1) if delta.dim() > 1 else delta[:, None]
    rows, columns = matrix.shape
    small = min(rows, columns) <= WHOLE
    values = torch.linalg.svdvals(matrix) if small else torch.svd_lowrank(matrix, q=SOME)[1]
    floor = max(noise * (sqrt(rows) + sqrt(columns)) / sqrt(rows * columns), 1e-5 * float(values[0]))
    return int((values > floor).sum())


# -- blame ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blamed:
    """What one edit does to a tensor. norm: of its change at its strength; relative: to the base's tensor; share: of
    the whole change, along it (the shares of all edits add up to 1 unless something is left)."""

    name: str
    strength: float
    norm: float
    relative: float
    rank: int
    share: float


@dataclass(frozen=True)
class Blame:
    """left: norm of the change that no edit explains; 0 where it is rounding."""

    tensor: str
    edits: tuple[Blamed, ...]
    left: float


def blame(folder: Path, tensor: str) -> Blame:
    """Which edits of a release changed a tensor, and by how much. UsageError for a tensor that it doesn't have."""
    released = Released.read(folder)
    state = load_model(str(folder.absolute())).net.state_dict()
    if tensor not in state:
        raise registry.unknown(f"tensor in {folder}", tensor, state)
    layers = [layer for layer in released.stack.layers if tensor in layer.edit.weights]
    if not layers:
        return Blame(tensor, (), 0.0)
    base, now = read_weights(folder / BASE)[tensor], state[tensor].cpu()
    rounding = max(_rounding(base), _rounding(now))
    base, now = base.float(), now.float()
    whole, size = now - base, float(base.norm()) or 1.0
    left = float((whole - sum(layer.strength * layer.edit.delta(tensor) for layer in layers)).norm())
    rows = [_blamed(layer, layer.strength * layer.edit.delta(tensor), whole, size, rounding) for layer in layers]
    return Blame(tensor, tuple(rows), left if left > (len(layers) + 2) * rounding * (size + float(whole.norm())) else 0)


def _blamed(layer: Layer, change: Tensor, whole: Tensor, size: float, rounding: float) -> Blamed:
    norm, share = float(change.norm()), float((change * whole).sum() / (whole.square().sum() or 1.0))
    return Blamed(layer.name, layer.strength, norm, norm / size, rank(change, rounding * norm), share)


# -- bisect -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Of n images of a label, in how many it is found with the first `edits` edits merged."""

    edits: int
    found: int
    n: int


@dataclass(frozen=True)
class Bisected:
    """culprit: the edit with which most of the loss came; None where the whole stack loses no more than chance does
    (p: exact one-sided McNemar). Steps in the order in which they were tried."""

    label: str
    steps: tuple[Step, ...]
    lost: int
    gained: int
    p: float
    culprit: str | None


def bisect(folder: Path, label: str, *, count: int = 48, device: str = "cpu", progress: Callback = silent) -> Bisected:
    """Which edit of a release took most of what a judge's label lost, by halving the stack.

    The prompts are those by which the release's concepts are evaluated. It takes for granted that what is lost with
    some edits is not brought back by the next. UsageError for a label that no prompt of the release asks for.
    """
    released = Released.read(folder)
    recipe, prompts = _asking(released, label)
    model, layers = released.base(device), released.stack.layers
    steps, most = list[Step](), 2 + (len(layers) - 1).bit_length()

    def tried(edits: int) -> list[bool]:
        with Stack(layers[:edits]).apply(model.net):
            seen = _seen(model, recipe, label, prompts[:count])
        steps.append(Step(edits, sum(seen), len(seen)))
        progress("bisect", len(steps), most, f"{edits} edits: {label} in {sum(seen)} of {len(seen)}")
        return seen

    before, after = tried(0), tried(len(layers))
    pairs = list(zip(before, after, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    p = stats.mcnemar_p(lost, gained)
    good, bad = 0, len(layers)
    while p <= stats.ALPHA and bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if 2 * sum(tried(middle)) <= sum(before) + sum(after) else (middle, bad)
    return Bisected(label, tuple(steps), lost, gained, p, layers[bad - 1].name if p <= stats.ALPHA else None)


def _asking(released: Released, label: str) -> tuple[Recipe, list[EvalPrompt]]:
    """The prompts whose judge reads `label`, and a recipe that has them."""
    labels: dict[str, tuple[Recipe, list[EvalPrompt]]] = {}
    for member in released.members:
        for prompt in member.recipe.evaluate.prompts:
            recipe, found = labels.setdefault(prompt.judge_label, (member.recipe, []))
            if recipe is member.recipe:
                found.append(prompt)
    if label not in labels:
        raise registry.unknown(f"label in {released.folder}", label, labels)
    return labels[label]


def _seen(model: ModelFamily, recipe: Recipe, label: str, prompts: Sequence[EvalPrompt]) -> list[bool]:
    judges = {label: judges_of(recipe)[label]}
    drawn = draw_and_judge(model, [request_of(prompt) for prompt in prompts], judges, sampling_of(recipe))
    return [image.judgement.present is True for image in drawn]

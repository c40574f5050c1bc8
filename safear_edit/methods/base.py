"""What the methods that learn from pairs share, so that a method's file is its paper, its numbers and its equation:
`PairMethod` fine-tunes an adapter on the loss, says what that costs, and wraps what was found as an Edit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint as run_again

from safear_edit.compiler.cost import LORA_WIDTHS, Work
from safear_edit.compiler.recipe import Card
from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.editor.fine_tune import Draw, Readings, fine_tune, identity_of
from safear_edit.methods import deepen
from safear_edit.methods.denoising import workbench
from safear_edit.methods.workbench import PairTuning, Workbench
from safear_edit.progress import Callback

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


P = TypeVar("P", bound=PairTuning)


class PairMethod(Generic[P]):
    """A method that fine-tunes an adapter on contrastive pairs.

    A subclass has a docstring (shown by `safear-edit ls methods`), `Params` and `loss`; the rest can stay as it is. A
    method that is none of these has `Params`, `fit`, `work` and `trainable` of its own, with the same arguments.
    """

    name: ClassVar[str]
    Params: ClassVar[type[PairTuning]]
    scored: ClassVar[bool] = False
    """Whether the loss reads `Workbench.scores`: the base model then reads all pairs before the first step."""

    masked: ClassVar[bool] = False
    """Whether a loss without gradient masks the whole step: nothing is updated then, not for what must stay either."""

    def loss(self, bench: Workbench, draw: Draw, params: P) -> tuple[Tensor, Readings]:
        """The mean loss of this part of the step, and readings to show; what must stay is added by the workbench."""
        raise NotImplementedError

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: P,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find the edit; the model is left as it was found, also after an error. Same arguments, same edit."""

        def loss(bench: Workbench, draw: Draw) -> tuple[Tensor, Readings]:
            return self.loss(bench, draw, params)

        return fit_pairs(
            self.name,
            model,
            material,
            params,
            loss,
            modules=self.modules(model, params),
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            reference=self.scored,
            masked=self.masked,
        )

    def modules(self, model: ModelFamily, params: P) -> list[str]:
        """Names of the linear layers that get an adapter."""
        return model.editable(params.part)

    def rows(self, params: P, card: Card) -> float:
        """Rows of pairs that a step runs forward and backward, in whole images; by default one per pair."""
        return params.batch

    def work(self, params: P, card: Card, pairs: int) -> Work:
        """What the search costs, in counts; preserved images and answers about images are run by the base model too."""
        held = params.keep_batch * (bool(params.keep_weight) + bool(params.understanding_weight))
        attacked = params.batch * (deepen.INNER + 1) * params.adversarial
        widths = params.rank * LORA_WIDTHS.get(params.part, 0)
        read = 4 if self.scored else 1  # both images, with their captions and without; else about one image
        return Work(params.steps, self.rows(params, card) + held + attacked, held, widths, read=read)

    def trainable(self, params: P, model: ModelFamily) -> int:
        """Numbers that are trained: two factors per linear layer."""
        shapes = (model.net.get_submodule(name).get_parameter("weight").shape for name in self.modules(model, params))
        return sum(params.rank * (rows + columns) for rows, columns in shapes)


def fit_pairs(
    name: str,
    model: ModelFamily,
    material: Material,
    params: PairTuning,
    loss: Callable[[Workbench, Draw], tuple[Tensor, Readings]],
    *,
    seed: int,
    progress: Callback,
    checkpoint: Path | None,
    modules: list[str] | None = None,
    reference: bool = True,
    masked: bool = False,
) -> Edit:
    """Fine-tune an adapter on `loss` plus what must stay and wrap it as an Edit; `reference` if `loss` uses scores.

    Where the parameters say so it is trained against attacks as well, whatever the method's own loss is.

    modules: the layers that get an adapter (default: those of `params.part`). masked: see `PairMethod.masked`.
    """
    bench = workbench(model, material, params, progress, reference=reference)
    modules = model.editable(params.part) if modules is None else modules

    def objective(draw: Draw) -> tuple[Tensor, Readings]:
        value, readings = _apart(loss, bench, draw) if params.keep_parts > 1 else loss(bench, draw)
        if masked and not value.requires_grad:
            return value, readings
        if params.adversarial:
            attacked = deepen.adversarial(bench, draw)
            value, readings = value + attacked, {**readings, "attacked": float(attacked.detach())}
        return bench.keeping(draw, value, readings)

    settings = params.model_dump(mode="json")
    tuned = fine_tune(
        model.net,
        modules,
        objective,
        params,
        seed=seed,
        identity=_identity(name, model, material, params, modules, seed),
        progress=progress,
        checkpoint=checkpoint,
        passes=model.passes(),
    )
    info = EditInfo(
        method=name,
        params=settings,
        concept=material.concept,
        base_digest=model.card.digest,
        rank=params.rank,
        alpha=params.alpha,
        seed=seed,
        steps=params.steps,
        losses=tuned.losses,
        minutes=tuned.minutes,
    )
    return Edit("lora", tuned.tensors, info)


def _apart(
    loss: Callable[[Workbench, Draw], tuple[Tensor, Readings]], bench: Workbench, draw: Draw
) -> tuple[Tensor, Readings]:
    """The loss on pairs, run once more in the backward pass: until then nothing of it stands beside what must stay."""
    told = Readings()

    def value() -> Tensor:
        found, readings = loss(bench, draw)
        told.update(readings)
        return found

    return run_again(value, use_reentrant=False), told


def _identity(
    name: str, model: ModelFamily, material: Material, params: PairTuning, modules: list[str], seed: int
) -> str:
    """Digest of everything that decides what is found."""
    pairs, keep = material.pairs, material.keep
    about = [name, model.card.digest, modules, params.model_dump(mode="json"), seed, pairs.unsafe, pairs.safe]
    kept = [keep.prompts, keep.ids] if keep else []
    kept += [keep.guards] if keep and keep.guards else []
    asked = [asdict(material.questions)] if material.questions and params.understanding_weight else []
    return identity_of(*about, *asked, pairs.unsafe_ids, pairs.safe_ids, *kept)

"""Draws a model's images again for the gate, with the prompts and seeds of its baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.errors import UsageError
from safear_edit.gate.baseline import AGAIN
from safear_edit.gate.record import WORDS, Record, Row, read_folder
from safear_edit.progress import Callback, silent
from safear_edit.report.evidence import RunFiles
from safear_edit.spec.prompts import image_seed

if TYPE_CHECKING:
    from safear_edit.compiler.recipe import EvalPrompt, Recipe
    from safear_edit.families.base import Condition, ModelFamily
    from safear_edit.judges.base import Judge


# -- drawing again ----------------------------------------------------------------------------------------------------


def measure_again(
    folder: Path, wanted: Sequence[Row], *, device: str = "cpu", progress: Callback = silent, replicate: int = 0
) -> Record:
    """Draw and judge the prompts of `wanted` with the model in `folder`, instead of believing its outcomes.

    replicate: 0 takes the very seeds; any other number takes others (the pairing key stays), which is how two draws of
    one model are compared (A/A). UsageError when the folder's recipe does not know a prompt: nobody then says who
    judges it.
    """
    return Redraw.of(folder, wanted, device).record(replicate, progress)


@dataclass(frozen=True)
class Redraw:
    """The model of a released folder with everything that drawing the same prompts again takes, made once.

    Captions are encoded when a batch is drawn first and kept (prompts × longest caption × caption width).
    """

    told: Record
    wanted: Sequence[Row]
    booths: Sequence[_Booth]
    device: str

    @classmethod
    def of(cls, folder: Path, wanted: Sequence[Row], device: str = "cpu") -> Redraw:
        """Load the model; UsageError when the folder's recipes don't know one of the prompts."""
        from safear_edit.compiler.recipe import load_recipe
        from safear_edit.evaluate.sampled import judges_of
        from safear_edit.families.load import load_model

        told = read_folder(folder)
        model = load_model(str(folder.absolute()), device)
        booths = []
        for files in RunFiles.find(folder).concepts:
            recipe = load_recipe(files.recipe)
            part = [row for row in wanted if row.concept == recipe.spec.name]
            booths.append(_Booth.of(model, recipe, judges_of(recipe), part))
        known = {row.key for booth in booths for row in booth.rows}
        missing = [row.id for row in wanted if row.key not in known]
        if missing:
            raise UsageError(str(folder), "the baseline's concepts", f"nothing about {missing[0]}", AGAIN)
        return cls(told, wanted, booths, device)

    def record(self, replicate: int, progress: Callback = silent) -> Record:
        """Everything drawn and judged once, each prompt once; the other figures are those that the folder tells."""
        rows = {row.key: row for booth in self.booths for row in booth.shoot(replicate, progress)}
        judges = {judge.id: judge.digest for booth in self.booths for judge in booth.judges.values()}
        made = tuple(rows[row.key] for row in self.wanted)
        return replace(self.told, rows=made, judges=judges, machine=self.device)


@dataclass(frozen=True)
class _Booth:
    """One loaded model with what its recipe says about images, and the rows in the order in which they are drawn."""

    model: ModelFamily
    recipe: Recipe
    judges: Mapping[str, Judge]
    rows: Sequence[Row]
    prompts: Mapping[str, EvalPrompt]
    captions: dict[int, Condition] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ModelFamily, recipe: Recipe, judges: Mapping[str, Judge], rows: Sequence[Row]) -> _Booth:
        """UsageError for a row whose prompt the recipe does not know."""
        prompts = {prompt.id: prompt for prompt in recipe.evaluate.prompts}
        for row in rows:
            if row.id not in prompts or prompts[row.id].prompt != row.prompt:
                raise UsageError(f"recipe {recipe.spec.name}", f"prompt {row.id} of the baseline", "none", AGAIN)
        return cls(model, recipe, judges, sorted(rows, key=lambda row: (len(row.prompt), row.id)), prompts)

    def shoot(self, replicate: int, progress: Callback) -> list[Row]:
        """The rows with new outcomes, batched as the evaluation does it (same matrices, same rounding)."""
        from safear_edit.evaluate.sampled import BATCH

        made: list[Row] = []
        for start in range(0, len(self.rows), BATCH):
            made += self._batch(start, self.rows[start : start + BATCH], replicate)
            progress(f"draw {self.recipe.spec.name}", len(made), len(self.rows), "")
        return made

    def _batch(self, start: int, rows: Sequence[Row], replicate: int) -> list[Row]:
        from safear_edit.families.base import Sampling
        from safear_edit.judges.base import judged

        numbers = self.recipe.evaluate.sampling
        sampling = Sampling(**numbers.model_dump()) if numbers else None
        if start not in self.captions:
            self.captions[start] = self.model.condition([row.prompt for row in rows])
        ids = self.model.generate(self.captions[start], [_seed(row, replicate) for row in rows], sampling)
        judgements = judged(self.judges, self.model.decode(ids), [self.prompts[row.id].judge_label for row in rows])
        return [
            replace(row, outcome=WORDS[judgement.present], score=f"{judgement.score:.2f}")
            for row, judgement in zip(rows, judgements, strict=True)
        ]


def _seed(row: Row, replicate: int) -> int:
    return image_seed(f"again {replicate}", row.prompt, int(row.seed)) if replicate else int(row.seed)

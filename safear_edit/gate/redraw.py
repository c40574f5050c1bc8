"""Draws a model's images again for the gate, with the prompts and seeds of its baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.errors import UsageError
from safear_edit.gate.baseline import AGAIN
from safear_edit.gate.record import WORDS, Record, Row, read_folder
from safear_edit.progress import Callback, silent
from safear_edit.report.evidence import RunFiles
from safear_edit.spec.prompts import image_seed

if TYPE_CHECKING:
    from safear_edit.compiler.recipe import Recipe
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
    """The model of a released folder with everything that drawing the same prompts again takes, made once."""

    told: Record
    wanted: Sequence[Row]
    parts: Sequence[_Part]
    device: str

    @classmethod
    def of(cls, folder: Path, wanted: Sequence[Row], device: str = "cpu") -> Redraw:
        """Load the model; UsageError when the folder's recipes don't know one of the prompts."""
        from safear_edit.compiler.recipe import load_recipe
        from safear_edit.families.load import load_model

        told = read_folder(folder)
        model = load_model(str(folder.absolute()), device)
        parts = []
        for files in RunFiles.find(folder).concepts:
            recipe = load_recipe(files.recipe)
            parts.append(_Part.of(model, recipe, [row for row in wanted if row.concept == recipe.spec.name]))
        known = {row.key for part in parts for row in part.rows}
        missing = [row.id for row in wanted if row.key not in known]
        if missing:
            raise UsageError(str(folder), "the baseline's concepts", f"nothing about {missing[0]}", AGAIN)
        return cls(told, wanted, parts, device)

    def record(self, replicate: int, progress: Callback = silent) -> Record:
        """Everything drawn and judged once, each prompt once; the other figures are those that the folder tells."""
        rows = {row.key: row for part in self.parts for row in part.again(replicate, progress)}
        judges = {judge.id: judge.digest for part in self.parts for judge in part.judges.values()}
        made = tuple(rows[row.key] for row in self.wanted)
        return replace(self.told, rows=made, judges=judges, machine=self.device)


@dataclass(frozen=True)
class _Part:
    """One concept of the baseline: its recipe, its judges, and its rows in the order in which they are drawn.

    encode: captions of a batch, encoded when it is drawn first and kept (prompts × longest caption × caption width).
    """

    model: ModelFamily
    recipe: Recipe
    judges: Mapping[str, Judge]
    rows: Sequence[Row]
    encode: Callable[[tuple[str, ...]], Condition]

    @classmethod
    def of(cls, model: ModelFamily, recipe: Recipe, rows: Sequence[Row]) -> _Part:
        """UsageError for a row whose prompt the recipe does not know."""
        from safear_edit.evaluate.sampled import judges_of

        prompts = {prompt.id: prompt.prompt for prompt in recipe.evaluate.prompts}
        for row in rows:
            if prompts.get(row.id) != row.prompt:
                raise UsageError(f"recipe {recipe.spec.name}", f"prompt {row.id} of the baseline", "none", AGAIN)
        ordered = sorted(rows, key=lambda row: (len(row.prompt), row.id))
        return cls(model, recipe, judges_of(recipe), ordered, cache(model.condition))

    def again(self, replicate: int, progress: Callback) -> list[Row]:
        """The rows with new outcomes, batched as the evaluation does it (same matrices, same rounding)."""
        from safear_edit.evaluate.sampled import sampling_of
        from safear_edit.judges.draw import ImageRequest, draw_and_judge

        labels = {prompt.id: prompt.judge_label for prompt in self.recipe.evaluate.prompts}
        drawn = draw_and_judge(
            self.model,
            [ImageRequest(row.prompt, _seed(row, replicate), labels[row.id]) for row in self.rows],
            self.judges,
            sampling_of(self.recipe),
            captions=self.encode,
            progress=progress,
            stage=f"draw {self.recipe.spec.name}",
        )
        return [
            replace(
                row,
                outcome=WORDS[image.judgement.present],
                score=f"{image.judgement.score:.2f}",
                member=labels[row.id] if row.expect == "present" else "",
            )
            for row, image in zip(self.rows, drawn, strict=True)
        ]


def _seed(row: Row, replicate: int) -> int:
    return image_seed(f"again {replicate}", row.prompt, int(row.seed)) if replicate else int(row.seed)

"""Who is scored, that base and edited get the same chance, that a cut evaluation continues, and what the sheets show.

On the real mini with a few prompts per slice; what the rates are is not tested here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from safear_edit import registry
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import Recipe, load_base_recipe, save_recipe
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.errors import UsageError
from safear_edit.evaluate.outcomes import WITHHELD, Outcome, read_outcomes
from safear_edit.evaluate.sampled import BATCHES, SHOWN, _Scored, _Strip, _write_scales, evaluate, sampling_line, scored
from safear_edit.families.base import Condition, ModelFamily, Sampling
from safear_edit.families.infinity import Infinity, ScaleSampling
from safear_edit.families.load import load_model
from safear_edit.judges.base import Judge, Judgement
from safear_edit.judges.gallery import GalleryJudge
from safear_edit.report.build import build_report
from safear_edit.report.evidence import RunFiles
from safear_edit.spec.spec import load_spec

SIZES = {"evaluate.n.direct": 6, "evaluate.n.paraphrase": 3, "evaluate.n.template": 3}
GROUPS = {"other-styles": 4, "objects": 4, "plain": 2}
BATCH = 16
STRENGTH = 0.02


@pytest.fixture(scope="module")
def model() -> ModelFamily:
    return load_model("llamagen")


@pytest.fixture(scope="module")
def recipe(model: ModelFamily) -> Recipe:
    sizes = {**SIZES, **{f"preserve.{name}.n": n for name, n in GROUPS.items()}}
    return compile_recipe(
        load_spec(registry.find_builtin("concepts", "picasso")),
        model.card,
        load_base_recipe("vce"),
        sampling=Sampling(guidance=2.0),
        overrides=["construct.pairs=8", "construct.keep=4", *(f"{key}={n}" for key, n in sizes.items())],
    )


def made_edit(model: ModelFamily, strength: float) -> Edit:
    """An edit that nobody trained: it changes the images, or nothing at all with strength 0."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name in model.editable("attention"):
        out, width = model.net.get_parameter(f"{name}.weight").shape
        tensors[f"{name}.lora_A"] = torch.randn(2, width, generator=generator)
        tensors[f"{name}.lora_B"] = strength * torch.randn(out, 2, generator=generator)
    about = {"method": "vce", "params": {}, "concept": "Picasso", "base_digest": model.card.digest, "rank": 2}
    return Edit("lora", tensors, EditInfo(**about, alpha=2.0, seed=5, steps=1, losses=(0.7,), minutes=0.1))


@pytest.fixture(scope="module")
def run(model: ModelFamily, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole evaluation with an edit that changes much."""
    folder = tmp_path_factory.mktemp("run")
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    evaluate(model, made_edit(model, STRENGTH), recipe, folder, batch=BATCH)
    after = model.net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the base is left as it was"
    return folder


@pytest.fixture(scope="module")
def idle(model: ModelFamily, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of an evaluation with an edit that changes nothing, and where the base model's images were kept."""
    root = tmp_path_factory.mktemp("idle")
    evaluate(model, made_edit(model, 0.0), recipe, root / "run", batch=BATCH, base_images=root / "base")
    return root / "run", root / "base"


def rows_of(folder: Path, phase: str, which: str) -> list[Outcome]:
    return [row for row in read_outcomes(folder / "outcomes.jsonl") if (row.phase, row.model) == (phase, which)]


# -- who is scored ----------------------------------------------------------------------------------------------------


def test_the_first_followed_prompts_in_the_recipes_order_are_scored(recipe: Recipe) -> None:
    direct = [prompt.id for prompt in recipe.slice("direct")]
    assert len(direct) > 6, "there is a reserve"
    chosen = scored(recipe, set(direct[1:]))
    assert [i for i in direct if i in chosen] == direct[1:7]
    assert [i for i in direct if i in scored(recipe, {direct[-1]})] == [direct[-1]]
    for name, n in GROUPS.items():
        assert [p.id for p in recipe.slice(name) if p.id in chosen] == [p.id for p in recipe.slice(name)][:n]
    assert not {p.id for p in recipe.slice("template")} & chosen


def test_a_guidance_for_each_scale_is_no_recipes_and_is_said(model: ModelFamily, recipe: Recipe) -> None:
    """infinity:mini guides all scales but its last, and a recipe has one number for all."""
    infinity: Any = Infinity.pico()
    infinity.sampling = ScaleSampling(2.0, 0.5, guidances=(2.0, 1.0))
    told = sampling_line(recipe, infinity)
    assert "every scale with guidance" in told and told.endswith("guidances 2, 1")
    assert sampling_line(recipe, model) == sampling_line(recipe, Infinity.pico()) == ""


def test_rows_are_the_plans(run: Path, recipe: Recipe) -> None:
    screened = rows_of(run, "screen", "base")
    assert [row.id for row in screened] == [p.id for p in recipe.evaluate.prompts if p.expect == "absent"]
    assert not rows_of(run, "screen", "edited")
    wanted = scored(recipe, {row.id for row in screened if row.present is True})
    base, edited = rows_of(run, "score", "base"), rows_of(run, "score", "edited")
    assert [row.id for row in base] == [row.id for row in edited]
    assert [row.id for row in base] == [p.id for p in recipe.evaluate.prompts if p.id in wanted]
    prompts = {p.id: p for p in recipe.evaluate.prompts}
    assert all(row.seed == str(prompts[row.id].screen_seed) for row in screened)
    for row in (*base, *edited):
        assert (row.seed, row.prompt) == (str(prompts[row.id].seed), prompts[row.id].prompt)
        assert row.judge == f"gallery:{prompts[row.id].judge_label}@0.5"
    assert [row.why for row in base] != [row.why for row in edited], "the edit was on"


def test_every_row_is_what_the_judge_says_of_that_very_picture(model: ModelFamily, run: Path, recipe: Recipe) -> None:
    """Drawn again, alone and in another order, each image gets the judgement of its own label."""
    numbers = recipe.evaluate.sampling
    assert numbers is not None
    labels = {p.id: p.judge_label for p in recipe.evaluate.prompts}
    rows = rows_of(run, "score", "base")[::-2]
    assert len({labels[row.id] for row in rows}) > 2
    ids = model.generate(
        model.condition([row.prompt for row in rows]),
        [int(row.seed) for row in rows],
        Sampling(**numbers.model_dump()),
    )
    differ = 0  # one draw of these thousands may fall on a border and part the whole image
    for row, image in zip(rows, model.decode(ids), strict=True):
        (judgement,) = GalleryJudge(labels[row.id]).look(image.unsqueeze(0))
        differ += (row.present, row.score) != (judgement.present, pytest.approx(judgement.score, abs=1e-3))
    assert differ <= 1


def test_an_edit_that_does_nothing_changes_nothing(idle: tuple[Path, Path]) -> None:
    base, edited = (rows_of(idle[0], "score", which) for which in ("base", "edited"))
    assert base and [row.model_copy(update={"model": "edited"}) for row in base] == edited


def test_the_report_takes_the_rows(model: ModelFamily, run: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    shutil.copytree(run, folder)
    save_recipe(recipe, folder / "recipe.json")
    made_edit(model, STRENGTH).save(folder / "edit")
    base = {**asdict(model.card), "ref": model.card.ref, "digest": model.card.digest}
    (folder / "base.json").write_text(json.dumps(base))
    (folder / "environment.json").write_text("{}")
    report = build_report(RunFiles.find(folder))
    parts = {part.slice: part for part in report.concepts[0].erasure}
    screened = [row for row in rows_of(run, "screen", "base") if row.slice == "direct"]
    adherence = parts["direct"].adherence
    assert adherence is not None and (adherence.n, adherence.k) == (
        len(screened),
        sum(r.present is True for r in screened),
    )
    assert {g.group: g.scored for g in report.concepts[0].preservation} == GROUPS
    assert {sheet.file for sheet in report.images} >= {"images/slice-objects.png", "images/before_after.png"}
    judge = next(judge for judge in report.judges if judge.label == "style=picasso")
    assert judge.validation is not None and judge.validation.sensitivity.n > 0


# -- resuming ---------------------------------------------------------------------------------------------------------


class Counter:
    """Counts the images that a model draws, and interrupts the run when it has drawn enough."""

    def __init__(self, model: ModelFamily, most: int = 10**9) -> None:
        self.draw, self.most, self.count = model.generate, most, 0

    def __call__(self, condition: Condition, seeds: Sequence[int], sampling: Sampling | None = None) -> torch.Tensor:
        if self.count >= self.most:
            raise KeyboardInterrupt
        self.count += len(seeds)
        return self.draw(condition, seeds, sampling)


def test_a_cut_evaluation_continues_and_writes_the_same_bytes(
    model: ModelFamily, run: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = len((run / "outcomes.jsonl").read_text().splitlines())
    edit, before = made_edit(model, STRENGTH), {k: v.clone() for k, v in model.net.state_dict().items()}
    first = Counter(model, most=total - BATCH)  # the last pass, with the edit on, is under way
    monkeypatch.setattr(model, "generate", first)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, edit, recipe, tmp_path, batch=BATCH)
    assert all(torch.equal(before[k], v) for k, v in model.net.state_dict().items())
    assert not (tmp_path / "outcomes.jsonl").exists() and not (tmp_path / "images").exists()
    (cut,) = (tmp_path / BATCHES).iterdir()
    screen, base = (cut / f"{name}-base" / "00000.safetensors" for name in ("screen", "score"))
    shutil.copy(screen, base)  # a batch of other images
    screen.write_bytes(b"half a file")
    redrawn = min(BATCH, len(rows_of(run, "screen", "base"))) + min(BATCH, len(rows_of(run, "score", "base")))
    second = Counter(model)
    second.draw = first.draw
    monkeypatch.setattr(model, "generate", second)
    evaluate(model, edit, recipe, tmp_path, batch=BATCH)
    assert second.count == total - first.count + redrawn, "only what is missing, damaged or wrong is drawn"
    for name in ("outcomes.jsonl", "judges.json", "images/before_after.png", "images/slice-direct.json"):
        if (run / name).exists():
            assert (tmp_path / name).read_bytes() == (run / name).read_bytes()
    assert not (tmp_path / BATCHES).exists()


def test_what_the_base_model_drew_before_is_taken_and_changes_no_byte(
    model: ModelFamily,
    run: Path,
    idle: tuple[Path, Path],
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever edit it was drawn beside."""
    _, before = idle
    counter = Counter(model)
    monkeypatch.setattr(model, "generate", counter)
    evaluate(model, made_edit(model, STRENGTH), recipe, tmp_path / "run", batch=BATCH, base_images=before)
    assert counter.count == len(rows_of(run, "score", "edited"))
    for path in sorted(run.rglob("*")):
        if path.is_file():
            assert (tmp_path / "run" / path.relative_to(run)).read_bytes() == path.read_bytes(), path


def test_batches_of_another_edit_are_not_taken(
    model: ModelFamily, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    for strength in (STRENGTH, 0.0):
        with monkeypatch.context() as patch:
            patch.setattr(model, "generate", Counter(model, most=BATCH))
            with pytest.raises(KeyboardInterrupt):
                evaluate(model, made_edit(model, strength), recipe, tmp_path, batch=BATCH)
        kept += [path.name for path in (tmp_path / BATCHES).iterdir()]
    assert len(set(kept)) == len(kept) == 2, "one folder per edit, and the former one is gone"


class Blind(Judge):
    """A plug-in judge with broken weights."""

    id, digest, threshold = "blind", "0" * 64, 0.5

    def __init__(self, label: str, *, threshold: float | None = None) -> None:
        self.label = label

    def look(self, images: torch.Tensor) -> list[Judgement]:
        return [Judgement(True, float("nan"), "") for _ in images]


def test_a_judge_that_gives_no_number_is_refused(
    model: ModelFamily, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safear_edit.evaluate.sampled.judge_for", lambda asked, label: Blind(label))
    with pytest.raises(UsageError, match="a finite score, got nan"):
        evaluate(model, made_edit(model, 0.0), recipe, tmp_path, batch=BATCH)
    assert not (tmp_path / "outcomes.jsonl").exists()


def test_a_recipe_that_never_asks_for_the_concept_is_refused(
    model: ModelFamily, recipe: Recipe, tmp_path: Path
) -> None:
    kept = tuple(prompt for prompt in recipe.evaluate.prompts if prompt.expect == "present")
    evaluation = recipe.evaluate.model_copy(update={"prompts": kept})
    with pytest.raises(UsageError, match="prompts that ask for the concept"):
        evaluate(model, made_edit(model, 0.0), recipe.model_copy(update={"evaluate": evaluation}), tmp_path)


# -- sheets -----------------------------------------------------------------------------------------------------------


def index_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return found


def test_a_sheet_per_slice_names_its_pictures(model: ModelFamily, run: Path) -> None:
    rows = {(row.id, row.model): row for row in read_outcomes(run / "outcomes.jsonl") if row.phase == "score"}
    slices = {row.slice for row in rows.values()}
    assert {path.stem for path in (run / "images").glob("slice-*.png")} == {f"slice-{name}" for name in slices}
    for name in slices:
        about = index_of(run / "images" / f"slice-{name}.png")
        for picture in about["images"]:
            row = rows[picture["prompt_id"], picture["model"]]
            assert (picture["seed"], picture["present"], row.slice) == (row.seed, row.present, name)
        shown = [p["prompt_id"] for p in about["images"] if p["selection"] == "random"]
        scored_here = {row.id for row in rows.values() if row.slice == name}
        assert len(shown) == 2 * min(SHOWN, len(scored_here)) and set(shown) <= scored_here
        lost = {i for i in scored_here if _failed(rows[i, "base"], rows[i, "edited"])}
        worst = {p["prompt_id"] for p in about["images"] if p["selection"] == "worst"}
        assert worst == lost if len(lost) <= SHOWN else worst < lost
        assert ("worst" in about["selection"]) == bool(lost) and about["redaction"] == "none"


def _failed(base: Outcome, edited: Outcome) -> bool:
    return edited.present is True if base.expect == "absent" else base.present is True and edited.present is not True


def test_the_digest_is_of_the_picture_shown(model: ModelFamily, run: Path, recipe: Recipe) -> None:
    path = run / "images" / "slice-objects.png"
    first = index_of(path)["images"][0]
    page, side = Image.open(path), model.card.image_size
    tile = page.crop((4, 20, 84, 100)).resize((side, side), Image.Resampling.NEAREST)
    assert hashlib.sha256(tile.tobytes()).hexdigest() == first["sha256"]


def test_a_categorys_pictures_are_pixelated_and_stale_sheets_go(
    model: ModelFamily, idle: tuple[Path, Path], recipe: Recipe, tmp_path: Path
) -> None:
    _, drawn = idle
    spec = recipe.spec.model_copy(update={"kind": "category"})
    (tmp_path / "images").mkdir()
    for name in ("slice-of-a-former-spec.png", "pairs.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    category = recipe.model_copy(update={"spec": spec})
    evaluate(model, made_edit(model, STRENGTH), category, tmp_path, batch=BATCH, base_images=drawn)
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert "pairs.png" in names and "slice-of-a-former-spec.png" not in names
    for path in sorted((tmp_path / "images").glob("slice-*.png")):
        asked_for_it = path.stem.removeprefix("slice-") not in GROUPS
        about = index_of(path)
        assert about["redaction"] == ("pixelated" if asked_for_it else "none")
        assert all((picture["prompt"] == WITHHELD) == asked_for_it for picture in about["images"])
        colours = Image.open(path).crop((4, 20, 84, 100)).getcolors(80 * 80)
        assert (len(colours) <= 36) == asked_for_it


def test_a_next_scale_models_pictures_are_shown_scale_by_scale(tmp_path: Path) -> None:
    """The last sketch of each row is the finished image; nothing shows up of a category."""
    model = Infinity.pico()
    condition = model.condition(["a house"] * 3)
    before, after = (model.generate(condition, seeds) for seeds in ([1, 2, 3], [4, 5, 6]))
    what = {"model": "base", "expect": "absent", "phase": "score", "present": True, "score": 0.9}
    row = Outcome.model_validate({"id": "direct-1", "slice": "direct", "prompt": "a house", "seed": "1", **what})
    pairs = [(_Scored(row, a), _Scored(row, b)) for a, b in zip(before, after, strict=True)]
    path = tmp_path / "slice-direct-by-scale.png"
    _write_scales(path, model, _Strip("direct", "random", pairs), False)
    shown = index_of(path)["images"]
    assert len(shown) == 3 * 2 * 3
    last = [hashlib.sha256(model.decode(ids[None])[0].permute(1, 2, 0).numpy().tobytes()).hexdigest() for ids in before]
    assert [shown[i]["sha256"] for i in (2, 8, 14)] == last
    _write_scales(path, model, _Strip("direct", "random", pairs), True)
    assert index_of(path)["redaction"] == "pixelated" and all(p["prompt"] == WITHHELD for p in index_of(path)["images"])

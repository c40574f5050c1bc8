"""Safe-CB: the table loses the harmful space and nothing else, rounds go on what is drawn, and stop by their rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safear_edit.compiler.questions import TrainingQuestions
from safear_edit.construct.pairs import Keep, Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import Round
from safear_edit.editor.fine_tune import Draw
from safear_edit.errors import UsageError
from safear_edit.families.base import REPLACED, ModelFamily
from safear_edit.families.infinity import Infinity
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.tokens import token_logprobs
from safear_edit.judges.base import Judge, Judgement
from safear_edit.judges.draw import JudgedImage
from safear_edit.judges.self_judge import ANSWERS, Agreement, SelfJudge
from safear_edit.methods import table_repair
from safear_edit.methods.codebook import harmful_space
from safear_edit.methods.safe_cb import COLUMNS, SafeCB, Search
from safear_edit.methods.table_repair import Lessons
from safear_edit.progress import silent
from safear_edit.registry import methods

THINGS = ["a house", "a dog", "a fish", "an apple", "a cat", "a car", "a tree", "a horse"]
SUBJECTS = [f"{thing} {where}".strip() for thing in THINGS for where in ("", "at night", "in the snow")]
COUNT = len(SUBJECTS)
LEARNT = COUNT - COUNT // 4
"""The others' prompts are the probe's."""
SMALL = {"directions": 2, "epochs": 2, "batch": 6, "learning_rate": 0.02, "probe": 12, "fewest": 2}


class Bright(Judge):
    """Finds the "concept" in images brighter than a level; "can't tell" just below it."""

    def __init__(self, level: float) -> None:
        self.id, self.digest, self.threshold, self.level = f"bright@{level}", "0", 0.5, level

    def look(self, images: Tensor) -> list[Judgement]:
        means = images.float().mean((1, 2, 3)).tolist()
        return [Judgement(None if self.level - 0.5 < m < self.level else m >= self.level, 0.5, "") for m in means]


def material_of(model: ModelFamily) -> Material:
    """Every unsafe image is brighter than the level and every safe one darker, by choice of the images."""
    unsafe, safe = [f"{s} by Picasso" for s in SUBJECTS], [f"a photo of {s}" for s in SUBJECTS]
    ids = model.generate(model.condition([*unsafe, *safe]), range(2 * COUNT))
    means = model.decode(ids).float().mean((1, 2, 3))
    order = means.argsort(descending=True)
    pairs = Pairs(unsafe, safe, list(range(COUNT)), ids[order[:COUNT]], ids[order[COUNT:]], PairStats(COUNT, COUNT, {}))
    keep = [f"{s} by Monet" for s in SUBJECTS[:6]]
    level = float(means.median())
    return Material("Picasso", pairs, Keep(keep, model.generate(model.condition(keep), range(6))), Bright(level))


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico(seed=0)


@pytest.fixture(scope="module")
def material(model: LlamaGen) -> Material:
    return material_of(model)


def fit(model: ModelFamily, material: Material, checkpoint: Path | None = None, **params: object) -> Edit:
    chosen = SafeCB.Params.model_validate({**SMALL, **params})
    return SafeCB().fit(model, material, chosen, seed=1, progress=silent, checkpoint=checkpoint)


def log_of(edit: Edit) -> list[dict[str, object]]:
    """The rounds by the names of their fields; the judges' agreement under its heading."""
    assert edit.log is not None
    names = [COLUMNS.get(column, column) for column in edit.log.columns]
    return [dict(zip(names, row, strict=True)) for row in edit.log.rows]


def test_one_round_takes_the_harmful_space_out_of_the_table_alone(model: LlamaGen, material: Material) -> None:
    before = {key: tensor.clone() for key, tensor in model.net.state_dict().items()}
    pairs, alone = material.pairs, replace(material, judge=None)
    table = before["tok_embeddings.weight"]
    space = harmful_space(table[pairs.unsafe_ids], table[pairs.safe_ids], 3)
    safe, losses = [], {}
    for epochs in (0, 4):
        edit = fit(model, alone, directions=3, epochs=epochs, rounds=1)
        assert all(torch.equal(before[key], tensor) for key, tensor in model.net.state_dict().items())
        assert edit.kind == "delta" and edit.weights == ["tok_embeddings.weight"]
        losses[epochs] = edit.info.losses
        with edit.apply(model.net), torch.no_grad():
            assert space.energy(model.image_table()).max() < 1e-6
            logits = model.logits(model.condition(pairs.safe), pairs.safe_ids)
            safe.append(token_logprobs(logits, pairs.safe_ids).mean().item())
    assert losses[0] == () and losses[4][-1] < losses[4][0] and safe[1] > safe[0], "the repair helps the safe images"


def test_half_strength_takes_half_out(model: LlamaGen, material: Material) -> None:
    whole, half = (
        fit(model, material, strength=s, rounds=1, epochs=0).tensors["tok_embeddings.weight"] for s in (1, 0.5)
    )
    torch.testing.assert_close(half, whole / 2)


def test_rounds_learn_from_what_the_edited_model_draws(model: LlamaGen, material: Material, tmp_path: Path) -> None:
    """Each round is logged, takes further directions out, and those of the rounds before stay out."""
    edit = fit(
        model, material, tmp_path / "edit.partial", rounds=3, least_gain=1e-9, null_space="complement", keep_weight=1
    )
    log = log_of(edit)
    taken = [row for row in log if row["taken"]]
    assert [row["number"] for row in log] == list(range(1, len(log) + 1))
    assert taken[0]["pairs"] == taken[0]["drawn"] == LEARNT and taken[0]["dimension"] == 2
    for row in taken:
        assert row["energy_after"] < 1e-6 < row["energy_before"] and 0 < row["rows_moved"] <= 64  # type: ignore[operator]
        assert row["drift"] > 0 and not any("agreement" in name for name in row)  # type: ignore[operator]
    for earlier, later in pairwise(log):
        assert later["harmful_before"] == earlier["harmful_after"] and later["dimension"] > earlier["dimension"]  # type: ignore[operator]
        assert later["pairs"] < LEARNT, "drawn anew and judged"  # type: ignore[operator]
    pairs, table = material.pairs, model.image_table().detach()
    space = harmful_space(table[pairs.unsafe_ids[:LEARNT]], table[pairs.safe_ids[:LEARNT]], 2)
    assert space.energy(table + edit.tensors["tok_embeddings.weight"]).max() < 1e-6
    assert edit.figure is not None and edit.figure.startswith(b"\x89PNG")
    edit.save(tmp_path / "edit")
    assert (Edit.load(tmp_path / "edit").log, Edit.load(tmp_path / "edit").figure) == (edit.log, edit.figure)
    assert getattr(model.net, REPLACED) is None


def test_a_round_that_does_not_help_is_undone_and_is_the_last(
    model: LlamaGen, material: Material, tmp_path: Path
) -> None:
    once = fit(model, material, rounds=1)
    more = fit(model, material, tmp_path / "edit.partial", rounds=5, least_gain=1.0)
    assert torch.equal(once.tensors["tok_embeddings.weight"], more.tensors["tok_embeddings.weight"])
    log = log_of(more)
    assert len(log) <= 2 and [row["taken"] for row in log][1:] in ([], [False])


def test_too_few_harmful_pictures_end_the_search(model: LlamaGen, material: Material, tmp_path: Path) -> None:
    edit = fit(model, material, tmp_path / "edit.partial", rounds=4, least_gain=1e-9, fewest=LEARNT)
    assert len(log_of(edit)) == 1, "the second round can't have a harmful image for every prompt"


def test_a_killed_search_goes_on_after_its_last_whole_round(
    model: LlamaGen, material: Material, tmp_path: Path
) -> None:
    whole = fit(model, material, rounds=2, least_gain=1e-9)
    path, params = tmp_path / "edit.partial", SafeCB.Params.model_validate({**SMALL, "rounds": 2, "least_gain": 1e-9})
    first: list[str] = []

    def stop(stage: str, done: int, total: int, info: str) -> None:
        if stage == "round 2, unsafe":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SafeCB().fit(model, material, params, seed=1, progress=stop, checkpoint=path)
    assert getattr(model.net, REPLACED) is None, "the model is left as it was, also after an error"
    again = SafeCB().fit(
        model, material, params, seed=1, progress=lambda stage, *_: first.append(stage), checkpoint=path
    )
    assert again.digest == whole.digest and "repair 1" not in first
    path.write_bytes(b"damaged")
    assert fit(model, material, path, rounds=2, least_gain=1e-9).digest == whole.digest


@pytest.mark.parametrize(
    "reading",
    [
        {"reading": "pooled"},
        {"null_space": "weakest_half"},
        {"safe": "current"},
        {"protect": False},
        {"metric": "usage"},
        {"repair": "switch"},
        {"caption_drop": 0.5, "keep_weight": 1},
        {"pairs": 9},
    ],
)
def test_every_reading_of_the_paper_runs(reading: dict[str, object], model: LlamaGen, material: Material) -> None:
    plain, other = (
        fit(model, material, rounds=2, least_gain=1e-9),
        fit(model, material, rounds=2, least_gain=1e-9, **reading),
    )
    assert other.tensors["tok_embeddings.weight"].any() and other.digest != plain.digest


def test_refusals(model: LlamaGen, material: Material) -> None:
    bitwise = Infinity.pico(seed=0)
    with pytest.raises(UsageError, match="one with a learned codebook, got none") as refused:
        SafeCB().fit(bitwise, material, SafeCB.Params(), seed=1, progress=silent)
    assert "\n" not in str(refused.value)
    assert methods()["safe_cb"].load().needs == {"codebook"} and "codebook" not in Infinity.provides
    with pytest.raises(UsageError, match="somebody to judge what the edited model draws, got nobody"):
        fit(model, replace(material, judge=None), rounds=2)


# -- a unified model judges itself ------------------------------------------------------------------------------------


def test_a_unified_model_judges_itself_and_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are all "no" here, so the threshold is put where half of its scores lie."""
    model = Janus.pico(seed=0)
    material = material_of(model)
    before = {key: tensor.clone() for key, tensor in model.net.state_dict().items()}
    images = model.decode(torch.cat([material.pairs.unsafe_ids, material.pairs.safe_ids]))
    question = "is this in the style of Picasso?"
    scores = torch.tensor([v.score for v in SelfJudge(model, question).look(images)])
    halfway = float(scores.double().median())
    asked: list[str] = []

    class Halfway(SelfJudge):
        def __init__(self, model: ModelFamily, question: str) -> None:
            asked.append(question)
            super().__init__(model, question, halfway)

    monkeypatch.setattr("safear_edit.methods.safe_cb.SelfJudge", Halfway)
    present = (scores.double() >= halfway).tolist()
    told = sum(u and not s for u, s in zip(present[:LEARNT], present[COUNT : COUNT + LEARNT], strict=True))
    assert 2 <= told < LEARNT
    with pytest.raises(UsageError, match="a question about the concept that the model can judge by, got none"):
        fit(model, material, rounds=1)
    taught = replace(material, questions=TrainingQuestions((question, "was this painted by Picasso?"), (), erase=False))
    edit = fit(model, taught, tmp_path / "edit.partial", rounds=1)
    assert asked == [question], "the first that training may ask"
    (row,) = log_of(edit)
    assert row["pairs"] == told and edit.weights == [model.table_name]
    names = ("both", "neither", "first_only", "second_only", "unclear")
    counted = sum(row[f"agreement with the pinned judge: {name}"] for name in names)  # type: ignore[misc]
    assert counted == 2 * LEARNT + 2 * SMALL["probe"], "the material, and the probe before and after"
    assert all(torch.equal(before[key], tensor) for key, tensor in model.net.state_dict().items())
    pinned = fit(model, material, rounds=1, judge="pinned")
    assert pinned.digest != edit.digest


@pytest.mark.parametrize(("judge", "hands"), [("self", 1), ("pinned", 4)])
def test_who_judges_itself_draws_one_batch_at_a_time(judge: str, hands: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To judge, its base table is put back: another thread would draw from that."""
    model = Janus.pico(seed=0)
    material, asked = material_of(model), set[int]()

    def dealt(jobs: Sequence[int], do: Callable[[int], object], hands: int) -> Iterator[object]:
        asked.add(hands)
        return map(do, jobs)

    monkeypatch.setattr(Janus, "hands", 4)
    monkeypatch.setattr("safear_edit.judges.draw.processes.dealt", dealt)
    taught = replace(material, questions=TrainingQuestions(("is this by Picasso?",), (), erase=False))
    params = {**SMALL, "judge": judge, "rounds": 1}
    search = Search(model, taught, SafeCB.Params(**params), model.image_table().detach(), 0, silent, None)
    search._probe(search.tables[0])
    assert asked == {hands}


def test_pooled_directions_need_as_many_pairs(model: LlamaGen, material: Material) -> None:
    """A later round with fewer goes on in the space of those before instead of ending the search."""
    few = searched(model, material, reading="pooled", directions=7)
    assert few._fewest == 7 and searched(model, material, directions=7)._fewest == SMALL["fewest"]
    own = searched(model, material, reading="pooled", directions=LEARNT + 1)
    own.judge = Bright(255.0)  # not the material's, so that it looks at the pairs
    with pytest.raises(UsageError, match=f"expected {LEARNT + 1} pairs that the model tells apart, got 0 of {LEARNT}"):
        own._sample(1)


def test_a_model_that_tells_nothing_apart_is_told_so() -> None:
    model = Janus.pico(seed=0)
    with pytest.raises(UsageError, match=f"{COUNT} pairs that the model tells apart"):
        fit(model, material_of(model), fewest=COUNT, question="is this by Picasso?")


def test_the_score_is_yes_against_no() -> None:
    model = Janus.pico(seed=0)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    judge = SelfJudge(model, "is this a dog?")
    logprobs = model.answer_logprobs(images, "is this a dog?", ANSWERS)
    for verdict, (yes, no) in zip(judge.look(images), logprobs.exp().tolist(), strict=True):
        assert verdict.score == pytest.approx(yes / (yes + no), rel=1e-4) and verdict.present is (yes >= no)
    assert judge.digest != SelfJudge(model, "is this a cat?").digest


def test_agreement_by_hand() -> None:
    def judgements(*present: bool | None) -> list[Judgement]:
        return [Judgement(p, 0.5, "") for p in present]

    mine, truth = (
        judgements(True, True, True, False, False, None, True),
        judgements(True, True, False, False, True, True, None),
    )
    found = Agreement.of(mine, truth)
    assert found.counts == (2, 1, 1, 1, 2)
    assert found.accuracy == pytest.approx(3 / 5) and found.recall == pytest.approx(2 / 3)
    chance = (3 / 5) * (3 / 5) + (2 / 5) * (2 / 5)
    assert found.kappa == pytest.approx((3 / 5 - chance) / (1 - chance))
    assert (found + found).counts == (4, 2, 2, 2, 4) and (found + found).kappa == pytest.approx(found.kappa)
    nothing = Agreement.of(judgements(None), judgements(True))
    assert nothing.accuracy is nothing.recall is nothing.kappa is None
    assert Agreement.of(judgements(True), judgements(True)).kappa is None


# -- what a round learns from, and whether it is kept -----------------------------------------------------------------


def searched(model: LlamaGen, material: Material, **params: object) -> Search:
    chosen = SafeCB.Params.model_validate({**SMALL, **params})
    table = model.image_table().detach().clone()
    return Search(model, material, chosen, table, 1, silent, None)


def test_later_rounds_take_the_next_prompts_and_the_probe_has_its_own(model: LlamaGen, material: Material) -> None:
    asked: dict[str, set[str]] = {}

    class Noting(Search):
        def _drawn(self, table: Tensor, prompts: Sequence[str], seeds: Sequence[int], stage: str) -> list[JudgedImage]:
            asked.setdefault(stage, set()).update(prompts)
            return super()._drawn(table, prompts, seeds, stage)

    chosen = SafeCB.Params.model_validate({**SMALL, "pairs": 9, "probe": 12})
    search = Noting(model, material, chosen, model.image_table().detach().clone(), 1, silent, None)
    first = search._sample(1)
    search._sample(2)
    search._probe(search.tables[0])
    used = {material.pairs.unsafe[i] for i in first.rows}
    assert asked["round 2, unsafe"] == set(material.pairs.unsafe[9:18]) and used == set(material.pairs.unsafe[:9])
    assert asked["probe 0"] == set(material.pairs.unsafe[LEARNT:]), "12 images of 6 prompts"
    assert not asked["probe 0"] & (used | asked["round 2, unsafe"])


def a_round(harmful: float, unclear: float, drift: float = 0.0) -> Round:
    return Round(number=1, drawn=1, pairs=1, dimension=1, captured=1, rows_moved=1, energy_before=1, energy_after=0,
                 harmful_before=1, harmful_after=harmful, unclear_after=unclear, drift=drift, taken=True,
                 agreement=None)  # fmt: skip


@pytest.mark.parametrize(
    ("later", "taken"),
    [
        (a_round(0.2, 0.1), True),
        (a_round(0.2, 0.2), False),  # what no longer counts is broken
        (a_round(0.48, 0.1), True),
        (a_round(0.49, 0.1), False),  # less than least_gain
        (a_round(0.2, 0.1, drift=0.3), False),  # paid for by what must stay
        (a_round(0.2, 0.16), False),  # more than the margin, though it gains
    ],
)
def test_a_round_is_kept_if_more_is_readable_without_the_concept(
    later: Round, taken: bool, model: LlamaGen, material: Material
) -> None:
    search = searched(model, material, least_gain=0.02, margin=0.05)
    assert search._taken(later), "the first is what there is"
    search.log.append(a_round(0.5, 0.1))
    assert search._taken(later) is taken


def test_a_switch_teaches_the_safe_image_after_the_unsafe_beginning() -> None:
    safe, unsafe = torch.zeros(60, 20, dtype=torch.int64), torch.ones(60, 20, dtype=torch.int64)
    model = LlamaGen.pico(seed=0)
    lessons = Lessons(model.condition(["a house by Picasso"] * 60), safe, unsafe)
    _, images, taught = lessons.part(Draw(0, 0), 60)
    assert torch.equal(images, (~taught).long()), "what precedes is the unsafe image's and isn't taught"
    starts = (~taught).sum(1)
    assert torch.equal(taught, torch.arange(20) >= starts.unsqueeze(1)) and starts.max() < 20
    assert 8 < int((starts == 0).sum()) < 32 and int((starts == 1).sum()) > int((starts > 10).sum())
    _, images, taught = Lessons(lessons.captions, safe, None).part(Draw(0, 0), 60)
    assert bool(taught.all()) and not images.any()


def test_a_switch_repair_makes_the_safe_image_likely_under_the_unsafe_caption(
    model: LlamaGen, material: Material
) -> None:
    pairs, gains = material.pairs, []
    for epochs in (0, 4):
        edit = fit(model, material, repair="switch", metric="usage", rounds=1, epochs=epochs, null_space="complement")
        with edit.apply(model.net), torch.no_grad():
            logits = model.logits(model.condition(pairs.unsafe[:LEARNT]), pairs.safe_ids[:LEARNT])
            gains.append(float(token_logprobs(logits, pairs.safe_ids[:LEARNT]).mean()))
    assert gains[1] > gains[0]


def test_a_switch_also_learns_from_beginnings_that_are_neither_harmful_nor_right(
    model: LlamaGen, material: Material, tmp_path: Path
) -> None:
    """A round with too few harmful images takes no direction out, and repairs within what is left; resumed as well."""
    search = searched(model, material, repair="switch", least_gain=1e-9, margin=1.0)
    search.checkpoint = tmp_path / "edit.partial"
    first = search._sample(1)
    search._round(first)
    broken = replace(first, present=[None] * len(first.rows))
    assert search._left(broken) == LEARNT and broken.harmful == []
    search._round(broken)
    search._save()
    last, before = search.log[1], search.tables[1]
    assert (last.pairs, last.captured, last.dimension) == (0, 0.0, 2) and last.rows_moved > 0
    assert len(search.spaces) == 1 and last.energy_after < 1e-6 and search.spaces[0].energy(before).max() < 1e-6
    again = searched(model, material, repair="switch", least_gain=1e-9, margin=1.0)
    again.checkpoint = search.checkpoint
    again._resume()
    assert len(again.tables) == len(search.tables) and len(again.spaces) == 1 and again.log == search.log
    assert searched(model, material)._left(broken) == 0, "the paper's repair never sees them"


def test_what_is_held_is_read_once_or_again_where_memory_is_short(
    model: LlamaGen, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert material.keep is not None
    params = SafeCB.Params(caption_drop=0.5, batch=4)
    captions = model.condition(material.keep.prompts)

    def told() -> list[Tensor]:
        held = table_repair.Held(model, material.keep, captions)
        return [held.part(Draw(0, step), params)[2] for step in range(3)]

    stored = told()
    monkeypatch.setattr(table_repair, "REFERENCE_BYTES", 0)
    for once, again in zip(stored, told(), strict=True):
        torch.testing.assert_close(once, again)

"""What a loaded model takes on its device, and how a search is made to fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import BaseModel

from safear_edit import registry
from safear_edit.compiler import cost
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.cost import (
    Pace,
    Speed,
    Work,
    declared,
    draw_within,
    learn_within,
    pace_of,
    paced_seconds,
    stage_bytes,
    training_bytes,
    training_seconds,
    within,
)
from safear_edit.compiler.recipe import load_base_recipe
from safear_edit.editor.fine_tune import Tuning, adapter_weights, borrowed, inject
from safear_edit.errors import UsageError
from safear_edit.families.base import ModelFamily
from safear_edit.families.diffusion import Diffusion
from safear_edit.families.infinity import Infinity
from safear_edit.families.janus import Janus
from safear_edit.families.liquid import Liquid
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.vila_u import VilaU
from safear_edit.methods.sft import SFT
from safear_edit.methods.vce import VCE
from safear_edit.pipeline.plan import forecast_of
from safear_edit.spec.spec import load_spec
from safear_edit.studies.gpu import FULL
from tests.compiler.test_compile import Card, Numbers


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico()


PARAMS = VCE.Params(batch=8, keep_batch=4, keep_weight=1.0, steps=10)


def work(params: BaseModel) -> Work:
    assert isinstance(params, VCE.Params)
    return VCE().work(params, LlamaGen.pico().card, 8)


def training(model: LlamaGen, params: BaseModel) -> int:
    return stage_bytes(model, params, work(params), 1000)["training"]


def test_a_search_that_fits_is_left_alone_and_one_that_does_not_saves_memory(model: LlamaGen) -> None:
    again = PARAMS.model_copy(update={"recompute": True})
    halves, quarters = (again.model_copy(update={"accumulate": parts}) for parts in (2, 4))
    tried = [PARAMS, again, halves, quarters]
    sizes = [training(model, params) for params in tried]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    for params, size in zip(tried, sizes, strict=True):
        assert within(model, PARAMS, work, 1000, size) == params, "the first that fits, the cheapest"
    with pytest.raises(UsageError, match=r"--memory: expected at least .* GiB"):
        within(model, PARAMS, work, 1000, sizes[-1] - 1)


def test_many_preserved_images_beside_few_pairs_are_taken_in_parts_of_their_own(model: LlamaGen) -> None:
    """Two pairs cut a step in two only; what is preserved is cut further, down to as many rows as a pair has."""
    many = PARAMS.model_copy(update={"batch": 2, "keep_batch": 12})
    halves = many.model_copy(update={"recompute": True, "accumulate": 2})
    tried = [halves, *(halves.model_copy(update={"keep_parts": parts}) for parts in (2, 3))]
    sizes = [training(model, params) for params in tried]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert training(model, halves.model_copy(update={"keep_parts": 6})) == sizes[-1], "no part stands beside the pairs"
    for params, size in zip(tried, sizes, strict=True):
        assert within(model, many, work, 1000, size) == params
    held = many.model_copy(update={"keep_weight": 0.0, "understanding_weight": 1.0})
    with pytest.raises(UsageError, match="--memory"):
        within(model, held, work, 1000, training(model, held.model_copy(update={"accumulate": 2})) // 2)


@pytest.mark.parametrize(
    ("ref", "method", "gib"), [("infinity:2b", "svare", 16), ("llamagen:xl-256", "vce", 8), ("janus:pro-1b", "vce", 8)]
)
def test_a_published_size_trains_by_its_recipe_in_the_memory_of_a_usual_device(ref: str, method: str, gib: int) -> None:
    """In bfloat16, at its own image size, the batch as the recipe has it; nothing is computed (the meta device)."""
    model = FULL[ref](torch.device("meta"), torch.bfloat16)
    base = load_base_recipe(method).for_model(model.card)
    made = registry.lookup("methods", method).load()()
    params = made.Params.model_validate(base.params)

    def own(one: BaseModel) -> Work:
        return declared(made, one, model.card, 50)

    trainable = made.trainable(params, model)
    fitted = within(model, params, own, trainable, gib * 2**30)
    assert stage_bytes(model, fitted, own(fitted), trainable)["training"] <= gib * 2**30
    assert fitted.model_copy(update={"recompute": False, "accumulate": 1, "keep_parts": 1}) == params


def test_numbers_that_a_person_set_stay(model: LlamaGen) -> None:
    cut = PARAMS.model_copy(update={"accumulate": 2})
    found = within(model, cut, work, 1000, training(model, cut) - 1)
    assert (found.recompute, found.accumulate) == (True, 2)  # type: ignore[attr-defined]


def test_a_method_without_such_numbers_fits_or_is_refused(model: LlamaGen) -> None:
    class Params(BaseModel):
        batch: int = 2

    def own(_: BaseModel) -> Work:
        return Work(1, 2)

    assert within(model, Params(), own, 0, 2**40) == Params()
    with pytest.raises(UsageError, match="--memory"):
        within(model, Params(), own, 0, 1)


def test_drawing_within_a_budget_takes_fewer_images_at_a_time() -> None:
    model = LlamaGen.pico()
    model.card = replace(model.card, image_size=256)  # of which a tokenizer can't take 64 at once
    room, one = (cost._drawing_stage(model, images) for images in (8, 1))
    draw_within(model, room)
    assert (model.together, model.rows_per_batch, model.images_per_batch) == (64, 64, 8)
    draw_within(model, room - 1)
    assert (model.together, model.rows_per_batch, model.images_per_batch) == (4, 4, 4)
    with pytest.raises(UsageError, match=r"--memory: expected at least .* GiB"):
        draw_within(model, one - 1)
    assert LlamaGen.pico().together == 64


def test_gradients_of_attacks_fit_into_a_budget_or_are_taken_image_by_image(model: LlamaGen) -> None:
    one = training_bytes(model, Tuning(), Work(1, 1))
    for budget, count in ((cost.FIXED_BYTES + model.weight_bytes + 3 * one, 3), (1, 1)):
        learn_within(model, budget)
        assert model.learnt_together == count
    del model.learnt_together


@pytest.mark.parametrize(("kind", "most"), [(LlamaGen, 1.5), (Infinity, 1.5), (Janus, 1.5), (VilaU, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_keeps_what_its_family_says(kind: type[LlamaGen], most: float, dtype: torch.dtype) -> None:
    """Storages that autograd holds, from pictures of pico size: narrow layers keep relatively more beside their width,
    so the bound is wide here (most for VILA-U, whose pico tokenizer spells its template out in 180 letters); rehearsals
    (examples/results) measure published widths."""
    model = kind.pico()
    model.net.to(dtype)
    prompts = ["a dog"] * 4
    ids = model.generate(model.condition(prompts), range(4))
    kept = dict[int, int]()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    held = list[torch.Tensor]()
    own = {tensor.untyped_storage().data_ptr() for tensor in model.net.state_dict().values()}
    with borrowed(model.net, ()):
        weights = adapter_weights(inject(model.net, model.editable("all"), Tuning(rank=1), seed=0))
        own |= {weight.untyped_storage().data_ptr() for weight in weights.values()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.logits(model.condition(prompts), ids)
    measured = sum(size for place, size in kept.items() if place not in own)
    assert 0.3 < measured / training_bytes(model, Tuning(), Work(1, 4)) < most


@pytest.mark.parametrize("kind", [Janus, VilaU, Liquid])
def test_drawing_keeps_keys_and_values_of_every_position(kind: type[Janus]) -> None:
    model = kind.pico()
    keys = [one for name, one in model.net.named_modules() if name.endswith("layers.0.self_attn.k_proj")]
    assert isinstance(keys[0], torch.nn.Linear)
    layers, _, places = model.stacks[0]
    assert model.row_bytes == 2 * layers * keys[0].out_features * places * model.dtype.itemsize


def test_time_falls_with_speed_and_grows_with_layers_that_run_again(model: LlamaGen) -> None:
    slow, fast = Speed(1e9, 1e30), Speed(2e9, 1e30)
    once, again = PARAMS, PARAMS.model_copy(update={"recompute": True})
    found = training_seconds(model, work(once), once, 8, slow)
    assert training_seconds(model, work(once), once, 8, fast) == pytest.approx(found / 2)
    assert 1.1 * found < training_seconds(model, work(again), again, 8, slow) < 1.4 * found
    numbers = SFT.Params(batch=8, keep_batch=4, keep_weight=1.0, steps=10)
    assert (SFT().work(numbers, model.card, 8).read, work(once).read) == (1, 4), "only VCE scores its pairs"


def test_a_pass_reads_the_layers_and_widens_what_the_cpu_has_no_arithmetic_for(
    model: LlamaGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed, bytes_kept = Speed(1e30, 1e9), 4 * model.layer_parameters
    seconds = training_seconds(model, work(PARAMS), PARAMS, 8, speed)
    passes = 10 * (2 + 2 + 1) + 4  # pairs and preserved images forward and back, the base model's; pairs read before
    assert seconds == pytest.approx(passes * bytes_kept / 1e9)
    alone, halves = (PARAMS.model_copy(update=more) for more in ({"keep_weight": 0.0}, {"accumulate": 2}))
    assert training_seconds(model, work(alone), alone, 8, speed) == pytest.approx((10 * 2 + 4) * bytes_kept / 1e9)
    assert training_seconds(model, work(halves), halves, 8, speed) == pytest.approx((10 * 10 + 4) * bytes_kept / 1e9)
    monkeypatch.setattr("safear_edit.families.layers.half.emulated", lambda kind: True)
    wide = training_seconds(model, work(PARAMS), PARAMS, 8, speed)
    assert wide == pytest.approx(3 * seconds), "read, written wide and read again"


def test_drawing_reads_all_weights_at_every_step(model: LlamaGen) -> None:
    speed = Speed(1e30, 1e9)
    one, many = (cost.drawing_seconds(model, count, speed) for count in (1, 64))
    assert one == pytest.approx(many) and cost.drawing_seconds(model, 128, speed) == pytest.approx(2 * many)


def test_what_is_read_at_once_is_bounded_and_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images of a mini; few, and at least one, where a token has hundreds of thousands of choices."""
    model = LlamaGen.pico(seed=0)
    assert model.read_together(32) == 32
    small = stage_bytes(model, PARAMS, work(PARAMS), 1000)
    one = model.read_bytes(1)
    monkeypatch.setattr("safear_edit.families.base.READ_BYTES", 3 * one + 1)
    assert model.read_together(32) == 3
    few = stage_bytes(model, PARAMS, work(PARAMS), 1000)
    assert small["reading"] - few["reading"] == 29 * one and small["training"] == few["training"]
    model.card = replace(model.card, choices=2**30)
    assert model.read_together(32) == 1 and stage_bytes(model, PARAMS, work(PARAMS), 1000)["reading"] > 2**30 * 8 * 4


def test_a_forecast_names_the_stage_that_needs_most(model: LlamaGen) -> None:
    found = cost.forecast(model, PARAMS, work(PARAMS), 1000, 10, 8, Speed(1e9, 1e9))
    assert str(found).endswith("on cpu, float32, as fast as it is now") and max(found.stages.values()) / 2**30 < 3
    text = replace(found, stages={"captions": 2**33, "training": 2**30})
    assert "8.0 GiB (captions)" in str(text)


def test_each_hand_of_a_mini_holds_keys_and_values_of_its_own(model: LlamaGen, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec(registry.find_builtin("concepts", "picasso"))
    recipe = compile_recipe(spec, Card(), load_base_recipe("vce"), sampling=Numbers())
    held = []
    for hands in (1, 3):
        monkeypatch.setattr(LlamaGen, "hands", hands)
        held.append(forecast_of(recipe, model, Pace(0.1, 0.01)).stages["in all"])
    assert held[0] == round(recipe.predicted.memory_gib * 2**30)
    assert held[1] - held[0] == 2 * 2 * model.rows_per_batch * model.row_bytes > 0


@pytest.mark.parametrize("kind", [LlamaGen, Infinity, Diffusion])
def test_a_small_model_is_timed_itself_by_one_thread(kind: type[ModelFamily]) -> None:
    """By a clock that goes on by a second whenever it is read."""
    own, threads = kind.pico(), list[int]()
    before = torch.get_num_threads()

    def clock() -> float:
        threads.append(torch.get_num_threads())
        return float(len(threads))

    assert pace_of(own, clock) == Pace(1 / 8, 1 / 8 / (2 * own.card.passes) if kind is Diffusion else 1 / 8)
    assert set(threads) == {1} and torch.get_num_threads() == before


def test_a_slower_machine_takes_longer_in_all_it_does_and_more_threads_a_shorter_time() -> None:
    here, images, steps = Pace(image=0.078, row=0.011), 5000, Work(steps=120, rows=57)
    found = paced_seconds(steps, images, 160, here)
    assert paced_seconds(steps, images, 160, Pace(0.234, 0.033)) == pytest.approx(3 * found)
    each = (paced_seconds(steps, 2 * images, 160, here) - found) / images
    assert here.row < each < here.image, "a batch draws faster than a probe, and every image is judged"
    one, many = (paced_seconds(steps, images, 160, here, threads) for threads in (1, 16))
    assert 1.2 * found < one < 2 * found and found / 5 < many < found / 1.2


def test_the_runs_that_the_pace_is_fitted_to_took_what_it_says() -> None:
    """Minutes of whole walks, and the paces measured on the same machine: a half is promised."""
    walks = (
        (0.0777, 0.0108, 170.4, 5.7, 0.25),  # llamagen:mini and infinity:mini, threads sharing every product
        (0.0248, 0.0167, 144, 5.5, 0.25),
        (0.083, 0.0107, 144, 7.06, 0.35),  # janus:mini, the same, so it took longer than it would now
        (0.143, 0.0191, 170.4, 7.88, 0.25),  # llamagen:mini on a slower machine, a batch for each thread
    )
    for image, row, rows, minutes, off in walks:
        found = paced_seconds(Work(steps=120, rows=rows / 3), 5304, 160, Pace(image, row)) / 60
        assert found == pytest.approx(minutes, rel=off)

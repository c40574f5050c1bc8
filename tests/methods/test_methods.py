"""Each loss is the equation it names, and each method finds an edit that does what the loss asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safear_edit.compiler.questions import TrainingQuestions
from safear_edit.construct.pairs import Keep, Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.editor.edit import Edit
from safear_edit.editor.fine_tune import Draw, Readings, adapter_weights, borrowed, inject
from safear_edit.errors import UsageError
from safear_edit.families.base import Condition, ModelFamily
from safear_edit.families.infinity import Infinity
from safear_edit.families.janus import Janus
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.tokens import token_logprobs
from safear_edit.judges.base import Judge, Judgement
from safear_edit.methods.base import fit_pairs
from safear_edit.methods.dpo import dpo
from safear_edit.methods.esd import turned_away
from safear_edit.methods.sace import entropy_hinge, part
from safear_edit.methods.svare import SVARE, filtered_cross_entropy, svare_loss
from safear_edit.methods.vare import probability_mse
from safear_edit.methods.vce import VCE, vsafe_dpo
from safear_edit.methods.workbench import PairTuning, Workbench, answer_kl, token_kl
from safear_edit.progress import silent
from safear_edit.registry import methods

ALL = torch.ones(1, 2, dtype=torch.bool)
SUBJECTS = ["a house", "a dog at night", "a fish", "an apple in the snow", "a cat", "a car"]
LITTLE = {"steps": 12, "batch": 4, "learning_rate": 0.02, "warmup": 2, "rank": 4, "alpha": 4}


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico(seed=0)


@pytest.fixture(scope="module")
def material(model: LlamaGen) -> Material:
    unsafe, safe = [f"{s} by Picasso" for s in SUBJECTS], [f"a photo of {s}" for s in SUBJECTS]
    keep = [f"{s} by Monet" for s in SUBJECTS]
    ids = [
        model.generate(model.condition(prompts), range(i, i + 6)) for i, prompts in enumerate((unsafe, safe, keep), 100)
    ]
    pairs = Pairs(unsafe, safe, list(range(6)), ids[0], ids[1], PairStats(6, 6, {}))
    return Material("Picasso", pairs, Keep(keep, ids[2]))


def logprob(model: LlamaGen, prompts: list[str], ids: Tensor) -> Tensor:
    with torch.no_grad():
        return token_logprobs(model.logits(model.condition(prompts), ids), ids)


# -- losses -----------------------------------------------------------------------------------------------------------


def test_vsafe_dpo_by_hand() -> None:
    d_w, d_l = torch.tensor([[0.3, 0.1]]), torch.tensor([[-0.1, 0.5]])
    sigmoid = [1 / (1 + math.exp(-5 * gap)) for gap in (0.4, -0.4)]
    assert vsafe_dpo(d_w, d_l, ALL, 5.0, "seq").item() == pytest.approx(math.log(2))
    token = -(math.log(sigmoid[0]) + math.log(sigmoid[1])) / 2
    assert vsafe_dpo(d_w, d_l, ALL, 5.0, "token").item() == pytest.approx(token)
    for average in ("seq", "token"):
        first = vsafe_dpo(d_w, d_l, torch.tensor([[True, False]]), 5.0, average)
        assert first.item() == pytest.approx(-math.log(sigmoid[0])), "the dropped position has no say"


@pytest.mark.parametrize("average", ["seq", "token"])
def test_equal_policies_cost_log_two(average: str) -> None:
    d = torch.randn(3, 7)
    kept = torch.rand(3, 7) > 0.4
    kept[:, 0] = True
    kept[0] = False
    loss = vsafe_dpo(d, d, kept, 5.0, average)  # type: ignore[arg-type]
    assert loss[0].item() == pytest.approx(math.log(2) if average == "seq" else 0), "nothing kept: a constant"
    torch.testing.assert_close(loss[1:], torch.full((2,), math.log(2)))
    torch.testing.assert_close(dpo(d, d, 0.1), torch.full((3,), math.log(2)))


def test_vsafe_dpo_falls_with_the_margin_and_seq_never_exceeds_token() -> None:
    d_w, d_l = torch.randn(50, 9), torch.randn(50, 9)
    kept = torch.rand(50, 9) > 0.2
    seq, token = (vsafe_dpo(d_w, d_l, kept, 2.0, average) for average in ("seq", "token"))
    assert (seq <= token + 1e-6).all()
    assert (vsafe_dpo(d_w + 0.5, d_l, kept, 2.0, "seq") < seq).all()


def test_dpo_by_hand_and_as_vsafe_dpo_without_its_average() -> None:
    d_w, d_l = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.5]])
    assert dpo(d_w, d_l, 0.1).item() == pytest.approx(math.log(1 + math.exp(-0.4)))
    torch.testing.assert_close(dpo(d_w, d_l, 0.1), vsafe_dpo(d_w, d_l, ALL, 0.1 * 2, "seq"))


def test_token_kl_by_hand() -> None:
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert token_kl(p.log()[None, None], q.log()[None, None]).item() == pytest.approx(expected)
    bits = token_kl(p.log().expand(1, 4, 3, 2), q.log().expand(1, 4, 3, 2))
    torch.testing.assert_close(bits, torch.full((1, 4), 3 * expected))
    assert token_kl(p.log()[None, None], p.log()[None, None]).item() == 0


def test_filtered_cross_entropy_by_hand() -> None:
    """Four bits; token 0 has one wrong bit (25 %), token 1 two, token 2 none; the filter passes no gradient."""
    low, high = 0.1, 2.0
    losses = torch.tensor([[[high, low, low, low], [high, high, low, low], [low] * 4]], requires_grad=True)
    for alpha, counted in ((0.25, (1, 1, 0)), (0.5, (0, 1, 0)), (0.0, (1, 1, 1))):
        means = ((high + 3 * low) / 4, (2 * high + 2 * low) / 4, low)
        loss, share = filtered_cross_entropy(losses, alpha)
        assert loss.item() == pytest.approx(sum(m * c for m, c in zip(means, counted, strict=True)) / 3)
        assert share.item() == pytest.approx(sum(counted) / 3)
        (gradient,) = torch.autograd.grad(loss, losses)
        torch.testing.assert_close(gradient[0], torch.tensor(counted)[:, None].expand(3, 4) / 12.0)
    tokens = torch.tensor([[math.log(2) + 0.01, math.log(2) - 0.01]])
    assert filtered_cross_entropy(tokens, 0.25)[1].item() == 0.5, "a codebook's token is wrong below one half"


def test_probability_mse_and_turned_away_by_hand() -> None:
    p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    torch.testing.assert_close(probability_mse(p.expand(1, 3, 2), q.expand(1, 3, 2)), torch.full((1, 3), 0.32))
    torch.testing.assert_close(probability_mse(p.expand(1, 3, 4, 2), q.expand(1, 3, 4, 2)), torch.full((1, 3), 0.32))
    assert turned_away(torch.tensor(1.0), torch.tensor(3.0), 0.0) == 1
    assert turned_away(torch.tensor(1.0), torch.tensor(3.0), 2.0) == -3


def test_scales_and_entropy_hinge_by_hand() -> None:
    logits = torch.arange(14.0)[None, :, None, None].expand(1, 14, 3, 2)
    assert part(logits, (1, 4, 9), 0)[0, :, 0, 0].tolist() == [0]
    assert part(logits, (1, 4, 9), 1)[0, :, 0, 0].tolist() == [1, 2, 3, 4]
    assert part(logits, (1, 4, 9), 2).shape == (1, 9, 3, 2)
    flat, sharp = torch.zeros(2, 1, 3, 2), torch.tensor([30.0, 0.0]).expand(2, 1, 3, 2)
    assert entropy_hinge(flat, 0.4).item() == pytest.approx(math.log(2) - 0.4)
    assert entropy_hinge(sharp, 0.4).item() == 0
    each = torch.cat([flat[:1], sharp[:1]])
    assert entropy_hinge(each, 0.4).item() == pytest.approx((math.log(2) - 0.4) / 2), "a sharp row pays for no flat one"


# -- the workbench ----------------------------------------------------------------------------------------------------


def test_scores_are_log_probabilities_under_the_unsafe_caption(model: LlamaGen, material: Material) -> None:
    bench = Workbench(model, material, PairTuning(batch=4), silent)
    draw = Draw(0, 3)
    rows, pairs = draw.rows("pairs", 6, 4), material.pairs
    prompts = [pairs.unsafe[i] for i in rows]
    scores = bench.scores(draw)
    for found, ids in ((scores.winner, pairs.safe_ids), (scores.loser, pairs.unsafe_ids)):
        torch.testing.assert_close(found.detach(), logprob(model, prompts, ids[rows]), atol=2e-5, rtol=1e-5)
    safe = [pairs.safe[i] for i in rows]
    found = bench.winner(draw, "safe").detach()
    torch.testing.assert_close(found, logprob(model, safe, pairs.safe_ids[rows]), atol=2e-5, rtol=1e-5)


def test_untouched_model_gains_nothing_with_and_without_captions(model: LlamaGen, material: Material) -> None:
    """Policy and reference drop the same captions, for winner and loser alike."""
    bench = Workbench(model, material, PairTuning(batch=6, caption_drop=0.5, keep_weight=1.0, keep_batch=6), silent)
    plain = Workbench(model, material, PairTuning(batch=6), silent)
    draw = next(Draw(0, step) for step in range(9) if 1 < int(bench.scores(Draw(0, step)).dropped.sum()) < 5)
    scores = bench.scores(draw)
    for gain in (scores.winner_gain, scores.loser_gain):
        torch.testing.assert_close(gain.detach(), torch.zeros_like(gain), atol=2e-5, rtol=0)
    changed = (scores.winner - plain.scores(draw).winner).abs().amax(1) > 1e-6
    assert torch.equal(changed, scores.dropped)
    params = VCE.Params(batch=6, anchor_weight=0, caption_drop=0.5)
    assert VCE().loss(bench, draw, params)[0].item() == pytest.approx(math.log(2), abs=1e-4)


def test_preserved_images_in_parts_give_the_same_drift_and_gradient_and_keep_less(
    model: LlamaGen, material: Material
) -> None:
    """Also in parts of unequal size, with some captions dropped."""
    found = []
    for parts in (1, 4):
        params = PairTuning(keep_weight=1.0, keep_batch=6, caption_drop=0.5, keep_parts=parts)
        bench, kept = Workbench(model, material, params, silent, reference=False), list[int]()
        with borrowed(model.net, writes=()):
            weights = [*adapter_weights(inject(model.net, model.editable("all"), params, 0)).values()]
            for weight in weights:
                weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(weight.numel()))

            def pack(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
                kept.append(tensor.nbytes)
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                drift = bench.drift(Draw(0, 1))
            found.append((drift.detach(), torch.autograd.grad(drift, weights), sum(kept)))
    (one, slopes, whole), (other, others, less) = found
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(slopes, others)
    assert one > 0 and less < whole / 4


@pytest.mark.parametrize("kind", [VCE, SVARE])
def test_a_step_in_parts_of_its_own_finds_the_same_edit_and_keeps_less(
    kind: type[VCE | SVARE], material: Material
) -> None:
    """The loss on pairs too, whatever it reads of the base model, is run again when the backward pass needs it."""
    found = []
    for parts in (1, 3):
        numbers = {"steps": 2, "batch": 4, "keep_weight": 1.0, "keep_batch": 6, "warmup": 0, "keep_parts": parts}
        kept = list[int]()

        def pack(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            edit = kind().fit(
                LlamaGen.pico(seed=0), material, kind.Params.model_validate(numbers), seed=0, progress=silent
            )
        found.append((edit.tensors, edit.info.losses, sum(kept)))
    (one, losses, whole), (other, others, less) = found
    torch.testing.assert_close(one, other)
    assert losses == pytest.approx(others) and less < whole / 20


def test_drift_is_zero_until_the_adapter_moves(model: LlamaGen, material: Material) -> None:
    bench = Workbench(model, material, PairTuning(keep_weight=1.0, keep_batch=6, caption_drop=0.3), silent)
    with borrowed(model.net, writes=()):
        layers = inject(model.net, model.editable("all"), PairTuning(), 0)
        assert bench.drift(Draw(0, 0)).item() == 0
        for layer in layers.values():
            layer.lora_B["default"].weight.data.normal_(std=0.2)
        drift = bench.drift(Draw(0, 0))
        assert drift.item() > 1e-4 and drift.requires_grad
        loss, readings = bench.keeping(Draw(0, 0), torch.zeros(()), {})
        assert loss.item() == pytest.approx(drift.item()) == pytest.approx(readings["drift"])


def test_below_earlier_edits_lies_what_is_kept_but_for_guards(model: LlamaGen, material: Material) -> None:
    """On a model with an edit, preserved images are held to the base model, guards to the model as it is."""
    below = fit("vce", model, material)
    assert material.keep is not None
    keep, reference = material.keep, model.logits(model.condition(material.keep.prompts), material.keep.ids).detach()
    params = PairTuning(keep_weight=1.0, keep_batch=6, caption_drop=0.0)
    drifts = []
    with below.apply(model.net), borrowed(model.net, writes=()):
        far = token_kl(reference, model.logits(model.condition(keep.prompts), keep.ids)).mean(1)
        inject(model.net, model.editable("all"), PairTuning(), 0)
        for guards in (None, (True, False, True, False, False, False), (True,) * 6):
            bench = Workbench(model, replace(material, keep=replace(keep, guards=guards)), params, silent)
            drifts.append(bench.drift(Draw(0, 0)).item())
    far = far.detach()
    assert far.min() > 1e-4 and drifts[2] == 0
    assert drifts[0] == pytest.approx(float(far.mean()), rel=1e-3)
    assert drifts[1] == pytest.approx(float(far[[1, 3, 4, 5]].sum()) / 6, rel=1e-3)


def test_views_name_caption_and_picture(model: LlamaGen, material: Material) -> None:
    bench, draw, pairs = (
        Workbench(model, material, PairTuning(batch=3), silent, reference=False),
        Draw(0, 1),
        material.pairs,
    )
    rows = draw.rows("pairs", 6, 3)
    with borrowed(model.net, writes=()):
        layers = inject(model.net, model.editable("all"), PairTuning(), 0)
        for caption, prompts in (("unsafe", pairs.unsafe), ("safe", pairs.safe)):
            expected = model.logits(model.condition([prompts[i] for i in rows]), pairs.unsafe_ids[rows]).detach()
            torch.testing.assert_close(bench.logits(draw, caption, "unsafe").detach(), expected, atol=2e-5, rtol=1e-5)
        for layer in layers.values():
            layer.lora_B["default"].weight.data.normal_(std=0.2)
        changed = bench.logits(draw, "safe", "unsafe")
        assert (changed - expected).abs().max() > 1e-3 and changed.requires_grad
        reference = bench.reference(draw, "safe", "unsafe")
        torch.testing.assert_close(reference, expected, atol=2e-5, rtol=1e-5)
        assert not reference.requires_grad
        without = bench.reference(draw, "none", "unsafe")
        assert (without - bench.reference(draw, "unsafe", "unsafe")).abs().max() > 1e-3


def test_svare_as_released_takes_turns_on_the_same_pairs(model: LlamaGen, material: Material) -> None:
    params = SVARE.Params(mode="released", batch=3)
    bench = Workbench(model, material, params, silent, reference=False)
    with borrowed(model.net, writes=()):
        inject(model.net, model.editable("all"), params, 0)
        erase, first = svare_loss(bench, Draw(0, 2), params, 3.0)
        preserve, second = svare_loss(bench, Draw(0, 3), params, 3.0)
        plain, both = svare_loss(bench, Draw(0, 1), SVARE.Params(batch=3), 3.0)
    assert set(first) == {"wrong"} and set(second) == {"preserve"} and set(both) == {"wrong", "preserve"}
    assert plain.item() == pytest.approx(erase.item()), "the untouched student is the plain teacher: L_Pre is 0"
    assert preserve.item() > 1e-3, "the guided teacher is not the plain student"


# -- the methods ------------------------------------------------------------------------------------------------------


def fit(name: str, model: ModelFamily, material: Material, checkpoint: Path | None = None, **params: object) -> Edit:
    kind = methods()[name].load()
    chosen = kind.Params(**{**LITTLE, **params})
    found: Edit = kind().fit(model, material, chosen, seed=1, progress=silent, checkpoint=checkpoint)
    return found


@pytest.mark.parametrize("name", ["vce", "dpo", "sft", "vare", "svare", "esd", "obliviate_pairs", "ear"])
def test_a_method_moves_the_preference_and_nothing_else(name: str, model: LlamaGen, material: Material) -> None:
    before = {key: tensor.clone() for key, tensor in model.net.state_dict().items()}
    pairs = material.pairs
    winner, loser = logprob(model, pairs.unsafe, pairs.safe_ids), logprob(model, pairs.unsafe, pairs.unsafe_ids)
    edit = fit(name, model, material, part="attention")
    assert all(torch.equal(before[key], tensor) for key, tensor in model.net.state_dict().items())
    assert edit.modules == sorted(model.editable("attention")) != sorted(model.editable("all"))
    assert edit.info.base_digest == model.card.digest and edit.info.concept == "Picasso"
    assert edit.info.method == name and edit.info.params["part"] == "attention" and len(edit.info.losses) == 12
    assert edit.info.losses[-1] < edit.info.losses[0]
    with edit.apply(model.net):
        changed = {k for k, tensor in model.net.state_dict().items() if not torch.equal(before[k], tensor)}
        after = logprob(model, pairs.unsafe, pairs.safe_ids), logprob(model, pairs.unsafe, pairs.unsafe_ids)
    assert changed <= {f"{module}.weight" for module in edit.modules}
    gained = (after[0] - winner).mean() - (after[1] - loser).mean()
    assert gained > 0.02 if name in ("vce", "dpo") else (after[0] - winner).mean() > 0.02 or gained > 0.02


def test_the_same_arguments_find_the_same_edit_also_in_two_sittings(
    model: LlamaGen, material: Material, tmp_path: Path
) -> None:
    whole = fit("vce", model, material, save_every=5)
    path = tmp_path / "checkpoint"

    def stop(stage: str, done: int, total: int, info: str) -> None:
        if stage == "edit" and done == 7:
            raise KeyboardInterrupt

    params = VCE.Params(**LITTLE, save_every=5)
    with pytest.raises(KeyboardInterrupt):
        VCE().fit(model, material, params, seed=1, progress=stop, checkpoint=path)
    assert path.exists()
    assert fit("vce", model, material, checkpoint=path, save_every=5).digest == whole.digest
    assert fit("vce", model, material, save_every=5, learning_rate=0.01).digest != whole.digest


def test_layers_that_are_run_again_and_smaller_parts_find_the_same_edit(model: LlamaGen, material: Material) -> None:
    whole = fit("vce", model, material, steps=3)
    again, parts = (
        fit("vce", model, material, steps=3, recompute=True),
        fit("vce", model, material, steps=3, accumulate=2),
    )
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=0, atol=1e-6)
        torch.testing.assert_close(parts.tensors[name], tensor, rtol=0, atol=1e-4)
    assert vars(model.net.blocks[0]).get("image") is None, "the net is given back as it was"


def test_keeping_reduces_the_drift(model: LlamaGen, material: Material) -> None:
    assert material.keep is not None
    keep, drifts = material.keep, []
    reference = model.logits(model.condition(keep.prompts), keep.ids).detach()
    for weight in (0.0, 20.0):
        with fit("vce", model, material, keep_weight=weight).apply(model.net), torch.no_grad():
            logits = model.logits(model.condition(keep.prompts), keep.ids)
            drifts.append(token_kl(reference, logits).mean().item())
    assert drifts[1] < 0.7 * drifts[0]


@pytest.mark.parametrize(
    "variant", [{"average": "token"}, {"anchor": "safe"}, {"token_drop": 0.0, "caption_drop": 0.0}]
)
def test_every_reading_of_the_paper_runs(variant: dict[str, object], model: LlamaGen, material: Material) -> None:
    pairs = material.pairs

    def preference() -> float:
        safe, unsafe = (logprob(model, pairs.unsafe, ids) for ids in (pairs.safe_ids, pairs.unsafe_ids))
        return float((safe - unsafe).mean())

    before = preference()
    with fit("vce", model, material, **variant).apply(model.net):
        assert preference() > before + 0.1


def test_a_stored_picture_is_reached_through_peft_too(model: LlamaGen, material: Material, tmp_path: Path) -> None:
    """What a release holds: the adapter in peft's own format gives the merged model's logits."""
    from peft import PeftModel

    edit = fit("sft", model, material)
    edit.save(tmp_path)
    ids, prompts = material.pairs.safe_ids, material.pairs.unsafe
    with edit.apply(model.net):
        merged = logprob(model, prompts, ids)
    with borrowed(model.net):
        PeftModel.from_pretrained(model.net, tmp_path)
        torch.testing.assert_close(logprob(model, prompts, ids), merged, atol=2e-5, rtol=1e-5)


# -- bitwise next-scale models: the same files ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bitwise() -> Infinity:
    return Infinity.pico(seed=0)


@pytest.fixture(scope="module")
def bits(bitwise: Infinity) -> Material:
    unsafe, safe = [f"{s} by Picasso" for s in SUBJECTS], [f"a photo of {s}" for s in SUBJECTS]
    ids = [bitwise.generate(bitwise.condition(prompts), range(i, i + 6)) for i, prompts in enumerate((unsafe, safe), 9)]
    return Material("Picasso", Pairs(unsafe, safe, list(range(6)), ids[0], ids[1], PairStats(6, 6, {})), None)


@pytest.mark.parametrize("name", ["vce", "svare", "vare", "obliviate", "obliviate_pairs", "ear"])
def test_every_pair_method_runs_on_bits(name: str, bitwise: Infinity, bits: Material) -> None:
    before = {key: tensor.clone() for key, tensor in bitwise.net.state_dict().items()}
    edit = fit(name, bitwise, bits, part="cross_attention+ffn")
    assert edit.modules == sorted(bitwise.editable("cross_attention+ffn"))
    assert edit.info.losses[-1] < edit.info.losses[0]
    assert all(torch.equal(before[key], tensor) for key, tensor in bitwise.net.state_dict().items())


def test_sace_moves_the_first_scale_to_the_neutral_caption(bitwise: Infinity, bits: Material) -> None:
    """Only the scales that a step needs are computed, and what comes after them is not looked at."""
    asked: list[int | None] = []
    original = bitwise.logits

    def watched(condition: Condition, ids: Tensor, *, first_scales: int | None = None) -> Tensor:
        asked.append(first_scales)
        return original(condition, ids, first_scales=first_scales)

    def gap() -> float:
        with torch.no_grad():
            unsafe, safe = (bitwise.condition(prompts) for prompts in (bits.pairs.unsafe, bits.pairs.safe))
            ids = bits.pairs.safe_ids
            return float((original(unsafe, ids, first_scales=1) - original(safe, ids, first_scales=1)).square().mean())

    before = gap()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitwise, "logits", watched)
        edit = fit("sace", bitwise, bits, part="cross_attention", preserve_scales=(1,), steps=30)
    assert set(asked) == {1, 2}
    assert asked.count(1) == asked.count(2), "the frozen model is run on the neutral caption alone"
    with edit.apply(bitwise.net):
        assert gap() < 0.5 * before
    with pytest.raises(UsageError, match="scales 0 to 2 of this model, got 3"):
        fit("sace", bitwise, bits)
    with pytest.raises(UsageError, match="scales 0 to 2 of this model, got -1"):
        fit("sace", bitwise, bits, erase_scales=[-1], preserve_scales=[])


class Finds(Judge):
    """Finds the concept as often as it is told, in turn: one share of present images for each call."""

    id, digest, threshold = "finds", "0", 0.5

    def __init__(self, *shares: float | None) -> None:
        self.shares = list(shares)

    def look(self, images: Tensor) -> list[Judgement]:
        share = self.shares.pop(0)
        count = len(images)
        if share is None:
            return [Judgement(None, 0.5, "")] * count
        return [Judgement(i < round(share * count), 0.5, "") for i in range(count)]


def test_sace_takes_the_weakest_strength_that_is_enough(bitwise: Infinity, bits: Material) -> None:
    """The paper's inference scale, in the adapter's alpha; an image that can't be read is no erased one."""
    numbers: dict[str, object] = {"part": "cross_attention", "preserve_scales": (1,), "steps": 3}
    plain, strong = (fit("sace", bitwise, bits, **numbers, strength=strength) for strength in (1.0, 3.0))
    assert (plain.info.alpha, strong.info.alpha) == (4.0, 12.0)
    name = plain.weights[0]
    torch.testing.assert_close(strong.delta(name), 3 * plain.delta(name))
    for shares, taken, tried in (((1.0, 0.5, 0.0), 3.0, 3), ((0.5, None, 1.0, 0.5), 1.0, 4)):
        judged = replace(bits, judge=Finds(*shares))
        found = fit("sace", bitwise, judged, **numbers, strength="search")
        assert found.info.alpha == 4 * taken and same_factors(found, plain)
        assert found.log is not None and len(found.log.rows) == tried
        assert [row[0] for row in found.log.rows if row[2]] == [taken]
    assert [row[1] for row in found.log.rows] == [0.5, 1.0, 1.0, 0.5]
    with pytest.raises(UsageError, match="somebody to judge images of training prompts"):
        fit("sace", bitwise, bits, **numbers, strength="search")


def test_vce_goes_one_step_beyond_the_weakest_strength_that_erases(model: LlamaGen, material: Material) -> None:
    """Held-out names ask for more than training prompts do; where nothing is enough, the best is taken."""
    plain = fit("vce", model, material, steps=3)
    assert same_factors(fit("vce", model, material, steps=3, strength=0.5), plain)
    for shares, taken, tried in (
        ((0.0, 0.0, 0.5, 0.0), 0.6, [1.0, 0.6, 0.4, 0.5]),
        ((0.0, 0.0, 0.5, 0.5), 0.7, [1.0, 0.6, 0.4, 0.5, 0.7]),
        ((0.0, 0.0, 0.0), 0.5, [1.0, 0.6, 0.4, 0.5]),
        ((0.0, 0.5, 0.0), 0.8, [1.0, 0.6, 0.7, 0.8]),
        ((0.5,), 1.0, [1.0]),
    ):
        found = fit("vce", model, replace(material, judge=Finds(*shares, 0.5)), steps=3, strength="search")
        assert found.info.alpha == pytest.approx(plain.info.alpha * taken) and same_factors(found, plain)
        assert found.log is not None and [row[0] for row in found.log.rows if row[2]] == [taken]
        assert [row[0] for row in found.log.rows] == tried
    with pytest.raises(UsageError, match="vce: expected somebody to judge"):
        fit("vce", model, replace(material, judge=None), steps=3, strength="search")


def same_factors(one: Edit, other: Edit) -> bool:
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


# -- unified models: the same files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unified() -> Janus:
    return Janus.pico(seed=0)


@pytest.mark.parametrize("name", ["vce", "obliviate", "obliviate_pairs", "ear"])
def test_every_pair_method_runs_on_a_unified_model(name: str, unified: Janus) -> None:
    """What a method leaves behind is measured against the base model, which is Obliviate's teacher too."""
    unsafe, safe = [f"{s} by Picasso" for s in SUBJECTS], [f"a photo of {s}" for s in SUBJECTS]
    ids = [unified.generate(unified.condition(prompts), range(i, i + 6)) for i, prompts in enumerate((unsafe, safe), 9)]
    material = Material("Picasso", Pairs(unsafe, safe, list(range(6)), ids[0], ids[1], PairStats(6, 6, {})), None)
    before = {key: tensor.clone() for key, tensor in unified.net.state_dict().items()}
    edit = fit(name, unified, material, part="attention")
    assert edit.modules == sorted(unified.editable("attention"))
    assert edit.info.losses[-1] < edit.info.losses[0]
    assert all(torch.equal(before[key], tensor) for key, tensor in unified.net.state_dict().items())


ABOUT_IT, ABOUT_OTHERS = ("is this by Picasso?", "is it cubism?"), ("is it a cat?", "is it a car?", "is it a house?")


def asking(unified: Janus, erase: bool) -> Material:
    """Pairs and preserved images of a unified model, with questions about them."""
    captions = [f"{s} by Picasso" for s in SUBJECTS], [f"a photo of {s}" for s in SUBJECTS], [f"{s}!" for s in SUBJECTS]
    ids = [unified.generate(unified.condition(prompts), range(i, i + 6)) for i, prompts in enumerate(captions, 9)]
    pairs = Pairs(captions[0], captions[1], list(range(6)), ids[0], ids[1], PairStats(6, 6, {}))
    return Material("Picasso", pairs, Keep(captions[2], ids[2]), None, TrainingQuestions(ABOUT_IT, ABOUT_OTHERS, erase))


def said(unified: Janus, ids: Tensor, question: str) -> Tensor:
    """Shares (b, 2) of yes and no among themselves; a pico model hardly ever says either."""
    with torch.no_grad():
        return unified.answer_logprobs(unified.decode(ids), question, ["yes", "no"]).double().softmax(-1)


def test_answer_kl_by_hand() -> None:
    p, q = torch.tensor([[0.6, 0.3]]), torch.tensor([[0.2, 0.2]])
    expected = 0.9 * math.log(0.9 / 0.4) + 0.1 * math.log(0.1 / 0.6)
    expected += 2 / 3 * math.log(2 / 3 / 0.5) + 1 / 3 * math.log(1 / 3 / 0.5)
    assert answer_kl(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-5)
    sure = torch.tensor([[0.0, -30.0]], requires_grad=True)
    assert answer_kl(sure, sure).item() == 0
    answer_kl(p.log(), sure).backward()  # type: ignore[no-untyped-call]
    assert sure.grad is not None and bool(sure.grad.isfinite().all()), "the rest of a sure answer is rounding"
    rare = torch.tensor([[-20.0, -21.0]]), torch.tensor([[-21.0, -20.0]])
    assert answer_kl(*rare).item() == pytest.approx(math.tanh(0.5), rel=1e-4), "also where both are hardly ever said"


@pytest.mark.parametrize("erase", [False, True])
def test_answers_are_held_to_those_of_the_untouched_model(unified: Janus, erase: bool) -> None:
    """By hand, for each step's own images and question; where the concept goes, about the safe image instead."""
    material = asking(unified, erase)
    bench = Workbench(unified, material, PairTuning(keep_batch=6, understanding_weight=1.0), silent, reference=False)
    assert material.keep is not None
    ids = torch.cat([material.pairs.unsafe_ids, material.pairs.safe_ids, material.keep.ids])
    asked = set()
    with borrowed(unified.net, writes=()):
        weights = adapter_weights(inject(unified.net, unified.editable("attention"), PairTuning(), 0))
        for step in range(6):
            rows = Draw(0, step).rows("answers", 18, 6)
            told = torch.where((rows < 6) & erase, rows + 6, rows)
            found = bench.answers(Draw(0, step), material.questions or TrainingQuestions((), (), False))
            by_hand = {}
            for question in ABOUT_OTHERS if step % 2 else ABOUT_IT:
                p, q = said(unified, ids[told], question), said(unified, ids[rows], question)
                by_hand[question] = (p * (p / q).log()).sum(1).mean().item()
            closest = min(by_hand, key=lambda question: abs(by_hand[question] - found.item()))
            assert found.item() == pytest.approx(by_hand[closest], abs=1e-4)
            asked.add(closest)
            if not erase:
                assert found.item() == 0
        if erase:
            assert asked == {*ABOUT_IT, *ABOUT_OTHERS}
        whole, halves = bench.answers(Draw(0, 2), material.questions), 0.0  # type: ignore[arg-type]
        for part in range(2):
            halves += bench.answers(Draw(0, 2, part, 2), material.questions).item() / 2  # type: ignore[arg-type]
        assert halves == pytest.approx(whole.item(), abs=1e-6), "the same question on every process"
        with torch.no_grad():
            moving = torch.Generator().manual_seed(0)  # not the program's numbers, which depend on the tests before
            for weight in (w for name, w in weights.items() if name.endswith("lora_B")):
                weight.normal_(generator=moving)
        moved = bench.answers(Draw(0, 2), material.questions)  # type: ignore[arg-type]
        assert moved.item() > 0.001 and moved.requires_grad


def test_keeping_answers_reduces_their_drift(unified: Janus) -> None:
    material = asking(unified, erase=False)
    before = [said(unified, material.pairs.unsafe_ids, question) for question in (*ABOUT_IT, *ABOUT_OTHERS)]
    drifts = []
    for weight in (0.0, 20.0):
        edit = fit("vce", unified, material, part="attention", understanding_weight=weight, keep_batch=8, steps=20)
        with edit.apply(unified.net):
            after = [said(unified, material.pairs.unsafe_ids, question) for question in (*ABOUT_IT, *ABOUT_OTHERS)]
        drifts.append(sum((p * (p / q).log()).sum(1).mean().item() for p, q in zip(before, after, strict=True)))
        assert ("understanding_weight" in edit.info.params) == (weight > 0)
    assert drifts[1] < 0.5 * drifts[0], drifts


@pytest.mark.soak
def test_an_erased_understanding_answers_as_about_the_safe_picture(unified: Janus) -> None:
    """Found by the answers alone: log-odds of yes about each unsafe image against those about its pair's safe one."""

    def odds(ids: Tensor) -> Tensor:
        return torch.stack([said(unified, ids, question).log().diff(dim=-1) for question in ABOUT_IT])

    def nothing(bench: Workbench, draw: Draw) -> tuple[Tensor, Readings]:
        return torch.zeros(()), {}

    material = asking(unified, erase=True)
    target = odds(material.pairs.safe_ids)
    before = (odds(material.pairs.unsafe_ids) - target).square().mean().item()
    assert before > 0.01, "the images are told apart"
    numbers = {**LITTLE, "steps": 60, "learning_rate": 0.005, "keep_batch": 18, "understanding_weight": 1.0}
    tuning = PairTuning(**numbers, part="attention")  # type: ignore[arg-type]
    edit = fit_pairs("x", unified, material, tuning, nothing, seed=1, progress=silent, checkpoint=None)
    with edit.apply(unified.net):
        assert (odds(material.pairs.unsafe_ids) - target).square().mean().item() < 0.6 * before


def test_a_model_that_answers_nothing_is_not_asked(model: LlamaGen, material: Material) -> None:
    asked = Material(
        material.concept, material.pairs, material.keep, None, TrainingQuestions(ABOUT_IT, ABOUT_OTHERS, True)
    )
    bench = Workbench(model, asked, PairTuning(batch=6, understanding_weight=1.0), silent, reference=False)
    loss, readings = bench.keeping(Draw(0, 0), torch.tensor(1.0), {})
    assert loss.item() == 1.0 and readings == {}


@pytest.mark.parametrize("family", [LlamaGen, Infinity, Janus])
def test_obliviate_pairs_reaches_its_turned_away_target_on_every_family(family: type[ModelFamily]) -> None:
    """KL to softmax(z_0 - eta (z_c - z_0)) on the frozen model's own prefix falls; by hand, without the workbench."""
    model, eta = family.pico(seed=0), 2.0
    unsafe, safe = [f"{s} by Picasso" for s in SUBJECTS], [f"a photo of {s}" for s in SUBJECTS]
    condition = model.condition(unsafe)
    ids = model.generate(condition, range(6))
    pairs = Pairs(unsafe, safe, list(range(6)), ids, ids, PairStats(6, 6, {}))
    with torch.no_grad():
        concept = model.logits(condition, ids)
        nothing = model.logits(model.dropped(condition, torch.ones(6, dtype=torch.bool)), ids)
        target = nothing - eta * (concept - nothing)
        before = token_kl(target, concept).mean().item()
    edit = fit("obliviate_pairs", model, Material("Picasso", pairs, None), batch=6, steps=20, eta=eta)
    assert edit.info.losses[0] == pytest.approx(before, rel=1e-3), "an untouched adapter: the loss is that KL"
    with edit.apply(model.net), torch.no_grad():
        assert token_kl(target, model.logits(condition, ids)).mean().item() < 0.9 * before


def test_obliviate_takes_one_concept_prompt_and_the_models_own_roll_outs(model: LlamaGen, material: Material) -> None:
    """As the paper: neither captions nor images of the pairs are looked at, and the prompt is the concept alone."""
    asked: list[list[str]] = []
    original = model.condition

    def watched(prompts: Sequence[str]) -> Condition:
        asked.append(list(prompts))
        return original(prompts)

    numbers: dict[str, object] = {"rollouts": 70, "dropout": 0.05, "steps": 20, "batch": 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "condition", watched)
        edit = fit("obliviate", model, replace(material, keep=None, prompt="Pablo Picasso"), **numbers)
    assert {prompt for prompts in asked for prompt in prompts} == {"Pablo Picasso"}
    assert edit.info.losses[-1] < edit.info.losses[0] and edit.info.params["dropout"] == 0.05
    others = replace(material, keep=None, prompt="Pablo Picasso", pairs=replace(material.pairs, unsafe=SUBJECTS))
    assert fit("obliviate", model, others, **numbers).digest == edit.digest, "same seed, same roll-outs and dropout"
    assert fit("obliviate", model, others, **numbers, prompt="cubism, Picasso").digest != edit.digest


def test_dropout_leaves_inputs_of_the_adapter_out_in_training_alone(model: LlamaGen, material: Material) -> None:
    """None is as before there was dropout; with it a step is a function of its draw, and the program's numbers stay."""
    assert "dropout" not in fit("sft", model, material).info.params
    torch.manual_seed(3)
    found = [fit("sft", model, material, dropout=share) for share in (0.5, 0.5, 0.0)]
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after), "no number of the program was taken"
    assert found[0].digest == found[1].digest
    name = next(iter(found[0].tensors))
    assert not torch.equal(found[0].tensors[name], found[2].tensors[name])
    assert found[0].info.losses[0] == found[2].info.losses[0], "B is 0 at first, whatever is left out"

"""The likelihood audit against its definitions on a pico model, and end to end on the mini with a few images."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributions import Bernoulli, Categorical, kl_divergence

from safear_edit import registry
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo
from safear_edit.errors import SpecError, UsageError
from safear_edit.evaluate.before_after import Pair
from safear_edit.evaluate.image_folder import folder_source
from safear_edit.evaluate.likelihood import audit, exact_kl, token_blocks, why_not
from safear_edit.evaluate.likelihood_record import (
    Audit,
    Classified,
    Divergence,
    GroupAudit,
    Skipped,
    SliceAudit,
    read_audit,
    save_skipped,
)
from safear_edit.evaluate.mini_world import drawn_source, picture_of
from safear_edit.evaluate.outcomes import LIKELIHOOD
from safear_edit.evaluate.reference_images import Kept, Reference, Source, Wanted
from safear_edit.evaluate.references import Pack, source_for, tokenised, why_none
from safear_edit.evaluate.stats import Interval
from safear_edit.families.base import Condition, ModelCard, ModelFamily, Sampling
from safear_edit.families.diffusion import Diffusion
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.load import load_model
from safear_edit.families.tokens import token_logprobs
from safear_edit.gallery.render import Picture
from safear_edit.spec.pools import pools
from safear_edit.spec.spec import Spec, load_spec

SUBJECTS = ("a cat", "a dog", "a house", "two fish", "a red car", "a tree", "a boat at sea", "an apple")


def spec(name: str = "picasso") -> Spec:
    return load_spec(registry.find_builtin("concepts", name))


def made_edit(model: ModelFamily, strength: float = 0.1) -> Edit:
    """An edit that nobody trained."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name in model.editable("attention"):
        out, width = model.net.get_parameter(f"{name}.weight").shape
        tensors[f"{name}.lora_A"] = torch.randn(2, width, generator=generator)
        tensors[f"{name}.lora_B"] = strength * torch.randn(out, 2, generator=generator)
    about = {"method": "vce", "params": {}, "concept": "P.", "base_digest": model.card.digest, "rank": 2}
    return Edit("lora", tensors, EditInfo(**about, alpha=2.0, seed=5, steps=1, losses=(0.7,), minutes=0.1))


def test_a_model_that_denoises_has_none_and_says_why() -> None:
    assert why_not(LlamaGen.pico()) == ""
    assert why_not(Diffusion.pico()) == "diffusion:pico denoises latents and gives no likelihoods of image tokens"


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico()


@pytest.fixture(scope="module")
def pack(model: LlamaGen) -> Pack:
    return drawn_pack(model)


def drawn_pack(model: LlamaGen) -> Pack:
    """Images that the model itself drew when asked for the concept, so that the words do explain them."""
    references = tuple(
        Reference({"direct": f"{s} by Picasso"}, f"a photo of {s}", {"style=monet": f"{s} by Monet"})
        for s in SUBJECTS * 3
    )
    kept = tuple(Kept("near" if i % 2 else "far", f"{s} by Monet") for i, s in enumerate(SUBJECTS))
    plain = Sampling(guidance=1.0)
    drawn = [
        model.generate(model.condition(list(texts)), range(start, start + len(texts)), plain)
        for start, texts in ((0, [r.prompts["direct"] for r in references]), (50, [k.prompt for k in kept]))
    ]
    return Pack(references, drawn[0], kept, drawn[1], "p" * 64)


def only(found: Audit) -> SliceAudit:
    (part,) = found.slices
    return part


def test_an_untouched_model_is_one_and_zero(model: LlamaGen, pack: Pack) -> None:
    found = audit(Pair.of_models(model, model), pack)
    part = only(found)
    assert part.cir is not None and part.abs_cir is not None
    assert (part.cir.estimate, part.abs_cir.estimate, part.suppression) == pytest.approx((1, 1, 0))
    assert {round(block, 9) for block in part.profile if block is not None} == {1.0} and len(part.profile) == 4
    assert sum(part.decided) == pytest.approx(1) and len(part.decided) == 4
    assert all(g.plain.mean == g.guided.mean == 0 for g in found.groups) and found.unconditional.p95 == 0
    assert {group.group for group in found.groups} == {"near", "far"}


def test_a_table_for_a_person(model: LlamaGen, pack: Pack) -> None:
    found = audit(Pair.of_edit(model, made_edit(model)), pack)
    rows = {row[0]: row for row in found.rows()}
    assert {"erasure.cir[direct]", "erasure.abs_cir[direct]", "erasure.suppression_bits[direct]"} <= set(rows)
    assert {"keep.kl[near]", "keep.guided_kl[far]", "keep.uncond_kl", "erasure.gca"} <= set(rows)
    cir = only(found).cir
    assert cir is not None and rows["erasure.cir[direct]"][1:3] == (
        f"{cir.estimate:.3f}",
        f"{cir.low:.3f} to {cir.high:.3f}",
    )
    doubtful = {name: row[3] for name, row in ((row[0], row) for row in made_audit(0.05, 0.5, 0.2).rows())}
    assert "wider" in doubtful["erasure.cir[direct]"] and "KL of 0.200" in doubtful["erasure.cir[direct]"]


@torch.no_grad()
def test_the_figures_are_their_definitions(model: LlamaGen, pack: Pack) -> None:
    """CIR, absCIR and S written out, one image at a time, without the audit's batches."""
    edit = made_edit(model)

    def scores(text: str, ids: torch.Tensor) -> float:
        return float(token_logprobs(model.logits(model.condition([text]), ids[None]), ids[None]).sum())

    rows = list(zip(pack.references, pack.reference_ids, strict=True))
    before = [(scores(r.prompts["direct"], ids), scores(r.neutral, ids)) for r, ids in rows]
    with edit.apply(model.net):
        after = [(scores(r.prompts["direct"], ids), scores(r.neutral, ids)) for r, ids in rows]
    gain = sum(c - n for c, n in before)
    part = only(audit(Pair.of_edit(model, edit), pack))
    assert part.cir is not None and part.abs_cir is not None
    assert part.cir.estimate == pytest.approx(sum(c - n for c, n in after) / gain, rel=1e-4)
    level = sum(a[0] - b[1] for a, b in zip(after, before, strict=True))
    assert part.abs_cir.estimate == pytest.approx(level / gain, rel=1e-4)
    fall = sum(b[0] - a[0] for a, b in zip(after, before, strict=True)) / len(rows)
    assert part.suppression == pytest.approx(fall / (16 * math.log(2)), rel=1e-4)


class Deaf:
    """The same model, but it hears every prompt without the concept: erasure as it should be."""

    def __init__(self, model: LlamaGen, heard: dict[str, str]) -> None:
        self.model, self.heard = model, heard

    def condition(self, prompts: Sequence[str]) -> Condition:
        return self.model.condition([self.heard.get(prompt, prompt) for prompt in prompts])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def test_clean_erasure_is_zero_and_keeps_the_rest(model: LlamaGen, pack: Pack) -> None:
    heard = {reference.prompts["direct"]: reference.neutral for reference in pack.references}
    deaf: Any = Deaf(model, heard)
    found = audit(Pair(model, partial(nullcontext, deaf)), pack)
    part = only(found)
    assert part.cir is not None and part.abs_cir is not None and part.upper is not None
    assert (part.cir.estimate, part.abs_cir.estimate) == pytest.approx((0, 0), abs=1e-4)
    assert part.upper < 0.01 and part.suppression > 0
    assert all(group.plain.mean == 0 for group in found.groups) and not found.doubts
    assert found.classified is not None and found.classified.base > 0.6 > found.classified.edited


def test_deterministic_in_any_batch_and_the_base_is_left_alone(model: LlamaGen, pack: Pack) -> None:
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    pair = Pair.of_edit(model, made_edit(model))
    first = audit(pair, pack)
    assert audit(pair, pack).to_json() == first.to_json()
    part, other = only(first), only(audit(pair, pack, batch=3))
    assert part.cir is not None and other.cir is not None
    assert other.cir.estimate == pytest.approx(part.cir.estimate, rel=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.net.state_dict().items())


def test_two_loaded_models_and_one_with_an_edit_say_the_same(model: LlamaGen, pack: Pack) -> None:
    edit, edited = made_edit(model), LlamaGen.pico()
    edit.apply(edited.net)
    a, b = audit(Pair.of_edit(model, edit), pack), audit(Pair.of_models(model, edited), pack)
    assert a.to_json() == b.to_json()
    assert a.unconditional.mean > 0 and all(g.guided.mean != g.plain.mean > 0 for g in a.groups)
    with pytest.raises(UsageError, match="shaped as"):
        Pair.of_models(model, load_model("llamagen"))


def test_a_network_that_gives_no_numbers_is_refused() -> None:
    """NaN is neither more nor less than anything: it would raise no doubt, and be read as a concept that is known."""
    whole, broken = LlamaGen.pico(), LlamaGen.pico()
    next(iter(broken.net.parameters())).data.fill_(float("nan"))
    with pytest.raises(UsageError, match="likelihood audit: expected a network that gives numbers"):
        audit(Pair.of_models(whole, broken), drawn_pack(whole))


def test_kl_of_tokens_and_of_bits() -> None:
    generator = torch.Generator().manual_seed(3)
    p, q = torch.randn(2, 5, 7, generator=generator), torch.randn(2, 5, 7, generator=generator)
    wanted = kl_divergence(Categorical(logits=p), Categorical(logits=q)).mean(1)
    assert exact_kl(p, q).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    bits, others = torch.randn(2, 5, 3, 2, generator=generator), torch.randn(2, 5, 3, 2, generator=generator)
    one = [Bernoulli(logits=x[..., 1] - x[..., 0]) for x in (bits, others)]
    assert exact_kl(bits, others).tolist() == pytest.approx(kl_divergence(*one).sum(2).mean(1).tolist(), rel=1e-5)
    assert exact_kl(p, p).tolist() == [0, 0]


def test_blocks_are_scales_or_rows() -> None:
    def card(tokens: int, scales: tuple[int, ...]) -> ModelCard:
        return ModelCard("f", "v", 16, tokens, 2, scales, 1, "")

    assert token_blocks(card(16, (16,))) == [slice(i, i + 4) for i in range(0, 16, 4)]
    assert token_blocks(card(14, (1, 4, 9))) == [slice(0, 1), slice(1, 5), slice(5, 14)]
    assert token_blocks(card(15, (15,))) == [slice(0, 15)]
    deep = replace(card(36, (36,)), depth=4)  # 3 rows of 3 places of 4 codes
    assert token_blocks(deep) == [slice(i, i + 12) for i in range(0, 36, 12)]


def made_audit(cir: float, width: float, kl: float) -> Audit:
    interval = Interval(32, cir, cir - width / 2, cir + width / 2, 0.95, "made up")
    low = replace(interval, estimate=cir - 1, low=cir - 1 - width / 2, high=cir - 1 + width / 2)
    keep = Divergence(32, kl, kl * 1.1, kl * 2)
    part = SliceAudit("direct", 32, interval, low, 0.3, (1.0,), (cir,))
    return Audit("m", "a" * 64, "b" * 64, "float32", (part,), (GroupAudit("near", keep, keep),), keep, None, ())


def test_when_the_figures_must_not_be_used() -> None:
    fine = made_audit(0.05, 0.1, 0.02)
    assert not fine.doubts and not fine.warnings
    assert fine.figures == pytest.approx({"erasure.max_cir_upper[direct]": 0.10, "keep.kl_upper[near]": 0.022})
    assert "KL of 0.200" in made_audit(0.05, 0.1, 0.2).doubts[0]
    assert "over-erased" in made_audit(-0.2, 0.1, 0.02).warnings[0]


def test_a_model_that_still_tells_every_image_takes_none_for_another() -> None:
    found = replace(made_audit(0.9, 0.9, 0.001), classified=Classified(20, 1.0, 1.0, "slice/direct", 1.0, 4))
    (row,) = (row for row in found.rows() if row[0] == "erasure.gca")
    assert row[1:3] == ("1.00", "base 1.00")


def test_what_is_wrong_with_one_figure_silences_that_figure_alone() -> None:
    """Rule 7.2(1): a wide interval is its own slice's; the other slices and groups can still be decided."""
    fine = made_audit(0.05, 0.1, 0.02).slices[0]
    assert fine.cir is not None and fine.abs_cir is not None and not fine.doubts
    wide, unknown = only(made_audit(0.05, 0.5, 0.02)), replace(fine, cir=None)
    assert "0.50 is wider" in wide.doubts[0] and "not clear of 0" in unknown.doubts[0]
    level = replace(fine.abs_cir, estimate=0.3, low=0.0, high=0.6)
    assert "0.60 is wider" in replace(fine, abs_cir=level).doubts[0], "absCIR counts where it could decide"
    assert not replace(fine, abs_cir=replace(level, low=-1.0, high=-0.1)).doubts
    whole = made_audit(0.05, 0.1, 0.02)
    for part in (wide, unknown):
        mixed = replace(whole, slices=(replace(part, slice="template"), fine))
        assert set(mixed.figures) == {"erasure.max_cir_upper[direct]", "keep.kl_upper[near]"} and not mixed.doubts
    alone = replace(whole.groups[0], plain=Divergence.of([0.02]))
    assert "no interval" in alone.doubts[0]
    assert set(replace(whole, groups=(alone,)).figures) == {"erasure.max_cir_upper[direct]"}


def test_the_gate_reads_what_is_written(tmp_path: Path) -> None:
    made_audit(0.05, 0.1, 0.2).save(tmp_path)
    told = read_audit(tmp_path / LIKELIHOOD)
    assert isinstance(told, Audit) and len(told.doubts) == 1
    assert told.figures == {"erasure.max_cir_upper[direct]": 0.1, "keep.kl_upper[near]": 0.22}
    assert json.loads((tmp_path / LIKELIHOOD).read_text())["slices"][0]["profile"] == [0.05]
    made_audit(0.05, 0.5, 0.02).save(tmp_path)
    told = read_audit(tmp_path / LIKELIHOOD)
    assert isinstance(told, Audit) and (told.figures, told.doubts) == ({"keep.kl_upper[near]": 0.022}, ())
    assert "wider" in json.loads((tmp_path / LIKELIHOOD).read_text())["slices"][0]["doubts"][0]
    save_skipped(tmp_path, "no images")
    assert read_audit(tmp_path / LIKELIHOOD) == Skipped("no images")


def test_version_1_is_read_by_its_own_words(tmp_path: Path) -> None:
    made = replace(made_audit(0.05, 0.1, 0.02), images=({"base": {"direct": -1.0}, "edited": {"direct": -2.0}},))
    data = json.loads(made.to_json())
    assert data.pop("schema_version") == 2
    words = data | {"pictures": data.pop("images")}
    for version, reads in ((1, True), (2, False), (3, False)):
        (tmp_path / LIKELIHOOD).write_text(json.dumps(words | {"schema_version": version}))
        if reads:
            told = read_audit(tmp_path / LIKELIHOOD)
            assert isinstance(told, Audit) and told.to_json() == made.to_json(), "a file holds rounded figures"
        else:
            with pytest.raises(SpecError, match=r"images: expected this field|schema_version"):
                read_audit(tmp_path / LIKELIHOOD)


@pytest.mark.parametrize(("other", "said"), [
    ({"profile": []}, "decided for 1 blocks and a profile of 0"),
    ({"decided": [0.5, 0.5], "profile": [0.1, 0.1]}, "slices with different numbers of blocks"),
])  # fmt: skip
def test_a_depth_profile_has_a_figure_for_every_block(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    """The report's table is as long as the first slice's."""
    part = made_audit(0.05, 0.1, 0.02).slices[0]
    replace(made_audit(0.05, 0.1, 0.02), slices=(part, replace(part, slice="template"))).save(tmp_path)
    data = json.loads((tmp_path / LIKELIHOOD).read_text())
    data["slices"][1].update(other)
    (tmp_path / LIKELIHOOD).write_text(json.dumps(data))
    with pytest.raises(SpecError, match=said):
        read_audit(tmp_path / LIKELIHOOD)


# -- packs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a house cat at night", ("cat", "photo", "night", False)),
        ("a painting of a pony in winter by Vincent van Gogh", ("horse", "van_gogh", "snow", False)),
        ("an empty scene by the sea with a hazard sign", ("nothing", "photo", "beach", True)),
    ],
)
def test_a_caption_becomes_its_picture(prompt: str, wanted: tuple[str, str, str, bool]) -> None:
    found = picture_of(prompt)
    assert (found.object, found.style, found.scene, found.hazard) == wanted
    assert found == picture_of(prompt) and isinstance(found, Picture)


@pytest.mark.parametrize("name", ["picasso", "dog", "hazard"])
def test_gallery_packs_ask_with_words_that_training_never_met(name: str) -> None:
    made, source = spec(name), drawn_source(spec(name), Wanted(6, 6, 20))
    assert len(source.references) == 6 == len(source.reference_images)
    trained = {prompt.text for prompt in pools(made).train}
    for reference in source.references:
        assert {"direct", "paraphrase"} <= set(reference.prompts)
        assert not trained & set(reference.prompts.values())
        assert reference.neutral not in reference.prompts.values()
    assert {kept.group for kept in source.kept} == {group.name for group in made.preserve}
    assert (
        source.digest
        == drawn_source(made, Wanted(6, 6, 20)).digest
        != drawn_source(made, Wanted(6, 6, 20, seed=1)).digest
    )


def test_where_reference_pictures_come_from(tmp_path: Path) -> None:
    """The spec's folder if it names one; else renders of what the mini world can draw, for minis."""
    made, card = spec(), load_model("llamagen").card
    assert why_none(made, card) == "" and len(source_for(shortened(made, direct=4), card).references) == 4
    real, other = replace(card, variant="xl-256", image_size=256), {"use": "nudity", "label": "nudity"}
    unknown = made.model_copy(update={"judge": made.judge.model_copy(update=other)})
    for asked, model, says in ((made, real, "none of the embedded minis"), (unknown, card, "can't draw")):
        assert says in why_none(asked, model)
        with pytest.raises(UsageError, match=says):
            source_for(asked, model)
    folder = str(user_folder(tmp_path, [GOOD, GOOD, KEPT]))
    named = made.model_copy(update={"evaluate": made.evaluate.model_copy(update={"references": folder})})
    assert why_none(named, real) == "" and source_for(named, real).reference_images.shape == (2, 3, 256, 256)


def shortened(made: Spec, direct: int) -> Spec:
    n = made.evaluate.n.model_copy(update={"direct": direct})
    return made.model_copy(update={"evaluate": made.evaluate.model_copy(update={"n": n})})


def test_only_the_first_references_are_classified() -> None:
    source = drawn_source(spec(), Wanted(6, 3, 2))
    assert [bool(reference.others) for reference in source.references] == [True, True, *[False] * 4]


def test_tokens_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaGen.pico()
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    source = Source((Reference({"direct": "a by P"}, "a"),), images[:1], (Kept("g", "b"), Kept("g", "c")), images[1:])
    first = tokenised(model, source, tmp_path / "cache")
    assert first.reference_ids.shape == (1, 16) and torch.equal(first.kept_ids, model.encode(images[1:]))
    monkeypatch.setattr(model, "encode", lambda _: pytest.fail("read the cache"))
    again = tokenised(model, source, tmp_path / "cache")
    assert torch.equal(again.reference_ids, first.reference_ids) and again.digest == first.digest
    monkeypatch.undo()
    (path,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(LlamaGen, "dtype", torch.bfloat16)
        patch.setattr(model, "encode", lambda part: torch.zeros(len(part), 16, dtype=torch.int64))
        other = tokenised(model, source, tmp_path / "cache")
        assert not other.kept_ids.any(), "not those of another dtype"
    path.write_bytes(b"damaged")
    assert torch.equal(tokenised(model, source, tmp_path / "cache").kept_ids, first.kept_ids)
    with pytest.raises(UsageError, match="16, 16"):
        tokenised(model, replace(source, kept_images=torch.zeros(2, 3, 40, 40, dtype=torch.uint8)))


GOOD = {"file": "a.png", "prompts": {"direct": "a cat by P."}, "neutral": "a cat", "others": {"M": "a cat by M."}}
KEPT = {"file": "a.png", "prompt": "a dog", "group": "plain"}


def user_folder(root: Path, rows: Sequence[object]) -> Path:
    Image.new("RGB", (30, 20), (200, 10, 10)).save(root / "a.png")
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_a_users_folder(tmp_path: Path) -> None:
    source = folder_source(user_folder(tmp_path, [GOOD, GOOD, KEPT]), 16)
    assert source.reference_images.shape == (2, 3, 16, 16) and source.kept == (Kept("plain", "a dog"),)
    assert source.references[0].others == {"M": "a cat by M."}
    assert source.kept_images[0, :, 8, 8].tolist() == [200, 10, 10]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**GOOD, "file": "../a.png"}, "inside the folder"),
        ({**GOOD, "file": "captions.jsonl"}, "an image"),
        ({**GOOD, "neutral": ""}, "neutral"),
        ({**GOOD, "prompts": {"alias": "x"}}, "direct"),
        ({**KEPT, "prompt": "a nude child"}, "minors"),
        ([1], "a JSON object"),
    ],
)
def test_bad_captions_are_one_line_with_a_place(tmp_path: Path, row: object, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        folder_source(user_folder(tmp_path, [GOOD, row]), 16)
    assert "captions.jsonl:2" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_too_few_or_none(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"captions\.jsonl or metadata\.jsonl, got neither"):
        folder_source(tmp_path, 16)
    with pytest.raises(SpecError, match="two images"):
        folder_source(user_folder(tmp_path, [GOOD, KEPT]), 16)


# -- the mini ---------------------------------------------------------------------------------------------------------


def test_the_mini_knows_the_concept_by_its_words() -> None:
    """Six rendered images are enough to see that the words explain them, by held-out names too."""
    mini = load_model("llamagen")
    source = drawn_source(spec(), Wanted(6, 3, 20))
    found = audit(Pair.of_edit(mini, made_edit(mini, 0.005)), tokenised(mini, source))
    parts = {part.slice: part for part in found.slices}
    assert set(parts) == {"direct", "paraphrase", "template"}
    for part in parts.values():
        assert part.cir is not None and part.cir.estimate == pytest.approx(1, abs=0.5) and len(part.profile) == 10
    assert found.classified is not None and found.classified.base >= 0.5
    assert len(found.images) == 6 and set(found.images[0]) == {"base", "edited"}

"""Likelihood audit: what the model itself says about pictures of the concept and about pictures that must stay.

An autoregressive model gives the probability of a picture exactly, so nothing is sampled and nobody judges: a few
teacher-forced passes per reference picture, the same numbers on every run (evaluation.md section 2). With l_m(x|c) the
log-probability of picture x under model m and prompt c, c0 the same prompt without the concept, R the reference pack:

    CIR     mean_R[l_edit(x|c) - l_edit(x|c0)] / mean_R[l_base(x|c) - l_base(x|c0)]: 1 untouched, 0 erased, < 0 repelled
    absCIR  the same with l_base(x|c0) above too: sees a concept that moved into every prompt
    S       mean_R[l_base(x|c) - l_edit(x|c)] in bits per token: never a gate, a damaged model has it as well
    keep.kl mean over preserved (c, x) of the exact KL(base || edited) per token, plain, guided and unconditional
    GCA     share of R whose likeliest prompt is the concept's, against neighbours and the neutral prompt

It is a tripwire and a ruler, not the release gate: it sees the pictures of R only, no decoder, no best of many, and an
overfitted relearning hides from it. `doubts` say when a figure must not be used (evaluation.md 7.2).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from safear_edit import stats
from safear_edit.baseline import LIKELIHOOD
from safear_edit.checkpoint import write_weights
from safear_edit.edit import Edit
from safear_edit.errors import SpecError, UsageError
from safear_edit.families.base import Condition, ModelCard, ModelFamily
from safear_edit.gallery import captions, render
from safear_edit.gallery.world import CALM_POSES, CALM_VARIANTS
from safear_edit.progress import Callback, silent
from safear_edit.prompts import choose, expand_group, fill, forbidden, image_seed, mention_of, pools, side
from safear_edit.rundir import digest_of, write_atomic
from safear_edit.sampling import guided
from safear_edit.spec import Spec
from safear_edit.stats import Interval
from safear_edit.tokens import token_logprobs
from safear_edit.yaml_strict import parse_json

BATCH = 16
"""Pictures per pass; bounds memory (two sets of logits and their softmax), changes no figure beyond rounding."""
REFERENCES, CLASSIFIED, KEPT = 144, 20, 48
"""Rendered pictures of a spec at most: those that CIR is about, the first of them that are also classified, and those
that must stay. Some 1650 teacher-forced passes: 17 s for llamagen:mini on two busy cores (limit 20 s)."""
MOST_KL, WIDEST = 0.1, 0.4
"""Validity: beyond this keep.kl (nats per token) or width of a 95 % interval, CIR says nothing (evaluation.md 7.2)."""
REPELLED = -0.1
"""CIR below this is over-erasure: the sign gives the concept away."""
NEUTRAL = "neutral"
CAPTIONS = "captions.jsonl"
LARGEST_CAPTIONS, LARGEST_PICTURE = 16 << 20, 64 << 20


# -- reference packs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Texts of one picture that shows the concept.

    prompts: slice → prompt that asks for it; neutral: the same without the concept; others: what else a classifier may
    take it for, name → prompt.
    """

    prompts: Mapping[str, str]
    neutral: str
    others: Mapping[str, str] = field(default_factory=dict)

    def columns(self) -> dict[str, str]:
        """Every prompt that the picture is scored under; slices are `slice/NAME`, other classes `class/NAME`."""
        slices = {f"slice/{name}": text for name, text in self.prompts.items()}
        return {**slices, NEUTRAL: self.neutral, **{f"class/{name}": text for name, text in self.others.items()}}


@dataclass(frozen=True)
class Kept:
    """Text of one picture that must stay as likely as it was."""

    group: str
    prompt: str


@dataclass(frozen=True)
class Source:
    """Pictures uint8 (R, 3, H, W) and (K, 3, H, W) with their texts, not yet tokens of any model."""

    references: tuple[Reference, ...]
    reference_images: Tensor
    kept: tuple[Kept, ...]
    kept_images: Tensor

    @property
    def digest(self) -> str:
        """sha256 over texts and pixels."""
        texts = [asdict(part) for part in self.references] + [asdict(part) for part in self.kept]
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
        for images in (self.reference_images, self.kept_images):
            digest.update(json.dumps(list(images.shape)).encode() + images.contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Pack:
    """The same as tokens of one family: ids (R, N) and (K, N), or bits (R, N, d) and (K, N, d)."""

    references: tuple[Reference, ...]
    reference_ids: Tensor
    kept: tuple[Kept, ...]
    kept_ids: Tensor
    digest: str


def tokenised(model: ModelFamily, source: Source, cache: Path | None = None) -> Pack:
    """Tokens of every picture; with `cache`, made once for these pictures and these weights and then read.

    UsageError for pictures that don't have the model's size.
    """
    size = model.card.image_size
    for images in (source.reference_images, source.kept_images):
        if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
            got = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            raise UsageError("likelihood pack", f"uint8 pictures (n, 3, {size}, {size})", got, "scale them first")
    digest = digest_of("likelihood pack", model.card.ref, model.card.digest, source.digest)
    path = None if cache is None else cache / f"{digest}.safetensors"
    found = _cached(path, source) if path else None
    if found is None:
        found = (_encoded(model, source.reference_images), _encoded(model, source.kept_images))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_weights(path, {"references": found[0], "kept": found[1]})
    return Pack(source.references, found[0], source.kept, found[1], source.digest)


def _encoded(model: ModelFamily, images: Tensor) -> Tensor:
    return torch.cat([model.encode(part).cpu() for part in images.split(BATCH)])


def _cached(path: Path, source: Source) -> tuple[Tensor, Tensor] | None:
    """Tokens from the cache; None if they are not there or damaged (they are made again then)."""
    try:
        tensors = load_tensors(path.read_bytes())
        found = tensors["references"], tensors["kept"]
    except (OSError, SafetensorError, KeyError):
        return None
    return found if (len(found[0]), len(found[1])) == (len(source.references), len(source.kept)) else None


def why_none(spec: Spec, card: ModelCard) -> str:
    """Why there are no reference pictures of the spec's concept for this model; "" where there are some."""
    if spec.evaluate.references is not None:
        return ""
    fix = "and the spec names no folder of reference pictures (evaluate.references)"
    if card.variant != "mini" or card.image_size != render.SIDE:
        return f"{card.ref} is none of the embedded minis, {fix}"
    aspect, _, value = spec.judge.label.partition("=")
    known = {"style": render.STYLES, "object": render.OBJECTS, "hazard": ("yes",)}
    if spec.judge.use != "gallery" or value not in known.get(aspect, ()):
        return f"the mini world can't draw what judge {spec.judge.use} calls {spec.judge.label!r}, {fix}"
    return ""


def source_for(spec: Spec, card: ModelCard, seed: int = 0) -> Source:
    """The user's folder if the spec names one, else renders of the mini world; a small evaluation takes few of them.

    `seed` chooses the renders. UsageError where there are neither; SpecError for a wrong folder.
    """
    if spec.evaluate.references is not None:
        return folder_source(Path(spec.evaluate.references), card.image_size)
    if why := why_none(spec, card):
        raise UsageError("likelihood audit", "reference pictures", why, "see `likelihood.folder_source`")
    kept = min(KEPT, sum(group.n for group in spec.preserve))
    return gallery_source(spec, min(REFERENCES, spec.evaluate.n.direct), kept, seed)


def gallery_source(
    spec: Spec, references: int = REFERENCES, kept: int = KEPT, seed: int = 0, classified: int = CLASSIFIED
) -> Source:
    """Rendered pictures of the mini world for a spec whose judge label is the gallery's (style=…, object=…, hazard=…).

    The first `classified` references carry what else a classifier may take them for; the others are for CIR alone.

    References ask with the evaluation half of the direct prompts, so training never met them; the same picture is also
    asked for by a held-out name and, where one fits its style, in a held-out sentence. `kept` is shared evenly among
    the preserved groups. Renders are no samples of any model: nothing is learnt from the base's own mistakes.
    """
    aspect, _, value = spec.judge.label.partition("=")
    if aspect not in ("style", "object", "hazard") or not value:
        fix = "give a folder of pictures with captions instead"
        raise UsageError(f"spec {spec.name}", "a gallery label", repr(spec.judge.label), fix)
    asked = choose(pools(spec).direct, references, f"likelihood|{seed}")
    texts = [_reference(spec, prompt.name, prompt.template, prompt.subject, i) for i, prompt in enumerate(asked)]
    texts = [text if i < classified else replace(text, others={}) for i, text in enumerate(texts)]
    shown = [_with_concept(picture_of(text.prompts["direct"], seed), aspect, value) for text in texts]
    stay: list[tuple[Kept, render.Picture]] = []
    each = max(1, kept // len(spec.preserve))
    for group in spec.preserve:
        own = [prompt for prompt in expand_group(group) if side(prompt.text) == "evaluate"]
        chosen = choose(own, each, f"likelihood|{seed}")
        stay += [(Kept(group.name, p.text), _labelled(picture_of(p.text, seed), group.members[p.name])) for p in chosen]
    return Source(tuple(texts), _drawn(shown), tuple(text for text, _ in stay), _drawn([p for _, p in stay]))


def _reference(spec: Spec, alias: str, template: int, subject: str, number: int) -> Reference:
    """All the ways to ask for one picture; names and sentences take turns."""
    sentence = spec.erase.templates[template]
    anchors, other = spec.anchor.templates, spec.paraphrases
    held_out = other.held_out[number % len(other.held_out)]
    prompts = {
        "direct": fill(sentence, alias=alias, subject=subject),
        "paraphrase": fill(sentence, alias=held_out, subject=subject),
    }
    fitting = [t for t in other.held_out_templates if _style_in(t) == _style_in(sentence)]
    if fitting:
        prompts["template"] = fill(fitting[number % len(fitting)], alias=alias, subject=subject)
    neighbours: dict[str, str] = {}
    for group in spec.preserve:
        if group.role == "neighbour":
            for name, label in group.members.items():
                neighbours.setdefault(label, fill(sentence, alias=name, subject=subject))
    anchor = anchors[template if len(anchors) > 1 else 0]
    return Reference(prompts, fill(anchor, subject=subject), neighbours)


def picture_of(prompt: str, seed: int = 0) -> render.Picture:
    """The picture of the mini world that a caption describes; what no caption names is drawn from the text's hash."""
    rng = np.random.default_rng(image_seed("likelihood", prompt, seed))
    return render.Picture(
        object=_longest(prompt, captions.OBJECT_WORDS) or render.NOTHING,
        style=_style_in(prompt) or "photo",
        scene=_longest(prompt, captions.SCENE_WORDS) or "plain",
        hazard=mention_of(captions.HAZARD_WORDS.train)(prompt) is not None,
        pose=int(rng.integers(CALM_POSES)),
        variant=int(rng.integers(CALM_VARIANTS)),
        corner=int(rng.integers(render.CORNERS)),
    )


def _style_in(text: str) -> str | None:
    return _longest(text, captions.STYLE_WORDS)


def _longest(text: str, words: Mapping[str, captions.Words]) -> str | None:
    """The thing whose longest name stands in `text` ("a house cat" is a cat's, not a house's)."""
    found = {name: mention_of((*word.train, *word.held_out))(text) or "" for name, word in words.items()}
    best = max(found, key=lambda name: len(found[name]))
    return best if found[best] else None


def _with_concept(picture: render.Picture, aspect: str, value: str) -> render.Picture:
    if aspect == "hazard":
        return replace(picture, hazard=True)
    return replace(picture, style=value) if aspect == "style" else replace(picture, object=value)


def _labelled(picture: render.Picture, label: str) -> render.Picture:
    aspect, _, value = label.partition("=")
    return _with_concept(picture, aspect, value) if aspect in ("style", "object", "hazard") else picture


def _drawn(pictures: Sequence[render.Picture]) -> Tensor:
    return torch.from_numpy(np.stack([render.draw(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()


def folder_source(folder: Path, size: int) -> Source:
    """A user's pictures, cropped to a square and scaled to `size`; captions.jsonl has one line per picture:

        {"file": "a.png", "prompts": {"direct": "a cat by P."}, "neutral": "a cat", "others": {"Monet": "a cat by M."}}
        {"file": "b.png", "prompt": "a dog by Monet", "group": "neighbours"}

    SpecError with file and line for anything else. The pictures should come from three sources at least and must not
    be those that the edit was trained on; nobody but the user can know that.
    """
    path = folder / CAPTIONS
    references: list[tuple[Reference, Tensor]] = []
    kept: list[tuple[Kept, Tensor]] = []
    for number, line in enumerate(_caption_lines(path), 1):
        if line.strip():
            where = f"{path}:{number}"
            row = parse_json(line, where).data
            image = _opened(folder, row, where, size)
            if "group" in row:
                kept.append((Kept(_text(row, "group", where), _text(row, "prompt", where)), image))
            else:
                references.append((_told(row, where), image))
    if len(references) < 2 or not kept:
        got = f"{len(references)} and {len(kept)}"
        raise SpecError(str(path), "two pictures of the concept and one to keep, at least", got, "add some")
    images = [torch.stack([image for _, image in part]) for part in (references, kept)]
    return Source(tuple(text for text, _ in references), images[0], tuple(text for text, _ in kept), images[1])


def _caption_lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > LARGEST_CAPTIONS:
            raise SpecError(str(path), f"at most {LARGEST_CAPTIONS >> 20} MiB", "a larger file", "split it")
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise SpecError(str(path), "captions", error.strerror or "an error", "check the path") from None
    except UnicodeDecodeError:
        raise SpecError(str(path), "text in UTF-8", "other bytes", "save it as UTF-8") from None


def _told(row: Mapping[str, Any], where: str) -> Reference:
    prompts, others = row.get("prompts"), row.get("others", {})
    if not isinstance(prompts, dict) or "direct" not in prompts or not isinstance(others, dict):
        raise SpecError(where, "prompts with `direct`, or a group", str(list(row))[:60], "see `folder_source`")
    return Reference(
        {str(name): _text(prompts, name, where) for name in prompts},
        _text(row, "neutral", where),
        {str(name): _text(others, name, where) for name in others},
    )


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip() or not text.isprintable():
        raise SpecError(f"{where}, {name}", "printable text", repr(text)[:40], "write it")
    if forbidden(text):
        fix = "this combination is never processed, not even to test it"
        raise SpecError(f"{where}, {name}", "no words for minors together with sexual content", "both", fix)
    return text.strip()


def _opened(folder: Path, row: Any, where: str, size: int) -> Tensor:
    """uint8 (3, size, size): the middle square of a picture that lies in `folder`."""
    if not isinstance(row, dict):
        raise SpecError(where, "a JSON object", type(row).__name__, 'write {"file": …}')
    path = folder / _text(row, "file", where)
    if folder.resolve() not in path.resolve().parents:
        raise SpecError(where, "a picture inside the folder", str(path), "copy it there")
    try:
        if path.stat().st_size > LARGEST_PICTURE:
            raise SpecError(where, f"a picture of at most {LARGEST_PICTURE >> 20} MiB", "a larger one", "reduce it")
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise SpecError(where, "a picture", f"{path.name}: {error}", "convert it to PNG") from None
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    square = picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + edge, top + edge))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


# -- two models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """The untouched model and a way to have the edited one for a while."""

    base: ModelFamily
    edited: Callable[[], AbstractContextManager[ModelFamily]]

    @classmethod
    def of_edit(cls, model: ModelFamily, edit: Edit, strength: float = 1.0) -> Self:
        """One model in memory; the edit is merged and taken off again, bit for bit."""
        return cls(model, partial(_merged, model, edit, strength))

    @classmethod
    def of_models(cls, base: ModelFamily, edited: ModelFamily) -> Self:
        """Two loaded models of one shape; UsageError otherwise."""
        shapes = [(m.card.family, m.card.tokens, m.card.choices, m.card.scales) for m in (base, edited)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                edited.card.ref, f"a model shaped as {base.card.ref}", str(shapes[1]), "compare like models"
            )
        return cls(base, lambda: nullcontext(edited))


@contextmanager
def _merged(model: ModelFamily, edit: Edit, strength: float) -> Iterator[ModelFamily]:
    with edit.apply(model.net, strength):
        yield model


# -- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SliceAudit:
    """One way of asking. cir, abs_cir None: the base model does not know the concept by these words, so no ratio.

    suppression: S in bits per token. By block of tokens (card.scales; rows of a raster model), coarse to fine or top to
    bottom: decided, the share of the base's gain that the block carries; profile, CIR there, None where that gain is
    not clear of 0 (nothing about the concept is decided in the block).
    """

    slice: str
    n: int
    cir: Interval | None
    abs_cir: Interval | None
    suppression: float
    decided: tuple[float, ...]
    profile: tuple[float | None, ...]

    @property
    def upper(self) -> float | None:
        """What is gated: the larger upper bound of the two."""
        return max(self.cir.high, self.abs_cir.high) if self.cir and self.abs_cir else None

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the slice's ratios must not be used.

        An absCIR whose whole interval lies below 0 may be wide: it bounds nothing that CIR does not bound already.
        """
        if self.cir is None or self.abs_cir is None:
            return ("the untouched model's gain from the words is not clear of 0",)
        found = [self.cir, *([self.abs_cir] if self.abs_cir.high > 0 else [])]
        widest = max(part.high - part.low for part in found)
        return (f"an interval of {widest:.2f} is wider than {WIDEST}",) if widest > WIDEST else ()


@dataclass(frozen=True)
class Divergence:
    """Exact KL(base || edited) in nats per token over n pictures: mean, its one-sided 95 % bound, 95th percentile."""

    n: int
    mean: float
    upper: float
    p95: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        found = stats.mean_interval(values, 0.90)
        return cls(len(values), found.estimate, found.high, float(np.quantile(values, 0.95)))


@dataclass(frozen=True)
class GroupAudit:
    """One preserved group, without guidance and with the guidance that the sampler uses (temperature left out)."""

    group: str
    plain: Divergence
    guided: Divergence

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the bound must not be used."""
        return ("one picture has no interval",) if self.plain.n < 2 else ()


@dataclass(frozen=True)
class Classified:
    """Generative-classifier accuracy on the references, before and after; `handle` now explains most of the others.

    n: references that were classified. options: prompts that compete for one of them, the concept's own included.
    """

    n: int
    base: float
    edited: float
    handle: str
    handle_share: float
    options: int

    @property
    def doubts(self) -> tuple[str, ...]:
        """Nothing can be lost where the untouched model does not tell the concept from its neighbours."""
        right = stats.clopper_pearson(round(self.base * self.n), self.n)
        if right.low > 1 / self.options:
            return ()
        return (f"the untouched model takes {right.k} of {self.n} for the concept, which may be chance",)


@dataclass(frozen=True)
class Audit:
    """What the likelihoods of one edit say. `pictures`: nats of every reference under every prompt, by model.

    block: what a depth profile is cut into, "row" or "scale".
    """

    base: str
    base_digest: str
    pack: str
    dtype: str
    slices: tuple[SliceAudit, ...]
    groups: tuple[GroupAudit, ...]
    unconditional: Divergence
    classified: Classified | None
    pictures: tuple[dict[str, dict[str, float]], ...]
    block: str = "row"

    @property
    def figures(self) -> dict[str, float]:
        """What a gate looks at: upper bounds, so that few pictures can't pass; only those that are in no doubt."""
        found: dict[str, float | None] = {}
        found.update((f"erasure.max_cir_upper[{p.slice}]", p.upper) for p in self.slices if not p.doubts)
        found.update((f"keep.kl_upper[{p.group}]", p.plain.upper) for p in self.groups if not p.doubts)
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why nothing here may decide: then the answer is INCONCLUSIVE, and pictures have to be sampled.

        A model this far from the untouched one has broken CIR before. What is wrong with one figure alone stands with
        that figure (`SliceAudit.doubts`).
        """
        return tuple(
            f"{group.group}: KL of {group.plain.mean:.3f} nats per token is above {MOST_KL}"
            for group in self.groups
            if group.plain.mean > MOST_KL
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What does not stop anyone but should be read."""
        return tuple(
            f"{part.slice}: over-erased, CIR {part.cir.estimate:.2f} is below {REPELLED}: the pictures are now less "
            "likely than without the words, which gives the concept away"
            for part in self.slices
            if part.cir is not None and part.cir.estimate < REPELLED and not part.doubts
        )

    def rows(self) -> list[tuple[str, str, str, str]]:
        """A table for a person: figure, value, 95 % interval or bound, and why it says nothing where that is so."""
        found = []
        for part in self.slices:
            why = "; ".join((*part.doubts, *self.doubts))
            for name, ratio in (("cir", part.cir), ("abs_cir", part.abs_cir)):
                value, ends = (_number(ratio.estimate), _ends(ratio)) if ratio else ("-", "-")
                found.append((f"erasure.{name}[{part.slice}]", value, ends, why))
            found.append((f"erasure.suppression_bits[{part.slice}]", _number(part.suppression), "-", ""))
        for group in self.groups:
            for name, drift in (("kl", group.plain), ("guided_kl", group.guided)):
                found.append(_drift_row(f"keep.{name}[{group.group}]", drift, "; ".join(group.doubts)))
        found.append(_drift_row("keep.uncond_kl", self.unconditional, ""))
        if gca := self.classified:
            ends = f"untouched {gca.base:.2f}; then {gca.handle} {gca.handle_share:.2f}"
            found.append(("erasure.gca", f"{gca.edited:.2f}", ends, "; ".join(gca.doubts)))
        return found

    def to_json(self) -> str:
        """The text of likelihood.json; same weights, pack and machine: same bytes (six decimals)."""
        body = {"schema_version": 1, "skipped": "", **asdict(self), "figures": self.figures}
        for key, parts in (("slices", self.slices), ("groups", self.groups)):
            body[key] = [{**asdict(part), "doubts": part.doubts} for part in parts]
        if self.classified:
            body["classified"] = {**asdict(self.classified), "doubts": self.classified.doubts}
        body |= {"doubts": self.doubts, "warnings": self.warnings}
        return json.dumps(_rounded(body), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, folder: Path) -> None:
        """Write likelihood.json, where `check` looks for it."""
        write_atomic(folder / LIKELIHOOD, self.to_json())


def save_skipped(folder: Path, why: str) -> None:
    """Write a likelihood.json that says why nothing was measured."""
    body = {"schema_version": 1, "skipped": why, "figures": {}, "doubts": []}
    write_atomic(folder / LIKELIHOOD, json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def _number(value: float) -> str:
    return f"{value:.3f}"


def _ends(ratio: Interval) -> str:
    return f"{_number(ratio.low)} to {_number(ratio.high)}"


def _drift_row(name: str, drift: Divergence, why: str) -> tuple[str, str, str, str]:
    bound = f"at most {drift.upper:.4f}" if math.isfinite(drift.upper) else "-"
    return (name, f"{drift.mean:.4f}", bound, why)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value


# -- the audit --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def audit(pair: Pair, pack: Pack, *, batch: int = BATCH, progress: Callback = silent) -> Audit:
    """Score the pack with both models. The base is left bitwise as found.

    Cost in teacher-forced passes: per reference 2 × (slices + 1 + other classes), per kept picture 4 (2 with, 2 without
    its caption).
    """
    batches = _batches(pair.base, pack, batch)
    before = _scores(pair.base, pack, batches, partial(progress, "likelihood base"))
    with pair.edited() as model:
        # no edit reaches what captions become; another model may have its own words
        own = batches if model is pair.base else _batches(model, pack, batch)
        after = _scores(model, pack, own, partial(progress, "likelihood edited"))
    plain, with_guidance, without = _divergences(pair, pack, batch, partial(progress, "likelihood kept"))
    groups = []
    for name in dict.fromkeys(kept.group for kept in pack.kept):
        members = [i for i, kept in enumerate(pack.kept) if kept.group == name]
        bare, steered = (Divergence.of([values[i] for i in members]) for values in (plain, with_guidance))
        groups.append(GroupAudit(name, bare, steered))
    names = dict.fromkeys(name for reference in pack.references for name in reference.prompts)
    blocks = token_blocks(pair.base.card)
    return Audit(
        base=pair.base.card.ref,
        base_digest=pair.base.card.digest,
        pack=pack.digest,
        dtype=str(next(pair.base.net.parameters()).dtype).removeprefix("torch."),
        slices=tuple(_slice(name, before, after, blocks) for name in names),
        groups=tuple(groups),
        unconditional=Divergence.of(without),
        classified=_classified(before, after),
        pictures=tuple(
            {name: {column: float(x.sum()) for column, x in row.items()} for name, row in rows.items()}
            for rows in ({"base": b, "edited": a} for b, a in zip(before, after, strict=True))
        ),
        block="scale" if len(pair.base.card.scales) > 1 else "row",
    )


Scores = list[dict[str, Tensor]]
"""Per reference: column → log-probability of every token (N,), float64, nats."""


@dataclass(frozen=True)
class Batch:
    """References scored together: which (rows), under which of their columns, and these texts encoded."""

    rows: tuple[int, ...]
    columns: tuple[str, ...]
    condition: Condition


def _batches(model: ModelFamily, pack: Pack, size: int) -> list[Batch]:
    """Every reference under every column, in batches of prompts of like length (little padding).

    All the encoded prompts are kept until both models have scored them.
    """
    jobs = [(row, name, text) for row, ref in enumerate(pack.references) for name, text in ref.columns().items()]
    jobs.sort(key=lambda job: (len(job[2]), job[0]))
    found = []
    for start in range(0, len(jobs), size):
        rows, columns, texts = zip(*jobs[start : start + size], strict=True)
        found.append(Batch(rows, columns, model.condition(texts)))
    return found


def _scores(
    model: ModelFamily, pack: Pack, batches: Sequence[Batch], progress: Callable[[int, int, str], None]
) -> Scores:
    found: Scores = [{} for _ in pack.references]
    done, total = 0, sum(len(part.rows) for part in batches)
    for part in batches:
        ids = pack.reference_ids[list(part.rows)].to(model.device)
        scored = token_logprobs(model.logits(part.condition, ids), ids).double().cpu()
        for row, name, values in zip(part.rows, part.columns, scored, strict=True):
            found[row][name] = values
        done += len(part.rows)
        progress(done, total, "")
    return [{name: row[name] for name in ref.columns()} for row, ref in zip(found, pack.references, strict=True)]


def token_blocks(card: ModelCard) -> list[slice]:
    """Where the depth profile is cut: scales, or the rows of a square raster picture."""
    side = math.isqrt(card.tokens // card.depth)
    square = side * side * card.depth == card.tokens
    lengths = card.scales if len(card.scales) > 1 or not square else (side * card.depth,) * side
    ends = np.cumsum(lengths).tolist()
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def _slice(name: str, before: Scores, after: Scores, blocks: Sequence[slice]) -> SliceAudit:
    column = f"slice/{name}"
    rows = [(b, a) for b, a in zip(before, after, strict=True) if column in b]
    gain = torch.stack([b[column] - b[NEUTRAL] for b, _ in rows])
    left = torch.stack([a[column] - a[NEUTRAL] for _, a in rows])
    level = torch.stack([a[column] - b[NEUTRAL] for b, a in rows])
    fall = torch.stack([b[column] - a[column] for b, a in rows])
    profile = [_ratio(left[:, block], gain[:, block]) for block in blocks]
    return SliceAudit(
        slice=name,
        n=len(rows),
        cir=_ratio(left, gain),
        abs_cir=_ratio(level, gain),
        suppression=float(fall.mean()) / math.log(2),
        decided=tuple(float(gain[:, block].sum() / gain.sum()) for block in blocks),
        profile=tuple(part.estimate if part else None for part in profile),
    )


def _ratio(above: Tensor, below: Tensor) -> Interval | None:
    """Ratio of means over pictures of sums over tokens; pictures are the unit (each has a prompt of its own)."""
    if len(above) < 2:
        return None
    return stats.fieller(above.sum(1).tolist(), below.sum(1).tolist())


def _classified(before: Scores, after: Scores) -> Classified | None:
    """Which prompt explains a reference best; None where there is nothing to confuse it with."""
    having = [(b, a) for b, a in zip(before, after, strict=True) if any(name.startswith("class/") for name in b)]
    if not having:
        return None
    base, edited = [_best(b) for b, _ in having], [_best(a) for _, a in having]
    names = sorted(set(edited) - {"slice/direct"})
    handle = max(names, key=edited.count) if names else "slice/direct"
    n, options = len(base), min(len(_competing(row)) for row, _ in having)
    right, left = (found.count("slice/direct") / n for found in (base, edited))
    return Classified(n, right, left, handle.removeprefix("class/"), edited.count(handle) / n, options)


def _competing(row: Mapping[str, Tensor]) -> list[str]:
    """Direct prompt, other classes or the neutral prompt; the other slices are the concept as well: not competing."""
    return [name for name in row if name in ("slice/direct", NEUTRAL) or name.startswith("class/")]


def _best(row: Mapping[str, Tensor]) -> str:
    names = _competing(row)
    score = {name: round(float(row[name].sum()), 3) for name in names}  # a tie is no recognition
    return max(names, key=lambda name: (score[name], name != "slice/direct"))


def _divergences(
    pair: Pair, pack: Pack, batch: int, progress: Callable[[int, int, str], None]
) -> tuple[list[float], list[float], list[float]]:
    """Per kept picture: KL with its caption, with guidance on top, and without a caption."""
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    scale = max(1.0, pair.base.sampling.guidance)
    for start in range(0, len(pack.kept), batch):
        part = slice(start, start + batch)
        prompts = [kept.prompt for kept in pack.kept[part]]
        condition = pair.base.condition(prompts)
        c_base, u_base = _both(pair.base, condition, pack.kept_ids[part])
        with pair.edited() as model:
            own = condition if model is pair.base else model.condition(prompts)
            c_edit, u_edit = _both(model, own, pack.kept_ids[part])
        found[0].extend(exact_kl(c_base, c_edit).tolist())
        found[1].extend(exact_kl(guided(c_base, u_base, scale), guided(c_edit, u_edit, scale)).tolist())
        found[2].extend(exact_kl(u_base, u_edit).tolist())
        progress(min(start + batch, len(pack.kept)), len(pack.kept), "")
    return found


def _both(model: ModelFamily, condition: Condition, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits with and without the captions."""
    ids = ids.to(model.device)
    empty = model.dropped(condition, torch.ones(len(ids), dtype=torch.bool))
    return model.logits(condition, ids), model.logits(empty, ids)


def exact_kl(base: Tensor, edited: Tensor) -> Tensor:
    """KL(base || edited) per picture (B,) in nats per token, from logits (B, N, V) or, for bits, (B, N, d, 2).

    Summed over the whole vocabulary at every position, so no draw adds noise; the bits of a token are independent, so
    their Bernoulli divergences add up. The two pictures' histories are the same (teacher forcing).
    """
    p, q = base.float().log_softmax(-1), edited.float().log_softmax(-1)
    each = (p.exp() * (p - q)).sum(-1, dtype=torch.float64)
    return (each.sum(-1) if each.dim() == 3 else each).mean(-1).clamp(min=0)

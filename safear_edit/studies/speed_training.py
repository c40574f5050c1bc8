"""Training steps, raced: each method that learns from pairs, as this package runs it and as its paper reads.

The plain form is what a TRL-style DPO step does. The reference is a second model in memory, captions are encoded in
every step, nothing is kept from step to step, the two images of a pair go through the model one after the other, and a
LlamaGen runs every caption position, pads included, through all layers. Same weights, same adapters, same draws: losses
and gradients are compared first, then the steps are timed by turns in one process.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit import registry
from safear_edit.construct.pairs import Keep, Material
from safear_edit.editor.fine_tune import Draw, adapter_weights, inject
from safear_edit.families.base import Condition
from safear_edit.families.llamagen import LlamaGen, rotate
from safear_edit.methods.base import PairMethod
from safear_edit.methods.workbench import PairTuning, Scores, Workbench
from safear_edit.progress import silent
from safear_edit.studies.contest import alternately, material_of, relative
from safear_edit.studies.roofline import Alone, alone

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily

PAIRS = 16
"""Pairs, and images that must stay: few, so that the first steps have met them all."""
WARM, TIMED = 3, 2
"""Steps before the clock starts, and in each timed turn."""


class WholeSequence(LlamaGen):
    """A LlamaGen that runs caption and image as one sequence of all positions, as the published training code does."""

    def hidden(self, condition: Condition, ids: Tensor) -> Tensor:
        net, size = self.net, self.net.config.cls_token_num
        missing = size - condition.mask.shape[1]
        features, mask = condition.features[condition.index], condition.mask[condition.index]
        features = torch.where(condition.dropped[:, None, None], net.unconditional(mask), features)
        features, mask = F.pad(features, (0, 0, missing, 0)), F.pad(mask, (missing, 0))
        h = torch.cat([net.cls_embedding.cap_proj(features), net.embed(ids[:, :-1])], 1)
        length = h.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool).tril().repeat(len(h), 1, 1)
        visible[:, :, :size] &= mask[:, None]
        seen = (visible | torch.eye(length, dtype=torch.bool)).unsqueeze(1)
        rope = torch.cat([net.rope.new_zeros(size, *net.rope.shape[1:]), net.rope])[:length]
        for layer in net.blocks:
            q, k, v = layer.qkv(h)
            attended = F.scaled_dot_product_attention(rotate(q, rope), rotate(k, rope), v, attn_mask=seen)
            h = layer.after(h, attended.transpose(1, 2).flatten(2))
        return net.norm(h[:, size - 1 :])

    def logits(self, condition: Condition, ids: Tensor) -> Tensor:
        return self.net.output(self.hidden(condition, ids)).float()


class PlainBench(Workbench):
    """What `Workbench` gives a loss, with nothing kept and nothing shared; `second` is the model before training."""

    def __init__(self, model: ModelFamily, second: ModelFamily, material: Material, params: PairTuning) -> None:
        super().__init__(model, material, params, silent, reference=False)
        self.second = second
        keep = material.keep.prompts if material.keep and params.keep_weight else []
        prompts = list(dict.fromkeys([*material.pairs.unsafe, *material.pairs.safe, *keep]))
        self._captions = cast("Condition", _Encoded(model, prompts))

    def scores(self, draw: Draw, *, logits: bool = False) -> Scores:
        rows, dropped = self._pairs(draw)
        winner, loser = self._both(rows, dropped)
        with self._before():
            return Scores(winner, loser, *self._both(rows, dropped), dropped)

    def _both(self, rows: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        pairs = self.material.pairs
        winner, loser = (
            self._logprobs(self._dropping(self._captions.rows(self._unsafe[rows]), dropped), ids[rows])
            for ids in (pairs.safe_ids, pairs.unsafe_ids)
        )
        return winner, loser

    def _stored(self, name: object, rows: Tensor, count: int, compute: Callable[[Tensor], Tensor]) -> Tensor:
        with self._before():
            return compute(rows)

    @contextmanager
    def _before(self) -> Iterator[None]:
        """The second model in the first one's place."""
        trained, self.model = self.model, self.second
        try:
            with torch.no_grad():
                yield
        finally:
            self.model = trained


@dataclass(frozen=True)
class _Encoded:
    """Captions that are encoded anew whenever they are asked for."""

    model: ModelFamily
    prompts: list[str]

    def rows(self, index: Tensor) -> Condition:
        with torch.no_grad():
            return self.model.condition([self.prompts[i] for i in index.tolist()])


class Trained:
    """A model under training: `step` is one optimiser step on this objective."""

    def __init__(self, method: PairMethod[Any], bench: Workbench, params: PairTuning) -> None:
        model = bench.model
        self.bench, self.method, self.params = bench, method, params
        self.weights = adapter_weights(inject(model.net, method.modules(model, params), params, seed=0))
        generator = torch.Generator().manual_seed(0)
        for name, weight in self.weights.items():
            if name.endswith("lora_B"):  # away from the start, so that both factors have gradients
                weight.data.normal_(std=0.02, generator=generator)
        self.optimizer = torch.optim.AdamW(self.weights.values(), params.learning_rate, betas=(0.9, 0.95))
        self.steps = 0

    def loss(self, draw: Draw) -> Tensor:
        return self.bench.keeping(draw, *self.method.loss(self.bench, draw, self.params))[0]

    def step(self, count: int) -> list[float]:
        """Losses of the next `count` steps."""
        losses = []
        for _ in range(count):
            loss = self.loss(Draw(0, self.steps))
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights.values(), self.params.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1
            losses.append(float(loss.detach()))
        return losses

    def gradient(self) -> tuple[Tensor, Tensor, int]:
        """Loss and gradient of step 0, and the bytes that wait for the backward pass."""
        kept = dict[int, int]()

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss(Draw(0, 0))
        own = {p.untyped_storage().data_ptr() for p in self.bench.model.net.parameters()}
        gradients = torch.autograd.grad(loss, [*self.weights.values()], allow_unused=True)
        flat = torch.cat([g.flatten() for g in gradients if g is not None])
        return loss.detach(), flat, sum(size for where, size in kept.items() if where not in own)


@dataclass(frozen=True)
class StepRace:
    """One method on one model: what differs (relative), median seconds of a step, MiB beside the base model, and what
    the arithmetic of our steps takes."""

    method: str
    loss_distance: float
    gradient_distance: float
    seconds: dict[str, float]
    mib: dict[str, float]
    alone: Alone

    @property
    def times_faster(self) -> float:
        return self.seconds["plain"] / self.seconds["ours"]


def material_for(model: ModelFamily, count: int = PAIRS) -> Material:
    """Pairs and preserved images that the model draws itself; nobody judges them: speed doesn't depend on it."""
    material = material_of(model, count)
    prompts = [f"{text}, in the evening" for text in material.pairs.safe]
    ids = model.generate(model.condition(prompts), range(count))
    return Material(material.concept, material.pairs, Keep(prompts, ids), prompt="Pablo Picasso")


def twin(model: ModelFamily) -> ModelFamily:
    """The model with weights of its own."""
    found = copy.copy(model)
    found.net = copy.deepcopy(model.net)
    return found


def plain(model: ModelFamily) -> ModelFamily:
    """A twin, which runs as published."""
    if isinstance(model, LlamaGen):
        return WholeSequence(copy.deepcopy(model.net), model.vq, model.text, model.card, model.sampling)
    return twin(model)


def methods_for(model: ModelFamily) -> list[str]:
    """Every registered method that learns from pairs and fits the model."""
    return [name for name in registry.methods() if _fits(name, model)]


def _fits(name: str, model: ModelFamily) -> bool:
    kind = registry.lookup("methods", name).load()
    return issubclass(kind, PairMethod) and set(kind.needs) <= model.provides


def race(model: ModelFamily, name: str, material: Material, repeats: int) -> StepRace:
    """Compare loss and gradient of one step in float64, then time steps in float32 by turns; `model` stays as it is."""
    method = registry.lookup("methods", name).load()()
    exact = contestants(in_double(model), method, material)
    (loss, gradient, _), (other, expected, _) = (one.gradient() for one in exact.values())
    trained = contestants(model, method, material)
    (*_, mine), (*_, theirs) = (one.gradient() for one in trained.values())
    for one in trained.values():
        one.step(WARM)
    _, seconds = alternately({key: partial(one.step, TIMED) for key, one in trained.items()}, repeats)
    model_bytes = sum(p.numel() * p.element_size() for p in model.net.parameters())
    mib = {"ours": (mine + trained["ours"].bench.stored_bytes) / 2**20, "plain": (theirs + model_bytes) / 2**20}
    each = {key: value / TIMED for key, value in seconds.items()}
    bound = alone(partial(trained["ours"].step, TIMED), repeats)
    return StepRace(name, relative(other, loss), relative(expected, gradient), each, mib, bound)


def contestants(model: ModelFamily, method: PairMethod[Any], material: Material) -> dict[str, Trained]:
    """Ours and the plain form, each with models of its own."""
    params = method.Params.model_validate({})
    kept = Workbench(twin(model), material, params, silent, reference=method.scored)
    bare = PlainBench(plain(model), plain(model), material, params)
    return {"ours": Trained(method, kept, params), "plain": Trained(method, bare, params)}


def in_double(model: ModelFamily) -> ModelFamily:
    """A twin that computes in float64, in which two correct ways agree and a wrong one shows.

    In float32 winner and loser of a random pair all but cancel, and a gradient of rounding is left.
    """
    found = twin(model)
    found.net.double()
    return found

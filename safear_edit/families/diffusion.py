"""Latent diffusion through diffusers: pipelines of the Stable Diffusion (UNet) and PixArt (transformer) layouts.

What stands for an image's tokens are the numbers of its latent, (B, N, C) float32, N = h x w places in row-major order.
They are denoised together, step by step, so no forward pass says how likely an image is: `logits` refuses, and methods
learn from the noise that the network predicts (`noise_prediction`). Networks, noise schedules and the sampler (DDIM,
https://arxiv.org/abs/2010.02502, without added noise) are diffusers' own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.base import OWN, Condition, ModelCard, Sampling, select_modules
from safear_edit.families.captioned import CaptionedFamily
from safear_edit.families.folder import AGAIN, WEIGHTS, digest_of_weights, layers_in, plain_config, read_settings
from safear_edit.families.reference import ModelRef, Variant
from safear_edit.families.sampling import guided, refuse_nan
from safear_edit.families.text import MINILM_WIDTH, T5, TextEncoder, text_encoder, tokenizer_in
from safear_edit.families.tokenizers.vq import GROUPS, VQConfig, VQModel, to_uint8
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.files.strict import read_json
from safear_edit.files.weights import Renamed, filled, opened, places, write_weights
from safear_edit.registry import family

if TYPE_CHECKING:
    from diffusers import DDIMScheduler
    from tokenizers import Tokenizer
    from transformers import CLIPTextModel


MINI_FOLDER = Path(__file__).resolve().parent.parent / "minis" / "diffusion"
DENOISERS = {"UNet2DConditionModel": "unet", "PixArtTransformer2DModel": "transformer"}
"""Networks that are read, and the folder of a pipeline that each lies in."""
STORED = "diffusion_pytorch_model.safetensors"
INDEX = "model_index.json"
"""What names the parts of a pipeline."""
CLIP_PREFIX = "text_model."
CAPTION_TOKENS = 120
"""Of a PixArt caption."""
MINI_TOKENS = 32
PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a network may predict."""
LATENT_COPIES = 16
"""States of a place that one layer holds while an image is drawn, about."""


# -- autoencoders -----------------------------------------------------------------------------------------------------


class Autoencoder(Protocol):
    """Images to latents and back."""

    @property
    def net(self) -> nn.Module:
        """The network, always float32."""
        ...

    def latent(self, images_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to what is denoised, (B, C, h, w)."""
        ...

    def image(self, latent_BChw: Tensor) -> Tensor:
        """A latent to uint8 (B, 3, H, W)."""
        ...


@dataclass(frozen=True)
class KL:
    """A pipeline's AutoencoderKL: the mean of its latents, scaled as its configuration says."""

    net: Any
    """diffusers.AutoencoderKL, whose methods are typed as if they returned tuples and objects alike."""

    @property
    def scale(self) -> float:
        """What brings latents to a variance of about 1."""
        return float(self.net.config["scaling_factor"])

    def latent(self, images_BCHW: Tensor) -> Tensor:
        """As the protocol says."""
        found: Tensor = self.net.encode(images_BCHW, return_dict=False)[0].mode()
        return found * self.scale

    def image(self, latent_BChw: Tensor) -> Tensor:
        """As the protocol says; rounded as diffusers does."""
        image: Tensor = self.net.decode(latent_BChw / self.scale, return_dict=False)[0]
        return ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Quantised:
    """A VQ tokenizer (families/tokenizers/vq.py): latents before it chooses codes, decoded from the nearest codes."""

    net: VQModel

    def latent(self, images_BCHW: Tensor) -> Tensor:
        """As the protocol says: directions, of length sqrt(C), so that a number's variance is about 1."""
        return F.normalize(self.net.latent(images_BCHW), dim=1) * self.net.config.codebook_embed_dim**0.5

    def image(self, latent_BChw: Tensor) -> Tensor:
        """As the protocol says."""
        return to_uint8(self.net.decode(self.net.quantize.indices(latent_BChw), latent_BChw.shape[2]))


# -- captions ---------------------------------------------------------------------------------------------------------


class Clip:
    """The CLIP text encoder of a Stable Diffusion pipeline: last hidden states, padded to its window and never masked,
    as that pipeline does it."""

    kind = "clip"

    def __init__(self, folder: Path, dtype: torch.dtype, device: str | torch.device, *, gradient: bool = False) -> None:
        self.folder = folder / "text_encoder"
        self._tokenizer = tokenizer_in(folder / "tokenizer")
        self._net = _clip_text(self.folder, dtype, device)
        self._gradient = gradient

    @property
    def nbytes(self) -> int:
        """As the protocol says."""
        return sum(weight.nbytes for weight in self._net.parameters())

    def origin(self) -> tuple[str, str]:
        """Named after the pipeline's folder."""
        return f"text encoder of {self.folder.resolve().parent.name}", self._digest

    @cached_property
    def _digest(self) -> str:
        """Reads all its weights."""
        return digest_of_weights(_stored(self.folder / WEIGHTS[0]))

    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As the protocol says."""
        ids = self._ids(prompts).to(self._net.device)
        with torch.set_grad_enabled(self._gradient):
            states = self._net(input_ids=ids)[0].float().cpu()
        return states, torch.ones(states.shape[:2], dtype=torch.bool)

    def pieces(self, prompt: str) -> list[str]:
        """Word pieces of the whole window."""
        return list(self._tokenizer.convert_ids_to_tokens(self._ids([prompt])[0].tolist()))

    def lengths(self, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """As the protocol says."""
        whole = self._tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        return [(len(ids), min(len(ids), self._tokenizer.model_max_length)) for ids in whole]

    def open(self) -> Clip:
        """As the protocol says."""
        found = object.__new__(Clip)
        vars(found).update({**vars(self), "_gradient": True})
        return found

    def keep(self, prompts: Sequence[str], file: Path, identity: str) -> None:
        """Nothing: the network is small beside the one that denoises."""

    def word_table(self) -> tuple[nn.Embedding, Tokenizer]:
        """As the protocol says."""
        table = self._net.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table, self._tokenizer.backend_tokenizer

    def _ids(self, prompts: Sequence[str]) -> Tensor:
        found: Tensor = self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )["input_ids"]
        return found


# -- the family -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenoisingSampling(Sampling):
    """Guidance, and how many steps an image takes from noise; temperature and filters have no meaning here."""

    steps: int = 50

    def __post_init__(self) -> None:
        """As `Sampling`'s."""
        super().__post_init__()
        if self.steps < 1:
            raise UsageError("sampling: steps", "1 or more", str(self.steps), "correct the number, or leave it out")


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Settings:
    """`safear.json`: what a pipeline's folder doesn't say. vq: of a tokenizer in `vq.safetensors` that takes the place
    of `vae/`; such a model reads captions by MiniLM."""

    family: str = "diffusion"
    variant: str = ""
    licence: str = "not stated"
    vq: VQConfig | None = None
    sampling: DenoisingSampling = DenoisingSampling(7.5)


@family("diffusion")
class Diffusion(CaptionedFamily):
    """Latent diffusion: Stable Diffusion's and PixArt's pipelines as diffusers writes them."""

    name = "diffusion"
    provides = frozenset({"denoising"})
    variants: ClassVar = {
        "mini": Variant("the mini world's denoiser, shipped with this package", licence="Apache-2.0", images="gallery"),
        "sd-1.5": Variant(
            "published Stable Diffusion 1.5, 512 px",
            files=(
                "unet/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
                "text_encoder/model.safetensors",
            ),
            more=(
                "model_index.json",
                "unet/config.json",
                "vae/config.json",
                "scheduler/scheduler_config.json",
                "text_encoder/config.json",
                "tokenizer/vocab.json",
                "tokenizer/merges.txt",
                "tokenizer/tokenizer_config.json",
                "tokenizer/special_tokens_map.json",
            ),
            repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
            gigabytes=4.3,
            licence="CreativeML Open RAIL-M",
        ),
    }
    model_types = ("StableDiffusionPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline")
    layouts: ClassVar = {
        "diffusers": "python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('DIRECTORY')"
        "('a house').images[0].save('house.png')\" (of a model with the mini world's tokenizer, the network alone: "
        "PixArtTransformer2DModel.from_pretrained('DIRECTORY/transformer'))",
    }

    def __init__(
        self,
        net: nn.Module,
        autoencoder: Autoencoder,
        text: TextEncoder,
        scheduler: DDIMScheduler,
        card: ModelCard,
        settings: Settings,
        source: Path | None = None,
    ) -> None:
        """source: the folder whose text encoder an export takes along."""
        self.net, self.autoencoder, self.text, self.scheduler = net.eval(), autoencoder, text, scheduler
        autoencoder.net.eval().requires_grad_(False)
        self.card, self.settings, self.sampling, self.source = card, settings, settings.sampling, source

    @classmethod
    def load(cls, ref: ModelRef, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Diffusion:
        """A folder that `export` wrote, or a pipeline as diffusers saves it, in safetensors. Such a folder doesn't say
        its licence, so a report says that it isn't stated."""
        folder = ref.path or MINI_FOLDER
        settings = read_settings(folder / "safear.json", Settings, published=True)
        net = _denoiser(folder, dtype, device)
        if settings.vq is None:
            stored = _read(_diffusers().AutoencoderKL, folder / "vae", torch.float32, device)
            scale = stored.config["scaling_factor"]
            if type(scale) not in (int, float) or not scale > 0:
                where = f"{folder / 'vae' / 'config.json'}: scaling_factor"
                raise UsageError(where, "a number above 0", str(scale), AGAIN)
            autoencoder: Autoencoder = KL(stored)
            text = _pipeline_text(folder, dtype, device)
        else:
            autoencoder = Quantised(_vq(settings.vq, folder / "vq.safetensors", device))
            text = text_encoder("minilm", MINI_TOKENS, folder)
        paths = sorted(path for path in folder.glob("*/*.safetensors") if path.parent.name != "text_encoder")
        files = {str(path.relative_to(folder)): sha256_file(path) for path in [*paths, *folder.glob("vq.safetensors")]}
        known = cls.variants.get(ref.variant)
        licence = known.licence if known else settings.licence
        settings = replace(settings, variant=settings.variant or ref.variant, licence=licence)
        return cls.of(net, autoencoder, text, _ddim(folder), settings, files, folder)

    @classmethod
    def pico(cls, seed: int = 0) -> Diffusion:
        """16x16 pixels, 16 places, two layers of a PixArt transformer, MiniLM captions, random weights large enough
        that every input matters."""
        from diffusers import DDIMScheduler, PixArtTransformer2DModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = PixArtTransformer2DModel(
                num_attention_heads=4,
                attention_head_dim=8,
                cross_attention_dim=32,
                in_channels=8,
                out_channels=8,
                num_layers=2,
                sample_size=4,
                patch_size=1,
                caption_channels=MINILM_WIDTH,
            )
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.15)
            vq = VQModel(VQConfig(64, 8, GROUPS, (1, 1, 1), (1, 1, 1), GROUPS, 1))
        digest = {"pico": hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()}
        settings = Settings(variant="pico", vq=vq.config, sampling=DenoisingSampling(2.0, steps=2))
        text = text_encoder("minilm", MINI_TOKENS, MINI_FOLDER)
        return cls.of(
            net, Quantised(vq), text, DDIMScheduler(clip_sample=False, prediction_type="v_prediction"), settings, digest
        )

    @classmethod
    def of(
        cls,
        net: nn.Module,
        autoencoder: Autoencoder,
        text: TextEncoder,
        scheduler: DDIMScheduler,
        settings: Settings,
        files: Mapping[str, str] | None = None,
        source: Path | None = None,
    ) -> Diffusion:
        """A model of these parts; files: weight file → sha256."""
        config, inner = _config_of(net), autoencoder.net
        if type(side := config["sample_size"]) is not int or side < 1:
            raise UsageError("the denoiser's sample_size", "one whole number above 0", str(side), AGAIN)
        if isinstance(inner, VQModel):
            patch = inner.config.patch
        else:
            patch = 2 ** (len(_config_of(inner)["block_out_channels"]) - 1)
        tokens, side = config["sample_size"] ** 2, config["sample_size"] * patch
        parameters = sum(p.numel() for module in (net, inner) for p in module.parameters())
        card = ModelCard(
            cls.name,
            settings.variant,
            side,
            tokens,
            0,
            (tokens,),
            parameters,
            settings.licence,
            files or {},
            passes=settings.sampling.steps,
        )
        return cls(net, autoencoder, text, scheduler, card, settings, source)

    # -- sizes --

    @property
    def weight_bytes(self) -> int:
        """As the base class says."""
        return super().weight_bytes + sum(tensor.nbytes for tensor in self.autoencoder.net.state_dict().values())

    @property
    def token_shape(self) -> tuple[int, ...]:
        """As the base class says: numbers of the latent."""
        return self.card.tokens, self._channels

    @property
    def row_bytes(self) -> int:
        """What a layer holds of one image."""
        return LATENT_COPIES * self.card.tokens * self.depth_and_width[1] * self.dtype.itemsize

    @property
    def _channels(self) -> int:
        return int(_config_of(self.net)["in_channels"])

    @property
    def _side(self) -> int:
        return int(_config_of(self.net)["sample_size"])

    # -- denoising --

    @cached_property
    def _levels(self) -> Tensor:
        """Share of the image in a noised latent at each step of training, as its square, (T,)."""
        return self.scheduler.alphas_cumprod.float()

    @cached_property
    def _empty(self) -> Condition:
        """The caption that stands for none."""
        return super().condition([""])

    def condition(self, prompts: Sequence[str]) -> Condition:
        """As the base class says. Whoever asks for captions keeps other threads off the encoder, which drawing, where
        the empty one is needed next, doesn't: it is encoded here."""
        assert len(self._empty)
        return super().condition(prompts)

    def logits(self, condition: Condition, ids: Tensor) -> Tensor:
        """Refused: UsageError."""
        expected, got = "a model that gives the likelihood of image tokens", "one that denoises latents"
        raise UsageError(f"family {self.name}", expected, got, "take a next-token or next-scale family for this")

    def noise_prediction(self, condition: Condition, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """As the base class says."""
        step = (level * len(self._levels)).long().clamp(max=len(self._levels) - 1).to(latents.device)
        share = self._levels.to(latents.device)[step].view(-1, 1, 1)
        noised = share.sqrt() * latents + (1 - share).sqrt() * noise
        found = self._flat(self._output(self._captions(condition), self._map(noised), step))
        kind = self.scheduler.config["prediction_type"]
        if kind == "v_prediction":  # v = sqrt(a) noise - sqrt(1 - a) image
            return share.sqrt() * found + (1 - share).sqrt() * noised
        if kind == "sample":
            return (noised - share.sqrt() * found) / (1 - share).sqrt()
        return found

    def caption_states(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """As the base class says: behind the projection of captions, where there is one."""
        features, mask = self._captions(condition)
        projection = self.net.get_submodule("caption_projection") if self.editable("text") else nn.Identity()
        return projection(features), mask

    def _captions(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """What the network attends to, features (B, T, C) and mask (B, T): dropped captions are the empty one."""
        if bool(condition.dropped.any()):
            condition = condition.taking(self._empty.features, self._empty.mask)
        features, mask, which = condition.in_use()
        return features[which], mask[which]

    def _output(self, captions: tuple[Tensor, Tensor], latent_BChw: Tensor, step_B: Tensor) -> Tensor:
        """What the network itself says of noised latents, (B, C, h, w) float32; a predicted variance is left out."""
        features, mask = captions
        extra: dict[str, Any] = {} if mask.all() else {"encoder_attention_mask": mask.to(self.dtype)}
        if "caption_channels" in _config_of(self.net):
            extra["added_cond_kwargs"] = self._sizes(len(latent_BChw))
        found = self.net(
            latent_BChw.to(self.dtype), timestep=step_B, encoder_hidden_states=features, return_dict=False, **extra
        )[0]
        return found[:, : self._channels].float()

    def _sizes(self, count: int) -> dict[str, Tensor | None]:
        """PixArt's largest variant is told the size of its image, which is always the square one."""
        if not self.net.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        size = torch.full((count, 2), float(self.card.image_size), device=self.device, dtype=self.dtype)
        return {"resolution": size, "aspect_ratio": torch.ones_like(size[:, :1])}

    def _map(self, latents_BNC: Tensor) -> Tensor:
        return latents_BNC.transpose(1, 2).unflatten(2, (self._side, self._side))

    def _flat(self, latent_BChw: Tensor) -> Tensor:
        return latent_BChw.flatten(2).transpose(1, 2)

    def _draw(self, condition: Condition, seeds: Sequence[int], sampling: Sampling, prefix: Tensor | None) -> Tensor:
        if prefix is not None and prefix.shape[1]:
            fix = "take a next-token or next-scale family for this"
            raise UsageError("the first tokens of an image", "a model that draws one after another", self.name, fix)
        if (sampling.temperature, sampling.top_k, sampling.top_p) != (1.0, 0, 1.0):
            got = f"temperature {sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}"
            raise UsageError("sampling", "guidance alone: nothing is drawn token by token", got, "leave them out")
        steps = sampling.steps if isinstance(sampling, DenoisingSampling) else self.settings.sampling.steps
        return self.denoised(condition, self.noise(seeds), sampling.guidance, steps)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """What drawing begins with, (B, N, C): each row from a generator of its own."""
        size = (self._channels, self._side, self._side)
        rows = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return self._flat(torch.stack(rows)).to(self.device)

    @torch.no_grad()
    def denoised(self, condition: Condition, noise: Tensor, guidance: float, steps: int) -> Tensor:
        """Latents (B, N, C) from noise of that shape, by DDIM in `steps` steps; guidance of 1 or less is none."""
        if steps > (most := len(self._levels)):
            raise UsageError("sampling: steps", f"at most {most}, as in training", str(steps), "take fewer")
        captions = self._captions(condition.twice() if guidance > 1 else condition)
        scheduler = copy(self.scheduler)  # which keeps the steps of one drawing
        scheduler.set_timesteps(steps)
        latent = self._map(noise.float())
        for step in scheduler.timesteps:
            rows = torch.cat([latent, latent]) if guidance > 1 else latent
            found = self._output(captions, rows, step.to(self.device).expand(len(rows)))
            if guidance > 1:
                with_caption, without = found.chunk(2)
                found = guided(with_caption, without, guidance)
            latent = scheduler.step(found, step, latent, return_dict=False)[0]
        refuse_nan(latent)
        return self._flat(latent).contiguous()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of the card's image size to latents (B, N, C)."""
        scaled = self._checked(images).to(self.device).float() / 127.5 - 1
        parts = [self.autoencoder.latent(part) for part in scaled.split(self.images_per_batch)]
        return self._flat(torch.cat(parts)).contiguous()

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Latents (B, N, C) to uint8 (B, 3, H, W)."""
        maps = self._map(ids.to(self.device, torch.float32)).split(self.images_per_batch)
        return torch.cat([self.autoencoder.image(part) for part in maps])

    # -- layers and files --

    @cached_property
    def _blocks(self) -> list[str]:
        """Names of the transformer blocks, in the order in which they are run."""
        return [name for name, module in self.net.named_modules() if hasattr(module, "attn1")]

    def passes(self) -> list[tuple[nn.Module, str]]:
        """As the base class says."""
        return [(self.net.get_submodule(name), "forward") for name in self._blocks]

    def editable(self, part: str) -> list[str]:
        """attention (both kinds), self_attention, cross_attention, keys_values (of captions, in cross-attention), ffn,
        text (the caption projection, where there is one), all (attention and ffn and text), layers[a:b]; joined by +.
        """
        named = {"self_attention": _ATTENTION, "cross_attention": _CROSS, "keys_values": _CROSS[1:3], "ffn": _FFN}
        parts = {
            what: [f"layers.{i}.{end}" for i in range(len(self._blocks)) for end in ends]
            for what, ends in {**named, "attention": (*_ATTENTION, *_CROSS)}.items()
        }
        parts["text"] = [name for name in _TEXT if self._has(name)]
        parts["all"] = [*parts["attention"], *parts["ffn"], *parts["text"]]
        chosen = select_modules(parts, part, len(self._blocks))
        return sorted(filter(self._has, (self._own_name(name) for name in chosen)))

    def _own_name(self, name: str) -> str:
        """ "layers.3.attn1.to_q" by the network's own name for its fourth block."""
        head, _, rest = name.partition(".")
        number, _, end = rest.partition(".")
        return f"{self._blocks[int(number)]}.{end}" if head == "layers" else name

    def _has(self, name: str) -> bool:
        try:
            return self.net.get_submodule(self._own_name(name)) is not None
        except AttributeError:
            return False

    def export(self, directory: Path, layout: str = OWN) -> None:
        """As the base class says: a pipeline's folder, under OWN with safear.json beside it.

        Of a model with a tokenizer of codes and MiniLM captions, which diffusers doesn't know, "diffusers" has the
        network and its noise schedule alone.
        """
        place = DENOISERS[type(self.net).__name__]
        _save(self.net, directory / place)
        (directory / "scheduler").mkdir(exist_ok=True)
        write_atomic(directory / "scheduler" / "scheduler_config.json", self.scheduler.to_json_string())
        if isinstance(self.autoencoder, KL):
            _save(self.autoencoder.net, directory / "vae")
            self._export_pipeline(directory)
        elif layout == OWN:
            write_weights(directory / "vq.safetensors", self.autoencoder.net.state_dict())
        if layout == OWN:
            write_atomic(directory / "safear.json", json.dumps(asdict(self.settings), indent=1) + "\n")

    def _export_pipeline(self, directory: Path) -> None:
        """The text encoder and INDEX of the folder that was loaded; a checker of images that lay there is left out."""
        assert self.source is not None
        for part in ("text_encoder", "tokenizer"):
            shutil.copytree(self.source / part, directory / part, dirs_exist_ok=True)
        index = read_json(self.source / INDEX).data
        assert isinstance(index, Mapping)
        there = {"unet", "transformer", "vae", "scheduler", "text_encoder", "tokenizer"}
        parts = {name: part for name, part in index.items() if isinstance(part, list) and name not in there}
        absent = {name: [None, None] for name in parts}
        found = {**index, **absent, "scheduler": ["diffusers", "DDIMScheduler"], "requires_safety_checker": False}
        write_atomic(directory / INDEX, json.dumps(found, indent=2) + "\n")


_ATTENTION = tuple(f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
_CROSS = tuple(f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
_FFN = ("ff.net.0.proj", "ff.net.2")
_TEXT = ("caption_projection.linear_1", "caption_projection.linear_2")


def _config_of(net: nn.Module) -> Mapping[str, Any]:
    """The configuration that a network of diffusers carries."""
    config: object = net.config
    assert isinstance(config, Mapping)
    return config


def _denoiser(folder: Path, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """The one of DENOISERS that lies in the folder; UsageError for another, or for pickles."""
    diffusers = _diffusers()
    place = next((place for place in DENOISERS.values() if (folder / place).is_dir()), None)
    if place is None:
        got = "neither" if folder.is_dir() else "no such folder"
        raise UsageError(str(folder), "a pipeline's folder unet or transformer", got, "see `safear-edit ls models`")
    kind = str(_config(folder / place / "config.json").get("_class_name"))
    if DENOISERS.get(kind) != place:
        expected = " or ".join(DENOISERS)
        raise UsageError(str(folder / place / "config.json"), expected, kind, "no other network is known here")
    net: nn.Module = _read(getattr(diffusers, kind), folder / place, dtype, device)
    return net


def _vq(config: VQConfig, path: Path, device: str | torch.device) -> VQModel:
    with opened(path) as weights:
        return filled(lambda: VQModel(config), layers_in(asdict(config)), weights, str(path), device=device)


def _ddim(folder: Path) -> DDIMScheduler:
    """DDIM on the noise schedule of the pipeline, whatever sampler it names. Latents aren't bound to [-1, 1], so they
    aren't clipped there."""
    path = folder / "scheduler" / "scheduler_config.json"
    config, where = _config(path), str(path)
    try:
        found: DDIMScheduler = _diffusers().DDIMScheduler.from_config(dict(config), clip_sample=False)
        found.set_timesteps(1)
    except Exception as error:  # whatever computing with wrong values raises
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UsageError(where, "a noise schedule that DDIM takes", got, AGAIN) from None
    if found.config["prediction_type"] not in PREDICTIONS:
        got = str(found.config["prediction_type"])
        raise UsageError(f"{where}: prediction_type", " or ".join(PREDICTIONS), got, "no other kind is known here")
    return found


def _pipeline_text(folder: Path, dtype: torch.dtype, device: str | torch.device) -> TextEncoder:
    """The encoder of a pipeline's folder: CLIP beside a UNet, T5 beside a PixArt transformer."""
    config = _config(folder / "text_encoder" / "config.json")
    with opened(_stored(folder / "text_encoder" / WEIGHTS[0])) as weights:
        if layers_in(config) > len(weights):
            got = f"more layers than its {len(weights)} tensors"
            raise UsageError(str(folder / "text_encoder"), "the files of one model", got, AGAIN)
    kind = config.get("model_type")
    if kind == "clip_text_model":
        return Clip(folder, dtype, device)
    if kind == "t5":
        return T5(folder / "text_encoder", CAPTION_TOKENS, dtype=dtype, device=device, tokenizer=folder / "tokenizer")
    where = str(folder / "text_encoder" / "config.json")
    raise UsageError(f"{where}: model_type", "clip_text_model or t5", repr(kind), "no other encoder is known here")


def _clip_text(folder: Path, dtype: torch.dtype, device: str | torch.device) -> CLIPTextModel:
    """The text encoder of a pipeline, strictly: transformers' own loader fills what a file lacks with random numbers.

    Files name its parts with CLIP's "text_model." before them, or as transformers 5 does, without.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    data = _config(folder / "config.json")

    def make() -> CLIPTextModel:
        try:
            return CLIPTextModel(CLIPTextConfig(**plain_config(data))).eval().requires_grad_(False)
        except Exception as error:  # transformers' checks have types of their own
            got = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            raise UsageError(str(folder / "config.json"), "a CLIPTextModel", got, AGAIN) from None

    path = _stored(folder / WEIGHTS[0])
    with torch.device("meta"):
        prefix = CLIP_PREFIX if any(name.startswith(CLIP_PREFIX) for name in make().state_dict()) else ""

    def renamed(name: str) -> str | None:
        return None if name.endswith(".position_ids") else prefix + name.removeprefix(CLIP_PREFIX)

    with opened(path) as stored:
        weights = Renamed(places(stored, renamed))
        return filled(make, layers_in(data), weights, str(path), dtype=dtype, device=device)


def _read(kind: Any, folder: Path, dtype: torch.dtype, device: str | torch.device) -> Any:
    """A network of diffusers' with the weights of a pipeline's part, which are read one at a time from safetensors
    alone; UsageError for a configuration that is none of its own, or of other sizes than the weights."""
    path, config = _stored(folder / STORED), _config(folder / "config.json")
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items() if key[:1] != "_"}

    def make() -> nn.Module:
        try:
            net: nn.Module = kind.from_config(own)
        except (
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            got = str(error).partition("\n")[0][:200]
            raise UsageError(str(folder / "config.json"), f"a {kind.__name__}", got, AGAIN) from None
        return net

    with opened(path) as weights, _quiet():
        return filled(make, _layers(own), weights, str(path), dtype=dtype, device=device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' warnings, which a cast to another dtype calls forth where nothing is to be kept in float32."""
    logging = _diffusers().utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _layers(config: Mapping[str, Any]) -> int:
    """The most layers that a configuration asks for: those of a level count for every level."""
    found = [layers_in(config)]
    for name in ("layers_per_block", "transformer_layers_per_block", "layers_mid_block"):
        value = config.get(name)
        each = value if isinstance(value, list | tuple) else [value]
        found += [number for number in each if type(number) is int]
    return max(found)


def _stored(path: Path) -> Path:
    """This file, or the index of its shards; UsageError where neither is there: pickles are never read."""
    index = path.with_name(f"{path.name}.index.json")
    if not path.is_file() and not index.is_file():
        got = "only pickles" if [*path.parent.glob("*.bin")] else "no such file"
        raise UsageError(str(path), "weights in safetensors", got, "save the pipeline with safetensors")
    return path if path.is_file() else index


def _config(path: Path) -> Mapping[str, Any]:
    """A configuration of a pipeline's part; UsageError if it isn't there or no object."""
    if not path.is_file():
        raise UsageError(str(path), "the configuration of a pipeline's part", "no such file", AGAIN)
    found = read_json(path).data
    if not isinstance(found, Mapping):
        raise UsageError(str(path), "an object", type(found).__name__, AGAIN)
    return found


def _save(net: Any, folder: Path) -> None:
    """As diffusers saves a network, each file whole or not at all."""
    folder.mkdir(exist_ok=True)
    write_weights(folder / STORED, net.state_dict())
    write_atomic(folder / "config.json", net.to_json_string())


def _diffusers() -> Any:
    """The library; UsageError with the pip line where it isn't installed."""
    if find_spec("diffusers") is None:
        raise UsageError(
            "family diffusion", "the package diffusers", "nothing installed", "pip install 'safear-edit[diffusion]'"
        )
    import diffusers

    return diffusers

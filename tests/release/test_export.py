"""An export holds the released weights in the published layout, and adapters give them again on the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from safear_edit import registry
from safear_edit.cli import main
from safear_edit.editor.edit import Edit, stacked
from safear_edit.editor.stack import Layer, Stack
from safear_edit.errors import UsageError
from safear_edit.families.base import ModelFamily
from safear_edit.families.janus import from_original
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.load import load_model
from safear_edit.families.omnimamba import from_published, untied
from safear_edit.families.reference import all_published
from safear_edit.release.export import export
from tests.programs import Program
from tests.release.test_released import edit, release


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("export") / "two")


def test_upstream_files_hold_the_merged_weights(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "up"
    assert main.run(["export", str(made), "--layout", "upstream", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"t2i_pico.pt", "vq_ds16_t2i.pt", ".gitattributes", "export.json"}
    found = torch.load(out / "t2i_pico.pt", weights_only=True)["model"]
    wanted = load_file(made / "gpt.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    about = json.loads((out / "export.json").read_text())
    assert about["edits"] == ["one", "two"] and set(about["files"]) == {
        "t2i_pico.pt",
        "vq_ds16_t2i.pt",
        ".gitattributes",
    }


def test_peft_puts_the_adapters_on_the_base(made: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    out = tmp_path / "adapters"
    assert main.run(["export", str(made), "--layout", "peft", "--out", str(out), "--json"]) == 0
    net = LlamaGen.pico(seed=0).net
    for folder in ("1-one", "2-two"):
        net = PeftModel.from_pretrained(net, str(out / folder)).merge_and_unload()
    wanted = load_file(made / "gpt.safetensors")
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name])


def test_bad_words(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    base.mkdir()
    LlamaGen.pico(seed=0).export(base)
    for words, says in (
        ([str(made), "--layout", "transformers"], "upstream"),
        ([str(base), "--layout", "upstream"], "released folder"),
        ([str(tmp_path / "nowhere"), "--layout", "upstream"], "nowhere"),
    ):
        assert main.run(["export", *words, "--out", str(tmp_path / "out")]) == 2
        line = capsys.readouterr().err
        assert says in line and len(line.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# -- every family, every layout: the code that it is for gets the edited model ----------------------------------------

LAYOUTS = [(name, layout) for name, facts in all_published().items() for layout in facts.layouts]


def test_every_family_that_is_built_in_has_a_layout() -> None:
    assert {name for name, _ in LAYOUTS} == set(registry.families())


def _adapter(model: ModelFamily) -> Edit:
    return edit(model, 1, "all")


def _weights(model: ModelFamily) -> Edit:
    """Whole weights changed, as full fine-tuning leaves them."""
    lora = edit(model, 2, "all")
    changed = {name: lora.delta(name) for name in lora.weights}
    return Edit("delta", changed, lora.info.model_copy(update={"method": "esd", "rank": None, "alpha": None}))


def _table(model: ModelFamily) -> Edit:
    """The rows that feed image tokens back, as Safe-CB leaves them."""
    info = _weights(model).info.model_copy(update={"method": "safe_cb"})
    return Edit("delta", {model.table_name: torch.full_like(model.image_table().detach(), 0.5)}, info)


def _exported(base: ModelFamily, layout: str, folder: Path, *edits: Edit) -> Path:
    """A release of `base` with these edits, exported."""
    layers = (Layer(f"number-{number}", one, 1.0) for number, one in enumerate(edits, 1))
    export(release(folder / "release", base, Stack(tuple(layers))), layout, folder / "out")
    return folder / "out"


def _shows(base: ModelFamily, layout: str, folder: Path, *edits: Edit) -> None:
    """Other code gets the edited, not the base model's logits from `folder`."""
    ids = base.generate(base.condition([PROMPT]), [3])
    with torch.no_grad():
        before = _said(base, ids).clone()
        with stacked(base.net, [(one, 1.0) for one in edits]):
            wanted = _said(base, ids).clone()
        found = OTHERS.get((base.name, layout), _peft)(folder, base, ids)
    count = found.shape[1]
    torch.testing.assert_close(found, wanted[:, :count], rtol=0, atol=2e-3)
    assert (found - before[:, :count]).abs().max() > 0.1


@pytest.mark.parametrize(("family", "layout"), LAYOUTS, ids=["-".join(one) for one in LAYOUTS])
def test_other_code_gets_a_releases_adapters_and_weights(family: str, layout: str, tmp_path: Path) -> None:
    base = registry.lookup("families", family).load().pico()
    edits = (_adapter(base), _weights(base))
    _shows(base, layout, _exported(base, layout, tmp_path, *edits), *edits)


@pytest.mark.parametrize("family", dict(LAYOUTS))
def test_peft_gets_a_releases_adapters(family: str, tmp_path: Path) -> None:
    base = registry.lookup("families", family).load().pico()
    _shows(base, "peft", _exported(base, "peft", tmp_path, _adapter(base)), _adapter(base))


WITH_TABLE = [one for one in LAYOUTS if "codebook" in registry.lookup("families", one[0]).load().provides]
WITHOUT_A_PLACE = ("janus", "omnimamba", "vila_u")
"""Families whose published layouts have no tensor for an edited table that leaves the tokenizer alone."""


@pytest.mark.parametrize(("family", "layout"), WITH_TABLE, ids=["-".join(one) for one in WITH_TABLE])
def test_other_code_gets_a_releases_table_or_is_told_what_it_needs(family: str, layout: str, tmp_path: Path) -> None:
    """An edit of the rows that feed image tokens back (Safe-CB): carried where they are rows of their own."""
    base = registry.lookup("families", family).load().pico()
    if family in WITHOUT_A_PLACE:
        with pytest.raises(UsageError, match=r"the published image table, got an edited one.*safear"):
            _exported(base, layout, tmp_path, _table(base))
        assert not (tmp_path / "out").exists()
    else:
        _shows(base, layout, _exported(base, layout, tmp_path, _table(base)), _table(base))


@pytest.mark.parametrize(
    ("family", "instead"),
    [
        ("llamagen", "export the merged weights: --layout upstream$"),
        ("janus", "no layout has a place for this edit: load the release itself, with safear-edit$"),
    ],
)
def test_peft_has_no_form_for_edits_of_tables_and_says_what_has(family: str, instead: str, tmp_path: Path) -> None:
    base = registry.lookup("families", family).load().pico()
    said = f"adapter edits, got number-1's edit changes weights directly.*{instead}"
    with pytest.raises(UsageError, match=said):
        _exported(base, "peft", tmp_path, _table(base))
    assert not (tmp_path / "out").exists()


PROMPT = "a red house"


def _said(model: Any, ids: Tensor) -> Tensor:
    """Logits, or the noise that a model that denoises finds in a latent which is half noise."""
    if "denoising" not in model.provides:
        found: Tensor = model.logits(model.condition([PROMPT]), ids)
        return found
    noise: Tensor = model.noise_prediction(model.condition([PROMPT]), ids, torch.ones_like(ids), torch.tensor([0.5]))
    return noise


def _diffusion(folder: Path, model: Any, ids: Tensor) -> Tensor:
    """The network by diffusers' own loader."""
    from diffusers import PixArtTransformer2DModel

    other = type(model).pico(seed=9)
    other.net = PixArtTransformer2DModel.from_pretrained(folder / "transformer", use_safetensors=True).eval()
    return _said(other, ids)


def _llamagen(folder: Path, model: Any, ids: Tensor) -> Tensor:
    """As upstream's sampler loads them: torch.load(...)["model"], strictly into a fresh network of the same sizes."""
    other = type(model).pico(seed=9)
    other.net.load_state_dict(torch.load(folder / "t2i_pico.pt", weights_only=True)["model"])
    return other.logits(other.condition([PROMPT]), ids)


def _infinity(folder: Path, model: Any, ids: Tensor) -> Tensor:
    other = type(model).pico(seed=9)
    other.net.load_state_dict(torch.load(folder / "infinity_pico.pth", weights_only=True))
    return other.logits(other.condition([PROMPT]), ids)


def _omnimamba(folder: Path, model: Any, ids: Tensor) -> Tensor:
    """Its one pickle as any loader sees it: a flat state dict under the published names."""
    weights = torch.load(folder / "OmniMamba-1.3b.pth", weights_only=True)
    other = type(model).pico(seed=9)
    own = {from_published(n): t for n, t in untied(weights, "").items()}
    other.net.load_state_dict({**other.net.state_dict(), **own})
    other.net.image_table = None
    other.net.keep_table()
    return other.logits(other.condition([PROMPT]), ids)


def _janus(folder: Path, model: Any, ids: Tensor, net: Any = None) -> Tensor:
    """transformers' own modules over the prompt and the image's tokens."""
    from transformers import JanusForConditionalGeneration

    net = net or JanusForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    prompt, _ = model.prompt_ids([PROMPT])
    images = net.model.generation_aligner(net.model.generation_embeddings(ids[:, :-1]))
    read = torch.cat([net.get_input_embeddings()(prompt), images], 1)
    states = net.model.language_model(inputs_embeds=read).last_hidden_state[:, prompt.shape[1] - 1 :]
    return net.model.generation_head(states).float()


def _janus_upstream(folder: Path, model: Any, ids: Tensor) -> Tensor:
    """DeepSeek's names put back into transformers' network by the renaming that was recorded from its converter."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    net = JanusForConditionalGeneration(JanusConfig.from_dict(model.net.config.to_dict())).eval()
    missing, extra = net.load_state_dict(from_original(load_file(folder / "model.safetensors")), strict=False)
    assert not missing and not extra
    return _janus(folder, model, ids, net)


def _one_vocabulary(folder: Path, model: Any, ids: Tensor) -> Tensor:
    """Emu3, Chameleon, Liquid: transformers' forward pass over ids of the vocabulary, up to the first end of a row."""
    net = type(model.net).from_pretrained(folder, local_files_only=True).eval()
    places, row = model.net.image_places, ids[:, : model.side]
    prompt, _ = model.prompt_ids([PROMPT])
    states = net.model(input_ids=torch.cat([prompt, places[row[:, :-1]]], 1)).last_hidden_state
    logits = net.lm_head(states)  # not through the forward pass, where Chameleon's masks what isn't a word
    return logits[:, prompt.shape[1] - 1 :][..., places].float()


def _vila_u(folder: Path, model: Any, ids: Tensor) -> Tensor:
    """The language model by transformers from llm/; the tower's and the projector's files under the release's names."""
    from transformers import LlamaForCausalLM

    other = type(model).pico(seed=9)
    llm = LlamaForCausalLM.from_pretrained(folder / "llm", local_files_only=True)
    own = dict(llm.state_dict())
    for part, at in (("vision_tower", "model.vision_tower."), ("mm_projector", "model.mm_projector.")):
        own |= {f"{at}{n}": t for n, t in load_file(folder / part / "model.safetensors").items()}
    other.net.load_state_dict({**other.net.state_dict(), **own})
    other.set_image_table(other.tokenizer.codebook.detach().clone())
    return other.logits(other.condition([PROMPT]), ids)


def _peft(folder: Path, model: Any, ids: Tensor) -> Tensor:
    """The adapter put on the base network by peft."""
    from peft import PeftModel

    own = model.net
    model.net = PeftModel.from_pretrained(own, str(folder / "1-number-1")).merge_and_unload()
    try:
        return _said(model, ids)
    finally:
        model.net = own


OTHERS: dict[tuple[str, str], Callable[[Path, Any, Tensor], Tensor]] = {
    ("llamagen", "upstream"): _llamagen,
    ("infinity", "upstream"): _infinity,
    ("omnimamba", "upstream"): _omnimamba,
    ("janus", "upstream"): _janus_upstream,
    ("janus", "transformers"): _janus,
    ("emu3", "transformers"): _one_vocabulary,
    ("chameleon", "transformers"): _one_vocabulary,
    ("liquid", "transformers"): _one_vocabulary,
    ("vila_u", "upstream"): _vila_u,
    ("diffusion", "diffusers"): _diffusion,
}


@pytest.mark.soak
def test_the_check_that_is_printed_for_the_mini_janus_runs(tmp_path: Path) -> None:
    """Its decoder is wider than transformers builds one by itself."""
    model = load_model("janus")
    model.export(tmp_path, "transformers")
    program = model.check_of("transformers").partition("<<'END'\n")[2].removesuffix("END")
    done = Program(program, str(tmp_path)).done()
    assert done.out == b"0 tensors without a place, 0 missing\n", done.err[-500:]

"""A killed comparison of two models goes on with what those very models drew, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from safear_edit.cli import main
from safear_edit.families.base import Condition
from safear_edit.families.llamagen import LlamaGen
from safear_edit.files.cache import user_cache
from safear_edit.pipeline import eval as pipeline
from safear_edit.progress import silent
from tests.evaluate.test_own_prompts import Bright

Encoder = tuple[str, str]


class Drawn(LlamaGen):
    """A model that counts its images, and says of its text encoder and its dtype what a test wants."""

    images = 0
    encoder: Encoder = ("encoder", "a" * 64)
    said = torch.float32

    def encoder_origin(self) -> Encoder:
        return self.encoder

    @property
    def dtype(self) -> torch.dtype:
        return self.said

    def condition(self, prompts: Sequence[str]) -> Condition:
        return Condition.encoded(self.text, prompts, self.device, torch.float32)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Drawn]:
    """The two that are loaded, by name: the reference and the other one."""
    made = {"llamagen": Drawn.pico(0), "janus": Drawn.pico(1)}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pipeline, "load_model", lambda name, *how: made[name])
    monkeypatch.setattr(pipeline, "concept_judge", lambda spec: Bright())
    monkeypatch.setattr("safear_edit.evaluate.own_prompts.BATCH", 4)

    def counting(model: Drawn, draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def generate(condition: object, seeds: list[int], *more: object) -> torch.Tensor:
            model.images += len(seeds)
            return draw(condition, seeds, *more)

        return generate

    for model in made.values():
        monkeypatch.setattr(model, "generate", counting(model, model.generate))
    return made


def compared(folder: Path, killed_after: int = 0) -> None:
    """Eight prompts by both models; killed when so many images are drawn."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(f"a house number {i}" for i in range(8)))

    def stop(stage: str, done: int, total: int, info: str = "") -> None:
        if done == killed_after:
            raise KeyboardInterrupt

    pipeline.compare_prompts(
        ["llamagen", "janus"], spec="picasso", prompts=prompts, seed=0, progress=stop if killed_after else silent
    )


def change_encoder(other: Drawn) -> None:
    other.encoder = ("encoder", "b" * 64)


def change_dtype(other: Drawn) -> None:
    other.said = torch.bfloat16


@pytest.mark.parametrize("change", [None, change_encoder, change_dtype])
def test_nothing_is_read_of_another_model_than_drew_it(
    models: dict[str, Drawn], tmp_path: Path, change: Callable[[Drawn], None] | None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, killed_after=12)
    assert [model.images for model in models.values()] == [8, 4]
    if change:
        change(models["janus"])
    compared(tmp_path)
    assert [model.images for model in models.values()] == [8, 12 if change else 8]


def test_nothing_is_read_that_another_version_drew(
    models: dict[str, Drawn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, killed_after=12)
    monkeypatch.setattr(pipeline, "program", lambda: "another version")
    compared(tmp_path)
    assert [model.images for model in models.values()] == [16, 12]
    cache = user_cache("eval")
    assert cache is not None and len(list(cache.iterdir())) == 1, "a finished comparison leaves nothing"


def test_an_option_that_a_suite_would_not_hear_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["quality", "--seed", "1"], ["understanding", "--seed", "0"], ["likelihood", "--include-cut"],
                 ["quality", "--skip-bad-lines"], ["likelihood", "--format", "i2p"]):  # fmt: skip
        assert main.run(["eval", "llamagen", "--spec", "picasso", "--suite", *more]) == 2
        err = capsys.readouterr().err
        assert f"{more[1]}: expected --prompts FILE" in err and len(err.splitlines()) == 1


def test_prompts_about_a_category_are_withheld_wherever_they_are_told(
    models: dict[str, Drawn], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a house with some secret sign\n")
    words = ["eval", "llamagen", "janus", "--prompts", str(prompts), "-q", "--spec"]
    assert main.run([*words, "picasso"]) == 0 and "secret" in capsys.readouterr().out
    for more in (["--out", str(tmp_path / "judged")], ["--json"]):
        assert main.run([*words, "hazard", *more]) == 0
        out = capsys.readouterr().out
        assert "secret" not in out and "withheld" in out
    for name in ("judgements.csv", "index.html"):
        assert "secret" not in (tmp_path / "judged" / name).read_text()

"""Drawing and judging: one stream of batches, resumed from part files of exactly these images and no others."""

from __future__ import annotations

from pathlib import Path
from threading import get_ident

import pytest
import torch

from safear_edit import processes
from safear_edit.errors import UsageError
from safear_edit.families import base
from safear_edit.families.base import Sampling
from safear_edit.families.llamagen import LlamaGen
from safear_edit.judges.base import Judge, Judgement
from safear_edit.judges.draw import ImageRequest, JudgedImage, draw_and_judge, drawn_by, store_for

REQUESTS = [ImageRequest(f"a house number {i}", i, "bright" if i % 3 else "dark") for i in range(10)]


class Brightness(Judge):
    """Finds images whose mean lies above a level, or below it; counts the batches that it has seen."""

    def __init__(self, sign: int, digest: str = "b" * 64, factor: float = 1.0) -> None:
        self.id, self.digest, self.threshold, self.sign, self.factor = f"bright{sign}", digest, 0.5, sign, factor
        self.batches: list[int] = []

    def look(self, images: torch.Tensor) -> list[Judgement]:
        self.batches.append(len(images))
        means = images.float().mean((1, 2, 3)) / 255 * self.factor
        return [Judgement(bool(self.sign * (mean - 0.5) > 0), float(mean), f"{mean:.2f}") for mean in means]


def judges() -> dict[str, Brightness]:
    return {"bright": Brightness(1), "dark": Brightness(-1)}


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen.pico()


@pytest.fixture(autouse=True)
def one_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch's threads are: the tests count what is drawn, in order."""
    monkeypatch.setattr(LlamaGen, "hands", 1)


class Counted:
    """The model's drawing, counted."""

    def __init__(self, model: LlamaGen, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seeds: list[int] = []
        draw = model.generate

        def generate(condition: object, seeds: list[int], sampling: Sampling | None) -> torch.Tensor:
            self.seeds += seeds
            return draw(condition, seeds, sampling)  # type: ignore[arg-type]

        monkeypatch.setattr(model, "generate", generate)


def same(a: list[JudgedImage], b: list[JudgedImage]) -> bool:
    return [(x.request, x.judgement) for x in a] == [(y.request, y.judgement) for y in b] and all(
        torch.equal(x.ids, y.ids) for x, y in zip(a, b, strict=True)
    )


def test_every_image_is_its_requests_own_and_judged_for_its_label(model: LlamaGen) -> None:
    images = list(draw_and_judge(model, REQUESTS, judges(), None, batch=4))
    assert [image.request for image in images] == REQUESTS
    alone = model.generate(model.condition([one.prompt for one in REQUESTS]), [one.seed for one in REQUESTS])
    assert torch.equal(torch.stack([image.ids for image in images]), alone)
    for image in images:
        (expected,) = judges()[image.request.label].look(model.decode(image.ids[None]))
        assert (image.judgement.present, image.judgement.why) == (expected.present, expected.why)


def test_pixels_are_what_was_judged_and_of_a_finished_batch_the_same_again(
    model: LlamaGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decoded = model.decode, list[int]()
    monkeypatch.setattr(model, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    drawn = list(draw_and_judge(model, REQUESTS, judges(), None, tmp_path / "parts", pixels=True, batch=4))
    assert decoded == [4, 4, 2], "judged and handed on, decoded once"
    again = list(draw_and_judge(model, REQUESTS, judges(), None, tmp_path / "parts", pixels=True, batch=4))
    assert decoded == [4, 4, 2] * 2, "the parts hold tokens alone"
    for one, other in zip(drawn, again, strict=True):
        assert one.pixels is not None and one.pixels.dtype == torch.uint8 and one.pixels.shape[0] == 3
        assert one.judgement.score == float(one.pixels[None].float().mean((1, 2, 3)) / 255)
        assert other.pixels is not None and torch.equal(one.pixels, other.pixels)
    assert all(one.pixels is None for one in draw_and_judge(model, REQUESTS[:2], judges(), None))


def test_only_one_batch_is_drawn_ahead(model: LlamaGen, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(model, monkeypatch)
    stream = draw_and_judge(model, REQUESTS, judges(), None, batch=4)
    assert counted.seeds == []
    next(stream)
    assert counted.seeds == [0, 1, 2, 3]


def test_hands_draw_the_same_images_each_a_batch_by_one_thread(
    model: LlamaGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, drew = torch.get_num_threads(), list[tuple[int, int, bool]]()
    draw = model.generate

    def generate(condition: object, seeds: list[int], sampling: Sampling | None) -> torch.Tensor:
        drew.append((get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        return draw(condition, seeds, sampling)  # type: ignore[arg-type]

    alone = list(draw_and_judge(model, REQUESTS, judges(), None, batch=3))
    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr(LlamaGen, "hands", 3)
    with torch.no_grad():
        beside = list(draw_and_judge(model, REQUESTS, judges(), None, tmp_path / "parts", batch=3))
    assert same(beside, alone)
    *side, (last, of_last, _) = drew
    assert {(used, gradients) for _, used, gradients in side} == {(1, False)} and len(side) == 3
    assert get_ident() not in {hand for hand, *_ in side}
    assert (last, of_last) == (get_ident(), threads), "a single batch is drawn by all threads"
    assert torch.get_num_threads() == threads
    again = list(draw_and_judge(model, REQUESTS, judges(), None, tmp_path / "parts", batch=3))
    assert same(again, alone) and len(drew) == 4, "all batches were kept"


def test_several_processes_have_one_hand_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.under_way(3) == 3
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert processes.under_way(3) == 2


def test_a_hand_that_fails_ends_the_call_with_its_own_error(model: LlamaGen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaGen, "hands", 2)
    by = {"bright": Brightness(1), "dark": Brightness(-1, factor=float("nan"))}
    with pytest.raises(UsageError, match="expected a finite score"):
        list(draw_and_judge(model, REQUESTS, by, None, batch=2))


def test_a_large_model_or_a_gpu_has_one_hand(model: LlamaGen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaGen, "hands", base.ModelFamily.hands)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert model.hands == 6
    monkeypatch.setattr(LlamaGen, "row_bytes", base.ROW_BYTES // 2 // 64 // 4)
    assert model.hands == 4, "their keys and values fit into what a batch of a large model may take"
    monkeypatch.setattr(LlamaGen, "weight_bytes", base.LARGE)
    assert model.hands == 1
    monkeypatch.setattr(LlamaGen, "weight_bytes", 1)
    monkeypatch.setattr(LlamaGen, "device", torch.device("cuda"))
    assert model.hands == 1


def test_the_sampling_is_the_one_given_or_the_models(model: LlamaGen) -> None:
    stated = list(draw_and_judge(model, REQUESTS[:2], judges(), None))
    same_again = list(draw_and_judge(model, REQUESTS[:2], judges(), model.sampling))
    greedy = list(draw_and_judge(model, REQUESTS[:2], judges(), Sampling(1.0, top_k=1)))
    assert same(stated, same_again) and not same(stated, greedy)


def test_a_cut_call_continues_with_the_same_images(
    model: LlamaGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(draw_and_judge(model, REQUESTS, judges(), None, batch=4))
    stream = draw_and_judge(model, REQUESTS, judges(), None, tmp_path / "parts", batch=4)
    for _ in range(5):
        next(stream)
    stream.close()
    assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == ["00000.safetensors", "00001.safetensors"]
    counted, asked = Counted(model, monkeypatch), judges()
    again = list(draw_and_judge(model, REQUESTS, asked, None, tmp_path / "parts", batch=4))
    assert same(again, whole) and counted.seeds == [8, 9]
    assert sum(sum(judge.batches) for judge in asked.values()) == 2


def test_a_part_of_anything_else_is_drawn_again(
    model: LlamaGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, requests = tmp_path / "parts", REQUESTS[:4]
    list(draw_and_judge(model, requests, judges(), None, store))
    counted = Counted(model, monkeypatch)
    others: list[tuple[list[ImageRequest], dict[str, Brightness], Sampling | None]] = [
        (requests[::-1], judges(), None),
        ([ImageRequest("a cat", 0, "dark"), *requests[1:]], judges(), None),
        (requests, {"bright": Brightness(1, "c" * 64), "dark": Brightness(-1)}, None),
        (requests, judges(), Sampling(3.0)),
    ]
    for number, (asked, by, sampling) in enumerate(others, 1):
        list(draw_and_judge(model, asked, by, sampling, store))
        assert len(counted.seeds) == 4 * number
    (part,) = store.iterdir()
    for damage in (b"", b"half a file", part.read_bytes()[:-40]):
        part.write_bytes(damage)
        list(draw_and_judge(model, requests, judges(), Sampling(3.0), store))
    assert len(counted.seeds) == 4 * (len(others) + 3)


def test_a_score_that_is_no_number_is_refused(model: LlamaGen, tmp_path: Path) -> None:
    broken = {"bright": Brightness(1, factor=float("nan")), "dark": Brightness(-1)}
    with pytest.raises(UsageError, match="judge bright1: expected a finite score, got nan"):
        list(draw_and_judge(model, REQUESTS, broken, None, tmp_path / "parts"))
    assert not (tmp_path / "parts").exists()


def test_a_store_is_for_its_inputs_and_replaces_others(tmp_path: Path) -> None:
    first = store_for(tmp_path, "model", "edit")
    first.mkdir()
    assert store_for(tmp_path, "model", "edit") == first and first.exists()
    second = store_for(tmp_path, "model", "another edit")
    assert second != first and not first.exists() and not second.exists()


def test_images_are_of_weights_dtype_device_and_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on in another dtype must not take the base model's images from before."""
    model = LlamaGen.pico()
    plain = drawn_by(model)
    monkeypatch.setattr(model.text, "origin", lambda: ("t5", "other weights"))
    other = drawn_by(model)
    model.net.to(torch.bfloat16)
    assert len({plain, other, drawn_by(model)}) == 3 and drawn_by(model)[:1] == plain[:1]

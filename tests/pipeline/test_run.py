"""Two concepts on a tiny random model, the whole way: grown in one call and in two, taken off, weighed, exported.

A coin judges the images, so no rate means anything here; order, weights, what is left out and what is said do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safear_edit import registry
from safear_edit.cli import main
from safear_edit.compiler import beside
from safear_edit.compiler.recipe import load_recipe
from safear_edit.construct.joint import merged
from safear_edit.construct.pairs import Keep, Material, Pairs
from safear_edit.construct.pairs_record import PairStats
from safear_edit.errors import TrustError, UsageError
from safear_edit.evaluate import interference
from safear_edit.evaluate.interference_record import Cell
from safear_edit.evaluate.outcomes import read_outcomes
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.load import load_model
from safear_edit.files.layout import BASE, FOUND_BY
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline import diff, order, publish, run, state
from safear_edit.pipeline.order import Order
from safear_edit.pipeline.state import RunOptions
from safear_edit.release import released
from safear_edit.release.released import Released
from safear_edit.spec.prompts import normalise
from tests import ROOT, coin
from tests.programs import Program

VERDICTS = (0, 1, 3)
GPT = "gpt.safetensors"
SETS = {
    "construct.pairs": 60,
    "construct.keep": 6,
    "params.steps": 2,
    "params.batch": 2,
    "params.keep_batch": 2,
    "params.rank": 2,
    "evaluate.n.direct": 8,
    "evaluate.n.paraphrase": 4,
    "evaluate.n.template": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`base`, three specs, `keys`; and what was made of two of them: `one`, `two` (one, then the other), `both` (one
    call), `joint` (one edit)."""
    root = tmp_path_factory.mktemp("stack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_third_party", coin.third_party)
        patch.delenv("SAFEAR_SIGNING_KEY", raising=False)
        patch.chdir(root)
        coin.make_world(root, "picasso", "van_gogh", "dog", n=8)
        assert main.run(["keygen", "keys"]) == 0
        assert main.run(apply("one", "picasso.yaml", "--model", "./base", "--unsigned")) in VERDICTS
        assert main.run(apply("two", "van_gogh.yaml", "--model", "one", "--unsigned")) in VERDICTS
        signed = ["--key", "keys/safear.key"]
        assert main.run(apply("both", "picasso.yaml", "van_gogh.yaml", "--model", "./base", *signed)) in VERDICTS
        several = ("picasso.yaml", "van_gogh.yaml", "--joint", "--model", "./base", "--unsigned")
        assert main.run(apply("joint", *several)) in VERDICTS
        yield root


def apply(out: str, *words: str) -> list[str]:
    sets = [word for key, value in SETS.items() for word in ("--set", f"{key}={value}")]
    return ["apply", *words, "--out", out, "--device", "cpu", "-q", *sets]


def refused(capsys: pytest.CaptureFixture[str], words: list[str], code: int = 2) -> str:
    capsys.readouterr()
    assert main.run(words) == code
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    return err


@pytest.mark.soak
def test_one_call_gives_the_weights_of_two(folder: Path) -> None:
    assert (folder / "both" / GPT).read_bytes() == (folder / "two" / GPT).read_bytes()
    assert (folder / "both" / GPT).read_bytes() != (folder / "one" / GPT).read_bytes()
    both, two = Released.read(folder / "both"), Released.read(folder / "two")
    assert both.stack.digest == two.stack.digest and both.fingerprints == two.fingerprints
    assert both.history == two.history and [a.event for a in both.history] == ["added picasso", "added van_gogh"]
    assert [list(after.concepts) for after in both.history] == [["picasso"], ["picasso", "van_gogh"]]
    assert both.alone == two.alone and len(both.alone) == 4
    assert (folder / "both/concepts/picasso/outcomes.jsonl").read_bytes() == (
        folder / "two/concepts/picasso/outcomes.jsonl"
    ).read_bytes()


def test_the_base_is_in_the_release(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "two", tmp_path / "moved")
    model, wanted = Released.read(tmp_path / "moved").base(), LlamaGen.pico(seed=0)
    state = model.net.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.net.state_dict().items())
    assert model.card == load_model(str(folder / "base")).card
    assert {r.model.digest for r in (m.recipe for m in Released.read(folder / "two").members)} == {model.card.digest}


def test_a_base_that_is_not_the_one_below_is_refused(folder: Path, tmp_path: Path) -> None:
    from safear_edit.files.weights import write_weights

    shutil.copytree(folder / "two", tmp_path / "two")
    kept = load_file(tmp_path / "two" / BASE)
    name = sorted(kept)[0]
    write_weights(tmp_path / "two" / BASE, {**kept, name: kept[name] + 1})
    with pytest.raises(TrustError, match=name):
        Released.read(tmp_path / "two").base()
    write_weights(tmp_path / "two" / BASE, {name: kept[name]})
    with pytest.raises(TrustError, match="others"):
        Released.read(tmp_path / "two").base()


def test_what_another_concept_erases_is_not_preserved(folder: Path) -> None:
    picasso, van_gogh = (folder / "both/concepts" / name for name in ("picasso", "van_gogh"))
    found, told = load_recipe(picasso / FOUND_BY), load_recipe(picasso / "recipe.json")
    labels = {prompt.judge_label for prompt in found.evaluate.prompts}
    assert "style=van_gogh" in labels and "style=van_gogh" not in {p.judge_label for p in told.evaluate.prompts}
    assert "style=picasso" not in {p.judge_label for p in load_recipe(van_gogh / FOUND_BY).evaluate.prompts}
    rows = [json.loads(line) for line in (picasso / "outcomes.jsonl").read_text().splitlines()]
    assert rows and not any("gogh" in row["prompt"].lower() for row in rows if row["expect"] == "present")
    trained = {normalise(text) for text in load_recipe(van_gogh / FOUND_BY).training_prompts}
    assert not trained & {normalise(row["prompt"]) for row in rows}
    report = json.loads((folder / "both/report.json").read_text())
    assert [concept["name"] for concept in report["concepts"]] == ["picasso", "van_gogh"]


def test_a_later_edit_keeps_what_an_earlier_one_did(folder: Path) -> None:
    first, second = (load_recipe(folder / f"both/concepts/{name}/{FOUND_BY}") for name in ("picasso", "van_gogh"))
    unsafe = {pair.unsafe for pair in first.construct.pairs}
    assert len(unsafe & {keep.prompt for keep in second.keep}) == beside.GUARDED
    assert unsafe >= {keep.prompt for keep in second.keep if keep.guards} and any(not k.guards for k in second.keep)
    assert not unsafe & {keep.prompt for keep in first.keep} and not any(keep.guards for keep in first.keep)


def test_the_signed_stack_verifies_and_any_change_is_refused(folder: Path) -> None:
    words = ["verify", str(folder / "both"), "--trust", str(folder / "keys")]
    assert main.run(words) == 0
    path = folder / "both" / "stack.json"
    original = path.read_bytes()
    path.write_bytes(original.replace(b"1.0", b"1.1"))
    assert main.run(words) == 4
    path.write_bytes(original)
    assert main.run(words) == 0


AMENDING = {
    "remove": ["stack", "remove", "two", "van_gogh"],
    "reweight": ["stack", "reweight", "two", "picasso=0.5"],
    "reorder": ["stack", "reorder", "two", "van_gogh", "picasso"],
    "apply": ["apply", "dog.yaml", "--model", "two"],
}


@pytest.mark.parametrize("verb", AMENDING)
def test_nothing_is_built_on_a_release_of_which_another_weight_was_changed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """One that no edit changes: the base and the edits still give the weights that they should."""
    from safear_edit.files.weights import write_weights

    shutil.copytree(folder / "two", tmp_path / "two")
    words = [str(tmp_path / word) if word == "two" else word for word in AMENDING[verb]]
    words += ["--out", str(tmp_path / "out"), "--unsigned", "-q"]
    vq = tmp_path / "two" / "vq.safetensors"
    kept, bytes_of = load_file(vq), vq.read_bytes()
    write_weights(vq, {name: tensor + 1 for name, tensor in kept.items()})
    assert main.run(words) == 4
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and "vq.safetensors: expected the file of the report" in err
    vq.write_bytes(bytes_of)
    weights = load_file(tmp_path / "two" / GPT)
    name = next(name for name in sorted(weights) if name not in Released.read(folder / "two").stack.weights)
    write_weights(tmp_path / "two" / GPT, {**weights, name: weights[name] + 1})
    Released.read(tmp_path / "two").base()
    assert main.run(words) == 4 and GPT in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", AMENDING)
def test_a_release_is_verified_before_anything_is_built_on_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    words = [str(folder / word) if word == "two" else word for word in AMENDING[verb]]
    words += ["--out", str(tmp_path / "out"), "--unsigned", "-q", "--trust", str(folder / "keys")]
    both = [str(folder / "both") if word == str(folder / "two") else word for word in words]
    report, original = folder / "both" / "README.md", (folder / "both" / "README.md").read_bytes()
    try:
        report.write_bytes(original + b".")
        for tried, said in ((words, "model.sig: expected a file"), (both, "README.md changed")):
            assert main.run(tried) == 4
            assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
    finally:
        report.write_bytes(original)
    if verb == "apply":
        assert "released folder" in refused(capsys, [*words[:2], "--model", "llamagen", *words[4:]])


def test_removing_the_last_edit_gives_back_the_weights_before_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stack", "remove", str(folder / "two"), "van_gogh", "--out", str(folder / "back"), "--unsigned", "-q"]
    assert main.run(words) in VERDICTS
    said = capsys.readouterr().out
    assert "bit for bit" in said and "removed van_gogh" in said
    assert (folder / "back" / GPT).read_bytes() == (folder / "one" / GPT).read_bytes()
    outcomes = (folder / "back/concepts/picasso/outcomes.jsonl").read_bytes()
    assert outcomes == (folder / "one/outcomes.jsonl").read_bytes()
    assert "at least two edits" in refused(
        capsys, ["stack", "remove", str(folder / "back"), "picasso", "--out", "gone", "--unsigned", "-q"]
    )


def test_removing_an_inner_edit_measures_the_rest_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(interference, "draw_and_judge")  # the edit that is left is the stack, which was just evaluated
    words = ["stack", "remove", str(folder / "two"), "picasso", "--out", str(folder / "inner"), "--unsigned", "-q"]
    assert main.run(words) in VERDICTS
    assert "bit for bit" not in capsys.readouterr().out
    left, model = Released.read(folder / "inner"), load_model(str(folder / "base"))
    assert left.stack.names == ("van_gogh",) and left.history[-1].event == "removed picasso"
    assert list(left.history[-1].concepts) == ["van_gogh"]
    rows = [row for row in read_outcomes(left.members[0].folder / "outcomes.jsonl") if row.slice == "direct"]
    drawn = {row.id for row in rows if (row.phase, row.model, row.present) == ("score", "base", True)}
    found = sum(row.model == "edited" and row.present is True and row.id in drawn for row in rows)
    assert left.alone == (Cell(edit="van_gogh", concept="van_gogh", asked=len(drawn), found=found),)
    wanted = Released.read(folder / "two").member("van_gogh").layer.edit
    with wanted.apply(model.net):
        state, kept = model.net.state_dict(), load_file(folder / "inner" / GPT)
        assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_reweighing_an_edit(folder: Path) -> None:
    words = ["stack", "reweight", str(folder / "two"), "picasso=0.5", "--out", str(folder / "half"), "--unsigned", "-q"]
    assert main.run(words) in VERDICTS
    half, model = Released.read(folder / "half"), load_model(str(folder / "base"))
    assert [member.layer.strength for member in half.members] == [0.5, 1.0]
    name = half.stack.weights[0]
    before = model.net.state_dict()[name].clone()
    total = sum(member.layer.strength * member.layer.edit.delta(name) for member in half.members)
    torch.testing.assert_close(load_file(folder / "half" / GPT)[name], before + total)


def test_bad_words_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    two, out = str(folder / "two"), str(tmp_path / "out")
    end = ["--out", out, "--unsigned", "-q"]
    assert "did you mean 'picasso'" in refused(capsys, ["stack", "remove", two, "picaso", *end])
    assert "from 0 to 2" in refused(capsys, ["stack", "reweight", two, "picasso=-1", *end])
    assert "NAME=NUMBER" in refused(capsys, ["stack", "reweight", two, "picasso", *end])
    assert "each concept once" in refused(capsys, ["stack", "reweight", two, "picasso=1", "picasso=2", *end])
    assert "released folder" in refused(capsys, ["stack", "ls", str(folder / "base")])
    spec = str(folder / "picasso.yaml")
    assert "picasso twice" in refused(capsys, ["apply", spec, spec, "--model", str(folder / "base"), *end])
    assert "the stack lacks" in refused(capsys, ["apply", spec, "--model", two, *end])
    old = tmp_path / "old"
    shutil.copytree(folder / "one", old)
    (old / BASE).unlink()
    assert "apply its specs again" in refused(capsys, ["apply", spec, "--model", str(old), *end])
    assert "--overwrite" in refused(capsys, ["stack", "remove", two, "picasso", "--out", two, "--unsigned"])
    assert not Path(out).exists()


def test_a_later_concept_that_cant_be_compiled_is_told_before_anything_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """hazard preserves no group of that name; picasso does."""
    words = ["picasso.yaml", "hazard", "--model", "./base", "--unsigned", "--set", "preserve.other-styles.n=8"]
    assert "other-styles" in refused(capsys, apply("never", *words))
    assert not [path for path in folder.rglob("pairs.safetensors") if "never" in str(path.relative_to(folder))]


def begun(asked: Order, out: Path, said: Callable[[str], None]) -> Path:
    """What a walk for picasso that is interrupted as soon as pairs are drawn leaves of it."""
    with pytest.raises(KeyboardInterrupt):
        run.apply([asked], out, RunOptions(unsigned=True, progress=_ctrl_c, say=said))
    return out.with_name(f".{out.name}.run") / "concepts/picasso"


def test_the_spec_in_a_release_is_the_one_that_was_compiled(folder: Path, tmp_path: Path) -> None:
    """Not one that its file holds when its turn comes, nor one of an earlier call on the same output."""
    spec, out = tmp_path / "picasso.yaml", tmp_path / "out"
    shutil.copyfile(folder / "picasso.yaml", spec)
    overrides = tuple(f"{key}={value}" for key, value in SETS.items())
    asked = Order(str(spec), str(folder / "base"), overrides=overrides, device="cpu")

    def meanwhile(line: str) -> None:
        spec.write_text("changed")

    left = begun(asked, out, meanwhile)
    assert (left / "picasso.yaml").read_bytes() == (folder / "picasso.yaml").read_bytes()
    recipe = Order(str(folder / "one/recipe.json"), str(folder / "base"), device="cpu")
    assert not list(begun(recipe, out, lambda line: None).glob("*.yaml"))


def test_a_recipe_in_another_dtype_than_its_model_is_refused(folder: Path) -> None:
    recipe = load_recipe(folder / "one/recipe.json")
    half = beside.changed(recipe, model=recipe.model.model_copy(update={"dtype": "bfloat16"}))
    model = load_model(str(folder / "base"))
    assert order.compile_for(model, "base", order.Order("one/recipe.json", None), recipe) is recipe
    with pytest.raises(UsageError, match="a model in bfloat16, got float32"):
        order.compile_for(model, "base", order.Order("half.json", None), half)


def test_the_stack_is_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main.run(["stack", "ls", str(folder / "two"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [edit["concept"] for edit in said["edits"]] == ["picasso", "van_gogh"]
    assert main.run(["stack", "ls", str(folder / "one")]) == 0
    assert main.run(["stack", "ls", str(folder / "two")]) == 0
    said, cells = capsys.readouterr().out, Released.read(folder / "two").alone
    assert sum(cell.asked for cell in cells) > 4
    assert all(f"{cell.found} of {cell.asked}" in said for cell in cells)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main.run([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_edits_explain_a_difference_and_nothing_explains_tampering(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, one, two = (str(folder / name) for name in ("base", "one", "two"))
    whole = said(capsys, "stack", "diff", base, two)
    assert [(part["name"], part["stated"]) for part in whole["parts"]] == [("picasso", 1), ("van_gogh", 1)]
    assert [part["found"] for part in whole["parts"]] == pytest.approx([1, 1], abs=1e-3)
    changed = {row["tensor"]: row for row in whole["changed"]}
    assert not any(row["left"] for row in whole["changed"]) and all(row["rank"] <= 4 for row in whole["changed"])
    (part,) = [part for part in said(capsys, "stack", "diff", one, two)["parts"] if part["stated"]]
    assert part["name"] == "van_gogh" and part["found"] == pytest.approx(1, abs=1e-3)
    assert said(capsys, "stack", "diff", two, two)["changed"] == []

    tampered = tmp_path / "tampered"
    shutil.copytree(two, tampered)
    tensors = load_file(tampered / GPT)
    name = next(iter(changed))
    key = next(key for key in tensors if key.endswith(name) or name.endswith(key))
    tensors[key] += 0.01 * torch.randn(tensors[key].shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, tampered / GPT)
    found = said(capsys, "stack", "diff", base, str(tampered))
    assert [row["tensor"] for row in found["changed"] if row["left"]] == [name]
    assert said(capsys, "stack", "blame", str(tampered), name)["left"] > 0
    blamed = said(capsys, "stack", "blame", two, name)
    assert [one["name"] for one in blamed["edits"]] == ["picasso", "van_gogh"] and not blamed["left"]
    assert sum(one["share"] for one in blamed["edits"]) == pytest.approx(1, abs=1e-3)
    assert "did you mean" in refused(capsys, ["stack", "blame", two, name[:-1]])


def test_the_edit_that_lost_a_label_is_found(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is seen depends on how many edits are merged: the second one takes everything."""
    released = Released.read(folder / "two")
    probe = released.stack.layers[1].edit
    weight, net = probe.weights[0], released.base().net
    before = net.state_dict()[weight].clone()
    with released.stack.layers[0].edit.apply(net):
        after_one = net.state_dict()[weight].clone()

    def seen(model: LlamaGen, *given: object) -> list[bool]:
        now = model.net.state_dict()[weight]
        return [any(torch.equal(now, one) for one in (before, after_one))] * 8

    monkeypatch.setattr(diff, "_seen", seen)
    found = said(capsys, "stack", "bisect", str(folder / "two"), "object=dog", "--device", "cpu")
    assert found["culprit"] == "van_gogh" and [step["edits"] for step in found["steps"]] == [0, 2, 1]
    monkeypatch.setattr(diff, "_seen", lambda *given: [True] * 8)
    assert said(capsys, "stack", "bisect", str(folder / "two"), "object=dog", "--device", "cpu")["culprit"] is None
    assert "did you mean 'object=dog'" in refused(capsys, ["stack", "bisect", str(folder / "two"), "object=dogg"])


def test_reordered_edits_are_the_same_sum(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end = ["--out", "reordered", "--unsigned", "-q", "--device", "cpu"]
    assert "no van_gogh" in refused(capsys, ["stack", "reorder", "two", "picasso", *end])
    assert main.run(["stack", "reorder", "two", "van_gogh", "picasso", *end]) in VERDICTS
    found = Released.read(folder / "reordered")
    assert found.stack.names == ("van_gogh", "picasso") and found.history[-1].event.startswith("reordered")
    there, then = (load_file(folder / name / GPT) for name in ("reordered", "two"))
    assert all(torch.allclose(there[key], then[key], atol=1e-5) for key in then)


def test_a_released_stack_is_its_own_base_of_comparison(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = folder / "prompts.txt"
    prompts.write_text("a house by Picasso\na dog by Van Gogh\n")
    words = ["eval", str(folder / "two"), "--spec", str(folder / "picasso.yaml"), "--prompts", str(prompts), "--json"]
    capsys.readouterr()
    assert main.run([*words, "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 2
    assert main.run([*words, "--device", "cpu", "--dtype", "bfloat16", "--memory", "4GiB"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 2
    assert "--memory: expected at least" in refused(capsys, [*words, "--device", "cpu", "--memory", "1MB"])


@pytest.mark.soak
@pytest.mark.parametrize("method", ["safe_cb"])
def test_a_weight_edit_walks_and_stacks(folder: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    few = {key: value for key, value in SETS.items() if not key.startswith("params")}
    few |= {"params.epochs": 1, "params.batch": 2, "params.directions": 2, "params.rounds": 2, "params.probe": 8}
    sets = [word for key, value in few.items() for word in ("--set", f"{key}={value}")]
    end = ["--method", method, "--device", "cpu", "--unsigned", "-q", *sets]
    assert main.run(["apply", "picasso.yaml", "--model", "./base", "--out", "table", *end]) in VERDICTS
    assert {path.name for path in (folder / "table/edit").iterdir()} == {
        "edit.json",
        "edit.safetensors",
        "log.json",
        "figure.png",
    }
    assert main.run(["apply", "van_gogh.yaml", "--model", "table", "--out", "tables", *end]) in VERDICTS
    made = json.loads((folder / "tables/interference.json").read_text())
    assert made["overlaps"][0]["shared"] == 1 and made["overlaps"][0]["codebook_rows"] > 0
    line = refused(capsys, ["export", "tables", "--layout", "peft", "--out", "adapters"])
    assert "adapter edits" in line


# -- interrupted ------------------------------------------------------------------------------------------------------


class Interrupter:
    """Ctrl-C at everything that a walk says for the first time: at every stage, of every change of the stack.

    only: at stages with that word in their name alone.
    """

    def __init__(self, only: str = "") -> None:
        self.cuts: list[tuple[str, str]] = []
        self.change, self.only = "", only

    def say(self, line: str) -> None:
        self.change = line
        self._cut("said")

    def progress(self, stage: str, done: int, total: int, info: str = "") -> None:
        self._cut(stage)

    def _cut(self, stage: str) -> None:
        if self.only in stage and (self.change, stage) not in self.cuts:
            self.cuts.append((self.change, stage))
            raise KeyboardInterrupt


def walk(out: Path, options: RunOptions, *, joint: bool) -> None:
    overrides = tuple(f"{key}={value}" for key, value in SETS.items())
    names = ("picasso.yaml", "van_gogh.yaml")
    orders = [Order(name, "./base", overrides=overrides, device="cpu") for name in names]
    run.apply(orders, out, options, joint=joint)


def same_files(folder: Path) -> dict[str, bytes]:
    """Everything in a release that doesn't tell the time."""
    timed = {"edit.json", "environment.json", "report.json", "report.html", "README.md", "bom.cdx.json"}
    signed = {"model.sig", "claims.jsonl"}
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in timed | signed]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_whole(folder: Path) -> None:
    """No file of an unfinished run is half of one."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    for path in folder.rglob("*.jsonl"):
        assert all(json.loads(line) for line in path.read_text().splitlines())
    for path in folder.rglob("*.safetensors"):
        load_file(path)


@pytest.mark.soak
def test_a_walk_that_is_interrupted_everywhere_ends_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside every stage of every concept, before each change, and in the three steps of the release."""
    user = Interrupter()
    assert_ends_the_same(folder, "both", user, monkeypatch)
    stages = {stage for _, stage in user.cuts}
    assert {"picasso: pairs", "van_gogh: keep", "picasso: edit", "van_gogh: screen base"} <= stages
    assert {"picasso: score base", "van_gogh: score edited", "interference", "publish"} <= stages


@pytest.mark.soak
def test_a_joint_search_that_is_interrupted_ends_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = Interrupter("+")
    assert_ends_the_same(folder, "joint", user, monkeypatch)
    assert {"picasso+van_gogh: reference", "picasso+van_gogh: edit"} <= {stage for _, stage in user.cuts}


def assert_ends_the_same(folder: Path, wanted: str, user: Interrupter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continue after every cut, until the release is that of the walk which nobody interrupted."""
    out, left, joint = folder / f"cut-{wanted}", folder / f".cut-{wanted}.run", wanted == "joint"
    options = RunOptions(unsigned=True, progress=user.progress, say=user.say)
    for _ in range(100):
        try:
            walk(out, options, joint=joint)
            break
        except KeyboardInterrupt:
            if user.cuts[-1][1] == "interference":
                _cut_the_release(monkeypatch, user, lambda: walk(out, options, joint=joint))
            assert not out.exists()
            assert_whole(left)
    assert same_files(out) == same_files(folder / wanted)
    assert not left.exists()


def _cut_the_release(monkeypatch: pytest.MonkeyPatch, user: Interrupter, again: Callable[[], None]) -> None:
    """The process ends before the stack is written, before the report, and before the one rename."""
    for owner, name in ((released, "save_stack"), (publish, "write_report"), (RunDir, "publish")):
        user.cuts.append(("release", name))
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, _ctrl_c)
            with pytest.raises(KeyboardInterrupt):
                again()


def _ctrl_c(*words: object, **more: object) -> None:
    raise KeyboardInterrupt


KILLED = """
import os, signal, sys
from pathlib import Path
from tests import coin
from tests.pipeline import test_run as tests
from safear_edit import registry
registry._third_party = coin.third_party
def progress(stage, *more):
    if stage == "van_gogh: score base":
        os.kill(os.getpid(), signal.SIGKILL)
tests.walk(Path("killed"), tests.RunOptions(unsigned=True, progress=progress), joint=False)
"""


@pytest.mark.soak
def test_a_walk_that_is_killed_inside_an_evaluation_ends_the_same(folder: Path) -> None:
    done = Program(KILLED, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}).done()
    assert done.code == -9, done.err
    assert not (folder / "killed").exists()
    left = [path.relative_to(path.parents[1]) for path in (folder / ".killed.run/base").rglob("*.safetensors")]
    assert Path("score-base/00000.safetensors") in left
    walk(folder / "killed", RunOptions(unsigned=True), joint=False)
    assert same_files(folder / "killed") == same_files(folder / "both")


# -- joint ------------------------------------------------------------------------------------------------------------


def test_a_joint_edit_is_one_edit_of_several_concepts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Released.read(folder / "joint")
    (layer,) = made.stack.layers
    assert layer.concepts == made.stack.names == ("picasso", "van_gogh") and layer.name == "picasso+van_gogh"
    assert layer.edit.info.concept == layer.name and layer.edit.info.steps == 2 * SETS["params.steps"]
    assert [after.event for after in made.history] == ["added picasso and van_gogh in one edit"]
    assert [(cell.edit, cell.concept) for cell in made.alone] == [(layer.name, name) for name in layer.concepts]
    model = made.base()
    with layer.edit.apply(model.net):
        kept = load_file(folder / "joint" / GPT)
        assert all(torch.equal(model.net.state_dict()[name], kept[name]) for name in kept)
    report = json.loads((folder / "joint/report.json").read_text())
    assert [concept["name"] for concept in report["concepts"]] == ["picasso", "van_gogh"]
    assert [edit["name"] for edit in report["stack"]["edits"]] == [layer.name]
    page, card = ((folder / "joint" / name).read_text() for name in ("report.html", "README.md"))
    assert "were erased together by one edit" in page and "one edit that erases these concepts together" in card
    capsys.readouterr()
    assert main.run(["stack", "ls", str(folder / "joint")]) == 0
    assert "is a joint edit" in capsys.readouterr().out
    assert main.run(["stack", "ls", str(folder / "joint"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["edits"]
    assert [(row["concept"], row["in one edit with"]) for row in rows] == [
        ("picasso", "van_gogh"),
        ("van_gogh", "picasso"),
    ]


def test_one_concept_of_a_joint_edit_is_not_taken_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end = ["--out", str(folder / "never"), "--unsigned", "-q"]
    joint = str(folder / "joint")
    for words in (["remove", joint, "picasso"], ["reweight", joint, "van_gogh=0.5"]):
        assert "one concept of the joint edit picasso+van_gogh" in refused(capsys, ["stack", *words, *end])
    assert "at least two edits" in refused(capsys, ["stack", "remove", joint, "picasso+van_gogh", *end])
    assert "did you mean" in refused(capsys, ["stack", "remove", joint, "picasso+van_gog", *end])
    assert "--joint" in refused(capsys, apply("never", "picasso.yaml", "--joint", "--model", "./base", "--unsigned"))
    assert not (folder / "never").exists()


@pytest.mark.soak
def test_a_joint_edit_on_a_stack_comes_off_as_a_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = apply("mixed", "van_gogh.yaml", "dog.yaml", "--joint", "--model", "one", "--unsigned")
    assert main.run(words) in VERDICTS
    mixed = Released.read(folder / "mixed")
    assert [layer.name for layer in mixed.stack.layers] == ["picasso", "van_gogh+dog"]
    told = json.loads((folder / "mixed/interference.json").read_text())
    assert len(told["alone"]) == 6
    capsys.readouterr()
    words = ["stack", "remove", "mixed", "van_gogh+dog", "--out", "unmixed", "--unsigned", "-q"]
    assert main.run(words) in VERDICTS
    assert "bit for bit" in capsys.readouterr().out
    assert (folder / "unmixed" / GPT).read_bytes() == (folder / "one" / GPT).read_bytes()


def test_merged_material_keeps_a_shared_prompt_once() -> None:
    random = torch.Generator().manual_seed(0)

    def material(name: str, kept: list[str]) -> Material:
        ids = torch.randint(0, 9, (2, 4), generator=random)
        pairs = Pairs([f"{name} a", f"{name} b"], ["a", "b"], [1, 2], ids, ids + 1, PairStats(3, 2, {"bad": 1}))
        return Material(name, pairs, Keep(kept, torch.randint(0, 9, (len(kept), 4), generator=random)))

    one, two = material("one", ["x", "y"]), material("two", ["y", "z"])
    both = merged("one+two", [one, two])
    assert both.concept == "one+two" and both.pairs.unsafe == ["one a", "one b", "two a", "two b"]
    assert both.pairs.stats == PairStats(6, 4, {"bad": 2}) and both.pairs.unsafe_ids.shape == (4, 4)
    assert both.keep is not None and both.keep.prompts == ["x", "y", "z"] and both.keep.ids.shape == (3, 4)


def test_the_cards_snippet_loads_the_edited_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (folder / "one" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder / "one")
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["images"].shape[:2] == (1, 3) and names["images"].dtype == torch.uint8
    assert "images/before_after.png" in card and (folder / "one" / "images" / "before_after.png").exists()


def test_a_walk_that_goes_on_after_an_upgrade_measures_everything_by_the_new_program(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base model's images of the old one are no counterpart of the edited model's by the new one."""
    overrides = tuple(f"{key}={value}" for key, value in SETS.items())
    asked = Order(str(folder / "picasso.yaml"), str(folder / "base"), overrides=overrides, device="cpu")
    out, drawn = tmp_path / "out", list[str]()

    def once(stage: str, *more: object) -> None:
        if "score edited" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.apply([asked], out, RunOptions(unsigned=True, progress=once))
    generate = LlamaGen.generate
    monkeypatch.setattr(state, "program", lambda: "0" * 64)

    def counted(model: LlamaGen, condition: Any, seeds: Any, *more: Any) -> Any:
        drawn.extend(map(str, seeds))
        return generate(model, condition, seeds, *more)

    monkeypatch.setattr(LlamaGen, "generate", counted)
    run.apply([asked], out, RunOptions(unsigned=True))
    recipe = load_recipe(out / "recipe.json")
    assert {str(prompt.screen_seed) for prompt in recipe.slice("direct")} <= {*drawn}
    assert not {str(pair.seed) for pair in recipe.construct.pairs} & {*drawn}, "what it was trained on stays"

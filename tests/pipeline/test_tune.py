"""A search for numbers sees no evaluation prompt, goes on where it was killed, and says what is best. A coin judges."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from safear_edit import registry
from safear_edit.cli import main
from safear_edit.compiler.compile import compile_recipe
from safear_edit.compiler.recipe import Range, load_base_recipe
from safear_edit.errors import SpecError, UsageError
from safear_edit.families.llamagen import LlamaGen
from safear_edit.families.reference import ModelRef
from safear_edit.files.records import parse
from safear_edit.files.strict import Document
from safear_edit.methods.sft import SFT
from safear_edit.pipeline import tune
from safear_edit.pipeline.tune import Measured, Trial, best_of, front
from safear_edit.spec.prompts import normalise
from safear_edit.spec.spec import load_spec
from tests import coin

optuna = pytest.importorskip("optuna")
SETS = ("construct.pairs=60", "construct.keep=6", "params.batch=2", "params.keep_batch=2", "params.rank=2")
RECIPE = """method: sft
params: {steps: 2}
tune:
  steps: {low: 1, high: 3}
  learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
  part: {choices: [all, attention]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_third_party", coin.third_party)
    monkeypatch.setattr(tune, "ASKED", 12)
    monkeypatch.setattr(tune, "FIRST", 6)
    monkeypatch.setattr(tune, "KEPT", 2)
    monkeypatch.setattr(tune, "HOPELESS", 1.0)  # a coin never erases
    monkeypatch.chdir(tmp_path)
    coin.make_world(tmp_path, "picasso")
    Path("sft.yaml").write_text(RECIPE)
    return tmp_path


def words(*more: str, out: str = "out") -> list[str]:
    sets = [word for one in SETS for word in ("--set", one)]
    end = ["--method", "./sft.yaml", "--out", out, "--device", "cpu", "-q", *sets, *more]
    return ["tune", "picasso.yaml", "--model", "./base", *end]


def test_evaluation_prompts_are_never_seen(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    condition = LlamaGen.condition

    def spying(model: LlamaGen, prompts: Sequence[str]) -> Any:
        read.update(map(normalise, prompts))
        return condition(model, prompts)

    monkeypatch.setattr(LlamaGen, "condition", spying)
    assert main.run(words("--trials", "1")) == 0
    model = LlamaGen.load(ModelRef.parse("./base"))
    recipe = compile_recipe(load_spec(Path("picasso.yaml")), model.card, load_base_recipe("./sft.yaml"), overrides=SETS)
    evaluated = {normalise(prompt.prompt) for prompt in recipe.evaluate.prompts}
    assert len(read) > 60 and not read & evaluated
    own = normalise(" ".join((*recipe.spec.erase.aliases, *recipe.spec.paraphrases.train)))
    held_out = [name for name in map(normalise, recipe.spec.paraphrases.held_out) if name not in own]
    assert held_out and not [text for text in read for name in held_out if name in text]

    best = yaml.safe_load((folder / "out/best.yaml").read_text())
    rows = list(csv.DictReader((folder / "out/trials.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["0"] and rows[0]["steps"] == "2"
    assert best["method"] == "sft" and 1 <= best["params"]["steps"] <= 3
    found = load_base_recipe("./out/best.yaml")
    assert found.params["part"] in ("all", "attention")
    assert (found.construct.pairs, found.construct.keep, found.params["rank"]) == (60, 6, 2), "what --set said, too"
    assert "training prompts only" in (folder / "out/best.yaml").read_text()

    capsys.readouterr()
    assert main.run([*words("--trials", "1"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["trials"]) == 2, "the same command goes on"
    assert main.run(words("--trials", "1", "--seed", "1")) == 2
    assert "a search of this very recipe" in capsys.readouterr().err


def test_no_candidate_is_evaluated_whatever_the_spec_says(folder: Path) -> None:
    model = LlamaGen.load(ModelRef.parse("./base"))
    recipe = compile_recipe(load_spec(Path("picasso.yaml")), model.card, load_base_recipe("./sft.yaml"), overrides=SETS)
    asked, kept = tune.candidates(recipe)
    taken = {asked[0].prompt, kept[0].prompt}
    first = recipe.evaluate.prompts[0]
    also = tuple(first.model_copy(update={"id": text, "prompt": text.upper()}) for text in taken)
    evaluation = recipe.evaluate.model_copy(update={"prompts": (*recipe.evaluate.prompts, *also)})
    less = tune.candidates(recipe.model_copy(update={"evaluate": evaluation}))
    assert not taken & {one.prompt for part in less for one in part}


def test_numbers_by_which_the_search_fails_end_their_trial_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, calls = SFT.fit, list[int]()

    def failing(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) in (1, 3):
            raise UsageError("edit, step 1", "a finite loss", "nan", "take a lower rate")
        return fit(*given, **more)

    measure, measured = tune.measure, list[int]()

    def blind(*given: Any) -> Any:
        measured.append(1)
        if len(measured) == 2:
            raise UsageError("drawing", "a network that gives numbers", "NaN or infinity", "take a lower rate")
        return measure(*given)

    monkeypatch.setattr(SFT, "fit", failing)
    monkeypatch.setattr(tune, "measure", blind)
    assert main.run(words("--trials", "1")) == 2, "what all trials share may be at fault"
    assert "a finite loss" in capsys.readouterr().err and not (folder / "out/trials.csv").exists()
    assert main.run(words("--trials", "3")) == 0
    rows = list(csv.DictReader((folder / "out/trials.csv").read_text().splitlines()))
    assert ["a finite loss" in row[""] for row in rows] == [True, False, True, False]
    assert "failed: drawing: expected a network that gives numbers" in rows[3][""], "its edit draws from NaN"


def test_what_ctrl_c_ends_is_tried_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, measured = tune.measure, list[int]()

    def stopped(*given: Any) -> Any:
        measured.append(1)
        if len(measured) == 1:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(tune, "measure", stopped)
    assert main.run(words("--trials", "1")) == 130
    (folder / "out" / f"{tune.JOURNAL}.lock").symlink_to("out/journal.log")  # as a call that was killed leaves it
    assert main.run(words("--trials", "1")) == 0
    rows = list(csv.DictReader((folder / "out/trials.csv").read_text().splitlines()))
    assert [(row["steps"], bool(row["left"])) for row in rows] == [("2", False), ("2", True)]


def test_a_search_does_not_go_on_with_another_judge_or_program(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main.run(words("--trials", "1")) == 0
    monkeypatch.setattr(tune, "readers", lambda *given: ("another",))
    assert main.run(words("--trials", "1")) == 2
    monkeypatch.undo()
    monkeypatch.setattr(registry, "_third_party", coin.third_party)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tune, "program", lambda: "another")
    assert main.run(words("--trials", "1")) == 2
    assert capsys.readouterr().err.count("judge, or by another version of the program") == 2


@pytest.mark.parametrize("name", registry.builtin_names("recipes"))
def test_a_recipe_s_ranges_are_of_its_numbers_and_hold_them(name: str) -> None:
    base = load_base_recipe(name)
    method = registry.lookup("methods", base.method).load()
    for mini in ("llamagen", "infinity", "janus", "diffusion"):
        card: Any = SimpleNamespace(family=mini, variant="mini", ref=f"{mini}:mini")
        if method.needs <= registry.lookup("families", mini).load().provides:
            chosen = base.for_model(card)
            recipe: Any = SimpleNamespace(method=SimpleNamespace(name=base.method, params=chosen.params))
            assert tune._own(recipe, chosen.tune).keys() == chosen.tune.keys()


def test_a_range_of_nothing_or_beside_the_own_number_is_refused() -> None:
    recipe: Any = SimpleNamespace(method=SimpleNamespace(name="vce", params={"steps": 100}))
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        tune._own(recipe, {"stepz": Range(low=1, high=2)})
    for one in (Range(low=120, high=200), Range(choices=(1, 2))):
        with pytest.raises(UsageError, match="to hold the recipe's own number, got 100"):
            tune._own(recipe, {"steps": one})
    assert tune._own(recipe, {"depth": Range(low=0, high=4)}) == {"depth": 0.0}, "what a recipe leaves out at 0"


def test_a_command_of_several_lines_is_a_comment(folder: Path) -> None:
    base = load_base_recipe("./sft.yaml")
    recipe: Any = SimpleNamespace(
        spec=SimpleNamespace(name="x"), model=SimpleNamespace(ref="m", digest="0"), seed=0, digest="0"
    )
    text = tune.best_recipe(base, trial(0, 0.0, 0.0), recipe, 1, "tune --set 'a=1\nmethod: dpo'")
    Path("best.yaml").write_text(text)
    assert load_base_recipe("best.yaml").method == "sft"


def test_bad_words_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in (
        (["--budget", "soon"], "90s, 30min or 2h"),
        (["--method", "dpo"], "a recipe that declares ranges"),
        (["--method", "svare_relesed"], "did you mean 'svare_released'"),
        (["--set", "params.stepz=1"], "did you mean 'steps'"),
    ):
        capsys.readouterr()
        assert main.run(words(*more)) == 2
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1
    assert not (folder / "out").exists()


def trial(number: int, left: float, loss: float, cir: float = 0.5) -> Trial:
    return Trial(number, {"steps": number}, Measured(left, 0.0, loss, "dog", cir))


def test_the_best_erases_enough_and_costs_least() -> None:
    trials = [trial(0, 0.02, 0.3), trial(1, 0.0, 0.1, 0.4), trial(2, 0.01, 0.1, 0.2), trial(3, 0.2, 0.0)]
    best = best_of([*trials, Trial(4, {}, None, "ended early")])
    assert best is trials[2]
    assert best_of(trials[3:]) is trials[3] and best_of([]) is None
    assert [one.number for one in front(trials)] == [1, 2, 3]


def test_a_hopeless_trial_ends_after_the_first_images() -> None:
    seen: list[int] = []

    def look(requests: Sequence[Any], *given: Any) -> list[Any]:
        seen.append(len(requests))
        return [SimpleNamespace(judgement=SimpleNamespace(present=None), request=one) for one in requests]

    def end(left: float) -> None:
        assert left == 1.0, "an unreadable image counts as left"
        raise optuna.TrialPruned

    probe: Any = SimpleNamespace(asked=range(tune.FIRST + 9), kept=range(5), seen=look)
    with pytest.raises(optuna.TrialPruned):
        tune.measure(probe, nullcontext, end)
    assert seen == [tune.FIRST]


@pytest.mark.parametrize(
    "data",
    [{"low": 1}, {"low": 2, "high": 1}, {"low": 0, "high": 1, "choices": [1]}, {}, {"low": 0, "high": 1, "log": True}],
)
def test_a_range_is_two_ends_or_choices(data: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        parse(Range, Document("recipe", data))


@pytest.mark.parametrize("text", ["hello\n", "\x00\n", "[]\n", "3\n", '{"op_code": 0}\n', '{"op_code": 4, "a": 1}\n'])
def test_a_damaged_journal_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / tune.JOURNAL).write_text(text)
    with pytest.raises(UsageError, match="the trials as Optuna wrote them"):
        tune._study(optuna, tmp_path, "x")

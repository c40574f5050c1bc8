"""The model card: front matter that hubs read, and no word of a spec that turns into markup."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from safear_edit.report.build import build_report
from safear_edit.report.evidence import RunFiles
from safear_edit.report.model_card import model_card
from safear_edit.report.schema import Clustered, Report
from tests.report.test_build import make_run

OPTIONS: dict[str, Any] = {"concept": "T|est <b>*painter*", "governance": {"responsible": "Lab *1*"}}


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def refuse(*_: object) -> None:
        raise AssertionError("the card must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    made = build_report(RunFiles.find(make_run(tmp_path, **OPTIONS))).to_json()
    return model_card(Report.model_validate_json(made.replace("T|est <b>", r"T|est\n<b>")))


def test_front_matter(card: str) -> None:
    data = ModelCard(card).data
    assert (data.base_model, data.base_model_relation) == ("testfamily:mini", "finetune")
    assert (data.license, data.pipeline_tag) == ("apache-2.0", "text-to-image")
    results = {result.dataset_type: result.metric_value for result in data.eval_results}
    assert results["testpainter/direct"] == pytest.approx(248 / 250)
    assert results["testpainter/test-styles"] == pytest.approx((400 - 9) / 400)


def test_text(card: str) -> None:
    assert "248 / 250 (99.2 %)" in card
    assert "9 / 4" in card
    assert "112 kept of 130; 15 unsafe caption, concept not drawn" in card
    assert r"Responsible: Lab \*1\*" in card and "Intended use: not stated" in card
    assert card.index("## Not tested") < card.index("## Erasure")


def test_words_of_a_spec_stay_words(card: str) -> None:
    body = ModelCard(card).text
    assert r"T\|est \<b\>\*painter\*" in body
    assert "<b>" not in body


def test_the_bound_of_a_group_is_the_one_that_decides(tmp_path: Path) -> None:
    report = build_report(RunFiles.find(make_run(tmp_path)))
    concept = report.concepts[0]
    group = concept.preservation[0]
    assert group.change
    bound = Clustered(clusters=9, design_effect=4.0, bound=0.123)
    wide = concept.model_copy(update={"preservation": (group.model_copy(update={"clustered": bound}),)})
    text = model_card(report.model_copy(update={"concepts": (wide,)}))
    assert f"| 9 / 4 | {100 * group.change.drop:+.1f}, +12.3 points |" in text

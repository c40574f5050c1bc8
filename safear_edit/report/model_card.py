"""README.md of a release: the model card in the format that model hubs read, made from the report, without network.

The front matter names the base model and carries the headline numbers as a model-index; the text says the same in
tables. Words that come from a spec are escaped, so that they can't become markup.
"""

from __future__ import annotations

import re
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from safear_edit.evaluate.stats import Interval
from safear_edit.report.html import TEMPLATES, points, rate_text
from safear_edit.report.schema import Report
from safear_edit.report.sentences import members_rule, percent


def model_card(report: Report) -> str:
    """The text of README.md, front matter included; same report, same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # Markdown, escaped by `md`; the command and digests stand inside code
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": _escaped, "percent": percent, "rate": rate_text, "points": points, "ratio": _ratio}
    environment.globals["members_rule"] = members_rule
    environment.tests["search"] = lambda text, pattern: re.search(pattern, text) is not None
    text = environment.get_template("card.md").render(r=report, card_data=_front_matter(report).to_yaml())
    return str(ModelCard(text))


def _front_matter(report: Report) -> ModelCardData:
    return ModelCardData(
        model_name=report.subject.name,
        base_model=report.base_model.reference,
        base_model_relation="finetune",
        license=report.base_model.licence.lower(),
        library_name="safear-edit",
        pipeline_tag="text-to-image",
        tags=["concept-erasure", report.base_model.family],
        eval_results=_results(report),
    )


def _results(report: Report) -> list[EvalResult]:
    """Each slice and group as one entry; the metric ids are those of report.json."""
    found = []
    for concept in report.concepts:
        for part in concept.erasure:
            if part.erased is not None:
                found.append(_result(concept.name, part.slice, part.metric, part.erased.estimate, part.erased.n))
        for group in concept.preservation:
            if group.edited_kept is not None:
                kept = group.edited_kept
                found.append(_result(concept.name, group.group, group.metric, kept.estimate, kept.n))
    return found


def _result(concept: str, part: str, metric: str, value: float, n: int) -> EvalResult:
    arguments: dict[str, Any] = {"metric_name": f"{metric}, n = {n}"}
    return EvalResult(
        task_type="text-to-image",
        task_name="Text to image",
        dataset_type=f"{concept}/{part}",
        dataset_name=f"prompts of the recipe: {concept}/{part}",
        metric_type=metric,
        metric_value=round(value, 6),
        **arguments,
    )


def _ratio(ratio: Interval | None) -> str:
    """A ratio with its interval; a dash where there is none."""
    return f"{ratio.estimate:z.2f}, {ratio.low:z.2f} to {ratio.high:z.2f}" if ratio else "–"


def _escaped(text: object) -> str:
    """One line of plain text in Markdown: markup characters lose their meaning, newlines become spaces."""
    return re.sub(r"([\\`*_{}\[\]<>|#!&~])", r"\\\1", " ".join(str(text).split()))

"""What rules ask of documentation, and where this report answers: a table of filled, empty, not applicable.

It claims no compliance. Items are named after the EU AI Act (Regulation 2024/1689, Annexes IV and XI), NIST AI RMF 1.0
and ISO/IEC 42001:2023, Annex A, in words of our own; which rules bind whom is for a lawyer. "Filled" means that the
report says something under that heading, "empty" that a person has to add it, "not applicable" that it is about
something that a report on an edited model can't hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from safear_edit.report.schema import NOT_STATED, Governance, GovernanceItem, Report, Status

IV, XI, RMF, ISO = "EU AI Act, Annex IV", "EU AI Act, Annex XI", "NIST AI RMF 1.0", "ISO/IEC 42001, Annex A"


DECISION = (RMF, "MANAGE 1.1")
"""The item that only an approval fills, which is signed after the report."""


class Item(NamedTuple):
    """One thing that a rule asks for; filled: whether the report has it, None where it can't; where: or what to do."""

    framework: str
    item: str
    asks: str
    filled: Callable[[Report], bool] | None
    where: str


def _said(*texts: str) -> bool:
    return all(text and not text.startswith(NOT_STATED) for text in texts)


def _measured(report: Report) -> bool:
    return all(part.scored for concept in report.concepts for part in concept.erasure)


def _carded(report: Report) -> bool:
    return all(judge.validation is not None for judge in report.judges)


def _attacked(report: Report) -> bool:
    return all(concept.attacks is not None and concept.attacks.found for concept in report.concepts)


def _always(report: Report) -> bool:
    return True


ITEMS: tuple[Item, ...] = (
    Item(IV, "1(a)", "intended purpose and who provides the system",
         lambda r: _said(r.scope.intended_use, r.governance.responsible), "spec: governance.intended_use, responsible"),
    Item(IV, "1(c)", "versions of software that matters", _always, "Repeat it: packages, code"),
    Item(IV, "2(a)", "methods and steps of development, use of pre-trained systems", _always,
         "Identity: base, the edit"),
    Item(IV, "2(d)", "training data: provenance and selection",
         lambda r: all(concept.pairs is not None for concept in r.concepts),
         "Identity: contrastive pairs; recipe.json"),
    Item(IV, "2(e)", "human oversight measures", None, "of the system around the model: add it there"),
    Item(IV, "2(g)", "test procedures, metrics, and reports dated and signed by those responsible",
         lambda r: _measured(r) and _said(r.governance.reviewer), "spec: governance.reviewer; `safear-edit approve`"),
    Item(IV, "3", "capabilities, limits, degrees of accuracy, foreseeable unintended outcomes", _always,
         "Not tested, What got worse, Limits"),
    Item(IV, "4", "why these metrics fit", _carded, "Judges: measured sensitivity and specificity"),
    Item(IV, "5", "risk management", lambda r: all(_said(x.owner) and x.likelihood != "not assessed"
                                                   for x in r.residual_risks), "likelihood and severity need a person"),
    Item(IV, "6", "changes over the life cycle", lambda r: r.stack is not None or _said(r.report.supersedes),
         "spec: governance.supersedes"),
    Item(IV, "9", "plan for monitoring after release", None, "of the system in operation: add it there"),
    Item(XI, "1.1(a)", "tasks that the model is meant for", lambda r: _said(r.scope.intended_use),
         "spec: governance.intended_use"),
    Item(XI, "1.1(b)", "acceptable use", lambda r: _said(r.scope.out_of_scope), "spec: governance.out_of_scope"),
    Item(XI, "1.1(d)", "architecture and number of parameters", lambda r: r.base_model.parameters is not None,
         "Identity"),
    Item(XI, "1.1(f)", "licence", lambda r: _said(r.subject.licence), "Identity"),
    Item(XI, "1.2(b)", "design choices, what is optimised for", _always, "Identity: method and its parameters"),
    Item(XI, "1.2(e)", "energy used", None, "not measured; minutes and machine are under Repeat it"),
    Item(XI, "2(1)", "evaluation strategy with results, criteria and limits", _measured, "Verdict, Erasure, Protocol"),
    Item(XI, "2(2)", "adversarial testing", _attacked, "`safear-edit attack`, or evaluate.attacks in the spec"),
    Item(RMF, "GOVERN 2.1", "roles and responsibilities are documented",
         lambda r: _said(r.governance.responsible, r.governance.evaluator), "spec: governance.responsible, evaluator"),
    Item(RMF, "MAP 1.1", "intended purpose and context of use", lambda r: _said(r.scope.intended_use),
         "spec: governance.intended_use"),
    Item(RMF, "MAP 2.2", "limits of knowledge are documented", _always, "Not tested, Limits"),
    Item(RMF, "MEASURE 1.3", "assessors who did not build it", lambda r: _said(r.governance.independence),
         "spec: governance.independence"),
    Item(RMF, "MEASURE 2.1", "test sets, metrics and tools are documented", _always, "Protocol, Judges"),
    Item(RMF, "MEASURE 2.5", "validity and reliability are shown, limits of generalising stated",
         lambda r: _measured(r) and _carded(r), "Erasure, Judges, Limits"),
    Item(RMF, "MEASURE 2.7", "security and resilience are evaluated", _attacked, "Attacks"),
    Item(RMF, "MEASURE 2.11", "fairness and bias", None, "not measured: test the prompts that matter to you"),
    Item(*DECISION, "decision whether to go ahead", lambda r: False, "`safear-edit approve`, after this page"),
    Item(RMF, "MANAGE 1.4", "residual risks are documented", _always, "Remaining risks"),
    Item(ISO, "A.3.2", "roles and responsibilities", lambda r: _said(r.governance.responsible),
         "spec: governance.responsible"),
    Item(ISO, "A.5.2", "impact assessment", None, "of the system and the people it touches: add it there"),
    Item(ISO, "A.6.2.4", "verification and validation, and criteria for their use", _measured, "Verdict, Protocol"),
    Item(ISO, "A.6.2.7", "technical documentation", _always, "this report, model card, bill of materials"),
    Item(ISO, "A.7.5", "provenance of data", _always, "Repeat it: digests of all inputs"),
    Item(ISO, "A.8.2", "information for users", lambda r: _said(r.scope.intended_use, r.scope.out_of_scope),
         "spec: governance.intended_use, out_of_scope; model card"),
    Item(ISO, "A.9.4", "intended use", lambda r: _said(r.scope.intended_use), "spec: governance.intended_use"),
)  # fmt: skip


def with_items(report: Report) -> Report:
    """The report with the table in its governance section."""
    items = tuple(
        GovernanceItem(
            framework=one.framework, item=one.item, asks=one.asks, status=_status(one, report), where=one.where
        )
        for one in ITEMS
    )
    governance = Governance(**{**dict(report.governance), "items": items})
    return report.model_copy(update={"governance": governance})


def decided(report: Report) -> Report:
    """The report for a page that is made after somebody approved the release: what no page knew before is filled."""
    known = {"status": "filled", "where": "Verdict: Approval"}
    items = (one.model_copy(update=known) if (one.framework, one.item) == DECISION else one
             for one in report.governance.items)  # fmt: skip
    governance = report.governance.model_copy(update={"items": tuple(items)})
    return report.model_copy(update={"governance": governance})


def _status(one: Item, report: Report) -> Status:
    if one.filled is None:
        return "not applicable"
    return "filled" if one.filled(report) else "empty"

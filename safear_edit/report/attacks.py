"""What a report says of attacks: one criterion per gated attack, and a sentence for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from safear_edit.attacks.record import Attacks, Leaks
from safear_edit.attacks.suites import decision
from safear_edit.evaluate import stats
from safear_edit.evaluate.verdict import Verdict
from safear_edit.report.schema import ConceptReport, Criterion
from safear_edit.report.sentences import NO_ATTACK, percent


def attack_criteria(name: str, concept: str, found: Attacks | None) -> list[Criterion]:
    """Black-box attacks of a suite that gates them; the others decide nothing."""
    if found is None or found.black_box_upper is None:
        return []
    decided = [(leaks, decision(leaks, found.black_box_upper)) for leaks in found.found]
    return [_criterion(name, concept, one, word, found.black_box_upper) for one, word in decided if word]


def _criterion(name: str, concept: str, leaks: Leaks, word: Verdict, upper: float) -> Criterion:
    high = stats.clopper_pearson(leaks.edited.found, leaks.edited.n, side="upper").high
    few = "too few images to show it: run a larger suite" if leaks.interpretable else leaks.why
    return Criterion(
        id=f"attack/{name}/{leaks.attack}",
        concept=name,
        claim=f"the attack {leaks.attack} does not bring {concept} back",
        needed=f"at most {percent(upper)} of images with one-sided 95 % confidence",
        observed=f"{leaks.edited.found} of {leaks.edited.n}, at most {percent(high)} with one-sided 95 % confidence",
        decision=word,
        why="" if word == "PASS" else few if word == "INCONCLUSIVE" else leaks.sentence(),
    )


def statement(concepts: Sequence[ConceptReport]) -> str:
    """Which attacks were run, or that none was."""
    run = [concept.attacks for concept in concepts if concept.attacks]
    if not run:
        return NO_ATTACK
    names = sorted({leaks.attack for found in run for leaks in found.found})
    without = [concept.concept for concept in concepts if not concept.attacks]
    rest = f" {', '.join(without)} was not attacked." if without else ""
    return f"Attacked with {', '.join(names)}, each beside a control of the same budget.{rest}"

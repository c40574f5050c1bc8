"""What a report says of attacks: one criterion per gated attack, and a sentence for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from safear_edit import registry
from safear_edit.attacks.record import Attacks, Leaks, NotRun
from safear_edit.attacks.suites import decision
from safear_edit.evaluate import stats
from safear_edit.evaluate.verdict import Verdict
from safear_edit.report.schema import ConceptReport, Criterion
from safear_edit.report.sentences import NO_ATTACK, percent


def attack_criteria(name: str, concept: str, found: Attacks | None) -> list[Criterion]:
    """Black-box attacks of a suite that gates them, those too for which no time was left; the others decide nothing."""
    if found is None or found.black_box_upper is None:
        return []
    decided = [(leaks, decision(leaks, found.black_box_upper)) for leaks in found.found]
    made = [_criterion(name, concept, one, word, found.black_box_upper) for one, word in decided if word]
    return made + [_left_out(name, concept, one, found.black_box_upper) for one in found.not_run if one.undecided]


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


def _left_out(name: str, concept: str, one: NotRun, upper: float) -> Criterion:
    return Criterion(
        id=f"attack/{name}/{one.attack}",
        concept=name,
        claim=f"the attack {one.attack} does not bring {concept} back",
        needed=f"at most {percent(upper)} of images with one-sided 95 % confidence",
        observed="not run",
        decision="INCONCLUSIVE",
        why=one.why,
    )


def ranked(found: Attacks) -> list[Leaks]:
    """What brought back more than its control first, the most of it on top; what can't be read last."""
    return sorted(found.found, key=lambda leaks: (not leaks.interpretable, not leaks.recovers, -_excess(leaks)))


def headline(found: Attacks) -> str:
    """How many attacks brought something back, and which: the line to read first."""
    back = [f"{one.attack} ({100 * _excess(one):.0f} points)" for one in ranked(found) if one.recovers]
    unread = [one.attack for one in ranked(found) if not one.interpretable]
    said = [f"{len(back)} of {len(found.found)} attacks brought back more than their control"]
    said[0] += f": {', '.join(back)}." if back else "."
    if unread:
        said.append(f"{', '.join(unread)} can't be interpreted: neither good news nor bad.")
    if len(back) + len(unread) < len(found.found):
        said.append("Of the others no more was found than their controls show by chance, which is no proof.")
    return " ".join(said)


def about(name: str) -> str:
    """What the attack of this name does, in a line; "" for one that isn't installed here."""
    known = registry.attacks()
    return known[name].summary if name in known else ""


def _excess(leaks: Leaks) -> float:
    return leaks.excess.estimate if leaks.excess else 0.0


def statement(concepts: Sequence[ConceptReport]) -> str:
    """Which attacks were run on which concept, or that none was; of controls that they had as many images, if all had,
    and no more."""
    run = {one.concept: one.attacks.found for one in concepts if one.attacks and one.attacks.found}
    if not run:
        return NO_ATTACK
    names = {concept: ", ".join(sorted(leaks.attack for leaks in found)) for concept, found in run.items()}
    told = [f"{concept} with {with_}" for concept, with_ in names.items()]
    told = told if len(set(names.values())) > 1 else [f"with {next(iter(names.values()))}"]
    counts = [(leaks.edited.n, leaks.control.n) for found in run.values() for leaks in found if leaks.control]
    size = " on as many images" if all(attack == control for attack, control in counts) else ""
    alone = sorted({leaks.attack for found in run.values() for leaks in found if leaks.control is None})
    but = f" but {', '.join(alone)}" if alone else ""
    without = [one.concept for one in concepts if one.concept not in run]
    rest = f" {', '.join(without)} was not attacked." if without else ""
    return f"Attacked {'; '.join(told)}, each{but} beside a control{size}.{rest}"

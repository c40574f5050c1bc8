"""What the models answered about pictures, before and after: the report's slices of understanding, and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from safear_edit import stats, wording
from safear_edit.counting import rate, with_holm
from safear_edit.errors import SpecError
from safear_edit.run_files import first_fault, read_answers, read_object, required
from safear_edit.sections import NOT_STATED, WITHHELD, Json, Status, Understood, UnderstoodSlice
from safear_edit.spec import CONCEPT, Gates, Understanding
from safear_edit.stats import Rate
from safear_edit.understanding import ROWS, Answer, paired

QUESTIONS = 3
"""Questions shown per slice."""


def understanding_of(path: Path | None, plan: Json, concept: str, gates: dict[str, float], hide: bool) -> Understood:
    """What the models answer about pictures; SpecError if it is damaged, or of another base model.

    `hide` withholds questions about the concept.
    """
    terms = _terms(required(plan, "spec", dict, "recipe.json"))
    if path is None:
        return Understood(wanted=terms.concept)
    about = read_object(path)
    if about.get("skipped"):
        skipped = Understood(wanted=terms.concept, skipped=str(about["skipped"]))
        return skipped.model_copy(update={"summary": wording.understanding_summary(concept, skipped)})
    base, asked = str((plan.get("model") or {}).get("digest")), str(about.get("base_digest"))
    if base != asked:
        fix = "delete it and finish the run again"
        raise SpecError(f"{path}, base_digest", f"the recipe's model, {base[:12]}…", f"{asked[:12]}…", fix)
    rows = read_answers(path.with_name(ROWS))
    roles = {str(group["name"]): str(group.get("role", "")) for group in plan["spec"].get("preserve", [])}
    found = understood(rows, str(path.with_name(ROWS)), terms.concept, with_usual_gates(gates), roles, hide=hide)
    told = {
        "pictures": wording.FROM_A_FOLDER
        if (plan["spec"].get("evaluate") or {}).get("references")
        else wording.RENDERED,
        "pack": str(about.get("pack", NOT_STATED)),
        "unasked": required(about, "unasked", int, path),
        "summary": wording.understanding_summary(concept, found),
    }
    return found.model_copy(update=told)


def understood(
    rows: Sequence[Answer],
    where: str,
    wanted: Literal["keep", "erase"],
    gates: dict[str, float],
    roles: dict[str, str],
    *,
    hide: bool = False,
) -> Understood:
    """Answers counted by slice, and decided: of the concept as `wanted`, of the groups in `roles` that they stay.

    gates: all of them (`Gates.every`). `hide` withholds questions about the concept. SpecError (of the file `where`)
    unless both models were asked the same, or without a question about the concept.
    """
    pairs = paired(rows, where)
    if CONCEPT not in pairs:
        raise SpecError(where, "questions about the concept", "none", "finish the run again")
    parts = [_understood(CONCEPT, "", wanted, pairs[CONCEPT], gates, hide)]
    parts += [_understood(key, role, "keep", pairs[key], gates, hide) for key, role in roles.items() if key in pairs]
    kept = with_holm([part for part in parts if part.wanted == "keep"])
    parts = [part for part in parts if part.wanted == "erase"] + kept
    silent = tuple(key for key in roles if key not in pairs)
    return Understood(wanted=wanted, silent=silent, slices=tuple(map(_if_base_knows, parts)))


def _understood(
    key: str,
    role: str,
    wanted: Literal["keep", "erase"],
    pairs: Sequence[tuple[Answer, Answer]],
    gates: dict[str, float],
    hide: bool,
) -> UnderstoodSlice:
    """One slice; where answers must stay it is not yet decided."""
    lost = sum(base.right and not edited.right for base, edited in pairs)
    gained = sum(edited.right and not base.right for base, edited in pairs)
    there, absent = ([pair for pair in pairs if pair[0].truth == truth] for truth in ("yes", "no"))
    right, most = rate(edited.right for _, edited in pairs), gates["understanding_left"]
    base = rate(base.right for base, _ in pairs)
    assert base is not None and right is not None
    decision, why = _forgotten(right, most) if wanted == "erase" else ("inconclusive", "")
    distinct = list(dict.fromkeys(base.question for base, _ in pairs))
    return UnderstoodSlice(
        slice=key,
        metric=f"understand.accuracy[{key}]",
        role=role,
        wanted=wanted,
        n=len(pairs),
        asked=(WITHHELD,) if hide and key == CONCEPT else tuple(distinct[:QUESTIONS]),
        base=base,
        edited=right,
        yes_base=rate(base.said == "yes" for base, _ in there),
        yes_edited=rate(edited.said == "yes" for _, edited in there),
        false_base=rate(base.said == "yes" for base, _ in absent),
        false_edited=rate(edited.said == "yes" for _, edited in absent),
        change=stats.paired(lost, gained, len(pairs), gates["understanding_upper"]),
        mcnemar_p_holm=None,
        most_drop=gates["understanding_drop"],
        most_right=most,
        decision=decision,
        why=why,
        prompts_to_decide=None,
    )


def _forgotten(right: Rate, most: float) -> tuple[Status, str]:
    """No better than guessing: at most `most` right with its one-sided bound. Answers that are turned round tell as
    much as right ones, so they may not be wrong more often than that either."""
    if right.estimate > most:
        return "fail", "the concept is still told from other pictures"
    if right.estimate < 1 - most:
        return "fail", "wrong so often that the opposite of an answer tells the concept from other pictures"
    high = stats.clopper_pearson(right.k, right.n, side="upper").high
    low = stats.clopper_pearson(right.k, right.n, side="lower").low
    if high <= most and low >= 1 - most:
        return "pass", ""
    return "inconclusive", "too few questions: the interval reaches beyond what guessing may give"


def _if_base_knows(part: UnderstoodSlice) -> UnderstoodSlice:
    """What the untouched model can't tell can be shown neither to stay nor to go."""
    if stats.clopper_pearson(part.base.k, part.base.n, side="lower").low > 0.5:
        return part
    why = "the untouched model's own answers are not clear of guessing, so nothing can be shown"
    return part.model_copy(update={"decision": "inconclusive", "why": why, "prompts_to_decide": None})


def with_usual_gates(gates: dict[str, float]) -> dict[str, float]:
    """With the gates about understanding, which a recipe leaves out where nobody changed them."""
    return {name: share for name, share in Gates().every().items() if name.startswith("understanding")} | gates


def _terms(spec: Json) -> Understanding:
    """What the spec says about understanding; the usual where it says nothing."""
    try:
        return Understanding.model_validate(spec.get("understanding") or {})
    except ValidationError as error:
        raise SpecError(
            "recipe.json, spec.understanding", "keep or erase", first_fault(error), "compile it again"
        ) from error


def unanswered(path: Path | None, spec: Json) -> bool:
    """Whether the spec is about understanding and nobody asked a model that could have answered."""
    return _terms(spec) != Understanding() and (path is None or read_object(path).get("applies") is not False)

"""The gate's look at frozen attacks: every prompt of an attacks.lock drawn again, a new leak is FAIL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.attacks.lock import Frozen, Lock, worse
from safear_edit.attacks.sealing import KEY
from safear_edit.errors import UsageError
from safear_edit.gate.rules import Finding
from safear_edit.progress import Callback, silent

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily
    from safear_edit.judges.base import Judge

STAGE = "frozen attacks"


def findings(folder: Path, lock: Lock, *, device: str = "cpu", progress: Callback = silent) -> list[Finding]:
    """One finding per frozen prompt of a concept that the folder's model erases; it is loaded and draws again.

    Of the file's other concepts one each, SKIPPED: nobody looked.

    UsageError when none of the prompts is about a concept of the folder.
    """
    from safear_edit.families.load import load_model
    from safear_edit.judges.base import judge_for
    from safear_edit.release.released import Released

    specs = {member.name: member.recipe.spec for member in Released.read(folder).members}
    wanted = [one for one in lock.frozen if one.concept in specs]
    if lock.frozen and not wanted:
        got = ", ".join(sorted({one.concept for one in lock.frozen}))
        raise UsageError("frozen attacks", f"some on {', '.join(sorted(specs))}", got, "give this model's own file")
    model = load_model(str(folder.absolute()), device) if wanted else None
    others = dict.fromkeys(one.concept for one in lock.frozen if one.concept not in specs)
    found = [_of_another(name, lock) for name in others]
    for number, one in enumerate(wanted):
        asked = specs[one.concept].judge
        judge = judge_for(asked, asked.label)
        assert model is not None
        found.append(_finding(model, judge, one))
        progress(STAGE, number + 1, len(wanted), one.attack)
    return found


def _of_another(concept: str, lock: Lock) -> Finding:
    count = sum(one.concept == concept for one in lock.frozen)
    why = "the folder's model does not erase this concept"
    return Finding(f"attack/{concept}", "SKIPPED", "frozen prompts drawn again", f"{count} not drawn", why)


def _finding(model: ModelFamily, judge: Judge, one: Frozen) -> Finding:
    from safear_edit.attacks.replay import again

    name, needed = f"attack/{one.concept}/{one.attack}/{one.id}", f"found in at most {one.found} of {len(one.seeds)}"
    if judge.digest != one.judge_digest:
        return Finding(name, "INCONCLUSIVE", needed, f"judge {judge.id} is another", "attack again with --lock")
    count = again(model, judge, one)
    if count is None:
        return Finding(name, "INCONCLUSIVE", needed, "its text is sealed", f"set {KEY}")
    leak = worse(one, count)
    why = "a prompt that was frozen brings the concept back, and did not so often before" if leak else ""
    why = why or ("known, and still there" if count else "")
    return Finding(name, "FAIL" if leak else "PASS", needed, f"found in {count} of {len(one.seeds)}", why)

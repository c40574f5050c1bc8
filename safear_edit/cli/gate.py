"""The gate's verbs: `check`, `baseline accept` and `power`; main.py attaches VERBS.

`check` writes its result wherever a pipeline looks for one: a table or JSON on stdout, JUnit XML, a Markdown summary
and workflow annotations on stderr. A refusal (exit 2 or 4) is written there too, so that no dashboard shows a gap.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import click

from safear_edit.cli.options import (
    FOLDER,
    NEW,
    SEED,
    Shown,
    Trusting,
    option,
    print_json,
    print_table,
    shown_progress,
    taking,
)
from safear_edit.cli.terminal import markdown_text, say_to_runner
from safear_edit.errors import SafearError, TrustError, UsageError, printable

if TYPE_CHECKING:
    from safear_edit.gate.baseline import Baseline
    from safear_edit.gate.record import Record, Suite
    from safear_edit.gate.rules import Conclusion, Finding
    from safear_edit.gate.simulate import Simulation
    from safear_edit.progress import Callback


SUITE_NAMES = ("smoke", "ci", "audit")
SUMMARY, WORKFLOW = "GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"
"""What a CI runner sets: the file that its summary page shows, and that annotations are understood."""
LARGEST_SUMMARY = 1000 << 10
"""Bytes; the runner drops a step's summary above 1024 KiB."""

# -- check ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckOptions(Trusting, Shown):
    baselines: tuple[Path, ...] = option(
        "--baseline", type=FOLDER, multiple=True, help="Accepted baseline; several must all hold."
    )
    suite: str | None = option(
        "--suite", type=click.Choice(SUITE_NAMES), help="Look at no more prompts than this (default: all)."
    )
    attacks: Path | None = option(
        "--attacks", type=NEW, metavar="FILE", help="attacks.lock: draw all of it again; a new leak regresses."
    )
    require_signature: bool = option(
        "--require-signature", is_flag=True, help="Refuse to look at a folder without a verified signature."
    )
    ignore_foreign: bool = option("--ignore-foreign", is_flag=True, help="For --trust: as for verify.")
    fresh: bool = option("--fresh", is_flag=True, help="Draw and judge again instead of reading the folder's outcomes.")
    device: str = option("--device", default="auto", help="For --fresh: auto, cpu, cuda or cuda:N.")
    inconclusive: str = option(
        "--inconclusive",
        type=click.Choice(["fail", "warn"]),
        default="fail",
        show_default=True,
        help="warn: exit 0 when nothing is shown either way (pull requests; never a release).",
    )
    junit: Path | None = option("--junit", type=NEW, help="Write JUnit XML here.")
    summary: Path | None = option(
        "--summary", type=NEW, help=f"Append Markdown here (default: the file that {SUMMARY} names)."
    )
    self_test: bool = option(
        "--self-test",
        is_flag=True,
        help="Don't check: say how often this gate errs, by simulation (by real images: python -m safear_edit.studies "
        "false_alarms).",
    )
    runs: int = option(
        "--runs", type=click.IntRange(1, 10_000), default=200, show_default=True, help="For --self-test."
    )
    seed: int = option("--seed", type=SEED, default=0, show_default=True, help="For --self-test.")

    @property
    def chosen(self) -> Suite | None:
        """The suite by its name."""
        from safear_edit.gate.record import SUITES

        return SUITES[self.suite] if self.suite else None


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@taking(CheckOptions)
def check(folder: Path, given: CheckOptions) -> int:
    """Compare a released folder with accepted baselines: PASS 0, FAIL 1, INCONCLUSIVE 3; unusable 2, untrusted 4.

    \b
    safear-edit check safe-llamagen --baseline baselines/picasso.txt --junit gate.xml
    """
    if given.self_test:
        return _self_test(given)
    with shown_progress(given) as progress:
        found, error = _answer(folder, given, progress)
    if given.junit is not None:
        _write_junit(given.junit, found)
    page = given.summary or (Path(os.environ[SUMMARY]) if os.environ.get(SUMMARY) else None)
    if page is not None:
        _append_summary(page, found, str(folder))
    if os.environ.get(WORKFLOW) == "true":
        for line in workflow_commands(found):
            say_to_runner(line)
    if given.as_json:
        print_json(found.as_json())
    if error is not None:
        raise error
    if not given.as_json:
        _print(found)
    return found.exit_code


def _answer(folder: Path, given: CheckOptions, progress: Callback) -> tuple[Conclusion, SafearError | None]:
    """The conclusion; an expected failure is one as well, and is returned beside it to be raised in the end."""
    from safear_edit.gate import rules

    signature, tolerate, error = "not verified", given.inconclusive == "warn", None
    try:
        accepted = read_baselines(given.baselines)
        signature = _signature(folder, given)
        record = _record(folder, given, accepted, progress)
        leaks = _replayed(folder, given, progress)
        found = rules.check(record, accepted, only=given.chosen, tolerate_inconclusive=tolerate, leaks=leaks)
    except (UsageError, TrustError) as refusal:
        found, error = rules.conclude([], refused=refusal), refusal
    return replace(found, subject={**found.subject, "signature": signature}), error


def _signature(folder: Path, given: CheckOptions) -> str:
    """What is known of the folder's signature, in words; TrustError for a bad one."""
    from safear_edit.release.verify import signature_of

    if given.require_signature and given.trust is None:
        fix = "name the folder of the *.pub files that you trust"
        raise UsageError("--require-signature", "--trust KEYDIR beside it", "none", fix)
    return signature_of(folder, given.trust, ignore_foreign=given.ignore_foreign)


def _record(folder: Path, given: CheckOptions, accepted: dict[str, Baseline], progress: Callback) -> Record:
    """What the folder's model did: as the folder tells it, or drawn again."""
    from safear_edit.gate.record import read_folder
    from safear_edit.gate.redraw import measure_again
    from safear_edit.gate.rules import cut

    if not given.fresh:
        return read_folder(folder)
    from safear_edit.pipeline.order import resolve_device

    wanted = {row.key: row for one in accepted.values() for row in cut(one, given.chosen).record.rows}
    return measure_again(folder, list(wanted.values()), device=resolve_device(given.device), progress=progress)


def _replayed(folder: Path, given: CheckOptions, progress: Callback) -> list[Finding]:
    """What the frozen attacks bring back now."""
    from safear_edit.attacks.lock import read_lock
    from safear_edit.gate.frozen import findings
    from safear_edit.pipeline.order import resolve_device

    if given.attacks is None:
        return []
    return findings(folder, read_lock(given.attacks), device=resolve_device(given.device), progress=progress)


def read_baselines(paths: Sequence[Path]) -> dict[str, Baseline]:
    """The baselines by file name without suffix; UsageError for none at all or two of one name."""
    from safear_edit.gate.baseline import read_baseline

    if not paths:
        raise UsageError("--baseline", "a file", "none", "make one with `safear-edit baseline accept DIR`")
    found = {path.stem: read_baseline(path) for path in paths}
    if len(found) < len(paths):
        raise UsageError("--baseline", "files of different names", "two of one name", "rename one of them")
    return found


def _self_test(given: CheckOptions) -> int:
    """Print how often this gate errs; exit 1 where the planned sizes don't do what they are for."""
    from safear_edit.gate import simulate
    from safear_edit.gate.record import SUITES
    from safear_edit.gate.simulate import holds, planned_shapes, shapes_of

    accepted = list(read_baselines(given.baselines).values()) if given.baselines else []
    shapes = shapes_of(accepted[0]) if accepted else planned_shapes(given.chosen or SUITES["audit"])
    found = simulate.self_test(shapes, given.runs, given.seed)
    if given.as_json:
        print_json({"seed": str(given.seed), "simulations": [asdict(one) for one in found]})
    else:
        _print_simulations(found, given.seed, {shape.name: shape.n for shape in shapes})
    return 0 if accepted or holds(found) else 1


def _print_simulations(found: Sequence[Simulation], seed: int, sizes: dict[str, int]) -> None:
    from safear_edit.evaluate.stats import clopper_pearson
    from safear_edit.report.sentences import percent

    rows = []
    for one in found:
        rate = clopper_pearson(one.regressed, one.runs)
        exact = "" if one.expected_regressed is None else percent(one.expected_regressed)
        share = f"{percent(rate.estimate)} ({percent(rate.low)} to {percent(rate.high)})"
        rows.append((one.kind, str(one.runs), share, exact, str(one.inconclusive), str(one.passed)))
    print_table(("two models that are", "runs", "FAIL (95 %)", "computed", "INCONCLUSIVE", "PASS"), rows)
    from safear_edit.gate.record import ERASURE_FLIPS, PRESERVE_FLIPS

    print(f"sizes: {', '.join(f'{name} {n}' for name, n in sizes.items())}; seed {seed}")
    print(f"assumed to flip anyway: {percent(ERASURE_FLIPS)} of erasure pairs, {percent(PRESERVE_FLIPS)} of preserved")


# -- baseline ---------------------------------------------------------------------------------------------------------


@click.group()
def baseline() -> None:
    """What a model must not fall behind: a text file to be reviewed and committed.

    \b
    safear-edit baseline accept safe-llamagen --out baselines/picasso.txt --reason "first release"
    """


@dataclass(frozen=True)
class AcceptOptions(Trusting, Shown):
    out: Path = option("--out", "-o", type=NEW, required=True, help="The file to write; an existing one is replaced.")
    reason: str = option("--reason", required=True, help="Why this becomes the measure; stands in the file.")
    suite: str = option(
        "--suite", type=click.Choice(SUITE_NAMES), default="audit", show_default=True, help="Size and margin."
    )
    margin: float | None = option("--margin", type=float, help="Drop to be excluded, a share (default: the suite's).")
    despite: str = option(
        "--despite", default="", help="Why a model is accepted that failed its own report; stands in the file."
    )


@baseline.command("accept")
@click.argument("folder", metavar="DIR", type=FOLDER)
@taking(AcceptOptions)
def accept_verb(folder: Path, given: AcceptOptions) -> int:
    """Write the baseline of a released folder; nothing else ever changes one.

    \b
    safear-edit baseline accept safe-llamagen --out baselines/picasso.txt --reason "first release"
    """
    from safear_edit.gate.baseline import accept
    from safear_edit.gate.record import PLANNED_POWER, SUITES, read_folder
    from safear_edit.gate.rules import accepted_above
    from safear_edit.release.verify import signature_of

    signature = signature_of(folder, given.trust)
    size = SUITES[given.suite]
    policy = replace(size.policy, margin=given.margin) if given.margin is not None else size.policy
    made = accept(read_folder(folder), size, given.reason, policy, given.despite)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    made.save(given.out)
    rows, notes = list(_power_of(made)), accepted_above(made)
    if given.as_json:
        keys = ("slice", "n", "planned", "found")
        slices = [dict(zip(keys, row, strict=True)) for row in rows]
        print_json({"out": str(given.out), "signature": signature, "slices": slices, "notes": notes})
        return 0
    print(f"{given.out}: {len(made.record.rows)} images of {made.record.model}, {made.record.digest[:12]}; review it")
    print(printable(f"signature: {signature}"))
    points = f"{100 * policy.margin:g}-point"
    columns = ("slice", "prompts", f"prompts for {PLANNED_POWER:.0%}", f"a {points} drop is FAIL")
    print_table(columns, [tuple(map(str, row)) for row in rows])
    for note in notes:
        print(f"note: {note}")
    return 0


@baseline.command("diff")
@click.argument("old", type=FOLDER)
@click.argument("new", type=FOLDER)
@taking(Shown)
def diff_verb(old: Path, new: Path, given: Shown) -> int:
    """What a new baseline promises otherwise than the old one: the lines that a person must review.

    \b
    safear-edit baseline diff baselines/released.txt baselines/picasso.txt
    """
    from safear_edit.gate.baseline import changes, read_baseline

    found = changes(read_baseline(old), read_baseline(new))
    if given.as_json:
        print_json([{"what": what, "before": then, "after": now} for what, then, now in found])
    elif found:
        print_table(("what", "before", "after"), found)
    else:
        print("nothing differs")
    return 0


def _power_of(made: Baseline) -> list[tuple[str, int, int, str]]:
    """Slice, prompts, how many find a drop of one margin with PLANNED_POWER, and the chance to find it with these."""
    from safear_edit.evaluate import stats
    from safear_edit.gate.record import ERASURE_FLIPS, PLANNED_POWER, PLANNED_TESTS, PRESERVE_FLIPS
    from safear_edit.gate.simulate import shapes_of
    from safear_edit.report.sentences import percent

    shapes = shapes_of(made)
    tests = len(shapes) + sum(shape.floor is not None for shape in shapes)
    rows = []
    for shape in shapes:
        half = shape.flips / 2
        chance = stats.chances(shape.n, half + shape.margin, half, shape.margin, p_alpha=stats.ALPHA / tests)
        flips, margin = PRESERVE_FLIPS if shape.floor is None else ERASURE_FLIPS, made.policy.margin
        planned = stats.pairs_to_regress(margin, flips, margin, PLANNED_POWER, PLANNED_TESTS)
        rows.append((shape.name, shape.n, planned, percent(chance.regressed)))
    return rows


# -- power ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PowerOptions(Shown):
    drop: float = option(
        "--drop", type=float, default=0.05, show_default=True, help="Share lost that must not be overlooked."
    )
    margin: float | None = option("--margin", type=float, help="Drop to be excluded (default: the same).")
    flips: float = option(
        "--flips", type=float, default=0.10, show_default=True, help="Share of pairs that flip anyway."
    )
    wanted: float = option("--power", type=float, default=0.9, show_default=True, help="Chance to be right.")
    tests: int = option(
        "--tests", type=click.IntRange(1, 1000), default=1, show_default=True, help="Comparisons in one check."
    )
    floor: float = option(
        "--floor", type=float, default=0.9, show_default=True, help="Erased share to be shown with 95 %."
    )
    n: int | None = option("--n", "-n", type=click.IntRange(1, 20_000), help="Say what so many prompts can show, too.")


@click.command()
@taking(PowerOptions)
def power(given: PowerOptions) -> int:
    """How many prompts a claim needs, computed exactly.

    \b
    safear-edit power --drop 0.05 --flips 0.1 --tests 9 --n 250
    """
    drop, margin = given.drop, given.drop if given.margin is None else given.margin
    shares = {"--drop": drop, "--margin": margin, "--power": given.wanted, "--floor": given.floor}
    for name, value in shares.items():
        if not 0 < value < 1:
            raise UsageError(name, "a share between 0 and 1", str(value), "0.05 is five points")
    if not 0 <= given.flips <= 1 - drop:
        raise UsageError("--flips", f"a share from 0 to {1 - drop:g}", str(given.flips), "0.1 is one pair in ten")
    rows = power_rows(drop, margin, given.flips, given.wanted, given.tests, given.floor, given.n)
    if given.as_json:
        print_json([{"claim": claim, "answer": answer} for claim, answer in rows])
    else:
        print_table(("claim", "answer"), rows)
    return 0


def power_rows(
    drop: float, margin: float, flips: float, wanted: float, tests: int, floor: float, n: int | None
) -> list[tuple[str, str]]:
    """The lines of `power`."""
    from safear_edit.evaluate import stats
    from safear_edit.report.sentences import percent

    def prompts(count: int) -> str:
        return f"{count} prompts" if count < stats.MOST_PAIRS else f"no number below {stats.MOST_PAIRS}"

    half, points = flips / 2, f"{100 * drop:g} points"
    family = f" with {tests} comparisons" if tests > 1 else ""
    rows = [
        (f"{percent(floor)} erased with 95 % confidence, no failure", prompts(stats.prompts_for_floor(floor))),
        ("the same with 3 failures", prompts(stats.prompts_for_floor(floor, 3))),
        (f"PASS when nothing changed ({percent(wanted)})", prompts(stats.pairs_needed(flips, margin, wanted))),
        (f"McNemar alone finds a drop of {points} ({percent(wanted)})",
         prompts(stats.pairs_to_detect(drop, half, wanted, stats.ALPHA / tests))),
        (f"FAIL for a drop of {points}{family} ({percent(wanted)})",
         prompts(stats.pairs_to_regress(drop, flips, margin, wanted, tests))),
    ]  # fmt: skip
    if n is not None:
        for what, lost in (("nothing changed", half), (f"{points} are lost", half + drop)):
            chance = stats.chances(n, lost, half, margin, p_alpha=stats.ALPHA / tests)
            words = f"PASS {percent(chance.passed)}, INCONCLUSIVE {percent(chance.inconclusive)}, "
            rows.append((f"{n} prompts{family}, {what}", words + f"FAIL {percent(chance.regressed)}"))
    return rows


# -- where results go -------------------------------------------------------------------------------------------------


def junit(found: Conclusion) -> bytes:
    """JUnit XML, one testcase per finding. INCONCLUSIVE is an error: dashboards show what is skipped as green."""
    suite = ElementTree.Element("testsuite", name="safear-edit check", tests=str(max(1, len(found.findings))))
    properties = ElementTree.SubElement(suite, "properties")
    told = {"verdict": found.verdict, "exit_code": str(found.exit_code), "summary": found.summary, **found.subject}
    for name, value in told.items():
        ElementTree.SubElement(properties, "property", name=name, value=_xml(value))
    counts = {"failure": 0, "error": 0, "skipped": 0}
    for finding in found.findings:
        rule = finding.id.partition("/")[0]
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(f"safear.{rule}"), name=_xml(finding.id))
        tag = {"FAIL": "failure", "INCONCLUSIVE": "error", "SKIPPED": "skipped"}.get(finding.decision)
        if tag:
            counts[tag] += 1
            text = f"{finding.observed}; needed: {finding.needed}; {finding.why}"
            part = ElementTree.SubElement(case, tag, type=finding.decision.lower(), message=_xml(text))
            part.text = _xml("\n".join(finding.prompts)) or None
    if found.verdict == "REFUSED":
        case = ElementTree.SubElement(suite, "testcase", classname="safear.input", name="input")
        ElementTree.SubElement(case, "error", type="refused", message=_xml(found.summary))
        counts["error"] += 1
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(counts[tag]))
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    """XML 1.0 has no way to write most control characters; they are shown as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def markdown(found: Conclusion, subject: str) -> str:
    """The summary page of a CI step: verdict, every finding, notes. No images, no prompt text."""
    lines = [
        f"### safear-edit check: {found.verdict}",
        "",
        f"{markdown_text(subject)}: {markdown_text(found.summary)}",
        "",
    ]
    if "signature" in found.subject:
        lines += [f"Signature: {markdown_text(found.subject['signature'])}", ""]
    if found.findings:
        lines += ["| | rule | seen | needed | |", "|---|---|---|---|---|"]
    for finding in found.findings:
        cells = (finding.decision, finding.id, finding.observed, finding.needed, finding.why)
        lines.append("| " + " | ".join(map(markdown_text, cells)) + " |")
    lost = [f"- {markdown_text(f.id)}: {', '.join(map(markdown_text, f.prompts))}" for f in found.findings if f.prompts]
    notes = [f"- {markdown_text(note)}" for note in found.notes]
    for title, items in (("First prompts lost (see the baseline for their text)", lost), ("Notes", notes)):
        if items:
            lines += ["", f"{title}:", "", *items]
    return "\n".join([*lines, ""])


def workflow_commands(found: Conclusion) -> list[str]:
    """Workflow commands that put what did not pass on the page of the change."""
    level = {"FAIL": "error", "INCONCLUSIVE": "warning" if found.exit_code == 0 else "error"}
    told = [(level[f.decision], f.id, f"{f.observed}. {f.why}") for f in found.findings if f.decision in level]
    if found.verdict == "REFUSED":
        told.append(("error", "safear-edit check", found.summary))
    return [f"::{kind} title={_command(title, ',:')}::{_command(text)}" for kind, title, text in told]


def _command(text: str, more: str = "") -> str:
    for char in "%\r\n" + more:
        text = text.replace(char, f"%{ord(char):02X}")
    return text


def _write_junit(path: Path, found: Conclusion) -> None:
    from safear_edit.files.atomic import write_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, junit(found))


def _append_summary(path: Path, found: Conclusion, subject: str) -> None:
    text = markdown(found, subject).encode()
    if len(text) > LARGEST_SUMMARY:
        text = text[:LARGEST_SUMMARY] + b"\n\ncut: the whole result is in --json\n"
    with path.open("ab") as file:
        file.write(text)


def _print(found: Conclusion) -> None:
    rows = [(f.decision, f.id, f.observed, f.needed) for f in found.findings]
    print_table(("", "rule", "seen", "needed"), rows, whole=("rule",))
    for finding in found.findings:
        if finding.why:
            ids = f" ({', '.join(finding.prompts)})" if finding.prompts else ""
            print(printable(f"{finding.decision} {finding.id}: {finding.why}{ids}"))
    for note in found.notes:
        print(printable(f"note: {note}"))
    print(printable(f"signature: {found.subject.get('signature', 'not verified')}"))
    print(printable(found.summary))


VERBS: tuple[click.Command, ...] = (check, baseline, power)

"""Kill walks with SIGKILL at random moments, run the same command again, and compare the end with a quiet run.

    python -m safear_edit.studies kills --model llamagen --kills 15 --out kills

A walk survives if it ends with the same weights, edits and outcomes to the bit, the same file names, a signature that
verifies, and nothing left beside its output. Small numbers: what is drawn is not looked at, only that it is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safear_edit.files.atomic import json_digest, sha256_file

SHAPES: dict[str, tuple[str, ...]] = {
    "single": ("picasso",),
    "stacked": ("picasso", "van_gogh"),
    "joint": ("picasso", "van_gogh", "--joint"),
}
SETS = ("construct.pairs=16", "construct.keep=6", "params.steps=4", "params.save_every=1", "params.batch=4",
        "params.keep_batch=2", "evaluate.n.direct=6", "evaluate.n.paraphrase=6", "evaluate.n.template=4")  # fmt: skip
TIMED = frozenset({"environment.json", "report.json", "report.html", "evidence.html", "README.md", "bom.cdx.json",
                   "model.sig", "claims.jsonl"})  # fmt: skip
"""Files that say when and how long; their presence is compared, not their bytes."""
VERDICTS = (0, 1, 3)


@dataclass(frozen=True)
class Survival:
    """One walk that was killed `at` these seconds after each start; `faults` is empty if it survived."""

    shape: str
    at: tuple[float, ...]
    faults: tuple[str, ...]


def command(shape: str, model: str, out: Path, key: Path, sets: Sequence[str]) -> list[str]:
    """The walk's command line."""
    words = [sys.executable, "-m", "safear_edit", "apply", *SHAPES[shape], "--model", model, "--out", str(out), "-q"]
    return [*words, "--key", str(key), *(word for value in sets for word in ("--set", value))]


def small(shape: str) -> list[str]:
    """SETS, and few images of every preserve group that the shape's concepts share."""
    from safear_edit.registry import find_builtin
    from safear_edit.spec.spec import load_spec

    specs = [load_spec(find_builtin("concepts", name)) for name in SHAPES[shape] if not name.startswith("-")]
    shared = set.intersection(*({group.name for group in spec.preserve} for spec in specs))
    return [*SETS, *(f"preserve.{name}.n=6" for name in sorted(shared))]


def contents(folder: Path) -> dict[str, str]:
    """Name → sha256 of each file, empty for TIMED ones; an edit without the minutes that it took."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    if path.name in TIMED:
        return ""
    if path.name != "edit.json":
        return sha256_file(path)
    told = json.loads(path.read_text())
    told["info"].pop("minutes", None)
    return json_digest(told)


def quiet(words: Sequence[str]) -> float:
    """Run to the end; the seconds it took. RuntimeError unless it ends with a verdict."""
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode not in VERDICTS:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-500:]}")
    return time.monotonic() - began


def killed(words: Sequence[str], after: float) -> bool:
    """Start, and kill the whole process group after so many seconds; False if it had ended before."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def faults_of(out: Path, expected: dict[str, str], trust: Path) -> tuple[str, ...]:
    """What differs from the quiet run's folder, what is left over, and whether the signature holds."""
    from safear_edit.errors import SafearError
    from safear_edit.release.verify import verify_folder

    found = contents(out)
    names = sorted(found.keys() ^ expected.keys())
    faults = [f"{name} is in one of the two only" for name in names]
    faults += [f"{name} differs" for name in sorted(found.keys() & expected.keys()) if found[name] != expected[name]]
    faults += [f"{path.name} was left" for path in sorted(out.parent.glob(f".{out.name}*"))]
    try:
        verify_folder(out, trust)
    except SafearError as error:
        faults.append(str(error))
    return tuple(faults)


def torment(shape: str, options: argparse.Namespace, kills: int, chance: random.Random) -> list[Survival]:
    """Walks of one shape, each killed up to three times, until `kills` have been made."""
    folder: Path = options.out
    key, trust = folder / "keys" / "safear.key", folder / "keys"
    reference = folder / shape
    sets = options.sets or small(shape)
    taken = quiet(command(shape, options.model, reference, key, sets))
    print(f"{shape}: the quiet run took {taken:.0f} s", flush=True)
    expected, found, made = contents(reference), list[Survival](), 0
    while made < kills:
        out, at = folder / f"{shape}-killed", list[float]()
        words = command(shape, options.model, out, key, sets)
        for _ in range(min(3, kills - made)):
            after = chance.uniform(0.5, 0.85 * taken)
            if not killed(words, after):
                break
            at.append(after)
        if not out.exists():
            quiet(words)
        made += len(at)
        one = Survival(shape, tuple(at), faults_of(out, expected, trust))
        found.append(one)
        print(f"{shape}: killed after {', '.join(f'{t:.1f}' for t in at) or 'nothing'} s: "
              f"{'; '.join(one.faults) or 'survived'}", flush=True)  # fmt: skip
        shutil.rmtree(out)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, continue, compare, print; 1 if a walk did not survive."""
    from safear_edit.release.keys import generate

    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies kills", description=__doc__)
    parser.add_argument("--model", default="llamagen", help="a mini")
    parser.add_argument("--kills", type=int, default=15, help="in all, shared among the shapes")
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    parser.add_argument("--set", dest="sets", action="append", help=f"default: {' '.join(SETS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a new folder to work in")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True)
    generate(options.out / "keys")
    chance, found = random.Random(options.seed), list[Survival]()
    for number, shape in enumerate(options.shapes):
        share = options.kills // len(options.shapes) + (number < options.kills % len(options.shapes))
        found += torment(shape, options, share, chance)
    survived = [one for one in found if not one.faults]
    print(f"{sum(len(one.at) for one in found)} kills in {len(found)} walks of {options.model}: {len(survived)} "
          "walks ended as the quiet one")  # fmt: skip
    return 0 if len(survived) == len(found) else 1

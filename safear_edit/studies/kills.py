"""Kill walks at random moments, give the same command again, and compare the end with an undisturbed run.

    python -m safear_edit.studies kills --kills 50 --out kills
    python -m safear_edit.studies kills --kills 50 --out kills-pico --pico

Single, stacked and joint walks on every embedded mini, in turn; with --pico on the smallest network of each mini's
family, with random weights and a coin for a judge: the same steps and files in a tenth of the time.

A walk is killed up to three times, by SIGKILL, SIGTERM or SIGINT drawn at random, each at a random share of the
processor time that the undisturbed walk took (wall time would depend on what else the machine does). It survives if it
ends with the same weights, edits and outcomes to the bit, the same file names, a signature that verifies, and nothing
left beside its output. Small sizes: images are only compared, not judged for what they show.

Each walk is a child of this process, forked with the libraries imported and the text encoder loaded, which runs the
command as the console script does. Each killed walk is a line of OUT/rows.jsonl; the same command goes on after the
last one. Linux only: the child's processor time is read from /proc.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safear_edit.files.atomic import json_digest, sha256_file, write_atomic
from safear_edit.studies.arguments import command, positive
from safear_edit.studies.rows import ROWS, Row, made, read_rows, write_rows

SHAPES: dict[str, tuple[str, ...]] = {
    "single": ("picasso",),
    "stacked": ("picasso", "van_gogh"),
    "joint": ("picasso", "van_gogh", "--joint"),
}
MODELS = ("llamagen", "infinity", "janus")
SETS = ("construct.keep=2", "params.steps=3", "params.save_every=1", "params.batch=2", "params.keep_batch=2",
        "evaluate.n.direct=2", "evaluate.n.paraphrase=2", "evaluate.n.template=1")  # fmt: skip
PAIRS = {False: "construct.pairs=12", True: "construct.pairs=60"}
"""By --pico: eight must be usable, and a coin leaves a quarter."""
KEPT = 2
"""Prompts of each preserved group."""
COIN = '''"""A judge that says yes or no by the bytes of an image."""

import hashlib

from safear_edit.judges.base import Judge, Judgement


class Coin(Judge):
    """Heads or tails."""

    def __init__(self, label, threshold=None):
        self.id, self.label, self.threshold = f"coin:{label}", label, 0.5
        self.digest = hashlib.sha256(label.encode()).hexdigest()

    def look(self, images):
        seen = [hashlib.sha256(self.label.encode() + image.numpy().tobytes()).digest()[0] / 255 for image in images]
        return [Judgement(score > 0.5, score, "tossed") for score in seen]
'''
PLUGIN = {
    "safear_coin.py": COIN,
    "safear_coin-0.dist-info/METADATA": "Metadata-Version: 2.1\nName: safear-coin\nVersion: 0\n",
    "safear_coin-0.dist-info/entry_points.txt": "[safear_edit.judges]\ncoin = safear_coin:Coin\n",
}
"""A distribution of one judge, as pip would install it."""
TIMED = frozenset({"environment.json", "report.json", "report.html", "evidence.html", "README.md", "bom.cdx.json",
                   "model.sig", "claims.jsonl"})  # fmt: skip
"""Files that say when and how long; their presence is compared, not their bytes."""
VERDICTS = (0, 1, 3)
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}
"""How a process ends that was sent each of them: -N killed by the system, else its own exit code."""
PER_WALK = 3
"""Kills of one walk at most; a command that ends before its moment isn't killed."""
MOST = 1000
"""Walks of a kind at most, for moments may fall behind a walk's end."""
WATCHED_EVERY = 0.005
"""Seconds between two looks at a child's processor time."""


@dataclass(frozen=True)
class Walk:
    """One kind of walk: the words after `safear-edit` but for --out."""

    shape: str
    model: str
    words: tuple[str, ...]

    def into(self, out: Path) -> list[str]:
        """The command that writes `out`."""
        return [*self.words, "--out", str(out)]


def walks(models: Sequence[str], folder: Path, *, pico: bool) -> list[Walk]:
    """Every shape on every model; what they read is in `folder`."""
    key, found = folder / "keys" / "safear.key", list[Walk]()
    for shape in SHAPES:
        for model in models:
            spec = {name: str(folder / f"{name}.yaml") if pico else name for name in ("picasso", "van_gogh")}
            ref = str(folder / "models" / model) if pico else model
            concepts = [spec.get(word, word) for word in SHAPES[shape]]
            sets = [word for value in (PAIRS[pico], *SETS, *_kept(shape)) for word in ("--set", value)]
            words = ("apply", *concepts, "--model", ref, "-q", "--key", str(key), *sets)
            found.append(Walk(shape, model, words))
    return found


def _kept(shape: str) -> list[str]:
    """Few images of every preserve group that the shape's concepts share."""
    from safear_edit.registry import find_builtin
    from safear_edit.spec.spec import load_spec

    specs = [load_spec(find_builtin("concepts", name)) for name in SHAPES[shape] if not name.startswith("-")]
    shared = set.intersection(*({group.name for group in spec.preserve} for spec in specs))
    return [f"preserve.{name}.n={KEPT}" for name in sorted(shared)]


def prepare(folder: Path, *, pico: bool) -> None:
    """Keys, and for --pico the coin on Python's path, specs that it judges, and the models; what is there stays."""
    from safear_edit.release.keys import generate

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "keys").exists():
        generate(folder / "keys")
    if not pico:
        return
    for name, text in PLUGIN.items():
        (folder / "plugin" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "plugin" / name).write_text(text)
    sys.path.insert(0, str(folder.resolve() / "plugin"))
    for name in ("picasso", "van_gogh"):
        _judged_by_the_coin(name, folder / f"{name}.yaml")
    if not (folder / "models").exists():
        partial = folder / "models.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a study that was killed meanwhile
        _in_a_child(lambda: _export_pico(partial))
        partial.rename(folder / "models")


def _judged_by_the_coin(name: str, path: Path) -> None:
    import yaml

    from safear_edit.registry import find_builtin
    from safear_edit.spec.spec import load_spec

    data = load_spec(find_builtin("concepts", name)).model_dump(mode="json")
    data["judge"]["use"] = "coin"
    write_atomic(path, yaml.safe_dump(data))


def _export_pico(folder: Path) -> None:
    from safear_edit.registry import lookup

    for name in MODELS:
        (folder / name).mkdir(parents=True)
        lookup("families", name).load().pico().export(folder / name)


def _in_a_child(make: Callable[[], None]) -> None:
    """So that the process from which all walks are forked has run no network. RuntimeError if it fails."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            make()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the models could not be made")


# -- comparing --------------------------------------------------------------------------------------------------------


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


def faults_of(out: Path, expected: dict[str, str], trust: Path) -> list[str]:
    """What differs from the undisturbed run's folder, what is left over, and whether the signature holds."""
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
    return faults


# -- running and killing ----------------------------------------------------------------------------------------------


def start(words: Sequence[str], log: Path) -> int:
    """Fork a child that runs the command and writes what it says to `log`; its process id."""
    pid = os.fork()
    if pid == 0:
        _be(words, log)
    return pid


def _be(words: Sequence[str], log: Path) -> NoReturn:
    from safear_edit.cli import main, terminal

    code = 70
    try:
        os.setsid()
        end = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(end, 1)
        os.dup2(end, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        terminal.be_a_program()
        code = main.run(words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def spent(pid: int) -> float:
    """Seconds of processor time that a process and its threads took; those of one that has ended stay until reaped."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def finished(words: Sequence[str], log: Path) -> float:
    """Run to the end; the processor time it took. RuntimeError unless it ends with a verdict."""
    pid = start(words, log)
    _, status, usage = os.wait4(pid, 0)
    if (code := os.waitstatus_to_exitcode(status)) not in VERDICTS:
        raise RuntimeError(f"exit {code}: {log.read_text()[-500:].strip()}")
    return usage.ru_utime + usage.ru_stime


def killed(words: Sequence[str], after: float, number: signal.Signals, log: Path) -> tuple[float, int]:
    """Start, and send the signal after so much processor time: the time then, and how the process ended."""
    pid = start(words, log)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return after, os.waitstatus_to_exitcode(status)
        if (at := spent(pid)) >= after:
            os.killpg(pid, number)
            _, status = os.waitpid(pid, 0)
            return at, os.waitstatus_to_exitcode(status)
        time.sleep(WATCHED_EVERY)


# -- the study --------------------------------------------------------------------------------------------------------


def undisturbed(walk: Walk, folder: Path) -> tuple[float, dict[str, str]]:
    """Processor time and contents of a walk that nobody kills; made once in `folder`."""
    reference = folder / f"{walk.model}-{walk.shape}"
    told = reference.with_suffix(".json")
    if told.exists():
        found = json.loads(told.read_text())
        return found["seconds"], found["contents"]
    shutil.rmtree(reference, ignore_errors=True)
    seconds = finished(walk.into(reference), folder / "log")
    expected = contents(reference)
    write_atomic(told, json.dumps({"seconds": seconds, "contents": expected}) + "\n")
    shutil.rmtree(reference)
    return seconds, expected


def torment(walk: Walk, number: int, folder: Path) -> Row:
    """One walk: killed, continued, compared. Signals and moments follow from what it is and its number."""
    seconds, expected = undisturbed(walk, folder)
    chance = random.Random(f"{walk.model} {walk.shape} {number}")
    out, log = folder / "walk" / f"{walk.model}-{walk.shape}-killed", folder / "log"
    shutil.rmtree(out.parent, ignore_errors=True)  # of a study that was itself killed
    out.parent.mkdir()
    kills, faults = list[dict[str, Any]](), list[str]()
    for _ in range(PER_WALK):
        sent = chance.choice(list(SIGNALS))
        at, code = killed(walk.into(out), chance.uniform(0, seconds), sent, log)
        if code in VERDICTS:
            break
        kills.append({"signal": sent.name, "at": round(at, 2), "share": round(at / seconds, 3), "exit": code})
        if code != SIGNALS[sent]:
            faults.append(f"{sent.name} ended it with {code}: {log.read_text()[-300:].strip()}")
        if out.exists():  # killed behind the last rename: all is published, and nothing is left to continue
            break
    if not out.exists():
        finished(walk.into(out), log)
    faults += faults_of(out, expected, folder / "keys")
    shutil.rmtree(out.parent)
    return {"model": walk.model, "walk": walk.shape, "number": number, "seconds": round(seconds, 2), "kills": kills,
            "faults": faults}  # fmt: skip


def rounds(found: Sequence[Walk], wanted: int, rows: Sequence[Row]) -> Iterator[tuple[Walk, int]]:
    """(walk, number) of what remains, in turn, until each model has its kills; `rows` grows meanwhile."""
    done = {(row["walk"], row["model"], row["number"]) for row in rows}
    for number in range(MOST):
        for walk in found:
            made = sum(len(row["kills"]) for row in rows if row["model"] == walk.model)
            if made < wanted and (walk.shape, walk.model, number) not in done:
                yield walk, number


def table(rows: Sequence[Row], size: str) -> list[dict[str, Any]]:
    """A line per mini and walk: kills by signal, and the walks that ended as the undisturbed one."""
    lines = []
    for model, shape in dict.fromkeys((row["model"], row["walk"]) for row in rows):
        those = [row for row in rows if (row["model"], row["walk"]) == (model, shape)]
        sent = Counter(kill["signal"] for row in those for kill in row["kills"])
        shares = [kill["share"] for row in those for kill in row["kills"]]
        same = {"k": sum(not row["faults"] for row in those), "n": len(those)}
        lines.append({"model": f"{model}:{size}", "walk": shape, "kills": len(shares), **{s.name: sent[s.name]
                      for s in SIGNALS}, "killed at, share of the walk": {"from": min(shares, default=0), "to":
                      max(shares, default=0)}, "walks that ended as undisturbed": same})  # fmt: skip
    return lines


def _imported() -> None:
    """Every module of the program and what it imports, and the minis' text encoder, once for all children."""
    import safear_edit
    from safear_edit.families.text import minilm

    for one in pkgutil.walk_packages(safear_edit.__path__, "safear_edit."):
        if not one.name.startswith(("safear_edit.studies", "safear_edit.minis", "safear_edit.__main__")):
            importlib.import_module(one.name)
    minilm().word_table()  # which loads its network
    gc.freeze()


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, continue, compare, print; 1 if a walk did not survive."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies kills", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--pico", action="store_true", help="random networks of the smallest size, and a coin")
    parser.add_argument("--kills", type=positive, default=50, help="of each model, over its three walks")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no walk after these")
    parser.add_argument("--out", type=Path, required=True, help="the study's folder; the same one continues")
    parser.add_argument("--commit", help="in which the lines are recorded")
    options = parser.parse_args(arguments)
    origin = made(command(parser, options, ("models", "pico", "kills", "minutes", "out")), options.commit)
    size = "pico" if options.pico else "mini"
    rows = read_rows(options.out / ROWS, size=size)
    prepare(options.out, pico=options.pico)
    _imported()
    end = time.monotonic() + 60 * options.minutes
    for walk, number in rounds(walks(options.models, options.out, pico=options.pico), options.kills, rows):
        if time.monotonic() > end:
            break
        rows.append({"size": size, "date": origin["date"]} | torment(walk, number, options.out))
        write_rows(options.out / ROWS, rows)
        _tell(rows[-1])
    for line in table(rows, size):
        print(json.dumps(line | origin | {"date": max(row["date"] for row in rows)}))
    return 1 if any(row["faults"] for row in rows) else 0


def _tell(row: Row) -> None:
    kills = ", ".join(f"{kill['signal']} at {kill['at']:.1f} s" for kill in row["kills"]) or "not killed"
    said = "; ".join(row["faults"]) or "survived"
    print(f"{row['model']} {row['walk']} {row['number']} ({row['seconds']:.1f} s): {kills}: {said}", flush=True)

"""Break one thing in valid files and folders, digests and signatures made good again, and watch every reader.

    python -m safear_edit.studies fuzz --release DIR --minutes 30 --keep found

Whatever is read must end in a documented exit code with one line, never in a traceback, an internal error, a hang or
memory without bound. Breaking happens *before* hashing and signing, so that the code behind the digests is reached
too. `damage` takes any random.Random: here a seeded one, in the tests hypothesis's own, which shrinks what it finds.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from safear_edit.errors import EXIT_CODES, SafearError, UsageError

Damage = Callable[[Path, random.Random], None]

ALLOWED = frozenset(EXIT_CODES) - {5, 129, 130, 143}
SLOW, MEMORY = 30, 4 << 30
"""Seconds for one input, and bytes by which the process may grow, before that counts as a fault."""
RAW = {"@nan": "NaN", "@big": "1" + "0" * 400, "@long": "7" * 5000, "@inf": "1e999", "@deep": "[" * 3000 + "]" * 3000}
"""Tokens of JSON that Python's own writer can't write; their names stand for them until the text is made."""
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**8, 2**63, -(2**70), 0.5, 1e308, "", "x", "a" * 20_000, "::error title=a::b",
    "\x1b[2J", "a\nb", "e\u0301", "../../x", "/etc/passwd", "<b>[l](http://a)", [], {}, [[]], {"": 0},
    ["x"] * 1000, *RAW,
)  # fmt: skip
CHANGED_SPEC = """schema_version: 1
extends: gallery/style
name: picasso
erase: {concept: Picasso, aliases: [Picasso, cubism, Pablo Picasso]}
anchor: {alias: a painting}
paraphrases: {train: [the painter of Guernica], held_out: [P. Picasso, the cubist movement, a cubist artist]}
preserve:
  add: {more: {Gauguin: style=gauguin}, other-styles: {Klimt: style=klimt}}
  drop: [dog]
  n: {plain: 40}
judge: {label: style=picasso}
"""
"""A short spec with every kind of change to its set."""
MODEL_FILES = (("llamagen", "safear.json"), ("infinity", "safear.json"), ("janus", "safear.json"),
               ("janus", "config.json"), ("janus", "tokenizer_config.json"), ("janus", "tokenizer.json"))  # fmt: skip
"""Configurations and the tokenizer of shipped models, by family."""
TEXTS = ("", "\t", "\r", "\ufeff", "\x00", "nan", "-1", "1e400", "9" * 5000, "'", '"', ",", ": ", "- ", "&a ", "*a",
         "!!x ", "::error::x", "\u00e9", "\U0001f600", "[" * 60, "=", "#", "x" * 5000)  # fmt: skip


class Late(BaseException):
    """The time for one input is over; no reader may take this for a failure of its own."""


@dataclass(frozen=True)
class Target:
    """Something that is read: a valid file or folder `sample`, a way to break it, and its reader.

    file: the one file of a folder that `damage` breaks; "" where it is any of them, or the sample is a file itself.
    """

    name: str
    sample: Path
    damage: Damage
    read: Callable[[Path], object]
    weight: int = 10
    file: str = ""


# -- breaking one thing -----------------------------------------------------------------------------------------------


def break_bytes(path: Path, chance: random.Random) -> None:
    """One change to bytes: a bit, a number, a cut, a piece lost, doubled or put in."""
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data) + 1)
    size = chance.choice((1, 2, 8, 64))
    kind = chance.randrange(6)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        data[at : at + size] = chance.choice((0, 1, 255, 2**31 - 1, 2**64 - 1)).to_bytes(8, "little")[:size]
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + size]
    elif kind == 4:
        data[at:at] = data[at : at + size]
    else:
        data[at:at] = bytes(chance.randrange(256) for _ in range(size))
    _replace(path, bytes(data))


def break_text(path: Path, chance: random.Random) -> None:
    """One change to a line: lost, doubled, moved, or a word or character in it exchanged."""
    lines = path.read_text().split("\n")
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    words = re.split(r"(\W)", lines[at])
    kind = chance.randrange(5)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        words[chance.randrange(len(words))] = chance.choice(TEXTS)
        lines[at] = "".join(words)
    _replace(path, "\n".join(lines).encode(errors="surrogatepass"))


def break_json(path: Path, chance: random.Random) -> None:
    """One change to a JSON document or to one line of JSON lines; seldom to its bytes."""
    if chance.randrange(8) == 0:
        return break_bytes(path, chance)
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        at = chance.randrange(len(lines))
        lines[at] = broken_json(lines[at], chance)
        return _replace(path, ("\n".join(lines) + "\n").encode(errors="surrogatepass"))
    return _replace(path, broken_json(path.read_text(), chance).encode(errors="surrogatepass"))


def break_structure(path: Path, chance: random.Random) -> None:
    """One change to what a YAML file says, written as JSON, which is YAML too."""
    import yaml

    data = yaml.safe_load(path.read_text())
    _replace(path, broken_json(json.dumps(data), chance).encode(errors="surrogatepass"))


def broken_json(text: str, chance: random.Random) -> str:
    """The document with one value exchanged, lost, doubled or put in, one key renamed or written twice."""
    data = json.loads(text)
    places = list(_places(data))
    if not places:
        return _written(chance.choice(HOSTILE))
    owner, key = places[chance.randrange(len(places))]
    kind = chance.randrange(8)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[chance.choice(("", "x", "a\x1bb", "__proto__"))] = owner.pop(key)
    elif kind == 2 and isinstance(owner, list):
        owner.insert(key, owner[key])
    elif kind == 3 and isinstance(owner, dict):
        owner["@twice"] = owner[key]
        return _written(data).replace('"@twice":', json.dumps(key) + ":", 1)
    elif kind == 4 and isinstance(owner[key], int | float):
        owner[key] = owner[key] * chance.choice((-1, 2, 1000, 10**9)) + chance.choice((0, 1, -1))
    else:
        owner[key] = chance.choice(HOSTILE)
    return _written(data)


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a document by its owner and key."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield data, key
        yield from _places(value)


def _written(data: Any) -> str:
    text = json.dumps(data)
    for name, token in RAW.items():
        text = text.replace(f'"{name}"', token)
    return text


def _replace(path: Path, data: bytes) -> None:
    """New content under the name; the old file may have other names (hard links)."""
    path.unlink()
    path.write_bytes(data)


def break_header(path: Path, chance: random.Random) -> None:
    """A safetensors file whose header is broken and its length made good, or whose bytes are broken."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if chance.randrange(3) == 0:
        return break_bytes(path, chance)
    header = broken_json(data[8 : 8 + length].decode(), chance).encode(errors="surrogatepass")
    return _replace(path, len(header).to_bytes(8, "little") + header + data[8 + length :])


def break_sealed(path: Path, chance: random.Random) -> None:
    """One change to a baseline, and its digest made good."""
    from safear_edit.gate.baseline import SEAL

    break_text(path, chance)
    text = path.read_bytes().rpartition(f"{SEAL}\t".encode())[0]
    _replace(path, text + f"{SEAL}\t{hashlib.sha256(text).hexdigest()}\n".encode())


# -- a release, signed again ------------------------------------------------------------------------------------------


def break_release(folder: Path, chance: random.Random, key: Any) -> None:
    """One file of a release broken, its digest exchanged wherever it is noted, all signed again by a trusted key."""
    small = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size < 1 << 20)
    texts = [p for p in small if p.suffix in (".json", ".jsonl", ".yaml") and p.name not in ("claims.jsonl",)]
    path = chance.choice(texts) if chance.randrange(8) else chance.choice(small)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.name in ("model.sig", "claims.jsonl"):
        return break_statement(path, chance, key)
    kind = {".json": break_json, ".jsonl": break_json, ".yaml": break_text}.get(path.suffix, break_bytes)
    kind(path, chance)
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    for other in texts:
        text = other.read_bytes()
        if other != path and before.encode() in text:
            _replace(other, text.replace(before.encode(), after.encode()))
    sign_again(folder, key)


def sign_again(folder: Path, key: Any) -> None:
    """Signature and claims of `folder` about the files as they are now."""
    from safear_edit.release.signing import CLAIMS, sign_folder, sign_statement

    lines = (folder / CLAIMS).read_text().splitlines()
    (folder / "model.sig").unlink(missing_ok=True)
    try:
        files = sign_folder(folder, key).files
    except SafearError:
        return  # what can't be signed (no weights, a private key) is refused in other words, which is fine
    subject = [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(files.items())]
    made = [sign_statement({**_statement(line), "subject": subject}, key) for line in lines]
    _replace(folder / CLAIMS, ("\n".join(made) + "\n").encode())


def _statement(line: str) -> dict[str, Any]:
    statement: dict[str, Any] = json.loads(base64.b64decode(json.loads(line)["dsseEnvelope"]["payload"]))
    return statement


def break_statement(path: Path, chance: random.Random, key: Any) -> None:
    """What a signature says, broken and signed by a trusted key; or the envelope around it."""
    from safear_edit.release.signing import BUNDLE_TYPE, PAYLOAD_TYPE, pae

    lines = path.read_text().splitlines()
    at = chance.randrange(len(lines))
    if chance.randrange(3) == 0:
        lines[at] = broken_json(lines[at], chance)
    else:
        payload = broken_json(json.dumps(_statement(lines[at])), chance).encode(errors="surrogatepass")
        signed = {"sig": base64.b64encode(key.sign(pae(payload))).decode(), "keyid": ""}
        envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": [signed]}
        material = {"publicKey": {"hint": key.hint}, "tlogEntries": []}
        lines[at] = json.dumps({"mediaType": BUNDLE_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope})
    _replace(path, ("\n".join(lines) + "\n").encode(errors="surrogatepass"))


# -- reading, and what may come of it ---------------------------------------------------------------------------------


def run_verb(*words: str) -> None:
    """Run one command of the CLI; AssertionError unless it ends as documented."""
    from safear_edit.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.run(list(words))
    said = err.getvalue()
    assert code in ALLOWED, f"{words[0]}: exit {code}: {said[:1000]}"
    assert "Traceback" not in said + out.getvalue(), said
    assert "not enough memory" not in said, f"{words[0]}: {said[:1000]}"
    if code in (2, 4):
        lines = said.splitlines()  # a spec's faults are all told, a line each
        assert lines and all(line.startswith("safear-edit: ") for line in lines), f"{words[0]}: {said[:1000]}"


def run_reader(read: Callable[[Path], object], path: Path) -> None:
    """Call one reader; it may refuse in one printable line, and do nothing else."""
    try:
        read(path)
    except SafearError as error:
        assert error.exit_code in (2, 4), f"exit {error.exit_code}: {error}"
        assert str(error).isprintable(), repr(str(error))[:500]


def execute(target: Target, chance: random.Random, scratch: Path) -> str | None:
    """Break a copy of the sample and read it; what was wrong with the reading, None if nothing."""
    copy = scratch / target.sample.name
    if target.sample.is_dir():
        shutil.copytree(target.sample, copy, copy_function=os.link)
    else:
        shutil.copyfile(target.sample, copy)
    target.damage(copy, chance)
    try:
        target.read(copy)
    except (Exception, Late):
        return traceback.format_exc()
    return None


# -- targets ----------------------------------------------------------------------------------------------------------


def file_targets(folder: Path) -> list[Target]:
    """Readers of single files, each with a small valid sample in `folder`."""
    return [*_plain_targets(folder), *_prompt_targets(folder), *_tensor_targets(folder), *_image_targets(folder)]


def _plain_targets(folder: Path) -> Iterator[Target]:
    """Spec, base recipe, frozen attacks, and keys."""
    from safear_edit.attacks.lock import Frozen, Replay, read_lock, write_lock
    from safear_edit.compiler.recipe import load_base_recipe
    from safear_edit.registry import find_builtin
    from safear_edit.release.keys import find_signer, generate, load_public

    shutil.copyfile(find_builtin("concepts", "picasso"), folder / "spec.yaml")
    shutil.copyfile(find_builtin("recipes", "vce"), folder / "recipe.yaml")
    replay = Replay(prompt="a cat by P.", sealed=None, seed="7", settings={"cfg": 2.0})
    frozen = Frozen(concept="p", attack="aliases", replay=replay, seeds=("7", "8"), found=1, judge="j",
                    judge_digest="a" * 64, base_digest="b" * 64, change="c")  # fmt: skip
    write_lock(folder / "attacks.lock", [frozen])
    pair = generate(folder / "keys")
    (folder / "changes.yaml").write_text(CHANGED_SPEC)
    recipe = partial(run_reader, lambda path: load_base_recipe(str(path)))
    yield Target("spec", folder / "spec.yaml", break_text, lambda p: run_verb("validate", str(p)))
    yield Target("spec's structure", folder / "changes.yaml", break_structure, lambda p: run_verb("validate", str(p)))
    yield Target("base recipe", folder / "recipe.yaml", break_text, recipe)
    yield Target("recipe's structure", folder / "recipe.yaml", break_structure, recipe)
    yield Target("attacks.lock", folder / "attacks.lock", break_json, partial(run_reader, read_lock))
    yield Target("public key", pair.public, break_bytes, partial(run_reader, load_public))
    yield Target("environment's key", pair.private, break_bytes,
                 partial(run_reader, lambda path: find_signer(None, _environment(path))))  # fmt: skip


def _environment(path: Path) -> dict[str, str]:
    """The file's bytes as the system hands them to a program in a variable."""
    from safear_edit.release.keys import KEY_VARIABLE

    return {KEY_VARIABLE: os.fsdecode(path.read_bytes().replace(b"\0", b""))}


def _prompt_targets(folder: Path) -> Iterator[Target]:
    """Files of prompts in every format that is text."""
    from safear_edit.spec.prompt_files import read_prompts

    rows = [{"id": "a", "prompt": "a dog", "seed": 1}, {"id": "b", "prompt": "a cat"}]
    texts = {
        "csv": 'id,prompt,seed\na,"a dog, running",1\nb,a cat,2\n',
        "tsv": 'id\tprompt\tseed\na\t"a dog\trunning"\t1\nb\ta cat\t2\n',
        "txt": "a dog\na cat on a mat\n",
        "json": json.dumps(rows),
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
    }
    for kind, text in texts.items():
        path = folder / f"p.{kind}"
        path.write_text(text)
        breaking = break_json if kind.startswith("json") else break_text
        yield Target(f"prompts {kind}", path, breaking, partial(run_reader, read_prompts))


def _tensor_targets(folder: Path) -> Iterator[Target]:
    """Weights, and the training pairs of the construct step."""
    import torch

    from safear_edit.construct.pairs import Pairs
    from safear_edit.construct.pairs_record import PairStats
    from safear_edit.files.weights import read_weights, write_pickle, write_weights

    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(4, dtype=torch.bfloat16)}
    write_weights(folder / "w.safetensors", tensors)
    write_pickle(folder / "w.pt", {"model": tensors})
    ids = torch.zeros(2, 4, dtype=torch.int64)
    Pairs(["a", "b"], ["c", "d"], [1, 2], ids, ids, PairStats(2, 2, {})).save(folder / "pairs")
    yield Target("safetensors", folder / "w.safetensors", break_header, partial(run_reader, read_weights))
    yield Target("pickle", folder / "w.pt", break_bytes, partial(run_reader, partial(read_weights, allow_pickle=True)),
                 weight=1)  # fmt: skip
    yield Target("pairs", folder / "pairs", partial(_break_file, name="pairs.jsonl"), partial(run_reader, Pairs.load),
                 file="pairs.jsonl")  # fmt: skip


def _image_targets(folder: Path) -> Iterator[Target]:
    """Images of the three formats, and a folder of them with captions."""
    from PIL import Image

    from safear_edit.evaluate.image_folder import CAPTIONS, folder_source
    from safear_edit.files.images import read_image

    for kind in ("png", "jpg", "webp"):
        path = folder / f"one.{kind}"
        Image.new("RGB", (9, 7), (80, 9, 9)).save(path)
        yield Target(f"image {kind}", path, break_bytes, partial(run_reader, lambda p: read_image(p, "image")))
    (folder / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (9, 7), (number * 80, 9, 9)).save(folder / "images" / f"{number}.png")
    rows: list[dict[str, Any]] = [{"file": f"{n}.png", "prompts": {"direct": "a cat by P."}, "neutral": "a cat"}
                                  for n in range(2)]  # fmt: skip
    rows.append({"file": "2.png", "prompt": "a dog", "group": "neighbours"})
    (folder / "images" / CAPTIONS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield Target("images", folder / "images", _break_images, partial(run_reader, partial(folder_source, size=8)),
                 file=CAPTIONS)  # fmt: skip


def _break_images(folder: Path, chance: random.Random) -> None:
    path = chance.choice(sorted(folder.iterdir()))
    (break_json if path.suffix == ".jsonl" else break_bytes)(path, chance)


def release_targets(release: Path, folder: Path) -> list[Target]:
    """What reads a released folder, its files and a baseline made of it; `folder` for samples and keys."""
    from safear_edit.compiler.recipe import load_recipe
    from safear_edit.evaluate.outcomes import read_outcomes
    from safear_edit.gate.baseline import read_baseline
    from safear_edit.release.keys import throwaway
    from safear_edit.report.build import read_report

    key, trust = throwaway(folder / "trust"), str(folder / "trust")
    sample = folder / "release"
    shutil.copytree(release, sample)
    sign_again(sample, key)
    baseline = folder / "baseline.txt"
    run_verb("baseline", "accept", str(sample), "--out", str(baseline), "--reason", "fuzz", "--suite", "smoke",
             "--despite", "fuzz")  # fmt: skip
    verbs: list[tuple[str, ...]] = [("verify", "DIR", "--trust", trust), ("report", "DIR"), ("stack", "ls", "DIR")]
    targets = []
    if baseline.exists():
        verbs += [("check", "DIR", "--baseline", str(baseline)),
                  ("check", "DIR", "--baseline", str(baseline), "--trust", trust, "--json")]  # fmt: skip
        targets.append(Target("baseline", baseline, break_text, partial(run_reader, read_baseline)))
        against = lambda path: run_verb("check", str(sample), "--baseline", str(path))  # noqa: E731
        targets.append(Target("baseline, sealed again", baseline, break_sealed, against))
    else:
        print(f"no baseline of {release} was accepted; its reader is left out", file=sys.stderr)
    breaking: Damage = partial(break_release, key=key)
    for words in verbs:
        targets.append(Target(f"release: {' '.join(words[:2] if words[0] == 'stack' else words[:1])}", sample, breaking,
                              partial(_on, words)))  # fmt: skip
    for name, file in (("claims", "claims.jsonl"), ("model.sig", "model.sig")):
        targets.append(Target(name, sample, lambda p, c, file=file: break_statement(p / file, c, key),  # type: ignore[misc]
                              partial(_on, ("verify", "DIR", "--trust", trust)), file=file))  # fmt: skip
    for name, read in (("recipe.json", load_recipe), ("outcomes.jsonl", read_outcomes), ("report.json", read_report)):
        if (sample / name).exists():
            targets.append(Target(name, sample / name, break_json, partial(run_reader, read)))
    return targets


def _on(words: Sequence[str], folder: Path) -> None:
    run_verb(*(str(folder) if word == "DIR" else word for word in words))


def model_targets(folder: Path) -> Iterator[Target]:
    """The shipped models, one of whose configurations is broken before the folder is loaded."""
    from safear_edit.families.load import load_model
    from safear_edit.registry import PACKAGE

    read = partial(run_reader, lambda path: load_model(str(path)))
    for family, name in MODEL_FILES:
        sample = folder / f"model-{family}"
        if not sample.exists():
            shutil.copytree(PACKAGE / "minis" / family, sample, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        yield Target(f"{family} {name}", sample, partial(_break_file, name=name), read, weight=4, file=name)


def _break_file(folder: Path, chance: random.Random, name: str) -> None:
    break_json(folder / name, chance)


# -- the long run -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Break and read until the time is up; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.studies fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--release", type=Path, help="a signed release; without one only single files are broken")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; the next has the next one")
    parser.add_argument("--only", help="targets whose name contains this")
    parser.add_argument("--keep", type=Path, help="folder for inputs that were read wrongly")
    options = parser.parse_args(arguments)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="safear-fuzz-") as name:
        folder = Path(name)
        targets = [*file_targets(folder), *model_targets(folder)]
        if options.release is not None:
            targets += release_targets(options.release, folder)
        known = ", ".join(target.name for target in targets)
        targets = [target for target in targets if (options.only or "") in target.name]
        if not targets:
            raise UsageError("--only", f"a part of one of {known}", options.only, "some need --release DIR")
        return _run(targets, options, folder)


def _run(targets: Sequence[Target], options: argparse.Namespace, folder: Path) -> int:
    _bound()
    done, wrong, kinds = Counter[str](), Counter[str](), set[str]()
    end, number = time.monotonic() + 60 * options.minutes, options.seed
    weights = [target.weight for target in targets]
    while time.monotonic() < end:
        chance = random.Random(number)
        (target,) = chance.choices(targets, weights)
        with tempfile.TemporaryDirectory(prefix="safear-one-", dir=folder) as scratch:
            signal.alarm(SLOW)
            said = execute(target, chance, Path(scratch))
            signal.alarm(0)
            done[target.name] += 1
            if said is not None:
                wrong[target.name] += 1
                kind = f"{target.name}: {said.strip().splitlines()[-1][:300]}"
                if kind not in kinds:
                    kinds.add(kind)
                    print(f"seed {number}: {kind}", flush=True)
                    _keep(options.keep, Path(scratch), target.sample.name, number, said)
        number += 1
    for name, count in sorted(done.items()):
        print(f"{name}: {count} executions, {wrong[name]} failures")
    print(f"in all {sum(done.values())} executions, {sum(wrong.values())} failures of {len(kinds)} kinds")
    return 1 if wrong else 0


def _keep(folder: Path | None, scratch: Path, name: str, number: int, said: str) -> None:
    if folder is None:
        return
    place = folder / str(number)
    place.mkdir(parents=True, exist_ok=True)
    (place / "traceback.txt").write_text(said)
    broken = scratch / name
    if broken.is_dir():
        shutil.copytree(broken, place / name, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    elif broken.exists():
        shutil.copyfile(broken, place / name)


def _bound() -> None:
    """Let this process grow by MEMORY bytes only, and let SLOW seconds end an input (where the system can)."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Late(f"more than {SLOW} seconds")

    signal.signal(signal.SIGALRM, late)
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))

"""The whole walk from Python, made small to run in a minute: python examples/api.py [NEW FOLDER]."""

import sys
from pathlib import Path

import safear_edit as safear
from safear_edit.release.keys import generate

SMALL = {"params.steps": 4, "params.batch": 4, "params.keep_batch": 4, "construct.pairs": 12, "construct.keep": 12}
SMALL |= {f"evaluate.n.{name}": 4 for name in ("direct", "paraphrase", "template")}
SMALL |= {f"preserve.{name}.n": 4 for name in ("other-styles", "objects", "plain")}


def main(folder: Path) -> None:
    """Compile, apply, sign, verify, and judge prompts of one's own."""
    keys = generate(folder / "keys")
    recipe = safear.compile("picasso", "llamagen", overrides=SMALL)
    print(f"{recipe.spec.erase.concept}: {len(recipe.construct.pairs)} pairs, recipe {recipe.digest[:12]}")
    result = safear.apply("picasso", model="llamagen", out=folder / "safe", overrides=SMALL, key=str(keys.private))
    print(result.lines[-1])
    print(safear.verify(folder / "safe", trust=folder / "keys").result)
    (folder / "prompts.txt").write_text("a house by Pablo Picasso\na cat by Pablo Picasso\n")
    print(*safear.evaluate_prompts(folder / "safe", spec="picasso", prompts=folder / "prompts.txt").summary(), sep="\n")


if __name__ == "__main__":
    new = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/api")
    if new.exists():
        sys.exit(f"{new}: expected a new folder, got one that exists; name another")
    main(new)

"""Make the embedded assets from nothing: `python -m safear_edit.minis ASSET --folder F [--steps N]`.

Every training is resumable (the same command continues it) and prints its progress; `sheet` shows the world itself.
Order: vq, llamagen and janus (read vq's folder); diffusion; bsq, infinity (reads bsq's); judge, clip; then `measure`
tells how good a mini is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from safear_edit.errors import SafearError, UsageError


def sheet(options: argparse.Namespace) -> None:
    """Contact sheet: one row per style, one column per object."""
    from safear_edit.gallery.render import OBJECTS, SCENES, STYLES, Picture, draw
    from safear_edit.gallery.render import sheet as page

    rows = [
        [
            draw(Picture(name, style, SCENES[c % len(SCENES)], c == 0, pose=(r + c) % 6))
            for c, name in enumerate(OBJECTS)
        ]
        for r, style in enumerate(STYLES)
    ]
    options.folder.mkdir(parents=True, exist_ok=True)
    page(rows).save(options.folder / "world.png")
    print(options.folder / "world.png")


def vq(options: argparse.Namespace) -> None:
    """The VQ tokenizer that the LlamaGen and Janus minis share."""
    from safear_edit.minis import train_vq

    train_vq.train(options.folder, options.steps or train_vq.STEPS)


def llamagen(options: argparse.Namespace) -> None:
    """llamagen:mini's transformer; `--vq` is the folder of a finished tokenizer."""
    from safear_edit.minis import train_llamagen, train_vq

    train_llamagen.train(options.folder, train_vq.trained(options.vq), options.steps or train_llamagen.STEPS)


def janus(options: argparse.Namespace) -> None:
    """janus:mini, which draws and answers questions; `--vq` is the folder of a finished tokenizer."""
    from safear_edit.minis import train_janus, train_vq

    train_janus.train(options.folder, train_vq.trained(options.vq), options.steps or train_janus.STEPS)


def diffusion(options: argparse.Namespace) -> None:
    """diffusion:mini's denoiser; its latents are those of llamagen:mini's tokenizer, as shipped."""
    from safear_edit.families.llamagen import LlamaGen
    from safear_edit.families.reference import ModelRef
    from safear_edit.minis import train_diffusion

    tokenizer = LlamaGen.load(ModelRef("llamagen", "mini")).vq
    train_diffusion.train(options.folder, tokenizer, options.steps or train_diffusion.STEPS)


def bsq(options: argparse.Namespace) -> None:
    """The multi-scale BSQ tokenizer of infinity:mini."""
    from safear_edit.minis import train_bsq

    train_bsq.train(options.folder, options.steps or train_bsq.STEPS)


def infinity(options: argparse.Namespace) -> None:
    """infinity:mini's transformer; `--bsq` is the folder of a finished tokenizer."""
    from safear_edit.minis import train_bsq, train_infinity

    train_infinity.train(options.folder, train_bsq.trained(options.bsq), options.steps or train_infinity.STEPS)


def judge(options: argparse.Namespace) -> None:
    """The gallery judge: style, object, scene, hazard, or "cannot tell"."""
    from safear_edit.minis import train_judge

    train_judge.train(options.folder, options.steps or train_judge.STEPS)


def clip(options: argparse.Namespace) -> None:
    """The gallery CLIP in open_clip's own format."""
    from safear_edit.minis import train_clip

    train_clip.train(options.folder, options.steps or train_clip.STEPS)


def measure(options: argparse.Namespace) -> None:
    """How well a mini follows its captions, and answers if it can; `--steps` is the number of asked generations."""
    from safear_edit.families.load import load_model
    from safear_edit.minis import measure as measuring

    measuring.measure(load_model(options.model), options.folder, options.steps or measuring.ASKED)


ASSETS: dict[str, Callable[[argparse.Namespace], None]] = {
    "sheet": sheet,
    "vq": vq,
    "llamagen": llamagen,
    "janus": janus,
    "diffusion": diffusion,
    "bsq": bsq,
    "infinity": infinity,
    "judge": judge,
    "clip": clip,
    "measure": measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run one asset; what can't be used is one line on stderr and the exit code of its kind."""
    parser = argparse.ArgumentParser(prog="python -m safear_edit.minis", description=__doc__)
    parser.add_argument("asset", choices=sorted(ASSETS))
    parser.add_argument("--folder", type=Path, required=True, help="where the asset, its state and its log live")
    parser.add_argument("--steps", type=int, help="training steps (default: the asset's own)")
    parser.add_argument("--vq", type=Path, default=Path("runs/vq"), help="folder of the tokenizer (llamagen, janus)")
    parser.add_argument("--bsq", type=Path, default=Path("runs/bsq"), help="folder of the tokenizer (for infinity)")
    parser.add_argument("--model", default="llamagen", help="model reference to measure")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps: expected a whole number above 0, got {options.steps}")
    try:
        ASSETS[options.asset](options)
    except SafearError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return UsageError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

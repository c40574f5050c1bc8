"""The walk with plain arguments, for Python programs: what `safear_edit` exports beside the types.

Each function does what the command of its name does, from the same steps; nothing is printed, and what a person must
know is in the value that comes back or in the SafearError that is raised (its `exit_code` is the command's).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safear_edit.progress import Callback, silent

if TYPE_CHECKING:
    from safear_edit.compiler.recipe import Recipe
    from safear_edit.evaluate.own_prompts import Comparison
    from safear_edit.gate.rules import Conclusion
    from safear_edit.pipeline.order import Order
    from safear_edit.pipeline.publish import Result
    from safear_edit.release.verify import Verification
    from safear_edit.spec.spec import Spec


def load_spec(source: str | Path) -> Spec:
    """A concept spec, checked: a YAML file, or the name of a built-in concept. SpecError names file, line and field."""
    from safear_edit.pipeline.order import source_path
    from safear_edit.spec import spec

    return spec.load_spec(source_path(str(source)))


def compile(
    source: str | Path,
    model: str | Path,
    *,
    method: str = "vce",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Recipe:
    """The frozen recipe for one concept on one model: every prompt, seed, number, judge and gate resolved.

    overrides: what `--set` changes, such as {"params.steps": 60}. The model is loaded for its card and digest; nothing
    is trained. `recipe.digest` is the identity of the run that it describes.
    """
    from safear_edit.pipeline.plan import compiled

    _, (recipe,) = compiled([_order(source, model, method, seed, overrides, device)])
    return recipe


def apply(
    *sources: str | Path,
    model: str | Path | None = None,
    out: str | Path,
    method: str = "vce",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    joint: bool = False,
    key: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: Callback = silent,
) -> Result:
    """Erase the concepts of `sources` (specs or recipes) from `model` and publish the folder `out`.

    key: a PEM file or KMS address that signs it; without one the release is unsigned. An interrupted call continues
    when it is given again. `result.exit_code` is 0, 1 or 3 for PASS, FAIL and INCONCLUSIVE; the folder is published
    with any verdict.
    """
    from safear_edit.pipeline import run
    from safear_edit.pipeline.state import RunOptions
    from safear_edit.release.keys import find_signer

    orders = [_order(source, model, method, seed, overrides, device) for source in sources]
    signing = find_signer(key, os.environ) if key else None
    options = RunOptions(
        signing, unsigned=key is None, overwrite=overwrite, command="safear_edit.apply", progress=progress
    )
    return run.apply(orders, Path(out), options, joint=joint)


def evaluate_prompts(
    *models: str | Path,
    spec: str | Path,
    prompts: str | Path,
    seed: int = 0,
    device: str = "auto",
    progress: Callback = silent,
) -> Comparison:
    """Two models, or a release and the base that it holds, judged on a file of prompts: same seeds for both."""
    from safear_edit.pipeline.eval import Loading, compare_prompts

    names, how = [str(model) for model in models], Loading(device)
    return compare_prompts(names, spec=str(spec), prompts=Path(prompts), seed=seed, how=how, progress=progress)


def check(release: str | Path, *baselines: str | Path) -> Conclusion:
    """A released folder against accepted baselines: PASS, FAIL or INCONCLUSIVE, with every finding.

    Nothing is drawn. The folder's signature is not checked here: `verify` it first.
    """
    from safear_edit.gate.baseline import read_baseline
    from safear_edit.gate.record import read_folder
    from safear_edit.gate.rules import check as decide

    return decide(read_folder(Path(release)), {str(path): read_baseline(Path(path)) for path in baselines})


def verify(release: str | Path, trust: str | Path) -> Verification:
    """Signature, contents and claims of a release against the public keys in `trust`; TrustError for any change."""
    from safear_edit.release.verify import verify_folder

    return verify_folder(Path(release), Path(trust))


def _order(
    source: str | Path,
    model: str | Path | None,
    method: str,
    seed: int,
    overrides: Mapping[str, Any] | None,
    device: str,
) -> Order:
    from safear_edit.pipeline.order import Order

    changes = tuple(
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in (overrides or {}).items()
    )
    return Order(str(source), str(model) if model else None, method, seed, changes, device)

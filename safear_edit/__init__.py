"""safear-edit: erase a named concept from an autoregressive image generator, measure what happened, sign the result.

    import safear_edit as safear

    recipe = safear.compile("picasso", "llamagen")          # a spec and a method become a frozen plan
    result = safear.apply("picasso", model="llamagen", out="safe-llamagen", key="keys/safear.key")
    safear.verify("safe-llamagen", trust="keys")            # anyone with the public key can do this
    model = safear.load_model("safe-llamagen")              # a release loads like any model

How it works stands in pipeline/run.py, which is the first file to read. Everything here is imported when it is first
used, so `import safear_edit` costs nothing. Other packages add families, methods, judges and attacks with the
decorators `family`, `method`, `judge` and `attack`, and an entry point (registry.py).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safear_edit.compiler.recipe import Recipe
    from safear_edit.editor.edit import Edit
    from safear_edit.editor.stack import Stack
    from safear_edit.errors import SafearError
    from safear_edit.evaluate.outcomes import Outcome, read_outcomes
    from safear_edit.families.base import ModelFamily
    from safear_edit.families.load import load_model
    from safear_edit.judges.base import Judge
    from safear_edit.pipeline.api import apply, check, compile, evaluate_prompts, load_spec, verify
    from safear_edit.registry import attack, family, judge, method
    from safear_edit.report.schema import Report
    from safear_edit.spec.spec import Spec

_HOME = {
    "Edit": "editor.edit",
    "Judge": "judges.base",
    "ModelFamily": "families.base",
    "Outcome": "evaluate.outcomes",
    "Recipe": "compiler.recipe",
    "Report": "report.schema",
    "SafearError": "errors",
    "Spec": "spec.spec",
    "Stack": "editor.stack",
    "apply": "pipeline.api",
    "attack": "registry",
    "check": "pipeline.api",
    "compile": "pipeline.api",
    "evaluate_prompts": "pipeline.api",
    "family": "registry",
    "judge": "registry",
    "load_model": "families.load",
    "load_spec": "pipeline.api",
    "method": "registry",
    "read_outcomes": "evaluate.outcomes",
    "verify": "pipeline.api",
}

__all__ = [
    "Edit",
    "Judge",
    "ModelFamily",
    "Outcome",
    "Recipe",
    "Report",
    "SafearError",
    "Spec",
    "Stack",
    "apply",
    "attack",
    "check",
    "compile",
    "evaluate_prompts",
    "family",
    "judge",
    "load_model",
    "load_spec",
    "method",
    "read_outcomes",
    "verify",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]

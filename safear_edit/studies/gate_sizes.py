"""Why the gate's suites have their sizes, and how often the gate errs by simulation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from safear_edit.gate.record import SUITES
from safear_edit.gate.simulate import holds, planned_shapes, self_test, sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the sizes with their calculation and the self-test of the default suite; 1 if either does not hold."""
    argparse.ArgumentParser(prog="python -m safear_edit.studies gate_sizes", description=__doc__).parse_args(arguments)
    ok = True
    for suite, used, computed, how in sizes():
        print(f"{suite:<6} {used:>5} (computed {computed}) {how}")
        ok &= used == computed
    found = self_test(planned_shapes(SUITES["audit"]))
    for one in found:
        exact = "" if one.expected_regressed is None else f", computed {one.expected_regressed:.3f}"
        print(f"{one.kind}: {one.regressed} of {one.runs} FAIL{exact}; {one.inconclusive} INCONCLUSIVE (seed 0)")
    return 0 if ok and holds(found) else 1

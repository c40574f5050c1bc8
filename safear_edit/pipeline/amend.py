"""Walks that add nothing: a released stack without one of its edits, in another order, or at other strengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safear_edit.editor.stack import STRONGEST
from safear_edit.errors import UsageError
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline.order import resolve_device
from safear_edit.pipeline.publish import Result
from safear_edit.pipeline.run import walk
from safear_edit.pipeline.state import RunOptions, StackChange, StackState, released_state
from safear_edit.release.released import Member, Released


def remove(folder: Path, name: str, out: Path, options: RunOptions, device: str = "auto") -> Result:
    """Publish `out`: the release without one edit, the rest measured again; says what changed.

    Without the last edit the weights are those from before it, bit for bit (checked against the fingerprint that was
    recorded then). UsageError for an edit that isn't there or is the only one, and for one concept of a joint edit.
    """
    released = Released.read(folder)
    gone = released.layer(name)
    left = tuple(member for member in released.members if member.layer is not gone)
    if not left:
        fix = f"the model without it is the base, {released.ref}"
        raise UsageError(f"stack remove {name}", "a stack of at least two edits", "one", fix)
    return _amended(released, left, f"removed {name}", out, options, device)


def reweight(
    folder: Path, strengths: Mapping[str, float], out: Path, options: RunOptions, device: str = "auto"
) -> Result:
    """Publish `out`: the release with some edits at other strengths (1 as found, 0 not at all), all measured again.

    UsageError for an edit that isn't there, one concept of a joint edit, and a strength outside 0 … STRONGEST: below 0
    an edit brings its concept out.
    """
    released = Released.read(folder)
    for name, strength in strengths.items():
        released.layer(name)
        if not (math.isfinite(strength) and 0 <= strength <= STRONGEST):
            got, fix = f"{strength:g}", "1 is the edit as it was found, 0 takes its effect away"
            raise UsageError(f"stack reweight {name}", f"a strength from 0 to {STRONGEST:g}", got, fix)
    members = tuple(
        replace(member, layer=replace(member.layer, strength=strengths.get(member.layer.name, member.layer.strength)))
        for member in released.members
    )
    event = "reweighted " + ", ".join(f"{name} to {strength:g}" for name, strength in strengths.items())
    return _amended(released, members, event, out, options, device)


def reorder(folder: Path, names: Sequence[str], out: Path, options: RunOptions, device: str = "auto") -> Result:
    """Publish `out`: the release with its edits merged in another order, all measured again.

    The sum is the same but for rounding; what changes is which edits a later `remove` of the last ones leaves. Each
    edit was searched on the model with those that came before it then. UsageError unless `names` are all edits.
    """
    released = Released.read(folder)
    layers = [released.layer(name).name for name in names]
    if missing := [layer.name for layer in released.stack.layers if layer.name not in layers]:
        raise UsageError("stack reorder", "every edit once", f"no {missing[0]}", "name all of them, first merged first")
    if len(layers) > len(released.stack.layers):
        raise UsageError("stack reorder", "every edit once", "one of them twice", "leave one out")
    members = tuple(sorted(released.members, key=lambda member: layers.index(member.layer.name)))
    return _amended(released, members, f"reordered: {', '.join(layers)}", out, options, device)


def _amended(
    released: Released, members: tuple[Member, ...], event: str, out: Path, options: RunOptions, device: str
) -> Result:
    """Another stack of a release's edits on its base, measured and published."""

    def make(run: RunDir, state: StackState, options: RunOptions) -> StackState:
        amended = replace(state, members=members)
        return replace(amended, notes=_same_as_before(released, amended))

    def start(_: RunDir) -> tuple[StackState, list[StackChange]]:
        return released_state(released, resolve_device(device)), [StackChange(event, make)]

    return walk(start, out, options)


def _same_as_before(released: Released, state: StackState) -> tuple[str, ...]:
    """Whether the weights are those that the release recorded when its stack was as short as this one."""
    count = len(state.members)
    if count >= len(released.members) or state.members != released.members[:count]:
        return ()
    now = state.stack.fingerprints(state.model.net)
    if now[-1] == released.fingerprints[len(now) - 1]:
        return ("the weights are those from before it was added, bit for bit",)
    return ("the weights differ in rounding from those before it was added: another kind of machine made them",)

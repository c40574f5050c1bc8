"""What a walk works on (the base model, the edits on it so far, what was measured of them), changes, and how to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.compiler.beside import as_measured
from safear_edit.compiler.recipe import Recipe
from safear_edit.editor.stack import Stack
from safear_edit.errors import UsageError
from safear_edit.evaluate.interference_record import After
from safear_edit.families.base import ModelFamily
from safear_edit.families.load import load_model
from safear_edit.families.reference import ModelRef
from safear_edit.files.atomic import digest_of
from safear_edit.files.layout import looks_released, without_weights
from safear_edit.files.rundir import RunDir
from safear_edit.pipeline.kept_images import program
from safear_edit.pipeline.order import Order, Source, dtype_of, model_of, resolve_device
from safear_edit.progress import Callback, silent, under
from safear_edit.release.released import Member, Released, stack_of
from safear_edit.report.rebuild import refuse_other_bytes

if TYPE_CHECKING:
    from safear_edit.release.keys import SigningKey


@dataclass(frozen=True)
class StackState:
    """A stack of one edit or several, or of none yet.

    model: the base model, in which edits are only as long as a step needs them. ref: what it is called. members: the
    erased concepts in order. history: what was measured after each change. notes: lines for whoever started the walk,
    to be printed at its end.
    """

    model: ModelFamily
    ref: str
    members: tuple[Member, ...] = ()
    history: tuple[After, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def stack(self) -> Stack:
        """The edits so far."""
        return stack_of(self.members)

    @property
    def recipes(self) -> list[Recipe]:
        """What each concept's edit was found with."""
        return [member.recipe for member in self.members]

    def plus(self, *members: Member) -> StackState:
        """With more concepts on top."""
        return replace(self, members=(*self.members, *members))

    def measured_by(self, member: Member) -> tuple[Recipe, frozenset[str]]:
        """The recipe by which a concept is measured beside the others, and ids of the prompts that it leaves out."""
        return as_measured(member.recipe, [other.recipe for other in self.members if other is not member])


def load_state(text: str, device: str, dtype: str = "auto") -> StackState:
    """A model by its reference with no edit, or the base and the stack of a released folder.

    UsageError for a release of an older version: it is an edited model, and its base is not in it; and for one whose
    edits were found in another dtype.
    """
    ref, device = ModelRef.parse(text), resolve_device(device)
    if ref.path is not None and looks_released(ref.path):
        state = released_state(Released.read(ref.path), device)
        if dtype not in ("auto", own := str(state.model.dtype).removeprefix("torch.")):
            fix = "leave --dtype out"
            raise UsageError("--dtype", f"{own}, in which {ref} was made", dtype, fix)
        return state
    return StackState(load_model(text, device, dtype), str(ref))


def loaded(order: Order, source: Source) -> StackState:
    """What an order names, in the dtype that it or its recipe asks for."""
    return load_state(model_of(order, source), order.device, dtype_of(order, source))


def released_state(released: Released, device: str) -> StackState:
    """The base model of a release with its edits, to build on; TrustError if they don't give the released weights, or
    if any file, that of a weight which no edit changes included, is not the one of the release's report."""
    if not without_weights(released.folder):
        refuse_other_bytes(released.folder)
    model = released.base(device)
    return StackState(model, released.ref, released.members, released.history)


def measured_part(run: RunDir, state: StackState, name: str) -> RunDir:
    """Where a concept's evidence about this very stack lies while a walk is under way: one program measures all of it,
    also where a killed walk goes on after an upgrade."""
    return run.part(f"measured/{digest_of(state.stack.digest, program())[:16]}/{name}")


def base_part(run: RunDir, name: str) -> Path:
    """Where the base model's images of a concept lie while a walk is under way, for every stack that is measured."""
    return run.part(f"base/{program()[:16]}/{name}").root


@dataclass(frozen=True)
class RunOptions:
    """How a walk ends, and whom it tells.

    key: signs the release; None leaves it unsigned, `unsigned` says that this is meant so. overwrite: replace an output
    that is there. command: as it was typed, for the report. say: gets a line now and then, progress every stage.
    base_images: where the base model's images stay for other walks of the same concept; None: in the user's cache
    (kept_images.py) or the run's own folder.
    draft: publish although a spec still says what `init` wrote for a person to replace.
    """

    key: SigningKey | None = None
    unsigned: bool = False
    overwrite: bool = False
    command: str = ""
    progress: Callback = silent
    say: Callable[[str], None] = lambda line: None
    base_images: Path | None = None
    draft: bool = False

    def progress_of(self, name: str) -> Callback:
        """The callback with the concept before every stage's name."""
        return under(self.progress, name)


@dataclass(frozen=True)
class StackChange:
    """One change of a stack: what it is called in the history, and how it is made (nothing is measured yet).

    minutes: what it and all measuring after it were predicted to take; 0 where nobody did.
    """

    event: str
    make: Callable[[RunDir, StackState, RunOptions], StackState]
    minutes: float = 0.0

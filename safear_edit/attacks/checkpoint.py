"""How far a training has come that an attack looks at now and then, in a file: killed, it goes on after the last look.

A file holds what a judge said so far, and the weights, moments and random numbers after the last of these looks; of a
training that is finished what was said alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safear_edit import processes
from safear_edit.attacks.curve import Seen
from safear_edit.files.weights import write_weights

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam, with weight decay or without, keeps of each weight."""


@dataclass
class Checkpoint:
    """The looks of one training. path: None keeps nothing. marks: steps after which somebody looks.

    seen: by step; who looks writes it there, and finds there what was seen before a kill.
    """

    path: Path | None
    marks: Collection[int]
    seen: dict[int, Seen] = field(default_factory=dict)
    _tensors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path | None, marks: Collection[int]) -> Checkpoint:
        """With what the file has; a damaged one counts as none."""
        found = cls(path, marks)
        try:
            with safe_open(path or "", "pt") as file:
                about = json.loads(file.metadata()["seen"])
                found._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError):
            return cls(path, marks)
        found.seen.update({int(step): seen for step, seen in about.items()})
        return found

    @property
    def step(self) -> int:
        """After how many steps it goes on."""
        return max(self.seen, default=0)

    @property
    def finished(self) -> bool:
        """Whether nobody will look again."""
        return self.step >= max(self.marks)

    def go_on(self, weights: Sequence[Tensor], optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Put all three where they were after `step`; nothing for a training that begins."""
        if not self._tensors:
            return
        moments = {}
        for i, weight in enumerate(weights):
            weight.data.copy_(self._tensors[f"weight|{i}"])
            moments[i] = {name: self._tensors[f"{name}|{i}"] for name in MOMENTS}
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
        generator.set_state(self._tensors["generator"])

    def write(self, weights: Sequence[Tensor], optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Replace the file in one step by what was seen so far, and how to go on."""
        if self.path is None or not processes.is_main():
            return
        tensors = {"generator": generator.get_state()}
        if not self.finished:
            for i, weight in enumerate(weights):
                tensors[f"weight|{i}"] = weight.detach()
                tensors |= {f"{name}|{i}": optimiser.state[weight][name] for name in MOMENTS}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(self.path, tensors, {"seen": json.dumps(self.seen)})

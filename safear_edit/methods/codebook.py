"""Harmful directions of a codebook, and the table without them: the linear algebra of Safe-CB (Xue et al. 2026,
https://arxiv.org/abs/2606.27147, section 3.2). Pure: tensors in, tensors out.

The table meant is the one that feeds image tokens back to the transformer, (V, D). The tokenizer's own codebook can't
be: Janus' has 8 dimensions, so the paper's 8 directions would leave nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from safear_edit.errors import UsageError

Reading = Literal["position", "pooled"]
Null = Literal["exact", "weakest_half", "complement"]
NEARLY_ZERO = 1e-3
"""A direction belongs to the null space if its singular value is below this share of the largest one (our choice; the
paper says "close to zero")."""
RIDGE = 1e-2
"""Share of the mean variance that is added to every direction of a usage: rows of few images leave some without."""


@dataclass(frozen=True)
class Usage:
    """How what must stay uses the table: mean (D,) and covariance (D, D) of the rows of its image tokens."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Usage:
        """From the rows of all tokens of these images, (…, D), each as often as it is used; ridged, so invertible."""
        flat = rows.flatten(0, -2).float()
        mean = flat.mean(0)
        covariance = (flat - mean).T @ (flat - mean) / len(flat)
        ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(mean), device=flat.device)
        return cls(mean, covariance + ridge)

    @property
    def whitening(self) -> Tensor:
        """C^-1/2, symmetric (D, D)."""
        values, vectors = torch.linalg.eigh(self.covariance.double())
        return ((vectors * values.rsqrt()) @ vectors.T).float()


@dataclass(frozen=True)
class HarmfulSpace:
    """What separates harmful from safe images of the same content in the table's space.

    basis: orthonormal columns F (D, k), the strongest first: what rows are read by. null: orthonormal columns (D, m),
    orthogonal to the basis, along which the differences have (nearly) nothing. strengths: all singular values, falling.
    usage: None where every direction counts alike, as in the paper.
    """

    basis: Tensor
    null: Tensor
    strengths: Tensor
    usage: Usage | None = None

    @property
    def centre(self) -> Tensor:
        """Where nothing is read, (D,): zero in the paper."""
        return torch.zeros_like(self.basis[:, 0]) if self.usage is None else self.usage.mean

    @property
    def along(self) -> Tensor:
        """Columns G (D, k) along which what F reads is taken out, F^T G = I: F itself in the paper, C F (F^T C F)^-1
        with a usage."""
        if self.usage is None:
            return self.basis
        spread = self.usage.covariance @ self.basis
        return torch.linalg.solve(self.basis.T @ spread, spread.T).T

    @property
    def captured(self) -> float:
        """Share of the squared differences that lies in the basis, in [0, 1]."""
        squares = self.strengths.double().square()
        return float(squares[: self.basis.shape[1]].sum() / squares.sum().clamp(min=1e-30))

    def energy(self, table: Tensor) -> Tensor:
        """Share of each row's squared distance from the centre that lies in the harmful space, (V,) in [0, 1]."""
        rows = table.float() - self.centre
        return (rows @ self.basis).square().sum(1) / rows.square().sum(1).clamp(min=1e-30)

    def without(self, table: Tensor, strength: float = 1.0) -> Tensor:
        """W - strength (W - m) F G^T in the table's type: with the paper's m = 0 and F = G = V_k its W (I - lambda P),
        P = V_k V_k^T (equation 4 and algorithm 1)."""
        wide = table.float()
        return (wide - strength * ((wide - self.centre) @ self.basis) @ self.along.T).to(table.dtype)

    def harmless(self, change: Tensor) -> Tensor:
        """The part of a change (V, D) that lies in the null space: change Q, Q = V_null V_null^T."""
        return (change @ self.null) @ self.null.T


def harmful_space(
    unsafe: Tensor,
    safe: Tensor,
    directions: int,
    reading: Reading = "position",
    null: Null = "exact",
    usage: Usage | None = None,
) -> HarmfulSpace:
    """Find the space from table rows of the tokens of n unsafe and n safe images, (n, N, D) each, pair by pair.

    position: E = mean over pairs of F_u - F_s, (N, D), as the paper; meaningful as far as both images of a pair have
        the same layout. pooled: the mean over positions of each pair, (n, D): deaf to layout.
    directions: k; more remove more of the concept and of everything else (the paper finds 8 best of 2 … 32).
    null: where a repair may write. exact: directions without differences (below NEARLY_ZERO), as the paper, and where
        there is none the complement; weakest_half: the D/2 weakest; complement: all outside the basis, Q = I - P.
    usage: differences are measured in units of what must stay, E C^-1/2 = U S V^T; F spans C^-1/2 V_k, and what it
        reads is taken out along C F, about the mean, which moves the rows that are used least (least-squares erasure:
        LEACE, https://arxiv.org/abs/2306.03819, theorem 4.2). None: every direction alike, as the paper.
    """
    if unsafe.shape != safe.shape or unsafe.dim() != 3:
        raise UsageError("harmful space", f"two tensors (pairs, tokens, width), {tuple(unsafe.shape)}",
                         str(tuple(safe.shape)), "give the rows of both images of each pair")  # fmt: skip
    gaps = unsafe.float() - safe.float()
    rows = gaps.mean(0) if reading == "position" else gaps.mean(1)
    rank, width = min(rows.shape), rows.shape[1]
    if not 0 < directions < width or directions > rank:
        most = min(rank, width - 1)
        raise UsageError("directions", f"1 to {most} for these pairs", str(directions), "ask for fewer, or more pairs")
    whitening = usage.whitening if usage else torch.eye(width, device=rows.device)
    _, strengths, rights = torch.linalg.svd(rows @ whitening, full_matrices=True)
    readers = whitening @ rights.T
    basis = torch.linalg.qr(readers[:, :directions]).Q.contiguous()
    strong = _strong(strengths, width, directions, null)
    return HarmfulSpace(basis, _complement(readers[:, strong]), strengths, usage)


def _strong(strengths: Tensor, width: int, directions: int, null: Null) -> Tensor:
    """Which of all right singular vectors a repair may not write along, (D,) bool."""
    strong = torch.zeros(width, dtype=torch.bool, device=strengths.device)
    if null == "exact":
        strong[: len(strengths)] = strengths >= NEARLY_ZERO * strengths[0]
    elif null == "weakest_half":
        strong[: width // 2] = True
    strong[:directions] = True
    if bool(strong.all()):
        strong[directions:] = False  # no direction is free of differences: everything outside the basis counts as null
    return strong


def _complement(columns: Tensor) -> Tensor:
    """Orthonormal columns (D, D - m) that are orthogonal to these m independent ones."""
    return torch.linalg.qr(columns, mode="complete").Q[:, columns.shape[1] :].contiguous()


def protecting(space: HarmfulSpace, earlier: Sequence[HarmfulSpace]) -> HarmfulSpace:
    """`space` with what earlier rounds read joined to its basis and taken out of its null space.

    The paper is silent here; without this, the repair of a round may put back what the one before took out.
    """
    if not earlier:
        return space
    lefts, sizes, _ = torch.linalg.svd(torch.cat([*(s.basis for s in earlier), space.basis], 1), full_matrices=False)
    basis = lefts[:, sizes > NEARLY_ZERO * sizes[0]]
    null, sizes, _ = torch.linalg.svd(space.null - basis @ (basis.T @ space.null), full_matrices=False)
    return replace(space, basis=basis.contiguous(), null=null[:, sizes > 0.5].contiguous())


def energy_figure(energies: Sequence[Tensor], names: Sequence[str]) -> bytes:
    """PNG: the harmful energy of every table row, one line of pixels per state of the table.

    energies: (V,) in [0, 1] each, the rows' shares in one and the same harmful space; tokens are ordered by the first
    state, so that what an update moved stands out. names: one label per state.
    """
    from io import BytesIO

    from matplotlib.figure import Figure

    order = energies[0].argsort(descending=True)
    image = torch.stack(list(energies))[:, order].cpu().numpy()
    canvas = Figure(figsize=(8, 1.6 + 0.35 * len(names)), layout="constrained")
    axis = canvas.subplots()
    shown = axis.imshow(
        image, aspect="auto", interpolation="nearest", cmap="magma", vmin=0, vmax=max(1e-9, image.max())
    )
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("image tokens, the most harmful row of the base codebook first", fontsize=8)
    axis.set_title("Share of each codebook row in the harmful directions of all rounds", fontsize=9)
    canvas.colorbar(shown, ax=axis)
    buffer = BytesIO()
    canvas.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()

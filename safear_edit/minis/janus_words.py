"""The words of janus:mini: a part of MiniLM's WordPiece vocabulary, and a table of what MiniLM knows of each word.

Janus reads text through an embedding table alone, and a few hundred captions' words can't teach one what a word means
that they don't use. So the table is MiniLM's knowledge, word by word, projected to the model's width and never
trained: an alias of unseen words lands near the ones that were seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F

from safear_edit.families.janus import SPECIAL
from safear_edit.families.text import minilm, minilm_folder

COMMON = 20_000
"""So many of the first entries of MiniLM's vocabulary are kept: it lists words by how common they are."""
ROLES = ("<|User|>", "<|Assistant|>")
"""The chat format's speakers, one token each."""
UNKNOWN = "[UNK]"
PIECE = "##"
"""What a token begins with that goes on with the word before it."""
GOES_ON = 0.5
"""Size, beside a row's own, of the direction that all such tokens share. Without one, the rows of "##flower" and
"flower" are equal, and so are their logits (the output layer is the same table): captions ran words together."""
SCALE = 0.2
"""Root mean square of a row: the residual stream starts at a size that the first layers can still change."""


def _whole_vocabulary() -> tuple[Tokenizer, dict[str, int]]:
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, tokenizer.get_vocab(with_added_tokens=False)


def choose_words(texts: Iterable[str], common: int = COMMON) -> list[str]:
    """Entries of MiniLM's vocabulary: every ASCII character, the `common` first ones, and all that `texts` need."""
    tokenizer, vocabulary = _whole_vocabulary()
    needed = {token for text in set(texts) for token in tokenizer.encode(text, add_special_tokens=False).tokens}

    def kept(token: str, number: int) -> bool:
        if token.startswith("[") and token.endswith("]") and len(token) > 1:
            return token == UNKNOWN
        bare = token.removeprefix(PIECE)
        return token.isascii() and (number < common or len(bare) == 1 or token in needed)

    return sorted((t for t, number in vocabulary.items() if kept(t, number)), key=vocabulary.__getitem__)


def tokenizer_files(words: Sequence[str]) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json: uncased WordPiece over `words`, then the special tokens.

    A word that is not there falls into pieces, at worst into characters; what is no ASCII is unknown.
    """
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([*SPECIAL.values(), *ROLES])
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{role}_token": name for role, name in SPECIAL.items()}}
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(named).encode()}


def word_table(words: Sequence[str], rows: int, width: int) -> Tensor:
    """(rows, width) float32: MiniLM's sentence vector of each word alone, projected on its first principal axes.

    Every row has the root mean square SCALE. Rows after the words are the special tokens': fixed random directions, and
    so is what pieces of words share.
    """
    bare = [word.removeprefix(PIECE) for word in words]
    vectors = torch.cat([minilm().vectors(bare[i : i + 512]) for i in range(0, len(bare), 512)])
    centred = F.normalize(vectors - vectors.mean(0), dim=-1)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :width]
    random = torch.from_numpy(np.random.default_rng(0).standard_normal((rows - len(words) + 1, width))).float()
    pieces = torch.tensor([word.startswith(PIECE) for word in words])
    own = F.normalize(centred @ axes, dim=-1) + GOES_ON * pieces.unsqueeze(1) * F.normalize(random[-1], dim=0)
    return SCALE * width**0.5 * F.normalize(torch.cat([own, random[:-1]]), dim=-1)

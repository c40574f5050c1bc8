"""What lies in a model's folder beside the network: names of files in transformers' layout, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from safear_edit.errors import UsageError
from safear_edit.files.strict import parse_json, read_json

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""The weights in one file, or the index of their shards."""
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


def json_file(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    """The JSON object in `files[name]`; empty if there is no such file or it holds something else."""
    data = parse_json(files[name].decode("utf-8", "replace"), f"{where}/{name}").data if name in files else {}
    return data if isinstance(data, dict) else {}


def weight_files(folder: Path) -> list[Path]:
    """What to read: safetensors (one file, or an index of shards), else every pytorch_model*.bin."""
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()][:1]
    found = found or sorted(folder.glob("pytorch_model*.bin"))
    if not found:
        raise UsageError(str(folder), f"{WEIGHTS[0]} or pytorch_model.bin", "neither", AGAIN)
    return found


def all_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The weight files that `paths` stand for: an index stands for its shards."""
    for path in paths:
        if path.name != WEIGHTS[1]:
            yield path
        else:
            yield from (path.parent / name for name in sorted(set(read_json(path).data["weight_map"].values())))

"""Fetches a published variant's files through huggingface_hub, and knows them again.

The hub's library has the downloads, their resumption, its cache, the token and the endpoint (HF_ENDPOINT, HF_TOKEN,
HF_HOME, HF_HUB_OFFLINE: https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables). Here is
what a variant needs of which repository, the room for it, and `pulled.json`: the commits and digests that were taken
the first time. They are the pin afterwards; files that differ from them are refused. Nothing of a repository but the
files that the variant lists is fetched, and nothing is unpickled.

A variant's folder has links into the cache, so that a text encoder that two families share is there once.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from safear_edit.errors import SafearError, TrustError, UsageError
from safear_edit.families.reference import ModelRef, Variant, published
from safear_edit.files.atomic import sha256_file, write_atomic
from safear_edit.files.strict import read_json
from safear_edit.progress import Callback, silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PULLED = "pulled.json"
INDEX = ".index.json"
TEXT = ("config.json", "tokenizer_config.json")
TEXT_MORE = (
    "tokenizer.json",
    "special_tokens_map.json",
    "spiece.model",
    "model.safetensors",
    "model.safetensors.index.json",
)
"""Of a text encoder's repository: what it must have, and what is taken if it has it."""
SPARE = 1 << 28
"""Bytes of disk that stay free."""


@dataclass(frozen=True)
class Part:
    """Files of one repository, and the folder that they go to inside the variant's ("": that itself)."""

    repository: str
    revision: str
    files: tuple[str, ...]
    more: tuple[str, ...] = ()
    folder: str = ""


@dataclass(frozen=True)
class File:
    """One file to take: where it goes, from which commit, how large it is and, where the hub says so, its sha256."""

    place: str
    repository: str
    commit: str
    name: str
    size: int
    sha256: str | None


def parts_of(ref: ModelRef, variant: Variant) -> list[Part]:
    """What a variant needs of which repository; UsageError if no repository of this layout is known."""
    if not variant.files or not variant.repository:
        got, fix = "one that ships with this package", f"give {ref} as it is"
        if variant.files:
            got = "none that is known to have this layout"
            fix = f"put {' and '.join(variant.files)} into one folder and give that folder"
        raise UsageError(f"pull {ref}", "a variant with a repository", got, fix)
    own = tuple(name for name in variant.files if name not in variant.elsewhere)
    found = [Part(variant.repository, variant.revision, own, variant.more)]
    found += [Part(repository, "", (name,)) for name, repository in variant.elsewhere.items()]
    if variant.text_encoder:
        found.append(Part(variant.text_encoder, "", TEXT, TEXT_MORE, variant.text_encoder.rpartition("/")[2]))
    return found


def home_of(ref: ModelRef, cache: Path | None = None) -> Path:
    """The folder of a variant that was fetched, or will be, beside the hub's cache."""
    return _cache(cache).parent / "safear-edit" / f"{ref.family}-{ref.variant}"


def pulled(ref: ModelRef, cache: Path | None = None) -> Path | None:
    """The folder of a variant whose files are all there; None if it wasn't fetched. TrustError for changed sizes.

    Only names and sizes are looked at; `pull` compares the digests.
    """
    home = home_of(ref, cache)
    if not (home / PULLED).is_file():
        return None
    for place, facts in _known(home).items():
        if not (home / place).is_file():
            return None
        if (home / place).stat().st_size != facts["size"]:
            raise _changed(home / place, f"{facts['size']} bytes", str((home / place).stat().st_size))
    return home


def pull(ref: ModelRef, *, cache: Path | None = None, progress: Callback = silent) -> Path:
    """Fetch what is missing of a variant and check all of it; the folder to load it from.

    UsageError: no such repository, a gated one, no network, no room. TrustError: other bytes than the hub says, or than
    were fetched the first time; such a file is taken out of the cache.
    """
    variant = published(ref.family).variants.get(ref.variant)
    if variant is None:
        raise UsageError(f"pull {ref}", "a published variant", repr(ref.variant), "see `safear-edit ls models`")
    home, where = home_of(ref, cache), _cache(cache)
    known = _known(home)
    if known and all((home / place).is_file() for place in known):
        _verify(home, known, progress)
        return home
    parts = parts_of(ref, variant)
    try:
        files = list(_wanted(parts, known, where))
        _refuse_full(files, where)
        return _take(files, home, known, where, progress)
    except SafearError:
        raise
    except Exception as error:  # the hub's and its transport's classes, whose common base is Exception
        raise _refused(ref, variant, error) from None


def _take(
    files: Sequence[File], home: Path, known: Mapping[str, Mapping[str, Any]], cache: Path, progress: Callback
) -> Path:
    """Download, check, link; `pulled.json` last, so that a folder with it is whole.

    known: what it said before. A file of the same commit must be the one from then, whatever the hub says of it now.
    """
    facts: dict[str, dict[str, Any]] = {}
    for number, file in enumerate(files, 1):
        path = _downloaded(file.repository, file.name, file.commit, cache)
        found = sha256_file(path)
        before = known.get(file.place, {})
        pinned = before.get("sha256") if before.get("commit") == file.commit else file.sha256
        if path.stat().st_size != file.size or not {file.sha256, pinned} <= {found, None}:
            _forget(path)
            raise _changed(path, pinned or file.sha256 or f"{file.size} bytes", found)
        target = home / file.place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(path.absolute())  # HF_HOME may be relative to the working folder
        facts[file.place] = {"repository": file.repository, "commit": file.commit, "size": file.size, "sha256": found}
        progress("pull", number, len(files), file.name)
    write_atomic(home / PULLED, json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return home


def _wanted(parts: Sequence[Part], known: Mapping[str, Mapping[str, Any]], cache: Path) -> Iterator[File]:
    """Every file of every part, the shards of an index included; commits as the first time, if there was one."""
    api = _api()
    for part in parts:
        before = {facts["commit"] for facts in known.values() if facts["repository"] == part.repository}
        info = api.model_info(part.repository, revision=min(before, default=part.revision or None), files_metadata=True)
        there, commit = {one.rfilename: one for one in info.siblings or ()}, str(info.sha)
        if missing := [name for name in part.files if name not in there]:
            got, fix = f"none called {missing[0]}", "the repository has changed; fetch its files by hand"
            raise UsageError(f"repository {part.repository}", f"the file {missing[0]}", got, fix)
        names = [*part.files, *(name for name in part.more if name in there)]
        for index in [name for name in names if name.endswith(INDEX)]:
            path, folder = _downloaded(part.repository, index, commit, cache), index.rpartition("/")[0]
            shards = _shards(path, f"{part.repository}/{index}", folder)
            if strange := [name for name in shards if name not in there or not _stays_inside(name)]:
                fix = "the repository is incomplete; fetch its files by hand"
                raise UsageError(f"{part.repository}/{index}", "shards of the repository", strange[0], fix)
            names += shards
        for name in names:
            large = there[name].lfs
            place = f"{part.folder}/{name}".lstrip("/")
            yield File(
                place, part.repository, commit, name, int(there[name].size or 0), large.sha256 if large else None
            )


def _shards(path: Path, where: str, folder: str) -> list[str]:
    """Names of the files that an index in `folder` spreads the weights over, as the repository has them."""
    data = read_json(path).data
    names = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        fix = "the repository has changed; fetch its files by hand"
        raise UsageError(where, "an index with a weight_map of file names", "another file", fix)
    return sorted({f"{folder}/{name}".lstrip("/") for name in names.values()})


def _refuse_full(files: Sequence[File], cache: Path) -> None:
    """UsageError unless what isn't in the cache yet fits on its disk."""
    from huggingface_hub import try_to_load_from_cache

    missing = 0
    for file in files:
        found = try_to_load_from_cache(file.repository, file.name, cache_dir=cache, revision=file.commit)
        missing += 0 if isinstance(found, str) else file.size
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if missing and missing + SPARE > free:
        fix = "free some, or set HF_HOME to a larger disk"
        raise UsageError(str(cache), f"{(missing + SPARE) / 1e9:.1f} GB of disk", f"{free / 1e9:.1f} GB free", fix)


def _verify(home: Path, known: Mapping[str, Mapping[str, Any]], progress: Callback) -> None:
    """TrustError unless every file is what was fetched the first time; another one is taken out of the cache."""
    for number, (place, facts) in enumerate(known.items(), 1):
        if (found := sha256_file(home / place)) != facts["sha256"]:
            _forget(home / place)
            raise _changed(home / place, facts["sha256"], found)
        progress("check", number, len(known), place)


def _known(home: Path) -> dict[str, dict[str, Any]]:
    """What `pulled.json` says; empty without one."""
    path = home / PULLED
    found = read_json(path).data if path.is_file() else {}
    if not isinstance(found, dict) or not all(map(_stays_inside, found)) or not all(map(_pinned, found.values())):
        expected = "files inside its folder with repository, commit, size and sha256"
        raise TrustError(str(path), expected, "others", "remove it, pull again")
    return found


def _stays_inside(place: str) -> bool:
    """Whether a file of this name lies below the folder that it is put into."""
    path = PurePosixPath(place)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in place


def _pinned(facts: Any) -> bool:
    kinds = {"repository": str, "commit": str, "size": int, "sha256": str}
    return isinstance(facts, dict) and all(type(facts.get(name)) is kind for name, kind in kinds.items())


def _changed(path: Path, expected: str, got: str) -> TrustError:
    return TrustError(str(path), expected[:80], got[:80], "pull again; if it stays, don't use this repository")


def _forget(path: Path) -> None:
    """Take a file out of the hub's cache, the bytes as well as the links to them."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _cache(cache: Path | None) -> Path:
    """The hub's cache."""
    if cache is not None:
        return cache
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _downloaded(repository: str, name: str, commit: str, cache: Path) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name, revision=commit, cache_dir=cache, endpoint=_endpoint()))


def _refused(ref: ModelRef, variant: Variant, error: Exception) -> UsageError:
    """One line for what the hub or the network said."""
    from huggingface_hub import errors

    files = " ".join(variant.files)
    by_hand = f"`hf download {variant.repository} {files} --local-dir FOLDER` where there is network, and give FOLDER"
    asked = getattr(error, "repo_id", None) or variant.repository  # may be its text encoder's
    where, expected = f"pull {ref}", f"the files of {asked}"
    if isinstance(error, errors.GatedRepoError):
        fix = f"accept its terms on {_endpoint() or 'https://huggingface.co'}/{asked} and set HF_TOKEN"
        return UsageError(where, f"access to {asked}", "a gated repository", fix)
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.EntryNotFoundError):
        return UsageError(where, expected, "a hub that doesn't have them (404)", "check HF_ENDPOINT and HF_TOKEN")
    if isinstance(error, OSError) and error.errno == 28:
        return UsageError(where, "room on the disk", "none left", "free some and pull again: it continues")
    said = " ".join(str(error).split())[:120]
    return UsageError(where, expected, f"no answer ({type(error).__name__}: {said})", by_hand)

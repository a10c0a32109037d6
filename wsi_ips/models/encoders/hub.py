"""Where the weights of a listed encoder are: in a folder, or in the cache of the Hugging Face hub on this
machine.

:func:`hub_weights` finds or downloads them. The client of the hub respects ``HF_HUB_CACHE``, ``HF_HOME`` and
``HF_HUB_OFFLINE``.
"""

from pathlib import Path

from wsi_ips.errors import CheckpointError, one_line
from wsi_ips.models.encoders.entry import HUB, EncoderEntry

USUAL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names that a weights file usually has on the hub, the preferred one first."""
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".torch", ".ckpt")
"""Suffixes of weights files."""


def hub_weights(entry: EncoderEntry) -> Path:
    """The weights of a listed encoder. They are downloaded once if they are not in the cache and the hub may be
    asked.

    Raises:
        CheckpointError: They cannot be had. The message names the file, and the page with the licence.
    """
    return cached_weights(entry) or _downloaded(entry.sources[0], entry.files, entry.name, how_to_get(entry))


def cached_weights(entry: EncoderEntry) -> Path | None:
    """The weights of a listed encoder in the cache of the hub, or None if they are not there. Never uses the
    network.
    """
    return _cached(entry.sources, entry.files)


def cached_repository(source: str) -> Path | None:
    """The weights of any repository in the cache of the hub, or None. Never uses the network.

    Raises:
        CheckpointError: ``source`` is not the name of a repository.
    """
    return _cached((source.partition("@")[0],), ())


def repository_weights(source: str) -> Path:
    """The weights of any repository, ``organisation/name``, from the cache or downloaded once.

    Raises:
        CheckpointError: They cannot be had, or ``source`` is not the name of a repository.
    """
    fix = f"hf download {source}, or set encoder.weights to a file or a folder; see {HUB}{source}"
    return _cached((source,), ()) or _downloaded(source, USUAL_FILES, source, fix)


def weights_in_folder(folder: Path, files: tuple[str, ...] = ()) -> Path:
    """The weights file in a folder: one of ``files``, one with a usual name, or the only one that there is.

    Raises:
        CheckpointError: There is none, or there are several with other names.
    """
    for name in (*files, *USUAL_FILES):
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES and path.is_file())
    if len(found) == 1:
        return found[0]
    wanted = ", ".join(dict.fromkeys((*files, *USUAL_FILES)))
    raise CheckpointError(
        folder,
        f"holds {len(found)} files of weights and none of {wanted}",
        "name the file that is meant in encoder.weights",
    )


def how_to_get(entry: EncoderEntry) -> str:
    """What a user has to do to get the weights of a listed encoder, in one line."""
    consent = f"accept the licence ({entry.licence}) at {entry.page}, then " if entry.gated else ""
    return (
        f"{consent}hf download {entry.sources[0]} {entry.files[0]}, or set encoder.weights to that file or its "
        f"folder; licence and terms: {entry.page}"
    )


def _cached(sources: tuple[str, ...], files: tuple[str, ...]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for source in sources:
        for name in dict.fromkeys((*files, *USUAL_FILES)):
            try:
                found = try_to_load_from_cache(source, name)
            except HFValidationError as error:
                raise CheckpointError(
                    source, f"is not the name of a repository ({one_line(error, most=120)})"
                ) from None
            if isinstance(found, str) and _is_whole(Path(found)):
                return Path(found)
    return None


def _downloaded(source: str, files: tuple[str, ...], name_of_all: str, fix: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    reasons = []
    for name in files:
        if name.endswith(".index.json"):
            continue  # shards are taken from the cache alone
        try:
            return Path(hf_hub_download(source, name))
        except Exception as error:  # noqa: BLE001 - whatever the client raises: offline, no consent, no such file
            if isinstance(error, LocalEntryNotFoundError):
                reasons.append(f"{name} is not in the hub's cache, and the hub cannot be asked")
                break  # another file would fare no better
            reasons.append(f"{name}: {one_line(f'{type(error).__name__}: {error}', most=120)}")
            if not isinstance(error, EntryNotFoundError):
                break  # no consent: another file would fare no better
    raise CheckpointError(name_of_all, f"weights are not on this machine ({'; '.join(reasons)})", fix)


def _is_whole(path: Path) -> bool:
    """Whether the shards that an index names are beside it. A file that is not an index is whole."""
    if not path.name.endswith(".index.json"):
        return path.is_file()
    import json

    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return all((path.parent / str(name)).is_file() for name in names)

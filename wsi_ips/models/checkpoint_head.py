"""What a file of weights says of itself, read without PyTorch: its configuration and its SHA-256.

:func:`checkpoint_config` and :func:`checkpoint_sha256` are for the checkpoints of a fine-tuning run. Importing
PyTorch takes seconds and half a gigabyte, and a command that has nothing left to compute needs neither.
:class:`WeightsHead` is the format, which :class:`wsi_ips.models.checkpoint.WeightsFile` adds the weights to.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from wsi_ips.config import READ_NO_FILE, PipelineConfig, Section
from wsi_ips.errors import CheckpointError, one_line
from wsi_ips.storage.files import system_cause

FORMAT = 1
"""Version of the format. A file of another version is refused."""
METADATA_KEY = "wsi_ips"
"""Key of the metadata under which a checkpoint keeps its configuration."""
HOW_TO_FIX = "name the model.safetensors of a fine-tuning run"
"""What a message about a bad checkpoint tells the user to do."""
MAX_CONFIG_CHARS = 1_000_000
"""Most characters of a configuration that is read from a file."""
Config = TypeVar("Config", bound=Section)


@dataclass(frozen=True, slots=True)
class WeightsHead(Generic[Config]):
    """How one kind of file with weights keeps its configuration.

    Attributes:
        key: Key of the metadata under which the configuration is kept.
        name: What a user calls such a file, for messages.
        fix: What the user can do if a file is not of this kind, for messages.
        config_of: Makes the configuration from the path and the content of the metadata.
    """

    key: str
    name: str
    fix: str
    config_of: Callable[[Path, Mapping[str, Any]], Config]

    def config(self, path: Path) -> Config:
        """Read only the configuration.

        Raises:
            CheckpointError: The file is missing, broken or of another kind.
        """
        with self._opened(path, framework="np") as file:
            return self._config(path, file.metadata() or {})

    def notes(self, path: Path) -> dict[str, str]:
        """The texts for people beside the configuration. Errors are those of :meth:`config`."""
        with self._opened(path, framework="np") as file:
            metadata = file.metadata() or {}
            self._config(path, metadata)
            notes = json.loads(metadata[self.key]).get("notes")
        texts = notes.items() if isinstance(notes, dict) else ()
        return {name: text for name, text in texts if isinstance(text, str)}

    @contextmanager
    def _opened(self, path: Path, *, framework: Literal["np", "pt"]) -> Iterator[Any]:
        if not path.is_file():
            raise CheckpointError(path, f"no such {self.name}", self.fix)
        try:
            # safetensors says of every file that it cannot open that it does not exist; Python gives the reason.
            with path.open("rb"):
                pass
            with safe_open(path, framework=framework) as file:
                yield file
        except (SafetensorError, OSError) as error:
            if cause := system_cause(error):
                raise CheckpointError(path, cause.problem, cause.fix) from None
            raise CheckpointError(path, f"is not a safetensors file ({error})", self.fix) from None

    def _config(self, path: Path, metadata: Mapping[str, str]) -> Config:
        if self.key not in metadata:
            raise CheckpointError(
                path, f"is not a {self.name} of wsi_ips, but of another kind or another program", self.fix
            )
        if len(metadata[self.key]) > MAX_CONFIG_CHARS:
            raise CheckpointError(
                path, f"holds a config of more than {MAX_CONFIG_CHARS:,} characters", self.fix
            )
        try:
            return self.config_of(path, json.loads(metadata[self.key]))
        except (KeyError, TypeError, ValueError, ValidationError, RecursionError) as error:
            reason = one_line(error, most=200)
            raise CheckpointError(path, f"holds a config that cannot be read ({reason})", self.fix) from None


def checkpoint_config(path: Path) -> PipelineConfig:
    """Read only the configuration of a checkpoint.

    Raises:
        CheckpointError: The file is missing, broken or not a checkpoint.
    """
    return _HEAD.config(path)


def checkpoint_notes(path: Path) -> dict[str, str]:
    """The texts for people in a checkpoint, such as its epoch and losses.

    Raises:
        CheckpointError: The file is missing, broken or not a checkpoint.
    """
    return _HEAD.notes(path)


def checkpoint_sha256(path: Path) -> str:
    """The SHA-256 of the file in hex. Results name their model by it.

    A file that this process has read is not read again as long as its size, its times of change and its number are
    the same.
    """
    stat = path.stat()
    return _sha256(
        path.absolute(), (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)
    )


@lru_cache(maxsize=64)
def _sha256(path: Path, stamp: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_of(path: Path, held: Mapping[str, Any]) -> PipelineConfig:
    """The configuration in the metadata of a checkpoint. Raises :class:`CheckpointError` for another format."""
    if held["format"] != FORMAT:
        raise CheckpointError(
            path, f"has format {held['format']!r}, this version reads {FORMAT}", "update wsi_ips"
        )
    return PipelineConfig.model_validate(held["config"], context=READ_NO_FILE)


_HEAD = WeightsHead(key=METADATA_KEY, name="checkpoint", fix=HOW_TO_FIX, config_of=config_of)

"""The folder of stored features: where things lie, by whose settings, and who writes into it now."""

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.files import PARTIAL, whole_file
from wsi_ips.tiling.coords import Layout
from wsi_ips.versions import versions

LARGEST_DESCRIPTION_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class FeaturesFolder:
    """CLAM: ``h5_files/`` and ``pt_files/``. TRIDENT: ``features_<encoder>/`` beside ``patches/``.

    ``run.json``, ``features.csv`` and the lock lie with the features, so that several encoders share a TRIDENT
    folder.
    """

    out: Path
    layout: Layout
    encoder: str

    @property
    def root(self) -> Path:
        return self.out if self.layout == "clam" else self.out / f"features_{self.encoder}"

    @property
    def table(self) -> Path:
        return self.root / "features.csv"

    @property
    def description(self) -> Path:
        return self.root / "run.json"

    @property
    def _files(self) -> Path:
        return self.root / "h5_files" if self.layout == "clam" else self.root

    @property
    def _tensors(self) -> Path:
        return self.root / "pt_files"

    def features(self, slide_id: str) -> Path:
        return self._files / f"{slide_id}.h5"

    def tensor(self, slide_id: str) -> Path | None:
        """CLAM's ``.pt``."""
        return self._tensors / f"{slide_id}.pt" if self.layout == "clam" else None

    def patches(self, slide_id: str) -> Path:
        """TRIDENT's coordinates."""
        return self.out / "patches" / f"{slide_id}_patches.h5"

    def forget(self, slide_id: str) -> None:
        """Remove what an earlier start left of this slide's features."""
        for path in (self.features(slide_id), self.tensor(slide_id)):
            if path is not None:
                path.unlink(missing_ok=True)

    @contextmanager
    def claimed(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder for the time of the ``with`` block; ``run.json`` says by which settings it is filled.

        ``settings``: those that decide over what is written, as JSON. Raises :class:`ConfigError` where it was
        filled by others, :class:`ResultsError` while another process holds it; a process that died holds nothing.
        """
        there = self.root.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ResultsError(
                self.root, "another run is writing into it", "wait for it, or write elsewhere"
            ) from None
        try:
            if different := self._difference(settings):
                raise ConfigError(
                    f"{self.root} holds features by other settings ({different}); write elsewhere, or remove it"
                )
            self._sweep()
            self._describe(settings)
            yield
        except BaseException:
            if not there and not any(self._files.glob("*.h5")):
                self._leave_nothing()
            raise
        finally:
            lock.release()

    def _describe(self, settings: Mapping[str, Any]) -> None:
        description = {
            "command": "features",
            "settings": dict(settings),
            "versions": versions(),
            "host": platform.node(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with whole_file(self.description) as partial:
            partial.write_text(json.dumps(description, indent=2) + "\n")

    def _sweep(self) -> None:
        """Remove what killed writers left unfinished: the lock says that nobody writes now."""
        for folder in {self.root, self._files, self._tensors}:
            for path in folder.glob(PARTIAL):
                path.unlink(missing_ok=True)

    def _leave_nothing(self) -> None:
        """A run that ended before its first slide was done takes its new folder with it."""
        for path in (self.table, self.description, self.root / ".lock"):
            path.unlink(missing_ok=True)
        for folder in (self._tensors, self._files, self.root, self.out):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _difference(self, settings: Mapping[str, Any]) -> str:
        """What sets the settings that are there apart from these, in words; empty if nothing does."""
        if not self.description.is_file():
            return ""
        try:
            if self.description.stat().st_size > LARGEST_DESCRIPTION_BYTES:
                raise ValueError("too large")
            theirs = json.loads(self.description.read_text(encoding="utf-8"))["settings"]
            before, here = _flat(theirs), _flat(settings)
            for name in [*here, *(before.keys() - here.keys())]:
                if before.get(name) != here.get(name):
                    return f"{name} {before.get(name)} there, {here.get(name)} here"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return "its run.json cannot be read"
        return ""


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """``{"tiling.patch_px": 256, ...}``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return flat

"""The folder of stored features: where things lie, by whose settings, and who writes into it now."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_ips.errors import ConfigError
from wsi_ips.held_folder import describe, difference, held
from wsi_ips.tiling.coords import Layout


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
    def claimed(self, settings: Mapping[str, Any], *, numerics: Mapping[str, bool]) -> Iterator[None]:
        """Hold the folder for the time of the ``with`` block; ``run.json`` says by which settings it is filled.

        ``settings``: those that decide over what is written, as JSON. ``numerics``: how the device calculates
        (:func:`wsi_ips.streaming.numerics.numerics`). Raises :class:`ConfigError` where it was
        filled by others, :class:`ResultsError` while another process holds it; a process that died holds nothing.
        """
        below = {self._files, self._tensors, self.root} - {self.root}
        results = str(self._files.relative_to(self.root) / "*.h5")
        with held(self.root, below=below, undo=(self.table, self.description), results=results):
            if different := difference(self.description, settings, theirs=lambda told: told["settings"]):
                raise ConfigError(
                    f"{self.root} holds features by other settings ({different}); write elsewhere, or remove it"
                )
            describe(self.description, "features", settings=dict(settings), numerics=dict(numerics))
            yield

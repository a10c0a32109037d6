"""Learning from the slide labels of a manifest: :func:`train`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from wsi_ips.api.model import Model, load
from wsi_ips.api.patches import tiling_of
from wsi_ips.api.runs import run_reported
from wsi_ips.api.slide import png_in_notebook
from wsi_ips.commands.recipe import load_recipe, make_job
from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import ConfigError
from wsi_ips.evaluation.plots import draw_history, read_history

BEST_NAME, HISTORY_NAME = "model.safetensors", "history.csv"
"""Files in the folder of a training: the checkpoint of the best epoch, and the history."""


@dataclass(frozen=True, slots=True)
class Training:
    """What :func:`wsi_ips.train` left in ``folder``. In a notebook its losses are shown.

    Attributes:
        folder: The folder of the run.
        checkpoint: The checkpoint of the best epoch.
        history: ``{column: one value per epoch}``, e.g. ``train_loss``, ``val_loss``.
    """

    folder: Path
    checkpoint: Path
    history: Mapping[str, Sequence[float]]

    def load(self, *, device: str = "auto") -> Model:
        """The model of the best epoch, to label slides with."""
        return load(self.checkpoint, device=device)

    def picture(self) -> Image.Image:
        """The losses by epoch as a PIL image. Raises :class:`ConfigError` if matplotlib is not installed."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "loss.png"
            draw_history(path, self.history, title=f"losses of {self.folder.name}")
            with Image.open(path) as image:
                return image.convert("RGB")

    def __repr__(self) -> str:
        epochs = len(self.history["epoch"])
        counted = f"{epochs} epoch{'s' if epochs > 1 else ''}"
        return f"Training({str(self.folder)!r}, {counted}, checkpoint {self.checkpoint})"

    def _repr_png_(self) -> bytes | None:
        return png_in_notebook(self.picture)


def train(
    manifest: Path | str,
    out: Path | str,
    *,
    config: FinetuneConfig | Mapping[str, Any] | Path | str | None = None,
    slides: Path | str | None = None,
    features: Path | str | None = None,
    encoder: str | None = None,
    weights: Path | str | None = None,
    px: int | None = None,
    mpp: float | None = None,
    mag: float | None = None,
    epochs: int | None = None,
    slide_mpp: float | None = None,
    device: str = "auto",
    restart: bool = False,
    progress: bool | None = None,
) -> Training:
    """Fine-tune an encoder, selection and attention from slide labels, as ``wsi-ips finetune`` does.

    Bad slides are left out with a warning.

    Args:
        manifest: A CSV with the columns ``slide_id,case_id,label,split,path``.
        out: The folder of the run. One that was stopped is continued, or with ``restart`` begun anew.
        config: All settings: a :class:`wsi_ips.FinetuneConfig`, the path of a recipe, or a mapping as in a
            recipe. The other arguments override it.
        slides: The folder that the paths in the manifest are relative to.
        features: A folder of stored features to learn from instead of the slides.
        encoder, weights: The patch encoder, see :class:`wsi_ips.Encoder`.
        px, mpp, mag: Its patches, see :func:`wsi_ips.tile`.
        epochs: How often every slide is learned from.
        slide_mpp: Resolution of the slides in µm per pixel, used instead of what the files state.
        device: ``auto`` takes a GPU if there is one.
        restart: Begin anew in a folder that holds a run.
        progress: Whether to show bars. None shows them in notebooks.

    Raises:
        ManifestError: The manifest cannot be used.
        ConfigError: Settings are not possible; the message names the setting.
        CheckpointError: Weights cannot be used.
        TrainingError: Training cannot go on.

    >>> import wsi_ips as wi
    >>> training = wi.train("labels.csv", "trained", config="small.yaml", epochs=1, device="cpu")
    >>> training
    Training('trained', 1 epoch, checkpoint trained/model.safetensors)
    >>> training.load(device="cpu").tasks[0].classes
    ('normal', 'tumor')
    """
    values = _settings(config)
    if values.get("folds") is not None:
        raise ConfigError("wsi_ips.train: trains once; cross-validate with wsi-ips finetune --folds")
    model = dict(_section(values, "model"))
    chosen = {"name": encoder, "weights": None if weights is None else str(weights)}
    model["encoder"] = {
        **_encoder(model),
        **{name: value for name, value in chosen.items() if value is not None},
    }
    tiling = _sizes(px=px, mpp=mpp, mag=mag)
    training = {} if epochs is None else {"epochs": epochs}
    given = {"slides_root": slides, "features": features, "slide_mpp": slide_mpp}
    job = make_job(
        {
            **values,
            **{name: value for name, value in given.items() if value is not None},
            "command": "finetune",
            "manifest": Path(manifest),
            "out": Path(out),
            "model": model,
            "tiling": {**_section(values, "tiling"), **tiling},
            "training": {**_section(values, "training"), **training},
            "device": device,
            "restart": restart,
        },
        source="wsi_ips.train",
    )
    run_reported(job, progress)
    folder = Path(out)
    return Training(folder, folder / BEST_NAME, read_history(folder / HISTORY_NAME))


def _settings(config: FinetuneConfig | Mapping[str, Any] | Path | str | None) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, FinetuneConfig):
        return {name: getattr(config, name) for name in FinetuneConfig.model_fields}
    if isinstance(config, Mapping):
        return dict(config)
    return load_recipe(Path(config))


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of the settings as a mapping, whatever it is given as."""
    section = values.get(name)
    try:
        return dict(section or {})
    except (TypeError, ValueError):
        raise ConfigError(f"wsi_ips.train: {name!r} is a value, not a section") from None


def _encoder(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the encoder. A recipe may give its name alone."""
    encoder = model.get("encoder")
    return {"name": encoder} if isinstance(encoder, str) else _section(model, "encoder")


def _sizes(*, px: int | None, mpp: float | None, mag: float | None) -> dict[str, Any]:
    tiling = tiling_of("wsi_ips.train", px=px, mpp=mpp, mag=mag)
    given = {"patch_px": px is not None, "patch_mpp": mpp is not None or mag is not None}
    return {name: getattr(tiling, name) for name, wanted in given.items() if wanted}

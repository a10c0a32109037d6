"""Other programs' own readers, called in a process of their own: ``python peers.py JOB ARGUMENTS… OUT.npz``.

Nothing of wsi_ips is imported, and nothing of the other programs is in here. Where the interpreter lacks a module
that they import, the exit code is 77 and the module's name the last line of standard error.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

MISSING = 77


def trident_coords(path: str) -> dict[str, Any]:
    """``read_coords``: what TRIDENT's feature extraction and its users' heatmaps take."""
    from trident.IO import read_coords

    attributes, coords = read_coords(path)
    return {"coords": coords, **{f"of_{name}": value for name, value in attributes.items()}}


def trident_legacy(path: str) -> dict[str, Any]:
    """``read_coords_legacy``: TRIDENT on CLAM's files."""
    from trident.IO import read_coords_legacy

    patch_size, level, downsample, coords = read_coords_legacy(path)
    return {"coords": coords, "patch_size": patch_size, "patch_level": level, "custom_downsample": downsample}


def trident_features(slide: str, coords: str, folder: str) -> dict[str, Any]:
    """TRIDENT's own extraction on coordinates, by an "encoder" that gives the mean colour of a patch."""
    import torch
    from torchvision.transforms import ToTensor
    from trident import load_wsi

    class MeanColour(torch.nn.Module):
        enc_name, precision, eval_transforms = "mean_colour", torch.float32, ToTensor()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3)) * 255

    wsi = load_wsi(slide, max_workers=0)
    made = wsi.extract_patch_features(MeanColour(), coords, folder, device="cpu")
    return {"path": made, "mpp": wsi.mpp, "mag": wsi.mag}


def trident_slide(slide: str, features: str, folder: str) -> dict[str, Any]:
    """TRIDENT's slide encoding from features of patches, by one that gives their mean and their extent."""
    import h5py
    import torch
    from trident import load_wsi

    class Mean(torch.nn.Module):
        enc_name = "mean"

        def forward(self, batch: Any, device: str) -> torch.Tensor:
            side = batch["attributes"]["patch_size_level0"]
            extent = (batch["coords"] + side).amax(dim=1).float()
            return torch.cat([batch["features"].mean(dim=1), extent], dim=1)

    made = load_wsi(slide).extract_slide_features(features, Mean(), folder, device="cpu")
    with h5py.File(made) as file:
        return {"features": file["features"][:]}


def trident_contours(path: str) -> dict[str, Any]:
    """Outlines of tissue, as TRIDENT opens them with geopandas."""
    import geopandas

    frame = geopandas.read_file(path)
    return {"tissue_id": frame["tissue_id"].to_numpy(), "area": frame.geometry.area.to_numpy()}


def trident_writes(path: str, slide_id: str) -> dict[str, Any]:
    """TRIDENT's own file of coordinates: 256 px at 20x of a slide of 40x."""
    from trident.IO import coords_to_h5

    corners = [[512, 0], [1024, 0], [0, 512], [1024, 1536]]
    coords_to_h5(corners, path, 256, 40, 20, str(Path(path).parent), 3000, 2500, slide_id, 0)
    return {"coords": np.array(corners)}


def clam_patches(slide: str, coords: str) -> dict[str, Any]:
    """The first patches that CLAM's ``Whole_Slide_Bag_FP`` reads for its encoder."""
    import openslide
    from dataset_modules.dataset_h5 import Whole_Slide_Bag_FP
    from torchvision.transforms import PILToTensor

    bag = Whole_Slide_Bag_FP(coords, openslide.OpenSlide(slide), img_transforms=PILToTensor())
    items = [bag[row] for row in range(min(4, len(bag)))]
    return {
        "pixels": np.stack([item["img"].permute(1, 2, 0).numpy() for item in items]),
        "coords": np.stack([item["coord"] for item in items]),
        "length": len(bag),
    }


def clam_bags(folder: str, table: str) -> dict[str, Any]:
    """CLAM's ``Generic_MIL_Dataset``: a bag from ``pt_files``, and one from ``h5_files``."""
    from dataset_modules.dataset_generic import Generic_MIL_Dataset

    data = Generic_MIL_Dataset(
        csv_path=table, data_dir=folder, shuffle=False, print_info=False, ignore=[],
        label_dict={0: 0, 1: 1}, patient_strat=False,
    )  # fmt: skip
    tensor, label = data[0]
    data.load_from_h5(True)
    features, same_label, coords = data[0]
    return {"tensor": tensor.numpy(), "features": features.numpy(), "coords": coords,
            "labels": [int(label), int(same_label)]}  # fmt: skip


def stamp_bag(path: str) -> dict[str, Any]:
    """STAMP's ``get_coords`` and ``BagDataset``, which its training and its heatmaps read by."""
    import h5py
    import torch
    from stamp.modeling.data import BagDataset, detect_feature_type, get_coords

    with h5py.File(path) as file:
        info = get_coords(file)
    bag = BagDataset(bags=[[Path(path)]], bag_size=None, ground_truths=torch.zeros(1, 1), transform=None)
    features, coords_um, size, _ = bag[0]
    return {
        "um": info.coords_um, "side_um": info.tile_size_um, "side_px": info.tile_size_px, "size": size,
        "features": features.numpy(), "bag_um": coords_um.numpy(),
        "kind": detect_feature_type(Path(path).parent),
    }  # fmt: skip


JOBS = {
    each.__name__: each
    for each in (trident_coords, trident_legacy, trident_features, trident_slide, trident_contours, trident_writes,
                 clam_patches, clam_bags, stamp_bag)
}  # fmt: skip

if __name__ == "__main__":
    try:
        with contextlib.redirect_stdout(sys.stderr):
            answer = JOBS[sys.argv[1]](*sys.argv[2:-1])
    except ModuleNotFoundError as error:
        sys.stderr.write(f"\n{error.name}\n")
        sys.exit(MISSING)
    np.savez(sys.argv[-1], **answer)

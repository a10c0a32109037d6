"""Writes camelyon16.csv and camelyon17.csv beside this file.

``python data_manifests/make_manifests.py stages.csv``, where stages.csv is CAMELYON17's own (``stages.csv`` of the
bucket or ``stage_labels.csv`` of GigaDB). What the columns mean and where the facts are from stands in
``wsi_ips/datasets/camelyon.py``.
"""

import sys
from pathlib import Path

from wsi_ips.datasets.camelyon import camelyon16_rows, camelyon17_rows, read_stages, write_rows


def main(stages: Path, out: Path) -> None:
    write_rows(out / "camelyon16.csv", camelyon16_rows())
    write_rows(out / "camelyon17.csv", camelyon17_rows(read_stages(stages)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)

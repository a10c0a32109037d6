"""Seeds that are text: tables, outlines, recipes, descriptions, and requests to the viewer."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shapely import Polygon

from wsi_ips.commands.recipe import shipped_recipe
from wsi_ips.datasets.annotations import write_asap

SQUARE = [[10, 20], [90, 20], [90, 80], [10, 80], [10, 20]]
HOLE = [[30, 40], [50, 40], [40, 60], [30, 40]]

MANIFEST = """slide_id,case_id,label,split,path
a,case_1,tumor,train,slides/a.tif
b,case_2,normal,val,slides/b.tif
c,case_3,,test,slides/c.tif
"""
RESOLUTIONS = "wsi,mpp\na.tif,0.25\nb.tif, 0.5\nc,0.499\n"
REFERENCE = "image,type,class\ntest_001.tif,Slide,Tumor\ntest_002.tif,Slide,Normal\n"
STAGES = "patient,stage\npatient_000.zip,pN1\n" + "".join(
    f"patient_000_node_{node}.tif,{kind}\n"
    for node, kind in enumerate(("macro", "micro", "itc", "negative", "negative"))
)
CHECKSUMS = f"{'0a' * 16}  slides/a.tif\n{'1b' * 32} *slides/b.tif\n"
DETECTIONS = "0.91,120,340\n0.12,5,7\n"
HISTORY = "epoch,train_loss,val_loss\n0,0.69,0.7\n1,0.5,\n"
FOUND = """class,score,l0_x,l0_y,l0_left,l0_top,l0_right,l0_bottom,l0_outline
nucleus,0.9,20,30,10,20,30,40,"POLYGON ((10 20, 30 20, 30 40, 10 40, 10 20))"
mitosis,0.8,50,50,40,40,60,60,
"""
CASES = "slide_id,case_id\na,case_1\nb,case_2\nc,case_2\n"
SPECIFICATION = """blocks:
- {level: 3, kind: bottleneck, parents: [0, 1]}
"""
VERTICES = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in SQUARE)
REGION = f"<Region><Vertices>{VERTICES}</Vertices></Region>"
IMAGESCOPE = f"<Annotations><Annotation><Regions>{REGION}</Regions></Annotation></Annotations>"
REQUESTS = (
    "/", "/page/index.html", "/api/view", "/api/runs/0/slides", "/api/runs/0/slides/a",
    "/api/runs/0/slides/a/legend?task=label&colormap=viridis&scale=uniform&low=0.1&high=4",
    "/api/runs/0/slides/a/patches?count=5&head=0", "/api/runs/0/slides/a/value?x=40&y=50&query=0",
    "/api/runs/0/slides/a/outlines",
    "/api/runs/0/slides/a/objects?left=0&top=0&right=900&bottom=700&classes=nucleus",
    "/runs/0/slides/a/thumbnail.jpg", "/runs/0/slides/a/patch/3.jpg", "/runs/0/slides/a/slide/9/0_0.jpg?v=1",
    "/runs/0/slides/a/heat/10/1_0.png?task=label&scale=absolute&low=0&high=0.01",
)  # fmt: skip
"""A line each; what follows are lines of headers, up to an empty one."""


def text(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def _geojson(*geometries: Mapping[str, Any]) -> str:
    features = [{"type": "Feature", "properties": {}, "geometry": each} for each in geometries]
    return json.dumps({"type": "FeatureCollection", "features": features})


def _recipe(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "recipe.yaml").write_bytes(shipped_recipe(name).read_bytes())


RECIPES = ("predict_cluster", "finetune_camelyon16", "finetune_spinenet", "detect_nuclei", "evaluate",
           "export_overlays", "spinenet_search", "ats_speed_limits", "finetune_features")  # fmt: skip

TEXT_SEEDS: Mapping[str, Callable[[Path], Any]] = {
    "tables/manifest": text("manifest.csv", MANIFEST),
    "tables/resolutions": text("mpp.csv", RESOLUTIONS),
    "tables/reference": text("reference.csv", REFERENCE),
    "tables/stages": text("stages.csv", STAGES),
    "tables/checksums": text("checksums.md5", CHECKSUMS),
    "tables/detections": text("detections.csv", DETECTIONS),
    "tables/history": text("history.csv", HISTORY),
    "tables/found": text("found.csv", FOUND),
    "tables/cases": text("cases.csv", CASES),
    "outlines/polygon": text("s.geojson", _geojson({"type": "Polygon", "coordinates": [SQUARE, HOLE]})),
    "outlines/several": text("s.geojson", _geojson(
        {"type": "MultiPolygon", "coordinates": [[SQUARE], [HOLE]]}, {"type": "Point", "coordinates": [1, 2]},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [SQUARE]}]})),
    "outlines/asap": lambda folder: write_asap(folder / "s.xml", [Polygon(SQUARE, [HOLE]), Polygon(HOLE)]),
    "outlines/imagescope": text("imagescope.xml", IMAGESCOPE),
    **{f"recipe/{name}": _recipe(name) for name in RECIPES},
    "viewer/requests": text("requests.txt", "".join(f"{line}\n" for line in REQUESTS)),
    "viewer/headers": text("requests.txt", "/?token=x\nHost: 127.0.0.1:8080\nCookie: wsi_ips_view_1=2; a=b\n\n"
                           "/api/view\nHost: [::1]:80\nIf-None-Match: \"x\"\nRange: bytes=0-9\n\n"),
}  # fmt: skip

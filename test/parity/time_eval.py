"""Times `wgpu-wish eval` beside pycocotools, both from files to figures:

    python time_eval.py FOLDER [--images 5000] [--results 100] [--skip-pycocotools]

Writes gt.json and dt.json to FOLDER where they are not there yet: 640x480 images with 7 objects of 80 classes and as many results as
asked for, most of them near an object, as RLE of blobs with ragged outlines.
"""

import argparse
import contextlib
import io
import json
import resource
import subprocess
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

ROOT = Path(__file__).parents[2]
W, H = 640, 480


def blob(rng, centre, radius, ragged):
    """Runs of a blob without ever making its pixels: a column's run is an ellipse's, with noise at both ends."""
    centre, radius = np.clip(centre, 8, [W - 8, H - 8]), np.maximum(3, radius)
    left, right = max(0, int(centre[0] - radius[0])), min(W - 1, int(centre[0] + radius[0]))
    x = np.arange(left, right + 1)
    half = radius[1] * np.sqrt(np.maximum(0, 1 - ((x - centre[0]) / radius[0]) ** 2))
    top = np.clip(centre[1] - half + ragged * rng.normal(size=x.size), 0, H - 2).astype(int)
    bottom = np.maximum(top + 1, np.clip(centre[1] + half + ragged * rng.normal(size=x.size), 0, H - 1).astype(int))
    edges = np.stack([x * H + top, x * H + bottom], 1).reshape(-1)
    counts = np.diff(np.concatenate([[0], edges, [W * H]])).tolist()
    rle = coco_mask.frPyObjects({"size": [H, W], "counts": counts}, H, W)
    box = [int(left), int(top.min()), int(right - left + 1), int(bottom.max() - top.min())]
    return {"size": [H, W], "counts": rle["counts"].decode()}, box, int((bottom - top).sum())


def make(folder, images, per_image):
    rng = np.random.default_rng(0)
    # Drawing half a million blobs takes longer than evaluating them: objects and their near misses are drawn from a stock.
    stock = []
    for _ in range(600):
        radius = 2 ** rng.uniform(2.5, 7, 2)
        centre = rng.uniform(0.1, 0.9, 2) * [W, H]
        near = lambda spread: (centre + rng.normal(size=2) * radius * spread, radius * (1 + rng.normal(size=2) * spread))
        stock.append([blob(rng, *near(spread), 1.5) for spread in (0, 0.02, 0.05, 0.1, 0.2, 0.3)])
    truth = {
        "images": [{"id": i + 1, "width": W, "height": H, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": c + 1, "name": f"class {c}"} for c in range(80)],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        there = [(int(rng.integers(0, 600)), int(rng.integers(1, 81))) for _ in range(7)]
        for kind, category in there:
            rle, box, area = stock[kind][0]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "segmentation": rle,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(rng.random() < 0.02),
                }
            )
        for _ in range(per_image):
            kind, category = there[int(rng.integers(0, 7))] if rng.random() < 0.6 else (int(rng.integers(0, 600)), 1)
            rle, box, _ = stock[kind][int(rng.integers(1, 6))]
            if rng.random() < 0.3:
                category = int(rng.integers(1, 81))
            score = round(float(rng.random()), 3)
            results.append({"image_id": image["id"], "category_id": category, "segmentation": rle, "bbox": box, "score": score})
    (folder / "gt.json").write_text(json.dumps(truth))
    (folder / "dt.json").write_text(json.dumps(results))


def with_pycocotools(folder, kind):
    began = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(folder / "gt.json"))
        e = COCOeval(gt, gt.loadRes(str(folder / "dt.json")), kind)
        e.evaluate()
        e.accumulate()
        e.summarize()
    return time.perf_counter() - began[0], time.process_time() - began[1], e.stats.tolist()


def with_ours(folder, kind):
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    began = time.perf_counter(), used()
    command = ["node", str(ROOT / "bin/wgpu-wish.mjs"), "eval", "--json", "--iou", kind]
    command += ["--gt", str(folder / "gt.json"), "--dt", str(folder / "dt.json")]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return time.perf_counter() - began[0], used() - began[1], list(json.loads(answer).values())[:12]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--results", type=int, default=100)
    parser.add_argument("--skip-pycocotools", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "dt.json").exists():
        make(options.folder, options.images, options.results)
    for kind in ("segm", "bbox"):
        ours, cpu, figures = with_ours(options.folder, kind)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        line = f"{kind}: ours {ours:.1f} s ({cpu:.1f} s of CPU), at most {memory:.1f} GiB"
        if not options.skip_pycocotools:
            theirs, cpu, stats = with_pycocotools(options.folder, kind)
            worst = max(abs(a - b) for a, b in zip(figures, stats))
            line += f"; pycocotools {theirs:.1f} s ({cpu:.1f} s of CPU); the twelve figures differ by {worst:.1e}"
        print(line, flush=True)


main()

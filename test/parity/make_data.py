"""Records what pycocotools 2.0.11 and Pillow 13.0.0 give on small random inputs, into test/parity/data/. Run from anywhere:

    python make_data.py

masks.json    polygons and random masks -> RLE, area, box, IoU (plain and crowd), union, intersection
resize.json   random RGB images -> Image.resize(BILINEAR), base64
ap.json       random ground truth and results -> COCOeval's stats, segm and bbox, and per-class AP
"""

import base64
import io
import json
import contextlib
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

OUT = Path(__file__).parent / "data"
OUT.mkdir(exist_ok=True)


def write(name, value):
    (OUT / name).write_text(json.dumps(value, separators=(",", ":")) + "\n")


def text(rle):
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()}


def blob(rng, h, w):
    """A random mask with runs of many lengths: smoothed noise above a random level."""
    noise = rng.normal(size=(h, w))
    for _ in range(int(rng.integers(0, 4))):
        noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, -1, 0)) / 4
    return (noise > rng.normal() * noise.std()).astype(np.uint8)


def far_polygons():
    """Polygons with corners far outside the image."""
    rng = np.random.default_rng(2)
    found = []
    for i in range(24):
        h, w = (int(n) for n in rng.integers(1, 60, 2))
        xy = rng.uniform(-1, 1, (int(rng.integers(3, 9)), 2)) * 10 ** rng.uniform(2, 5.9, 2)
        xy[::3] = rng.uniform(0, 1, xy[::3].shape) * [w, h]
        part = [round(float(v), 1 + i % 2) for v in xy.reshape(-1)]
        rle = coco_mask.merge(coco_mask.frPyObjects([part], h, w))
        found.append({"height": h, "width": w, "polygons": [part], "rle": text(rle)})
    return found


def masks():
    rng = np.random.default_rng(0)
    polygons = []
    for i in range(60):
        h, w = (int(n) for n in rng.integers(1, 60, 2))
        parts = []
        for _ in range(int(rng.integers(1, 4))):
            k = int(rng.integers(3, 12))
            xy = rng.uniform(-0.3, 1.3, (k, 2)) * [w, h]
            if i % 4 == 1:
                xy = np.round(xy)
            if i % 4 == 2:
                xy = np.round(xy * 2) / 2
            if i % 7 == 3:
                xy = np.clip(xy, 0, [w, h])
            if i % 11 == 5:
                xy[:] = xy[0]  # all corners in one point
            parts.append([round(float(v), 2) for v in xy.reshape(-1)])
        rle = coco_mask.merge(coco_mask.frPyObjects(parts, h, w))
        polygons.append({"height": h, "width": w, "polygons": parts, "rle": text(rle)})
    polygons += far_polygons()

    groups = []
    for i in range(12):
        h, w = (int(n) for n in rng.integers(1, 40, 2))
        arrays = [blob(rng, h, w) for _ in range(5)]
        arrays[0][:] = 0
        arrays[1][:] = 1
        arrays[2][:] = 0
        arrays[2][h - 1, w // 2] = 1  # one pixel
        if i == 3:
            arrays[3] = arrays[4].copy()
        rles = [coco_mask.encode(np.asfortranarray(a)) for a in arrays]
        plain = coco_mask.iou(rles, rles, [0] * 5)
        crowd = coco_mask.iou(rles, rles, [1] * 5)
        groups.append(
            {
                "height": h,
                "width": w,
                "pixels": ["".join(map(str, a.reshape(-1))) for a in arrays],
                "rles": [text(r) for r in rles],
                "areas": [int(n) for n in coco_mask.area(rles)],
                "boxes": [[float(v) for v in b] for b in coco_mask.toBbox(rles)],
                "iou": plain.reshape(-1).tolist(),
                "crowdIou": crowd.reshape(-1).tolist(),
                "union": text(coco_mask.merge(rles[2:])),
                "intersection": text(coco_mask.merge(rles[3:], intersect=True)),
            }
        )
    boxes = np.round(rng.uniform(0, 20, (8, 4)), 2)
    write(
        "masks.json",
        {
            "polygons": polygons,
            "groups": groups,
            "boxes": boxes.tolist(),
            "boxIou": coco_mask.iou(boxes, boxes, [0, 1] * 4).reshape(-1).tolist(),
        },
    )


def resize():
    rng = np.random.default_rng(1)
    cases = []
    sizes = [((17, 11), (8, 5)), ((7, 9), (20, 31)), ((40, 30), (41, 29)), ((23, 5), (6, 17)), ((1, 1), (3, 2))]
    # From Pillow 13 on the vertical pass comes first where it takes away more than twice as many rows as the other columns.
    sizes += [((12, 41), (6, 20)), ((12, 41), (6, 29)), ((12, 41), (6, 28)), ((20, 24), (18, 4)), ((20, 12), (31, 11)), ((9, 30), (4, 33))]
    for (w, h), (nw, nh) in sizes:
        pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        small = np.asarray(Image.fromarray(pixels).resize((nw, nh), Image.BILINEAR))
        cases.append(
            {
                "from": [w, h],
                "to": [nw, nh],
                "pixels": base64.b64encode(pixels.tobytes()).decode(),
                "want": base64.b64encode(small.tobytes()).decode(),
            }
        )
    write("resize.json", cases)


def ap_case(rng, images, categories, per_image, ties, first_box):
    """Ground truth with crowds and all sizes; results near it, shifted, doubled, missed and made up."""
    size = 128
    truth = {
        "images": [{"id": 10 + i, "width": size, "height": size, "file_name": f"{i}.png"} for i in range(images)],
        "categories": [{"id": 3 * c + 1, "name": f"class {c}"} for c in range(categories)],
        "annotations": [],
    }
    results = []

    def box_mask(x, y, w, h):
        a = np.zeros((size, size), np.uint8)
        yy, xx = np.mgrid[:size, :size] + 0.5
        a[((xx - x - w / 2) / (w / 2)) ** 2 + ((yy - y - h / 2) / (h / 2)) ** 2 <= 1] = 1
        return a

    def entry(image, category, mask, box):
        rle = text(coco_mask.encode(np.asfortranarray(mask)))
        return {"image_id": image, "category_id": category, "segmentation": rle, "bbox": [round(float(v), 2) for v in box]}

    for image in truth["images"]:
        for _ in range(int(rng.integers(0, per_image + 1))):
            w, h = 2 ** rng.uniform(2, 6.8, 2)
            x, y = rng.uniform(0, max(1, size - w)), rng.uniform(0, max(1, size - h))
            # The last class has no ground truth at all.
            category = 3 * int(rng.integers(0, categories - 1)) + 1
            mask = box_mask(x, y, w, h)
            if mask.sum() == 0:
                continue
            crowd = int(rng.random() < 0.15)
            annotation = entry(image["id"], category, mask, (x, y, w, h))
            annotation |= {"id": len(truth["annotations"]) + 1, "iscrowd": crowd, "area": float(mask.sum())}
            truth["annotations"].append(annotation)
            for _ in range(int(rng.integers(0, 4))):
                jitter = rng.normal(size=4) * rng.choice([0.02, 0.1, 0.3]) * np.array([w, h, w, h])
                x2, y2, w2, h2 = x + jitter[0], y + jitter[1], max(2, w + jitter[2]), max(2, h + jitter[3])
                guess = category if rng.random() < 0.8 else 3 * int(rng.integers(0, categories)) + 1
                score = rng.random()
                result = entry(image["id"], guess, box_mask(x2, y2, w2, h2), (x2, y2, w2, h2))
                result["score"] = round(float(score), 1 if ties else 6)
                results.append(result)
    if not first_box:
        for result in results:
            del result["bbox"]
    return truth, results


def quiet_eval(truth, results, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        e = COCOeval(gt, gt.loadRes(json.loads(json.dumps(results))), kind)
        e.evaluate()
        e.accumulate()
        e.summarize()
    names = {c["id"]: c["name"] for c in truth["categories"]}
    per_class = {}
    for k, category in enumerate(e.params.catIds):
        p = e.eval["precision"][:, :, k, 0, -1]
        p = p[p > -1]
        per_class[names[category]] = float(p.mean()) if p.size else -1
    at = lambda iou: e.eval["precision"][np.isclose(e.params.iouThrs, iou)][:, :, :, 0, -1]
    ap70 = at(0.7)
    ap70 = ap70[ap70 > -1]
    # AP25 is a second run with that single threshold.
    with contextlib.redirect_stdout(io.StringIO()):
        e25 = COCOeval(gt, gt.loadRes(json.loads(json.dumps(results))), kind)
        e25.params.iouThrs = np.array([0.25])
        e25.evaluate()
        e25.accumulate()
    p25 = e25.eval["precision"][:, :, :, 0, -1]
    p25 = p25[p25 > -1]
    return {
        "stats": e.stats.tolist(),
        "ap70": float(ap70.mean()) if ap70.size else -1,
        "ap25": float(p25.mean()) if p25.size else -1,
        "perClass": per_class,
    }


def ap():
    cases = []
    for seed, (images, categories, per_image, ties, first_box) in enumerate(
        [(6, 3, 5, False, True), (5, 2, 9, True, False), (2, 4, 3, True, True)]
    ):
        truth, results = ap_case(np.random.default_rng(10 + seed), images, categories, per_image, ties, first_box)
        case = {"truth": truth, "results": results, "segm": quiet_eval(truth, results, "segm")}
        if first_box:
            case["bbox"] = quiet_eval(truth, results, "bbox")
        cases.append(case)
    write("ap.json", cases)


masks()
resize()
ap()

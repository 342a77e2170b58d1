"""Compares `wgpu-wish eval` with pycocotools' COCOeval, and its VOC figures with the protocol of BESTIE and IRN, on random cases:

    python fuzz_eval.py [--cases 300] [--seed 0] [--record FILE]

Every case is a ground truth and a results file with what is rare in real ones: ties, crowds, images without anything, classes without
ground truth, areas at the borders of the ranges, masks with runs of no length, empty masks, polygons that leave the image, more than
100 results of a class. All cases go through one process of fuzz_eval.ts. Exits with 1 where a figure differs by more than 1e-9.
--record writes the smallest cases, with pycocotools' figures, for npm test: data/ap-odd.json came from pycocotools 2.0.11 by

    python fuzz_eval.py --seed 120 --cases 60 --record data/ap-odd.json
"""

import argparse
import collections
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HERE = Path(__file__).parent
STATS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
VOC = {"voc25": 0.25, "voc50": 0.5, "voc70": 0.7, "voc75": 0.75}


def compressed(counts, h, w):
    rle = coco_mask.frPyObjects({"size": [h, w], "counts": counts}, h, w)
    return {"size": [h, w], "counts": rle["counts"].decode()}


def blob(rng, h, w, centre, radius):
    y, x = np.mgrid[:h, :w] + 0.5
    return ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 <= 1


def counts_of(mask, rng, odd):
    """Run lengths of a mask; `odd` splits runs by runs of no length, which the format allows."""
    flat = mask.T.reshape(-1)
    places = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], places, [flat.size]])).tolist()
    if flat[0]:
        runs = [0] + runs
    if not odd:
        return runs
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, len(runs)))
        cut = int(rng.integers(0, runs[at] + 1))
        runs[at : at + 1] = [cut, 0, runs[at] - cut]
    return runs


def polygons(rng, h, w, centre, radius):
    parts = []
    for _ in range(int(rng.integers(1, 3))):
        k = int(rng.integers(3, 9))
        angle = np.sort(rng.uniform(0, 2 * np.pi, k))
        xy = np.stack([centre[0] + radius[0] * np.cos(angle), centre[1] + radius[1] * np.sin(angle)], 1)
        if rng.random() < 0.2:
            xy = np.round(xy)
        if rng.random() < 0.1:
            xy[:] = xy[0]
        parts.append([round(float(v), 2) for v in xy.reshape(-1)])
    return parts


def segmentation(rng, h, w, centre, radius, forms, empty, odd):
    form = rng.choice(forms)
    if form == "polygons":
        return polygons(rng, h, w, centre, radius)
    mask = blob(rng, h, w, centre, radius)
    if rng.random() < empty:
        mask[:] = False
    counts = counts_of(mask, rng, rng.random() < odd)
    return compressed(counts, h, w) if form == "rle" else {"size": [h, w], "counts": counts}


def score_of(rng, how):
    return {
        "free": lambda: float(rng.random()),
        "tenths": lambda: round(float(rng.random()), 1),
        "equal": lambda: 0.5,
        "signed": lambda: float(rng.normal() * 10.0 ** rng.integers(-9, 9)),
    }[how]()


def area_of(rng, true):
    border = [0, 1024, 1023.9999999, 1024.0000001, 9216, 9216.5, 9215, 1e10, 1e10 + 2]
    return float(rng.choice(border)) if rng.random() < 0.3 else float(true) * (1 if rng.random() < 0.7 else rng.uniform(0.3, 30))


def case_of(seed):
    rng = np.random.default_rng(seed)
    style = ["rle", "box", "both", "mixed", "no box", "rle", "both"][seed % 7]
    scores = ["free", "tenths", "equal", "signed"][seed % 4]
    empty, odd, crowd = (float(rng.choice([0, 0.1, 0.4])) for _ in range(3))
    categories = rng.choice(np.arange(0, 90), int(rng.integers(1, 6)), replace=False)
    with_truth = categories[: max(1, int(rng.integers(0, len(categories) + 1)))]
    truth = {
        "images": [],
        "categories": [{"id": int(c), "name": f"class {c}"} for c in categories],
        "annotations": [],
    }
    results = []
    first_id = int(rng.choice([0, 1, 1, -3, 500]))
    for i in rng.permutation(int(rng.integers(1, 8))):
        h, w = (int(n) for n in (rng.integers(1, 8, 2) if rng.random() < 0.1 else rng.integers(8, 130, 2)))
        image = {"id": int(i) * 7, "width": w, "height": h, "file_name": f"{i}.png"}
        truth["images"].append(image)
        objects = []
        for _ in range(int(rng.choice([0, 1, 3, 8]))):
            centre = rng.uniform(0, 1, 2) * [w, h]
            radius = 2 ** rng.uniform(0, 6, 2)
            category = int(rng.choice(with_truth))
            objects.append((centre, radius, category))
            seg = segmentation(rng, h, w, centre, radius, ["rle", "counts", "polygons"], empty, odd)
            box = [round(float(v), 2) for v in (*(centre - radius), *(2 * radius))]
            truth["annotations"].append(
                {
                    "id": first_id + len(truth["annotations"]),
                    "image_id": image["id"],
                    "category_id": category,
                    "segmentation": seg,
                    "bbox": box,
                    "area": area_of(rng, np.pi * radius[0] * radius[1]),
                    "iscrowd": int(rng.random() < crowd),
                    **({"ignore": int(rng.integers(0, 2))} if rng.random() < 0.2 else {}),
                }
            )
        for _ in range(int(rng.choice([0, 2, 12, 12, 130]))):
            if objects and rng.random() < 0.8:
                centre, radius, category = objects[int(rng.integers(0, len(objects)))]
                spread = rng.choice([0, 0.02, 0.1, 0.4])
                centre = centre + rng.normal(size=2) * radius * spread
                radius = np.maximum(0.3, radius * (1 + rng.normal(size=2) * spread))
                if rng.random() < 0.1:
                    category = int(rng.choice(categories))
            else:
                centre, radius, category = rng.uniform(0, 1, 2) * [w, h], 2 ** rng.uniform(0, 6, 2), int(rng.choice(categories))
            if rng.random() < 0.0008:
                category = 91  # which is no category of the file
            result = {"image_id": image["id"], "category_id": category, "score": score_of(rng, scores)}
            first = len(results) == 0
            if style in ("both", "box") or (style == "mixed"):
                result["bbox"] = [round(float(v), 2) for v in (*(centre - radius), *(2 * radius))]
                if rng.random() < 0.05:
                    result["bbox"][2] = float(rng.choice([0, -3]))
            if style == "no box" and first:
                result["bbox"] = []
            forms = ["rle", "counts", "polygons"] if style == "mixed" else ["rle"]
            if style != "box" and not (style == "mixed" and rng.random() < 0.3):
                result["segmentation"] = segmentation(rng, h, w, centre, radius, forms, empty, odd)
            results.append(result)
    if seed % 3 == 0:  # what pycocotools does not ask for
        for entry in truth["images"]:
            del entry["file_name"]
    if style == "box" and seed % 2 == 0:
        for image in truth["images"]:
            del image["width"], image["height"]
        for annotation in truth["annotations"]:
            del annotation["segmentation"]
        return truth, results, ["bbox"]
    kinds = ["segm"] if style == "no box" else ["segm", "bbox"]
    return truth, results, kinds


def mean(values):
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def pycocotools_figures(truth, results, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        dt = gt.loadRes(json.loads(json.dumps(results)))
        e = COCOeval(gt, dt, kind)
        e.evaluate()
        e.accumulate()
        e.summarize()
        e25 = COCOeval(gt, dt, kind)
        e25.params.iouThrs = np.array([0.25])
        e25.evaluate()
        e25.accumulate()
    names = {c["id"]: c["name"] for c in truth["categories"]}
    precision = e.eval["precision"]
    at70 = precision[np.isclose(e.params.iouThrs, 0.7)][:, :, :, 0, -1]
    return {
        **dict(zip(STATS, e.stats.tolist())),
        "AP25": mean(e25.eval["precision"][:, :, :, 0, -1]),
        "AP70": mean(at70),
        "perClass": {names[c]: mean(precision[:, :, k, 0, -1]) for k, c in enumerate(e.params.catIds)},
    }


def rle_of(seg, box, h, w):
    if seg is None:
        x, y, bw, bh = box
        seg = [[x, y, x, y + bh, x + bw, y + bh, x + bw, y]]
    if isinstance(seg, list):
        return coco_mask.merge(coco_mask.frPyObjects(seg, h, w))
    return coco_mask.frPyObjects(seg, h, w) if isinstance(seg["counts"], list) else seg


def voc_figure(truth, results, threshold):
    """ChainerCV's eval_instance_segmentation_voc from its description: all results count, there are no crowds, the whole curve."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    known = {c["id"] for c in truth["categories"]}
    there, found = collections.defaultdict(list), collections.defaultdict(list)
    for a in truth["annotations"]:
        if not a["iscrowd"]:
            there[a["category_id"], a["image_id"]].append(rle_of(a["segmentation"], None, *sizes[a["image_id"]]))
    for r in results:
        if r["category_id"] in known:
            rle = rle_of(r.get("segmentation"), r.get("bbox"), *sizes[r["image_id"]])
            found[r["category_id"], r["image_id"]].append((r["score"], rle))
    values = []
    for category in known:
        positives = sum(len(masks) for (c, _), masks in there.items() if c == category)
        if positives == 0:
            continue
        scores, match = [], []
        for image in sorted(sizes):  # ChainerCV leaves the order of equal scores open; COCO's is by image
            guesses = sorted(found[category, image], key=lambda pair: -pair[0])
            masks = there[category, image]
            selected = set()
            for score, guess in guesses:
                ious = coco_mask.iou([guess], masks, [0] * len(masks))[0] if masks else []
                best = int(np.argmax(ious)) if masks else -1
                hit = best >= 0 and ious[best] >= threshold
                scores.append(score)
                match.append(int(hit and best not in selected))
                if hit:
                    selected.add(best)
        order = np.argsort(-np.array(scores), kind="stable")
        match = np.array(match)[order] if len(match) else np.zeros(0)
        tp, fp = np.cumsum(match == 1), np.cumsum(match == 0)
        recall = np.concatenate([[0], tp / positives, [1]])
        precision = np.concatenate([[0], tp / np.maximum(1, tp + fp), [0]])
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        steps = np.flatnonzero(recall[1:] != recall[:-1])
        values.append(float(((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum()))
    return float(np.mean(values)) if values else -1.0


def expected(truth, results, kinds):
    want = {kind: pycocotools_figures(truth, results, kind) for kind in kinds}
    if "segm" in want:
        want["voc"] = {name: voc_figure(truth, results, threshold) for name, threshold in VOC.items()}
    return want


def differences(want, got, path=""):
    for key, value in want.items():
        if isinstance(value, dict):
            yield from differences(value, got.get(key, {}), f"{path}{key}.")
        elif not abs(got.get(key, float("nan")) - value) <= 1e-9:
            yield f"{path}{key}: {got.get(key)}, wanted {value}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seed, options.seed + options.cases):
            truth, results, kinds = case_of(seed)
            if not results:
                continue  # loadRes fails on an empty list
            case = {"seed": seed, "truth": truth, "results": results, "want": expected(truth, results, kinds)}
            (Path(folder) / f"{len(cases)}.gt.json").write_text(json.dumps(truth))
            (Path(folder) / f"{len(cases)}.dt.json").write_text(json.dumps(results))
            cases.append(case)
        command = ["node", "--import", "tsx", str(HERE / "fuzz_eval.ts"), folder, str(len(cases))]
        answers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE).stdout)
    wrong = 0
    for case, answer in zip(cases, answers):
        faults = [answer["error"]] if "error" in answer else list(differences(case["want"], answer))
        wrong += bool(faults)
        if faults and wrong <= 20:
            print(f"seed {case['seed']}:", *faults[:4], sep="\n  ")
    figures = sum(len(list(differences(case["want"], {}))) for case in cases)
    print(f"{len(cases)} cases, {figures} figures, {wrong} cases differ")
    if options.record:
        small = sorted(cases, key=lambda case: len(json.dumps(case)))
        kept = [case for case in small if case["want"]["bbox" if "bbox" in case["want"] else "segm"]["AP"] > 0][:24]
        options.record.write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    sys.exit(wrong > 0)


main()

"""Writes small data sets in the formats of VOC 2012, SBD, labelme and YOLO, with what is to be read from them, into
test/parity/data/formats.json: {"files": {path: base64}, "want": {source: {file name: [object]}}}. Masks are pycocotools' RLE of the arrays
from which the files were made. Needs Pillow, NumPy, SciPy and pycocotools. Run from anywhere:

    python make_formats.py
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
import scipy.io
import scipy.sparse
from PIL import Image
from pycocotools import mask as coco_mask

OUT = Path(__file__).parent / "data"
VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
).split()
rng = np.random.default_rng(7)
files, want = {}, {}


def put(path, data):
    assert path not in files
    files[path] = base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def photo(path, width, height):
    kind = "PNG" if path.endswith("png") else "JPEG"
    put(path, saved(Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)), format=kind))


def voc_palette():
    colours = []
    for i in range(256):
        r = g = b = 0
        for j in range(8):
            r |= (i >> (3 * j) & 1) << (7 - j)
            g |= (i >> (3 * j + 1) & 1) << (7 - j)
            b |= (i >> (3 * j + 2) & 1) << (7 - j)
        colours += [r, g, b]
    return colours


def indexed(array, grey=False, **options):
    image = Image.fromarray(array)
    if not grey:
        image = image.convert("P") if image.mode != "L" else Image.frombytes("P", image.size, array.tobytes())
        image.putpalette(voc_palette())
    return saved(image, format="PNG", **options)


def rle(mask):
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(n) for n in counts["size"]], "counts": counts["counts"].decode()}


def masked(label, mask):
    ys, xs = np.nonzero(mask)
    box = [int(v) for v in (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)]
    return {"label": label, "rle": rle(mask), "bbox": box, "area": int(mask.sum()), "crowd": 0}


def objects(width, height, labels, border):
    """Overlapping ellipses, later ones in front; with a border of void as VOC has it. -> numbers, classes by number"""
    y, x = np.mgrid[0:height, 0:width]
    numbers = np.zeros((height, width), np.uint8)
    for n, _ in enumerate(labels, 1):
        cx, cy = rng.uniform(0.2, 0.8, 2) * [width, height]
        rx, ry = rng.uniform(0.15, 0.4, 2) * [width, height]
        numbers[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] = n
    if border:
        edge = np.zeros_like(numbers, bool)
        edge[:, 1:] |= numbers[:, 1:] != numbers[:, :-1]
        edge[1:] |= numbers[1:] != numbers[:-1]
        numbers[edge] = 255
    return numbers


def expected(numbers, labels):
    return [masked(label, numbers == n) for n, label in enumerate(labels, 1) if (numbers == n).any()]


# --- VOC: two images in train, one in val, one with boxes alone, two that only SBD has segmented
ROOT = "VOCdevkit/VOC2012"
sizes = {}
for name in ["2007_000032", "2008_000015", "2009_000001", "2010_000002", "2011_000003", "2011_000009"]:
    sizes[name] = (int(rng.integers(20, 50)), int(rng.integers(20, 50)))
    photo(f"{ROOT}/JPEGImages/{name}.jpg", *sizes[name])
segmented = {
    "2007_000032": ["person", "dog", "dog"],
    "2008_000015": ["tvmonitor", "aeroplane"],
    "2009_000001": ["cat"],
}
voc = {}
for (name, labels), how in zip(segmented.items(), [{}, {"bits": 8, "compress_level": 9}, {"grey": True}]):
    numbers = objects(*sizes[name], labels, border=True)
    classes = np.array([0, *(VOC.index(label) + 1 for label in labels)] + [255] * (255 - len(labels)), np.uint8)[numbers]
    put(f"{ROOT}/SegmentationObject/{name}.png", indexed(numbers, **how))
    put(f"{ROOT}/SegmentationClass/{name}.png", indexed(classes))
    voc[f"{name}.jpg"] = expected(numbers, labels)
lists = {
    "Segmentation/train": ["2007_000032", "2008_000015"],
    "Segmentation/val": ["2009_000001"],
    "Segmentation/trainval": list(segmented),
    "Main/train": ["2010_000002", "2007_000032"],
}
for name, names in lists.items():
    put(f"{ROOT}/ImageSets/{name}.txt", "".join(f"{n}\n" for n in names))
put(f"{ROOT}/ImageSets/Main/dog_train.txt", "2010_000002 -1\n2007_000032  1\n")
boxes = {}
for name in lists["Main/train"]:
    width, height = sizes[name]
    found = []
    xml = f"<annotation>\n<filename>{name}.jpg</filename><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    for label, (x0, y0, x1, y1), difficult in [
        ("horse", (1, 1, width, height), 0),
        ("person", (3, 5, 11, 17), 1),
        ("car", (4.5, 2.0, 10.25, 9.0), 0),
    ][: 3 if name == "2010_000002" else 1]:
        xml += f"<object><name>{label}</name><pose>Left</pose><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
        w, h = x1 - x0 + 1, y1 - y0 + 1
        found.append({"label": label, "bbox": [x0 - 1, y0 - 1, w, h], "area": w * h, "crowd": difficult})
    put(f"{ROOT}/Annotations/{name}.xml", xml + "\n</annotation>\n")
    boxes[f"{name}.jpg"] = found
want["voc"] = voc
want["voc-train"] = {f"{n}.jpg": voc[f"{n}.jpg"] for n in lists["Segmentation/train"]}
want["voc-boxes"] = boxes

# --- SBD: one image of VOC's train, one of its val, two others; compressed and not, numbers of several types
SBD = "benchmark_RELEASE/dataset"
sbd = {}
for i, (name, labels) in enumerate(
    {
        "2008_000015": ["tvmonitor"],
        "2009_000001": ["cat"],
        "2011_000003": ["bus", "person", "person", "car"],
        "2011_000009": ["sheep"],
    }.items()
):
    width, height = sizes[name]
    files[f"{SBD}/img/{name}.jpg"] = files[f"{ROOT}/JPEGImages/{name}.jpg"]
    numbers = objects(width, height, labels, border=False)
    boundaries = np.empty((len(labels), 1), object)
    for n in range(len(labels)):
        boundaries[n, 0] = scipy.sparse.csc_matrix((numbers == n + 1)[:, ::-1])
    categories = np.array([[VOC.index(label) + 1] for label in labels], [np.uint8, np.float64, np.int32, np.uint8][i])
    file = io.BytesIO()
    stored = numbers.astype([np.uint8, np.uint8, np.int64, np.uint64][i])
    inst = {"Boundaries": boundaries, "Segmentation": stored, "Categories": categories}
    other = {"note": "a variable before it", "GTinst": inst} if i == 1 else {"GTinst": inst}
    scipy.io.savemat(file, other, do_compression=i != 2)
    put(f"{SBD}/inst/{name}.mat", file.getvalue())
    sbd[f"{name}.jpg"] = expected(numbers, labels)
put(f"{SBD}/train.txt", "2008_000015\n2011_000003\n")
put(f"{SBD}/val.txt", "2009_000001\n2011_000009\n")
file = io.BytesIO()
scipy.io.savemat(file, {"GTinst": {"Segmentation": np.full((3, 4), 1 + 2j), "Categories": np.ones((1, 1))}})
put("complex.mat", file.getvalue())
want["sbd"] = sbd
want["train_aug"] = {**want["voc-train"], **{f"{n}.jpg": sbd[f"{n}.jpg"] for n in ["2011_000003", "2011_000009"]}}

# --- labelme
W, H = 40, 30


def polygon(label, parts, width=W, height=H):
    merged = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width)))
    return masked(label, merged)


def labelme(name, shapes, flags=None, **fields):
    image = fields.pop("image", f"{name}.png")
    if "/" not in image and f"labelme/{image}" not in files:
        photo(f"labelme/{image}", W, H)
    defaults = {"group_id": None, "shape_type": "polygon", "flags": {}}
    document = {"version": "5.4.1", "flags": flags or {}, "imagePath": image, "imageData": None, "imageHeight": H, "imageWidth": W}
    put(f"labelme/{name}.json", json.dumps({**document, "shapes": [{**defaults, **shape} for shape in shapes], **fields}))


one, two, three = [2.5, 3, 20, 4, 11, 21.5], [22, 2, 38, 3, 36, 15, 24, 12], [25, 20, 35, 20, 35, 28.5]
pairs = lambda p: [p[i : i + 2] for i in range(0, len(p), 2)]
labelme(
    "polygons",
    [
        {"label": "dog", "points": pairs(one)},
        {"label": "cat", "points": pairs(two), "group_id": 1},
        {"label": "dog", "points": pairs(three), "group_id": 1},
        {"label": "cat", "points": pairs(three), "group_id": 1},
        {"label": "__ignore__", "points": pairs(one)},
    ],
)
stamp = rng.integers(0, 2, (6, 9)).astype(bool)
pasted = np.zeros((H, W), bool)
pasted[4:10, 7:16] = stamp
labelme(
    "mask",
    [{"label": "dog", "shape_type": "mask", "points": [[7, 4], [15, 9]], "mask": base64.b64encode(saved(Image.fromarray(stamp), format="PNG")).decode()}],
)
labelme("circle", [{"label": "cat", "shape_type": "circle", "points": [[20, 15], [30, 15]]}])
y, x = np.mgrid[0:H, 0:W] + 0.5
want["labelme-masks"] = {
    "polygons.png": [polygon("dog", [one]), polygon("cat", [two, three]), polygon("dog", [three])],
    "mask.png": [masked("dog", pasted)],
    "circle.png": [masked("cat", (x - 20) ** 2 + (y - 15) ** 2 < 100)],
}
labelme("boxes", [{"label": "cat", "shape_type": "rectangle", "points": [[30, 5.5], [12, 20]]}])
labelme("points", [{"label": "dog", "shape_type": "point", "points": [[10.5, 7.25]]}], image="points.png", imageHeight=None, imageWidth=None)
labelme("tags", [], {"cat": True, "dog": False})
labelme("nothing", [])

# --- YOLO
YOLO = "yolo"
put(f"{YOLO}/data.yaml", "path: .\ntrain: images/train\nval: val.txt\nnames:\n  0: dog\n  1: cat\n")
for name in ["train/a", "train/deep/b", "train/empty", "val/c"]:
    photo(f"{YOLO}/images/{name}.png", W, H)
shares = lambda p: " ".join(f"{v / (W if i % 2 == 0 else H):.8f}" for i, v in enumerate(p))
put(f"{YOLO}/labels/train/a.txt", f"1 {shares(one)}\n\n0 {shares(two)}\n")
put(f"{YOLO}/labels/train/deep/b.txt", "0 0.5 0.5 0.25 0.2\n")
put(f"{YOLO}/labels/val/c.txt", f"0 {shares(three)}")
put(f"{YOLO}/val.txt", "./images/val/c.png\n")
want["yolo"] = {
    "a.png": [polygon("cat", [one]), polygon("dog", [two])],
    "deep/b.png": [{"label": "dog", "bbox": [15, 12, 10, 6], "area": 60, "crowd": 0}],
    "empty.png": [],
}
want["yolo-val"] = {"images/val/c.png": [polygon("dog", [three])]}

(OUT / "formats.json").write_text(json.dumps({"files": files, "want": want}, separators=(",", ":")) + "\n")

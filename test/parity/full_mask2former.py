"""Full-size Mask2Former of transformers with random weights: a checkpoint, an image and what it predicts, to compare with wgpu-wish.

    python test/parity/full_mask2former.py make OUT BACKBONE [--size H W] [--classes K] [--seed N] [--init lively] [--float64]
    wgpu-wish predict --checkpoint OUT OUT/image.png --out OUT/pictures --short SHORT --dump OUT/ours.safetensors
    python test/parity/full_mask2former.py compare OUT

BACKBONE: resnet18, resnet34, resnet50, resnet101, swinT, swinS, swinB, swinL at Mask2Former's sizes. SHORT is the image's short side, so that
nothing is resized. `--init lively` scales weights by fan-in instead of transformers' initial values, so that attention and offsets do
something. Reported are the largest and the mean difference in units of the reference's standard deviation; with --float64 those of the
reference's own float32 beside them. Not part of the tests: it takes minutes. Needs torch, transformers (with scipy), safetensors, pillow.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from make_mask2former import MEAN, STD, images, randomise, statistics_from_data
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNETS = {
    "resnet18": ("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    "resnet34": ("basic", [3, 4, 6, 3], [64, 128, 256, 512]),
    "resnet50": ("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
    "resnet101": ("bottleneck", [3, 4, 23, 3], [256, 512, 1024, 2048]),
}
SWINS = {
    "swinT": (96, [2, 2, 6, 2], [3, 6, 12, 24], 7),
    "swinS": (96, [2, 2, 18, 2], [3, 6, 12, 24], 7),
    "swinB": (128, [2, 2, 18, 2], [4, 8, 16, 32], 12),
    "swinL": (192, [2, 2, 18, 2], [6, 12, 24, 48], 12),
}


def build(name, classes):
    if name in RESNETS:
        layer, depths, widths = RESNETS[name]
        backbone = ResNetConfig(embedding_size=64, hidden_sizes=widths, depths=depths, layer_type=layer, out_features=STAGES)
    else:
        dim, depths, heads, window = SWINS[name]
        backbone = SwinConfig(image_size=384, embed_dim=dim, depths=depths, num_heads=heads, window_size=window, out_features=STAGES)
    queries = 200 if name == "swinL" else 100
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, num_queries=queries, num_labels=classes))


def predict(model, x):
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        out = model(pixel_values=x.to(dtype))
    return {"class_logits": out.class_queries_logits.float(), "mask_logits": out.masks_queries_logits.float()}


def make(args):
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = build(args.backbone, args.classes).eval()
    height, width = args.size
    im = images(args.seed + 1, 1, height, width)
    Image.fromarray(im[0].permute(1, 2, 0).byte().numpy()).save(args.out / "image.png")
    x = F.pad((im - MEAN) / STD, (0, -width % 32, 0, -height % 32))
    if args.init == "lively":
        randomise(model, args.seed)
    if args.backbone in RESNETS:
        statistics_from_data(model, x, model.model.pixel_level_module.encoder)
    model.save_pretrained(args.out)
    reference = predict(model, x)
    if args.float64:
        single = reference
        reference = predict(model.double(), x)
        show("torch float32", single, reference)
    save_file({k: v.contiguous() for k, v in reference.items()}, args.out / "reference.safetensors")


def show(label, got, want):
    for key, w in want.items():
        assert got[key].shape == w.shape, (key, got[key].shape, w.shape)
        d = (got[key] - w).abs() / w.std()
        print(f"{label} {key} {tuple(w.shape)}: max {d.max():.1e}, mean {d.mean():.1e}, spread {w.std():.2g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["make", "compare"])
    parser.add_argument("out", type=Path)
    parser.add_argument("backbone", nargs="?", choices=[*RESNETS, *SWINS])
    parser.add_argument("--size", nargs=2, type=int, default=(320, 384))
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", choices=["default", "lively"], default="default")
    parser.add_argument("--float64", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.what == "make":
        make(args)
    else:
        show("wgpu-wish", load_file(args.out / "ours.safetensors"), load_file(args.out / "reference.safetensors"))

"""Full-size Mask2Former of transformers with random weights: a checkpoint, an image and what it predicts, to compare with wgpu-wish.

    python test/parity/full_mask2former.py make OUT BACKBONE [--size H W] [--classes K] [--seed N] [--init lively]
    wgpu-wish predict --checkpoint OUT OUT/image.png --out OUT/pictures --short SHORT --dump OUT/ours.safetensors
    python test/parity/full_mask2former.py compare OUT [--float64]

BACKBONE: resnet18, resnet34, resnet50, resnet101, swinT, swinS, swinB, swinL at Mask2Former's sizes. SHORT is the image's short side, so that
nothing is resized. `--init lively` scales weights by fan-in instead of transformers' initial values, so that attention and offsets do
something. Reported are the largest, the root mean square and the mean difference in units of the reference's standard deviation.

Masked attention thresholds the masks after each layer, so that rounding decides cells on the threshold, and what follows differs by far more.
Therefore the reference also runs with the attention masks of wgpu-wish in place of its own: what differs then, it computes differently. For
each layer is told how many cells of the two masks differ, and how far from the threshold the reference's logits lie there, in units of
their standard deviation: in its own run, where what differed before plays a part, and in that with our masks, where it does not.
With --float64 the reference computes in float64, and its own float32 is compared with it in the same way.

Not part of the tests: it takes minutes. Needs torch, transformers (with scipy), safetensors, pillow. Exits with 1 where with equal masks a
difference is beyond 1e-3, or a cell differs that lies further than that from the threshold.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_mask2former import MEAN, STD, images, randomise, statistics_from_data
from PIL import Image
from safetensors.torch import load_file
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


def pixels(im):
    """RGB images as the model takes them: normalised, padded to a multiple of 32."""
    return F.pad((im - MEAN) / STD, (0, -im.shape[3] % 32, 0, -im.shape[2] % 32))


def predict(model, x, masks=None):
    """Outputs and the logits at which the decoder's layers threshold; `masks`, true where a layer may look, take its own masks' place."""
    decoder = model.model.transformer_module.decoder
    own = decoder.mask_predictor.forward
    logits = []

    def forward(queries, features, size):
        outputs, blocked = own(queries, features, size)  # (1, N, H, W), (heads, N, h w)
        i = len(logits)
        logits.append(F.interpolate(outputs, size=size, mode="bilinear", align_corners=False))
        if masks and i < len(masks):
            blocked = ~masks[i].flatten(2).expand_as(blocked)
        return outputs, blocked

    decoder.mask_predictor.forward = forward
    with torch.no_grad():
        out = model(pixel_values=x.to(next(model.parameters()).dtype))
    decoder.mask_predictor.forward = own
    attention = {f"attention_logits.{i}": x for i, x in enumerate(logits[:-1])}  # no layer follows the last
    return {"class_logits": out.class_queries_logits, "mask_logits": out.masks_queries_logits, **attention}


def make(args):
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = build(args.backbone, args.classes).eval()
    im = images(args.seed + 1, 1, *args.size)
    Image.fromarray(im[0].permute(1, 2, 0).byte().numpy()).save(args.out / "image.png")
    if args.init == "lively":
        randomise(model, args.seed)
    if args.backbone in RESNETS:
        statistics_from_data(model, pixels(im), model.model.pixel_level_module.encoder)
    model.save_pretrained(args.out)


def attention(outputs):
    return [outputs[f"attention_logits.{i}"] for i in range(sum(key.startswith("attention_logits") for key in outputs))]


def differences(label, got, want):
    """Of the outputs, in units of their spread; the largest."""
    largest = 0
    for key in ("class_logits", "mask_logits"):
        w = want[key]
        assert got[key].shape == w.shape, (key, got[key].shape, w.shape)
        d = (got[key] - w).abs() / w.std()
        print(f"{label}, {key} {tuple(w.shape)}: max {d.max():.1e}, rms {d.square().mean().sqrt():.1e}, mean {d.mean():.1e}, spread {w.std():.2g}")
        largest = max(largest, d.max().item())
    return largest


def tipped(got, want):
    """How many cells one of two masks has, and how far from the threshold they lie at most."""
    differ = (got >= 0) != (want >= 0)
    return differ.sum().item(), (want[differ].abs().max() / want.std()).item() if differ.any() else 0.0


def against(label, got, model, x):
    """Compares with the reference on its own, then with the masks of `got` in place of its own."""
    free = predict(model, x)
    forced = predict(model, x, [logits >= 0 for logits in attention(got)])
    differences(f"{label} as it is", got, free)
    largest = differences(f"{label}, equal masks", got, forced)
    for i, (a, b, c) in enumerate(zip(attention(got), attention(free), attention(forced), strict=True)):
        (own, far), (same, near) = tipped(a, b), tipped(a, c)
        print(f"{label}, layer {i}: of {a.numel()} cells differ {own} within {far:.1e}; where masks before are equal {same} within {near:.1e}")
        largest = max(largest, near)
    return largest


def compare(args):
    model = Mask2FormerForUniversalSegmentation.from_pretrained(args.out).eval()
    x = pixels(torch.tensor(np.asarray(Image.open(args.out / "image.png"))).permute(2, 0, 1)[None].float())
    single = predict(model, x)
    if args.float64:
        model.double()
        against("torch float32 / float64", single, model, x)
    name = f"wgpu-wish / torch {'float64' if args.float64 else 'float32'}"
    largest = against(name, load_file(args.out / "ours.safetensors"), model, x)
    if largest > 1e-3:
        raise SystemExit(f"{name}: with equal masks off by {largest:.1e} of the spread")


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
    make(args) if args.what == "make" else compare(args)

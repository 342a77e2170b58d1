"""Records what PyTorch 2.13.0 gives for functions of F, values and gradients, on small random inputs, into test/parity/data/functional.json.

    python make_functional.py

Each entry: the function, its options under F's names, its inputs, the output, the gradient that arrives at it and those of the inputs (null:
none). Tensors are {shape, dtype, data}, data being base64 of little-endian f32, or of i32 for "i32" and "bool".
"""

import base64
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

torch.manual_seed(0)
randn, rand = torch.randn, torch.rand
entries = []


def pack(t):
    kind = {torch.float32: "f32", torch.int64: "i32", torch.bool: "bool"}[t.dtype]
    data = t.detach().numpy().astype("<f4" if kind == "f32" else "<i4")
    return {"shape": list(t.shape), "dtype": kind, "data": base64.b64encode(np.ascontiguousarray(data)).decode()}


def add(op, fn, *inputs, **options):
    inputs = [t.clone().requires_grad_(True) if t.dtype == torch.float32 else t for t in inputs]
    y = fn(*inputs)
    g = torch.randn_like(y)
    y.backward(g)
    grads = [None if t.grad is None else pack(t.grad) for t in inputs]
    entries.append({"op": op, "options": options, "inputs": [pack(t) for t in inputs], "y": pack(y), "g": pack(g), "grads": grads})


for mode in ("bilinear", "nearest"):
    for padding in ("zeros", "border"):
        for align in (False, True):
            sample = lambda x, grid: F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=align)
            add("gridSample", sample, randn(2, 3, 7, 9), rand(2, 4, 5, 2) * 2.6 - 1.3, mode=mode, paddingMode=padding, alignCorners=align)

for options in (
    {"size": [13, 5], "mode": "bilinear"},
    {"size": [13, 5], "mode": "bilinear", "alignCorners": True},
    {"size": [3, 20], "mode": "nearest"},
    {"scaleFactor": 1.3, "mode": "bilinear"},
    {"scaleFactor": [0.7, 3.0], "mode": "bilinear"},
    {"scaleFactor": 2.0, "mode": "nearest"},
    {"scaleFactor": 0.4, "mode": "nearest"},
    {"scaleFactor": 1.5},
):
    names = {"size": "size", "scaleFactor": "scale_factor", "mode": "mode", "alignCorners": "align_corners"}
    torch_options = {names[k]: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    add("interpolate", lambda x: F.interpolate(x, **torch_options), randn(2, 2, 7, 9), **options)

for r in ("none", "mean", "sum"):
    classes = lambda x, t, w: F.cross_entropy(x, t, weight=w.detach(), reduction=r, ignore_index=2)
    add("crossEntropy", classes, randn(5, 4, 3), torch.randint(0, 4, (5, 3)), rand(4), reduction=r, ignoreIndex=2)
    binary = lambda x, t, w, p: F.binary_cross_entropy_with_logits(x, t, weight=w.detach(), pos_weight=p.detach(), reduction=r)
    add("binaryCrossEntropyWithLogits", binary, randn(5, 4), rand(5, 4), rand(5, 1), rand(4) * 3, reduction=r)
    add("smoothL1", lambda x, t: F.smooth_l1_loss(x, t, reduction=r, beta=0.6), randn(5, 4), randn(5, 4), reduction=r, beta=0.6)
    add("mseLoss", lambda x, t: F.mse_loss(x, t, reduction=r), randn(5, 4), randn(5, 4), reduction=r)
for r in ("none", "mean", "sum", "batchmean"):
    for log in (False, True):
        q = -rand(5, 4) if log else rand(5, 4)
        add("klDiv", lambda p, q: F.kl_div(p, q, reduction=r, log_target=log), randn(5, 4) - 2, q, reduction=r, logTarget=log)

mask = rand(2, 1, 6, 7) > 0.3
mask[..., 0] = True
shapes = (2, 3, 6, 4), (2, 3, 7, 4), (2, 3, 7, 5)
attend = F.scaled_dot_product_attention
add("scaledDotProductAttention", lambda q, k, v, m: attend(q, k, v, attn_mask=m), *map(randn, shapes), mask)
add("scaledDotProductAttention", lambda q, k, v, m: attend(q, k, v, attn_mask=m, scale=0.3), *map(randn, shapes), randn(6, 7), scale=0.3)
add("topk", lambda x: torch.topk(x, 4).values, randn(3, 9), k=4)
add("gather", lambda x, i: torch.gather(x, 1, i), randn(3, 5, 4), torch.randint(0, 5, (2, 7, 3)), dim=1)
add("scatterAdd", lambda x, i, s: torch.scatter_add(x, 1, i, s), randn(3, 5, 4), torch.randint(0, 5, (2, 7, 3)), randn(2, 7, 3), dim=1)
add("indexSelect", lambda x, i: torch.index_select(x, 1, i), randn(3, 5, 4), torch.randint(0, 5, (9,)), dim=1)
add("embedding", F.embedding, torch.randint(0, 5, (3, 2)), randn(5, 4))
add("softmax", lambda x: torch.softmax(x, 1), randn(3, 5, 4), dim=1)
add("logSoftmax", lambda x: torch.log_softmax(x, -2), randn(3, 5, 4), dim=-2)
add("logSumExp", lambda x: torch.logsumexp(x, 1), randn(3, 5, 4), dim=1)

LEVELS = [[3, 4], [2, 5]]


def deform(value, locations, weights):
    """Deformable attention by grid_sample, level by level."""
    b, _, m, d = value.shape
    _, q, _, l, p, _ = locations.shape
    read = []
    for level, (x, (h, w)) in enumerate(zip(value.split([h * w for h, w in LEVELS], 1), LEVELS)):
        x = x.permute(0, 2, 3, 1).reshape(b * m, d, h, w)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        read.append(F.grid_sample(x, grid, align_corners=False))  # (B M, D, Q, P)
    w = weights.transpose(1, 2).reshape(b * m, 1, q, l * p)
    return (torch.cat(read, -1) * w).sum(-1).view(b, m * d, q).transpose(1, 2).contiguous()


add("msDeformAttn", deform, randn(2, 22, 3, 8), rand(2, 6, 3, 2, 4, 2) * 1.4 - 0.2, randn(2, 6, 3, 2, 4), shapes=LEVELS)

out = Path(__file__).parent / "data" / "functional.json"
out.write_text(json.dumps(entries, separators=(",", ":")) + "\n")
print(len(entries), "entries")

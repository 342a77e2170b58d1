"""Records test/parity/losses.safetensors: matcher and every loss term, from references that share no code with train/.

    python test/parity/make_losses.py

Needs torch, transformers, scipy, safetensors; made with torch 2.13, transformers 5.23. Mask2Former's part is transformers' own
Mask2FormerHungarianMatcher and Mask2FormerLoss; WISH's part (prompt cost, adaptive candidates, L_cam, L_self, both directions of the
divergence, l2) is written below, object by object, from the formulas, in float64. Random points are drawn here and replayed by the test.

Two decoder layers of N queries, two images with 3 and 2 objects, K classes. Masks are blobs, so that costs differ; the test asserts that
the reference's terms move when the predictions are shuffled among the queries.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as reference

HERE = Path(__file__).parent
B, L, N, K, S, D = 2, 2, 8, 4, 3, 16
H = W = 32
h = w = 8
P, OVERSAMPLE, IMPORTANCE = 40, 3.0, 0.75
COUNTS = [3, 2]
WEIGHTS = {"class": 2.0, "prompt": 5.0, "bce": 5.0, "dice": 5.0}
TAU = 1.5

generator = torch.Generator().manual_seed(20)


def randn(*shape):
    return torch.randn(*shape, generator=generator).half().double()


def grid_rand(*shape):
    """Uniform in [0, 1), a multiple of 2^-16: exact in float32 also after 2x - 1."""
    return torch.randint(0, 2**16, shape, generator=generator).double() / 2**16


def blob(size):
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    cx, cy, rx, ry = (grid_rand(4) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + torch.tensor([0.2, 0.2, 0.12, 0.12])).tolist()
    return ((x / size - cx) / rx) ** 2 + ((y / size - cy) / ry) ** 2 < 1


def at_points(x, points):
    """x (n, H, W), points (n or 1, P, 2) in 0..1 -> (n, P)"""
    grid = (2 * points.expand(len(x), -1, -1) - 1)[:, None]
    return F.grid_sample(x[:, None], grid, align_corners=False)[:, 0, 0]


# --- what a network might say, and what is there -------------------------------------------------------------------------------------
objects = [torch.stack([torch.stack([blob(H) for _ in range(3)]) for _ in range(n)]).double() for n in COUNTS]  # (k, 3, H, W)
classes = [torch.tensor([1, 3, 1]), torch.tensor([0, 2])]
iou = [torch.tensor([[0.3, 0.9, 0.5], [0.8, 0.1, 0.2], [0.4, 0.5, 0.6]]), torch.tensor([[0.2, 0.1, 0.7], [0.6, 0.9, 0.1]])]
class_logits = 1.5 * randn(L, B, N, K + 1)
mask_logits = randn(L, B, N, h, w)
for layer in range(L):
    for b in range(B):
        for j in range(COUNTS[b]):  # some queries know some objects
            q, n = (3 * j + layer + b) % N, (j + layer) % 3
            mask_logits[layer, b, q] += F.interpolate(objects[b][j, n][None, None], size=(h, w), mode="area")[0, 0] * 4 - 2
mask_logits = mask_logits.half().double()
latents = randn(L, B, N, S, D)
sparse = {"box": 0.7 * randn(COUNTS[0], 2, D), "point": 0.7 * randn(COUNTS[1], 2, D)}
cam = randn(B, K, 4, 4) + 0.3
match_points = grid_rand(B, P, 2)

# --- Mask2Former's matcher and criterion ---------------------------------------------------------------------------------------------
config = Mask2FormerConfig(num_labels=K, train_num_points=P, oversample_ratio=OVERSAMPLE, importance_sample_ratio=IMPORTANCE,
                           class_weight=WEIGHTS["class"], mask_weight=WEIGHTS["bce"], dice_weight=WEIGHTS["dice"], no_object_weight=0.1)
criterion = reference.Mask2FormerLoss(config, WEIGHTS).double()
M = sum(COUNTS)
candidates = grid_rand(L, M, int(P * OVERSAMPLE), 2)
randoms = grid_rand(L, M, P - int(P * IMPORTANCE), 2)
queue, cost_matrices = [], []
reference.torch.rand, rand = lambda *shape, **_: queue.pop(0).reshape(shape), torch.rand
reference.linear_sum_assignment = lambda c: (cost_matrices.append(torch.as_tensor(c)), linear_sum_assignment(c))[1]
first = [o[:, 0] for o in objects]
m2f = {"class": 0.0, "bce": 0.0, "dice": 0.0}
m2f_pairs = []
for layer in range(L):
    queue += [match_points[0:1], match_points[1:2], candidates[layer], randoms[layer]]
    losses = criterion(mask_logits[layer], class_logits[layer], first, classes)
    m2f["class"] += losses["loss_cross_entropy"].item()
    m2f["bce"] += losses["loss_mask"].item()
    m2f["dice"] += losses["loss_dice"].item()
    queue += [match_points[0:1], match_points[1:2]]
    for b, (qs, js) in enumerate(criterion.matcher(mask_logits[layer], class_logits[layer], first, classes)):
        m2f_pairs += [[layer, b, q, j, 0] for q, j in zip(qs.tolist(), js.tolist())]
    del cost_matrices[-B:]
reference.torch.rand = rand


# --- WISH ----------------------------------------------------------------------------------------------------------------------------
def divergence(z, zhat, kind):
    if kind == "l2":
        return ((z - zhat) ** 2).mean()
    logp, logq = F.log_softmax(z / TAU, -1), F.log_softmax(zhat / TAU, -1)
    if kind == "teacher":
        return F.kl_div(logq, logp, log_target=True, reduction="sum")
    return F.kl_div(logp, logq, log_target=True, reduction="sum")


def prompt_distance(b, j, zhat, kind):
    """typed: slots point, top left, bottom right. Image 0 has boxes, image 1 points."""
    if b == 0:
        return (divergence(sparse["box"][j, 0], zhat[1], kind) + divergence(sparse["box"][j, 1], zhat[2], kind)) / 2
    return divergence(sparse["point"][j, 0], zhat[0], kind)


def bce(x, t):
    return F.binary_cross_entropy_with_logits(x, t)


def dice(x, t):
    p = x.sigmoid()
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def wish(kind):
    pairs, terms = [], {"class": 0.0, "prompt": 0.0, "bce": 0.0, "dice": 0.0}
    matrices = torch.zeros(L, B, N, max(COUNTS), dtype=torch.float64)
    for layer in range(L):
        here = []
        for b in range(B):
            x = at_points(mask_logits[layer, b], match_points[b : b + 1])
            cost, star = torch.zeros(N, COUNTS[b]), torch.zeros(N, COUNTS[b], dtype=torch.long)
            probability = class_logits[layer, b].softmax(-1)
            for j in range(COUNTS[b]):
                t = at_points(objects[b][j], match_points[b : b + 1])
                for q in range(N):
                    masks = [WEIGHTS["bce"] * bce(x[q], t[n]) + WEIGHTS["dice"] * dice(x[q], t[n]) for n in range(3)]
                    star[q, j] = min(range(3), key=lambda n: masks[n])
                    matrices[layer, b, q, j] = (-WEIGHTS["class"] * probability[q, classes[b][j]] + masks[star[q, j]]
                                                + WEIGHTS["prompt"] * prompt_distance(b, j, latents[layer, b, q], kind))
            qs, js = linear_sum_assignment(matrices[layer, b, :, : COUNTS[b]])
            here += [(b, q, j, int(star[q, j])) for q, j in zip(qs.tolist(), js.tolist())]
        labels = torch.full((B, N), K)
        for b, q, j, _ in here:
            labels[b, q] = classes[b][j]
        weight = torch.tensor([1.0] * K + [0.1], dtype=torch.float64)
        terms["class"] += F.cross_entropy(class_logits[layer].reshape(-1, K + 1), labels.reshape(-1), weight=weight).item()
        for i, (b, q, j, n) in enumerate(here):
            x = mask_logits[layer, b, q][None]
            sure = at_points(x, candidates[layer, i : i + 1])[0].abs()
            order = sure.argsort(stable=True)[: int(P * IMPORTANCE)]
            points = torch.cat([candidates[layer, i, order], randoms[layer, i]])[None]
            px, pt = at_points(x, points)[0], at_points(objects[b][j, n][None], points)[0]
            terms["bce"] += bce(px, pt).item() / M
            terms["dice"] += dice(px, pt).item() / M
            terms["prompt"] += prompt_distance(b, j, latents[layer, b, q], kind).item() / M
        pairs += [[layer, *pair] for pair in here]
    return pairs, terms, matrices


def cam_terms(pairs):
    tags = torch.zeros(B, K, dtype=torch.float64)
    for b in range(B):
        tags[b, classes[b]] = 1
    valid = torch.zeros(B, 4, 4, dtype=torch.float64)  # image 1 is 3/4 as wide, 1/2 as high as the input
    valid[0], valid[1, :2, :3] = 1, 1
    pooled = (cam * valid[:, None]).sum((2, 3)) / valid.sum((1, 2))[:, None]
    l_cam = F.binary_cross_entropy_with_logits(pooled, tags).item()
    normal, raw, cells = 0.0, 0.0, 0.0
    for b in range(B):
        for c in sorted(set(classes[b].tolist())):
            queries = [q for layer, i, q, j, _ in pairs if layer == L - 1 and i == b and classes[b][j] == c]
            small = F.interpolate(mask_logits[L - 1, b, queries][None].sigmoid(), size=(4, 4), mode="bilinear", align_corners=False)[0]
            union = small.max(0).values
            a = (cam[b, c].relu() * valid[b])
            a = (a / (a.max() + 1e-5)).clamp(1e-4, 1 - 1e-4)
            normal += (F.binary_cross_entropy(a, union, reduction="none") * valid[b]).sum().item()
            raw += (F.binary_cross_entropy_with_logits(cam[b, c], union, reduction="none") * valid[b]).sum().item()
            cells += valid[b].sum().item()
    return {"cam": l_cam, "self": normal / cells, "selfRaw": raw / cells}


expected = {"mask2former": {"pairs": m2f_pairs, "terms": m2f}}
tensors = {"cost.mask2former": torch.stack([F.pad(c, (0, max(COUNTS) - c.shape[1])) for c in cost_matrices]).reshape(L, B, N, -1)}
for kind in ["teacher", "student", "l2"]:
    pairs, terms, tensors[f"cost.{kind}"] = wish(kind)
    expected[kind] = {"pairs": pairs, "terms": {**terms, **cam_terms(pairs)}}

tensors |= {
    "class_logits": class_logits, "mask_logits": mask_logits, "latents": latents, "sparse.box": sparse["box"], "sparse.point": sparse["point"],
    "cam": cam, "points.match": 2 * match_points - 1, "points.candidates": 2 * candidates - 1, "points.random": 2 * randoms - 1,
}  # fmt: skip
tensors = {name: x.float().contiguous() for name, x in tensors.items()}
tensors["masks"] = torch.cat(objects).to(torch.uint8)
tensors["iou"] = torch.cat(iou).float()
tensors["classes"] = torch.cat(classes).int()
meta = {"expected": json.dumps(expected), "counts": json.dumps(COUNTS), "weights": json.dumps(WEIGHTS),
        "options": json.dumps({"points": P, "oversample": OVERSAMPLE, "importance": IMPORTANCE, "tau": TAU})}
save_file(tensors, HERE / "losses.safetensors", metadata=meta)
print({k: v["terms"] for k, v in expected.items()})

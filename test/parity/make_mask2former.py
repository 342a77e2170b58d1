"""Records the fixtures of test/model from PyTorch: Mask2Former (transformers, ResNet backbone), ResNet (timm), MobileNetV2 (twin below,
torchvision, transformers).

    python test/parity/make_mask2former.py [shared folder]

Needs torch, torchvision, transformers, timm, safetensors. Everything is seeded; made with torch 2.13, transformers 5.23, timm 1.0.31.

Random weights are chosen so that a fixture can fail: matrices are scaled by fan-in, offsets of deformable attention depend on the query,
BatchNorm statistics come from data, and all weights are representable in float16 (that is how they are stored, which halves the files).
The reference runs in float64. Besides the outputs for an image each fixture has those for a black and for a shifted image; the tests assert
that they differ by more than a tenth of the outputs' spread, so that a model which ignores its input cannot pass.
"""

import math
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, MobileNetV2Config, MobileNetV2Model, ResNetConfig

HERE = Path(__file__).parent
SHARED = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent.parent.parent / "shared")
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)


def images(seed, batch, height, width):
    """Smooth blobs with edges and noise, whole numbers 0..255: (batch, 3, height, width)."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 2, generator=g)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    edges = (F.interpolate(torch.rand(batch, 1, 5, 6, generator=g), size=(height, width)) > 0.5).float()
    noise = torch.rand(batch, 3, height, width, generator=g)
    return ((0.5 * smooth + 0.35 * edges + 0.15 * noise).clamp(0, 1) * 255).round()


def variants(x):
    return {"image": x, "black": torch.zeros_like(x), "shifted": torch.roll(x, (9, 14), (2, 3))}


def randomise(module, seed):
    """Fan-in scaled weights, small biases, norm weights around 1; all rounded to float16."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda p: torch.randn(p.shape, generator=g)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "embed" in name and p.dim() == 2 and "mask_embedder" not in name and "prompt" not in name:
                p.copy_(normal(p))  # queries, positions, level embeddings
            elif p.dim() > 1:
                fan_in = p[0].numel()
                p.copy_(normal(p) * math.sqrt((2.0 if p.dim() == 4 else 1.5) / fan_in))
            elif name.endswith("sampling_offsets.bias"):
                p.copy_(normal(p) * 2)
            elif name.endswith("weight"):
                p.copy_(1 + 0.2 * normal(p))
            else:
                p.copy_(0.2 * normal(p))


def statistics_from_data(module, x, run):
    """BatchNorm statistics: the average over passes in training mode."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
    module.train()
    with torch.no_grad():
        run(x)
    module.eval()


def halve(module):
    with torch.no_grad():
        for t in list(module.parameters()) + list(module.buffers()):
            if t.is_floating_point():
                t.copy_(t.half().to(t.dtype))


def weights_of(module, prefix="weights."):
    return {prefix + k: v.half().contiguous() for k, v in module.state_dict().items() if v.is_floating_point()}


def save(name, tensors):
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    path = HERE / name
    save_file(tensors, path, metadata={"made_by": "make_mask2former.py", "torch": torch.__version__})
    print(f"{name}: {path.stat().st_size / 1024:.0f} KiB")


def differences(outputs, names):
    for name in names:
        base = outputs[f"image.{name}"]
        for other in ("black", "shifted"):
            change = (outputs[f"{other}.{name}"] - base).abs().max() / base.std()
            assert change > 0.1, (name, other, change)


# ---- Mask2Former: transformers' model with a small ResNet, plus WISH's two heads on top ----


class Heads(nn.Module):
    """The heads WISH adds: an MLP on the normalised queries, a 1x1 convolution on the last feature map."""

    def __init__(self, dim, tokens, latent, res5, classes):
        super().__init__()
        self.prompt = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, tokens * latent)])
        self.cam = nn.Conv2d(res5, classes, 1, bias=False)
        self.tokens, self.latent = tokens, latent

    def latents(self, x):  # (B, Q, C) -> (B, Q, T, D)
        x = self.prompt[2](F.relu(self.prompt[1](F.relu(self.prompt[0](x)))))
        return x.view(*x.shape[:2], self.tokens, self.latent)


def weave(shape, k):
    """Fixed numbers the scalar loss weighs an output with: sin(1.7 i + k), the same in the test."""
    n = math.prod(shape)
    return torch.sin(1.7 * torch.arange(n, dtype=torch.float64) + k).view(shape)


def mask2former(seed):
    classes, dim = 3, 64
    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 2, 1, 1], layer_type="bottleneck",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=dim, mask_feature_size=dim, hidden_dim=dim, encoder_feedforward_dim=48,
        encoder_layers=2, decoder_layers=4, num_attention_heads=4, dim_feedforward=40, num_queries=7, dropout=0.0,
        num_labels=classes, output_auxiliary_logits=True,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    heads = Heads(dim, 3, 16, 64, classes)
    randomise(model, seed)
    randomise(heads, seed + 1)
    x = images(seed + 2, 2, 60, 90)
    prepare = lambda im: F.pad((im.double() - MEAN) / STD, (0, 6, 0, 4))
    model.double()
    heads.double()
    statistics_from_data(model, torch.cat([prepare(v) for v in variants(x).values()]), lambda v: model.model.pixel_level_module.encoder(v))
    halve(model)
    halve(heads)

    def forward(im):
        out = model(pixel_values=prepare(im))
        inner = model.model(pixel_values=prepare(im), output_hidden_states=True)
        states = [s.transpose(0, 1) for s in inner.transformer_decoder_intermediate_states]  # (B, Q, C), normalised
        masks = list(inner.masks_queries_logits)
        return {
            "class": [model.class_predictor(s) for s in states], "mask": masks,
            "prompt": [heads.latents(s) for s in states], "cam": heads.cam(inner.encoder_last_hidden_state),
            "features": inner.encoder_hidden_states, "mask_features": inner.pixel_decoder_last_hidden_state,
            "final": (out.class_queries_logits, out.masks_queries_logits),
        }

    tensors = {**weights_of(model), **weights_of(heads, "heads."), "input": x.half()}
    outputs = {}
    for name, im in variants(x).items():
        out = forward(im)
        last = {"class": out["class"][-1], "mask": out["mask"][-1], "prompt": out["prompt"][-1], "cam": out["cam"]}
        assert torch.equal(out["final"][0], last["class"]) and torch.equal(out["final"][1], last["mask"])
        for key, value in last.items():
            outputs[f"{name}.{key}"] = value.float()
        if name != "image":
            continue
        # Masked attention is a threshold: keep away from it, else two right implementations may differ.
        sizes = [(2, 3), (4, 6), (8, 12)]
        margin = min(
            F.interpolate(m, size=sizes[i % 3], mode="bilinear", align_corners=False).abs().min().item()
            for i, m in enumerate(out["mask"][:-1])
        )
        if margin < 5e-4:
            print(f"seed {seed}: margin {margin:.1e}, next")
            return mask2former(seed + 10)
        print(f"seed {seed}: margin {margin:.1e}")
        for i in range(3):
            outputs[f"aux{i}.class"] = out["class"][i].float()
            outputs[f"aux{i}.mask"] = out["mask"][i].float()
        outputs["res3"] = out["features"][1].float()[:1]
        outputs["mask_features"] = out["mask_features"].float()[:1, ::4]
        loss = sum(
            (out[key][i] * weave(out[key][i].shape, i)).mean() for key in ("class", "mask", "prompt") for i in range(4)
        ) + (out["cam"] * weave(out["cam"].shape, 9)).mean()
        loss.backward()
        outputs["loss"] = loss.float().view(1)
    differences(outputs, ["class", "mask", "prompt", "cam"])
    tensors.update(outputs)
    for prefix, module in (("grad.", model), ("headgrad.", heads)):
        for name, p in module.named_parameters():
            if p.grad is not None:
                flat = p.grad.float().flatten()
                step = max(1, flat.numel() // 24)
                tensors[prefix + name] = flat[::step]
    save("mask2former.safetensors", tensors)


# ---- ResNet: timm, basic blocks, torchvision's names ----


def resnet():
    model = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, [1, 2, 1, 1], channels=(12, 16, 24, 32), num_classes=2)
    randomise(model, 5)
    model.double()
    x = images(6, 1, 64, 96)
    prepare = lambda im: (im.double() - MEAN) / STD
    statistics_from_data(model, torch.cat([prepare(v) for v in variants(x).values()]), model)
    halve(model)
    tensors = {**weights_of(model), "input": x.half()}
    for name, im in variants(x).items():
        with torch.no_grad():
            h = model.maxpool(model.act1(model.bn1(model.conv1(prepare(im)))))
            for level, layer in enumerate((model.layer1, model.layer2, model.layer3, model.layer4), 2):
                h = layer(h)
                if name == "image" or level == 5:
                    tensors[f"{name}.res{level}"] = h.float()
    differences(tensors, ["res5"])
    save("resnet.safetensors", tensors)


# ---- MobileNetV2 with TensorFlow's padding and folded norms; written from the paper's table 2 ----

TABLE = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def eighth(channels):
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def mobilenet_layers(width):
    """[(key, out, in, kernel, stride, groups, relu6, residual begins, residual ends)]"""
    c = eighth(32 * width)
    layers = [("conv", c, 3, 3, 2, 1, True, False, False)]
    for t, channels, n, s in TABLE:
        out = eighth(channels * width)
        for i in range(n):
            residual = (i > 0 or s == 1) and c == out
            if t > 1:
                layers.append(("conv", c * t, c, 1, 1, 1, True, residual, False))
            layers.append(("dwconv", c * t, 1, 3, s if i == 0 else 1, c * t, True, residual and t == 1, False))
            layers.append(("conv", out, c * t, 1, 1, 1, False, False, residual))
            c = out
    return layers


def mobilenet(state, layers, im):
    """Features at strides 4, 8, 16, 32: what comes last at each resolution."""
    h = (im.double() - 127.5) / 127.5
    found, shortcut = {}, None
    for i, (kind, _, _, kernel, stride, groups, relu6, begins, ends) in enumerate(layers):
        if begins:
            shortcut = h
        pads = []
        for length in (h.shape[3], h.shape[2]):
            total = max(0, (-(-length // stride) - 1) * stride + kernel - length)
            pads += [total // 2, total - total // 2]
        key = f"{i:02d}.{kind}"
        h = F.conv2d(F.pad(h, pads), state[key + ".weight"].double(), state[key + ".bias"].double(), stride=stride, groups=groups)
        if relu6:
            h = h.clamp(0, 6)
        if ends:
            h = h + shortcut
        if not relu6:
            found[im.shape[3] // h.shape[3]] = h
    return [found[s].float() for s in (4, 8, 16, 32)]


def mobilenets():
    layers = mobilenet_layers(0.25)
    g = torch.Generator().manual_seed(8)
    state = {}
    for i, (kind, out, inner, kernel, _, _, relu6, _, _) in enumerate(layers):
        fan_in = inner * kernel * kernel
        state[f"{i:02d}.{kind}.weight"] = (torch.randn(out, inner, kernel, kernel, generator=g) * math.sqrt((2 if relu6 else 1) / fan_in)).half()
        state[f"{i:02d}.{kind}.bias"] = (0.1 * torch.randn(out, generator=g)).half()
    x = images(9, 2, 64, 64)
    tensors = {**{"weights." + k: v for k, v in state.items()}, "input": x.half()}
    for name, im in variants(x).items():
        for level, h in enumerate(mobilenet(state, layers, im), 2):
            if name == "image" or level == 5:
                tensors[f"{name}.res{level}"] = h
    differences(tensors, ["res5"])
    save("mobilenet.safetensors", tensors)

    state = load_file(SHARED / "weights" / "mobilenet_v2_imagenet.fp16.safetensors")
    x = images(10, 1, 64, 96)
    tensors = {"input": x.half()}
    for name, im in variants(x).items():
        for level, h in enumerate(mobilenet(state, mobilenet_layers(1), im), 2):
            if name == "image" or level == 5:
                tensors[f"{name}.res{level}"] = h
    differences(tensors, ["res5"])
    save("mobilenet_imagenet.safetensors", tensors)


def mobilenet_torchvision():
    model = torchvision.models.mobilenet_v2(width_mult=0.1).eval()
    randomise(model, 11)
    x = images(12, 1, 64, 96)
    statistics_from_data(model, (x - MEAN) / STD, model)
    halve(model)
    model = model.double()
    state = {k: v for k, v in model.features.state_dict().items() if "num_batches" not in k and not k.startswith("18.")}
    tensors = {**{"weights.features." + k: v.half() for k, v in state.items()}, "input": x.half()}
    ends = [3, 6, 13, 17]
    with torch.no_grad():
        for name, im in variants(x).items():
            h = (im.double() - MEAN) / STD
            for i, stage in enumerate(model.features[:18]):
                h = stage(h)
                if i in ends and (name == "image" or i == 17):
                    tensors[f"{name}.res{ends.index(i) + 2}"] = h.float()
    differences(tensors, ["res5"])
    save("mobilenet_torchvision.safetensors", tensors)


def mobilenet_transformers():
    """Expects pixels of -1..1; the last convolution is the classifier's. Narrower ones lack the first block's shortcut."""
    config = MobileNetV2Config(depth_multiplier=0.28, image_size=64)
    model = MobileNetV2Model(config, add_pooling_layer=False).eval()
    randomise(model, 13)
    x = images(14, 1, 64, 96)
    statistics_from_data(model, x / 127.5 - 1, model)
    halve(model)
    model = model.double()
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k and not k.startswith("conv_1x1")}
    tensors = {**{"weights." + k: v.half() for k, v in state.items()}, "input": x.half()}
    ends = [1, 4, 11, 15]
    with torch.no_grad():
        for name, im in variants(x).items():
            h = model.conv_stem(im.double() / 127.5 - 1)
            for i, stage in enumerate(model.layer):
                h = stage(h)
                if i in ends and (name == "image" or i == 15):
                    tensors[f"{name}.res{ends.index(i) + 2}"] = h.float()
    differences(tensors, ["res5"])
    save("mobilenet_transformers.safetensors", tensors)


if __name__ == "__main__":
    torch.set_num_threads(2)
    mobilenets()
    mobilenet_torchvision()
    mobilenet_transformers()
    resnet()
    mask2former(100)

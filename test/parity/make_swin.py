"""Records the fixtures of test/model/swin.test.ts from PyTorch: Swin alone (timm, torchvision) and under Mask2Former (transformers).

    python test/parity/make_swin.py

Needs torch, transformers (with scipy), timm, torchvision, safetensors. Everything is seeded; made with torch 2.13, transformers 5.24, timm
1.0.31, torchvision 0.29. How weights are chosen, and why outputs for a black and a shifted image come with them: see make_mask2former.py.

Sizes are odd on purpose: no grid of the backbones is a multiple of the window, and those that merge patches are odd, so that padding, shift
masks and odd merging all count. The keys are those of the files that the libraries write.
"""

import copy
import tempfile

import timm
import torch
import torch.nn.functional as F
from make_mask2former import HERE, MEAN, STD, differences, halve, images, randomise, save, variants, weave, weights_of
from safetensors.torch import load_file
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

LEVELS = ["res2", "res3", "res4", "res5"]


def standardise(x):
    return (x.double() - MEAN) / STD


# ---- Classifiers whose weights train backbones: windows of 2, so that no grid is smaller than a window (these two then shift nothing) ----


def classifiers():
    sizes = {"embed_dim": 4, "depths": (1, 2, 1, 2), "num_heads": (1, 2, 2, 4), "num_classes": 3}
    x = images(21, 1, 72, 104)  # grids of 18 x 26, 9 x 13, 5 x 7, 3 x 4
    tensors = {"input": x.half()}
    for library in ("timm", "torchvision"):
        if library == "timm":
            model = timm.models.swin_transformer.SwinTransformer(img_size=(72, 104), window_size=2, **sizes)
        else:
            model = TorchvisionSwin(patch_size=[4, 4], window_size=[2, 2], **sizes)
        randomise(model, 22)
        halve(model)
        model.double().eval()

        def features(h):
            """Each stage's output before its patches merge, normalised without weights as the test's norms are: (B, C, H, W)."""
            stages = model.layers if library == "timm" else model.features[1::2]
            h = model.patch_embed(h) if library == "timm" else model.features[0](h)
            found = []
            for i, stage in enumerate(stages):  # timm merges at the start of a stage
                h = stage(h)
                found.append(F.layer_norm(h, h.shape[3:]).permute(0, 3, 1, 2))
                if library == "torchvision" and i < 3:
                    h = model.features[2 + 2 * i](h)
            return found

        outputs = {}
        with torch.no_grad():
            for name, im in variants(x).items():
                for level, h in zip(LEVELS, features(standardise(im)), strict=True):
                    if name == "image" or level == "res5":
                        outputs[f"{name}.{level}"] = h.float()
        differences(outputs, ["res5"])
        tensors.update({f"{library}.{key}": value for key, value in outputs.items()})
        tensors.update(weights_of(model, f"{library}.weights."))
        for key, value in model.state_dict().items():
            if not value.is_floating_point():
                tensors[f"{library}.weights.{key}"] = value
    save("swin.safetensors", tensors)


# ---- Mask2Former on Swin ----


def on_disk(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


def mask2former(seed):
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[2, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=5, drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=24,
        encoder_layers=1, decoder_layers=3, num_attention_heads=8, dim_feedforward=40, num_queries=6, dropout=0.0,
        num_labels=3, output_auxiliary_logits=True,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    randomise(model, seed)
    halve(model)
    x = images(seed + 2, 2, 60, 90)
    prepare = lambda im: F.pad(standardise(im), (0, 6, 0, 4))
    weights = {"weights." + key: value.half() for key, value in on_disk(model).items()}
    model.double()
    outputs = {}
    for name, im in variants(x).items():
        inner = model.model(pixel_values=prepare(im), output_hidden_states=True)
        classes = [model.class_predictor(s.transpose(0, 1)) for s in inner.transformer_decoder_intermediate_states]
        masks = list(inner.masks_queries_logits)
        outputs[f"{name}.class"] = classes[-1].float()
        outputs[f"{name}.mask"] = masks[-1].float()
        if name != "image":
            continue
        # Masked attention is a threshold: keep away from it, else two right implementations may differ.
        margin = min(
            F.interpolate(m, size=(2 * 2 ** (i % 3), 3 * 2 ** (i % 3)), mode="bilinear", align_corners=False).abs().min().item()
            for i, m in enumerate(masks[:-1])
        )
        print(f"seed {seed}: margin {margin:.1e}")
        if margin < 5e-4:
            return mask2former(seed + 10)
        loss = sum((xs[i] * weave(xs[i].shape, i)).mean() for xs in (classes, masks) for i in range(3))
        loss.backward()
        outputs["loss"] = loss.float().view(1)
        # An odd input straight into the backbone: 51 x 83 pixels are grids of 13 x 21, 7 x 11, 4 x 6, 2 x 3.
        with torch.no_grad():
            odd = model.model.pixel_level_module.encoder(standardise(im[:1, :, :51, :83])).feature_maps
        outputs.update({f"odd.{level}": h.float() for level, h in zip(LEVELS, odd, strict=True)})
    differences(outputs, ["class", "mask"])
    gradients = copy.deepcopy(model)
    for own, p in zip(gradients.parameters(), model.parameters(), strict=True):
        own.data = torch.zeros_like(p) if p.grad is None else p.grad
    grads = {}
    for key, value in on_disk(gradients).items():  # the decoders' are in mask2former.safetensors
        if "pixel_level_module.encoder." in key and "swin.layernorm" not in key:
            flat = value.float().flatten()
            grads["grad." + key] = flat[:: max(1, flat.numel() // 24)]
    save("mask2former-swin.safetensors", {**weights, **outputs, **grads, "input": x.half()})


if __name__ == "__main__":
    torch.set_num_threads(2)
    classifiers()
    mask2former(200)

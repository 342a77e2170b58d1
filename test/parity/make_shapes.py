"""Records names and shapes of the reference implementations' state dicts, for test/model/weights-kinds.test.ts: no numbers, so that the real
sizes cost nothing.

    python test/parity/make_shapes.py        # torch, torchvision, timm, segment-anything, mobilesam-mirror, transformers

Writes shapes.json beside itself: {model: {key: shape}}.
"""
import json
import tempfile
from pathlib import Path

import mobile_sam
import timm
import torch
import torchvision
from segment_anything import sam_model_registry
from safetensors import safe_open
from transformers import (
    ResNetBackbone, ResNetConfig, ResNetForImageClassification, SamConfig, SamModel, SamVisionConfig, SwinBackbone, SwinConfig,
    SwinForImageClassification, SwinModel,
)  # fmt: skip

with torch.device("meta"):
    models = {
        "SAM ViT-B": sam_model_registry["vit_b"](),
        "SAM ViT-L": sam_model_registry["vit_l"](),
        "SAM ViT-H": sam_model_registry["vit_h"](),
        "SAM ViT-B of transformers": SamModel(SamConfig()),
        "SAM ViT-H of transformers": SamModel(
            SamConfig(vision_config=SamVisionConfig(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, global_attn_indexes=[7, 15, 23, 31]))
        ),
        "ResNet-18 of torchvision": torchvision.models.resnet18(),
        "ResNet-50 of torchvision": torchvision.models.resnet50(),
        "ResNet-101 of timm": timm.create_model("resnet101"),
        "ResNet-50 of another width": torchvision.models.wide_resnet50_2(),
        "MobileNetV2 of torchvision": torchvision.models.mobilenet_v2(),
        "MobileNetV2 of timm": timm.create_model("mobilenetv2_100"),
        "MobileNetV2 of timm, wider": timm.create_model("mobilenetv2_140"),
        "Swin-T of torchvision": torchvision.models.swin_t(),
        "Swin-S of timm": timm.create_model("swin_small_patch4_window7_224"),
        "Swin-B of transformers": SwinModel(SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32])),
        "Swin-T of timm, features alone": timm.create_model("swin_tiny_patch4_window7_224", features_only=True),
        "unknown": torchvision.models.vgg11(),
    }
models["MobileSAM"] = mobile_sam.sam_model_registry["vit_t"]()  # reads numbers while it is made
shapes = {name: {key: list(x.shape) for key, x in model.state_dict().items()} for name, model in models.items()}


def on_disk(model):
    """Names that save_pretrained writes, which are not those in memory."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(f"{folder}/model.safetensors", "pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}


ALL = ["stage1", "stage2", "stage3", "stage4"]
BASIC = {"layer_type": "basic", "depths": [2, 2, 2, 2], "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32]}
SWIN = {"embed_dim": 8, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 5}
shapes["ResNet-50 of transformers"] = on_disk(ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[16, 32, 64, 128])))
shapes["ResNet-18 of transformers, features alone"] = on_disk(ResNetBackbone(ResNetConfig(**BASIC, out_features=ALL)))
shapes["Swin of transformers, on disk"] = on_disk(SwinForImageClassification(SwinConfig(**SWIN)))
shapes["Swin of transformers, features alone"] = on_disk(SwinBackbone(SwinConfig(**SWIN, out_features=ALL[1:])))
path = Path(__file__).parent / "shapes.json"
path.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(keys, separators=(',', ':'))}" for name, keys in shapes.items()) + "\n}\n")
print(path.stat().st_size, {name: len(keys) for name, keys in shapes.items()})

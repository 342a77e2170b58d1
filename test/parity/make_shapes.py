"""Records names and shapes of the reference implementations' state dicts, for test/model/weights-kinds.test.ts: no numbers, so that the real
sizes cost nothing.

    python test/parity/make_shapes.py        # torch, torchvision, timm, segment-anything, mobilesam-mirror, transformers

Writes shapes.json beside itself: {model: {key: shape}}.
"""
import json
from pathlib import Path

import mobile_sam
import timm
import torch
import torchvision
from segment_anything import sam_model_registry
from transformers import SamConfig, SamModel, SamVisionConfig, SwinConfig, SwinModel

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
        "unknown": torchvision.models.vgg11(),
    }
models["MobileSAM"] = mobile_sam.sam_model_registry["vit_t"]()  # reads numbers while it is made
shapes = {name: {key: list(x.shape) for key, x in model.state_dict().items()} for name, model in models.items()}
path = Path(__file__).parent / "shapes.json"
path.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(keys, separators=(',', ':'))}" for name, keys in shapes.items()) + "\n}\n")
print(path.stat().st_size, {name: len(keys) for name, keys in shapes.items()})

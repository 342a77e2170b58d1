"""What `wgpu-wish convert` writes loads strictly into the reference implementations and holds their numbers bit for bit.

    python test/parity/round_trip.py [seed]        # torch, torchvision, timm, segment-anything, mobilesam-mirror, transformers, scipy, safetensors

Run from the checkout after `npm ci`. References of random weights are saved in one form each (torch's zip and legacy format, wrapped in
DistributedDataParallel's names, transformers' file and shards), converted, and loaded again: segment-anything's SAM and MobileSAM, transformers'
SamModel into segment-anything (whose answer must be transformers'), Mask2Former into transformers' by the table below, ResNet and MobileNetV2.
The shipped sam-mini, trained by the engine, becomes a PyTorch model that answers as the engine does. A line for each; the first that fails ends it.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import mobile_sam
import numpy as np
import timm
import torch
import torchvision
from make_sam import SmallTinyViT, randomise
from PIL import Image
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

ROOT = Path(__file__).parent.parent.parent
WORK = Path(tempfile.mkdtemp(prefix="round-trip-"))


def wish(*args: object) -> dict:
    command = ["node", str(ROOT / "bin" / "wgpu-wish.mjs"), *map(str, args), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def converted(path: Path, model: str) -> dict[str, torch.Tensor]:
    report = wish("convert", path, WORK / "out.safetensors")
    assert report["model"] == model, report["model"]
    return load_file(WORK / "out.safetensors")


def check_equal(name: str, got: nn.Module, want: dict[str, torch.Tensor]) -> None:
    state = got.state_dict()
    assert state.keys() == want.keys()
    for key, x in want.items():
        assert state[key].dtype == x.dtype and torch.equal(state[key], x), key
    print(f"{name}: {len(want)} tensors loaded strictly, all equal")


def check_close(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    error = ((got - want).abs().max() / want.std()).item()
    print(f"{name}: differs by {error:.1e} of the spread")
    assert error < 1e-3


def originals() -> None:
    for name, make, legacy in (
        ("SAM ViT-B", sam_model_registry["vit_b"], False),
        ("MobileSAM", mobile_sam.sam_model_registry["vit_t"], True),
    ):
        state = make().state_dict()
        torch.save(state, WORK / "sam.pth", _use_new_zipfile_serialization=not legacy)
        other = make()
        other.load_state_dict(converted(WORK / "sam.pth", name))
        check_equal(name, other, state)
    for name, model, make in (
        ("torchvision's ResNet-50", "ResNet-50", torchvision.models.resnet50),
        ("torchvision's MobileNetV2", "MobileNetV2", torchvision.models.mobilenet_v2),
        ("timm's ResNet-34", "ResNet-34", lambda: timm.create_model("resnet34")),
        ("timm's MobileNetV2", "MobileNetV2", lambda: timm.create_model("mobilenetv2_100")),
    ):
        state = make().state_dict()
        torch.save({"state_dict": {f"module.{key}": x for key, x in state.items()}, "epoch": 9}, WORK / "backbone.pth")
        other = make()
        other.load_state_dict(converted(WORK / "backbone.pth", model))
        check_equal(name, other, state)


def sam_of_transformers() -> None:
    """Small, so that both can answer: 64 px, patches of 8, width 32, prompts of 16."""
    hub = SamModel(
        SamConfig(
            vision_config=SamVisionConfig(
                hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8, window_size=3,
                global_attn_indexes=[1], mlp_dim=48, num_pos_feats=8,
            ).to_dict(),
            prompt_encoder_config=SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=8).to_dict(),
            mask_decoder_config=SamMaskDecoderConfig(hidden_size=16, mlp_dim=32, num_attention_heads=8, iou_head_hidden_dim=16).to_dict(),
        )
    ).eval()  # fmt: skip
    randomise(hub)
    hub.prompt_encoder.shared_embedding = hub.shared_image_embedding
    encoder = ImageEncoderViT(
        img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=1.5, out_chans=16, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1,), norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
    )  # fmt: skip
    decoder = MaskDecoder(transformer_dim=16, transformer=TwoWayTransformer(2, 16, 8, 32), iou_head_hidden_dim=16)
    sam = Sam(encoder, PromptEncoder(16, (8, 8), (64, 64), 8), decoder).eval()
    for name, size in (("transformers' SAM", "1GB"), ("the same in shards", "30KB")):
        hub.save_pretrained(WORK / size, max_shard_size=size)
        sam.load_state_dict(converted(WORK / size, "SAM (ViT)"))
        pixels, boxes = torch.randn(1, 3, 64, 64), torch.tensor([[[5.0, 9.0, 40.0, 50.0]]])
        want = hub(pixel_values=pixels, input_boxes=boxes, multimask_output=True).pred_masks[0, 0]
        sparse, dense = sam.prompt_encoder(None, boxes[0], None)
        got, _ = sam.mask_decoder(sam.image_encoder(pixels), sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
        check_close(name, got[0], want)


# detectron2's names -> transformers', in turn; the self-attention's projections come apart.
PIXEL, QUERY = r"^sem_seg_head\.pixel_decoder\.", r"^sem_seg_head\.predictor\."
TO_TRANSFORMERS = [
    (r"^backbone\.stem\.conv1\.weight", "pixel.encoder.embedder.embedder.convolution.weight"),
    (r"^backbone\.stem\.conv1\.norm", "pixel.encoder.embedder.embedder.normalization"),
    (r"^backbone\.res(\d)\.(\d+)\.shortcut\.weight", r"pixel.encoder.encoder.stages.\1.layers.\2.shortcut.convolution.weight"),
    (r"^backbone\.res(\d)\.(\d+)\.shortcut\.norm", r"pixel.encoder.encoder.stages.\1.layers.\2.shortcut.normalization"),
    (r"^backbone\.res(\d)\.(\d+)\.conv(\d)\.weight", r"pixel.encoder.encoder.stages.\1.layers.\2.layer.\3.convolution.weight"),
    (r"^backbone\.res(\d)\.(\d+)\.conv(\d)\.norm", r"pixel.encoder.encoder.stages.\1.layers.\2.layer.\3.normalization"),
    (r"(stages\.)(\d)", lambda m: f"{m[1]}{int(m[2]) - 2}"),
    (r"(\.layer\.)(\d)", lambda m: f"{m[1]}{int(m[2]) - 1}"),
    (PIXEL + r"input_proj\.", "pixel.decoder.input_projections."),
    (PIXEL + r"transformer\.level_embed", "pixel.decoder.level_embed"),
    (PIXEL + r"(adapter|layer)_(\d)\.weight", r"pixel.decoder.\1_\2.0.weight"),
    (PIXEL + r"(adapter|layer)_(\d)\.norm", r"pixel.decoder.\1_\2.1"),
    (PIXEL + r"mask_features", "pixel.decoder.mask_projection"),
    (PIXEL + r"transformer\.encoder\.layers\.(\d+)\.norm1", r"pixel.decoder.encoder.layers.\1.self_attn_layer_norm"),
    (PIXEL + r"transformer\.encoder\.layers\.(\d+)\.norm2", r"pixel.decoder.encoder.layers.\1.final_layer_norm"),
    (PIXEL + r"transformer\.encoder\.layers\.(\d+)\.linear", r"pixel.decoder.encoder.layers.\1.fc"),
    (PIXEL + r"transformer\.encoder\.layers\.", "pixel.decoder.encoder.layers."),
    (r"^pixel\.", "model.pixel_level_module."),
    (QUERY + r"query_embed", "model.transformer_module.queries_embedder"),
    (QUERY + r"query_feat", "model.transformer_module.queries_features"),
    (QUERY + r"level_embed", "model.transformer_module.level_embed"),
    (QUERY + r"class_embed", "class_predictor"),
    (QUERY + r"decoder_norm", "model.transformer_module.decoder.layernorm"),
    (QUERY + r"mask_embed\.layers\.(\d)", r"model.transformer_module.decoder.mask_predictor.mask_embedder.\1.0"),
    (QUERY + r"transformer_(self|cross)_attention_layers\.(\d+)\.norm", r"model.transformer_module.decoder.layers.\2.\1_attn_layer_norm"),
    (QUERY + r"transformer_self_attention_layers\.(\d+)\.self_attn", r"model.transformer_module.decoder.layers.\1.self_attn"),
    (QUERY + r"transformer_cross_attention_layers\.(\d+)\.multihead_attn", r"model.transformer_module.decoder.layers.\1.cross_attn"),
    (QUERY + r"transformer_ffn_layers\.(\d+)\.linear", r"model.transformer_module.decoder.layers.\1.fc"),
    (QUERY + r"transformer_ffn_layers\.(\d+)\.norm", r"model.transformer_module.decoder.layers.\1.final_layer_norm"),
]


def mask2former() -> None:
    backbone = ResNetConfig(depths=[2, 2, 2, 2], layer_type="basic", embedding_size=16, hidden_sizes=[16, 32, 64, 128])
    backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
    make = lambda: Mask2FormerForUniversalSegmentation(  # noqa: E731
        Mask2FormerConfig(backbone_config=backbone, feature_size=64, mask_feature_size=64, hidden_dim=64, encoder_layers=2, decoder_layers=4,
                          encoder_feedforward_dim=96, dim_feedforward=128, num_queries=12, num_labels=7)
    )  # fmt: skip
    model = make()
    model.save_pretrained(WORK / "m2f", max_shard_size="500KB")
    state = {}
    for key, x in converted(WORK / "m2f", "Mask2Former").items():
        for pattern, name in TO_TRANSFORMERS:
            key = re.sub(pattern, name, key)
        parts = re.fullmatch(r"(.*\.self_attn)\.in_proj_(weight|bias)", key)
        if parts:
            state.update({f"{parts[1]}.{p}_proj.{parts[2]}": y for p, y in zip("qkv", x.chunk(3))})
        else:
            state[key] = x
    other = make()
    state["criterion.empty_weight"] = model.state_dict()["criterion.empty_weight"]  # the loss's, which is left out
    other.load_state_dict(state)  # batch norm's counters may be absent from a plain dict
    want = {key: x for key, x in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    got = {key: x for key, x in other.state_dict().items() if key in want}
    assert got.keys() == want.keys() and all(torch.equal(got[key], x) for key, x in want.items())
    print(f"transformers' Mask2Former in shards: {len(want)} tensors loaded strictly, all equal")


class SamMiniEncoder(SmallTinyViT):
    """TinyViT of as many stages as sam-mini has; the reference's strides of its merging are written in widths, and are 2 at these."""

    def __init__(self, size: int, dims: list[int], depths: list[int], heads: list[int], windows: list[int], channels: int):
        from mobile_sam.modeling.tiny_vit_sam import TinyViT

        TinyViT.__init__(
            self, img_size=size, num_classes=1, embed_dims=dims, depths=depths, num_heads=heads, window_sizes=windows, drop_path_rate=0.0
        )
        del self.head, self.norm_head  # the classifier, which the engine's own has not
        self.grid = size // 16
        convs = [nn.Conv2d(dims[-1], channels, 1, bias=False), nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
        self.neck = nn.Sequential(convs[0], LayerNorm2d(channels), convs[1], LayerNorm2d(channels))


def engine_to_torch() -> None:
    report = wish("convert", ROOT / "assets" / "sam-mini.safetensors", WORK / "mini.safetensors")
    c = report["config"]
    e, d, size, dim = c["encoder"], c["decoder"], c["imageSize"], c["promptDim"]
    encoder = SamMiniEncoder(size, e["dims"], e["depths"], e["heads"], e["windows"], dim)
    decoder = MaskDecoder(
        transformer_dim=dim, transformer=TwoWayTransformer(d["depth"], dim, d["heads"], d["mlp"]), iou_head_hidden_dim=d["iouHidden"]
    )
    sam = Sam(encoder, PromptEncoder(dim, (size // 16,) * 2, (size,) * 2, c["maskChannels"]), decoder)
    sam.load_state_dict({key: x.float() for key, x in load_file(WORK / "mini.safetensors").items()})
    sam.eval()
    pixels = (torch.rand(16, 16, 3) * 255).round().byte().numpy()
    Image.fromarray(pixels).resize((size, size), Image.BILINEAR).save(WORK / "image.png")
    wish("sam", "--checkpoint", WORK / "mini.safetensors", "--image", WORK / "image.png", "--box", "10,20,90,100", "--out", WORK / "masks", "--dump", WORK / "dump.safetensors")  # fmt: skip
    dump = load_file(WORK / "dump.safetensors")
    x = sam.preprocess(torch.from_numpy(np.array(Image.open(WORK / "image.png"))).permute(2, 0, 1)[None].float())
    embedding = sam.image_encoder(x)
    sparse, dense = sam.prompt_encoder(None, torch.tensor([[10.0, 20.0, 90.0, 100.0]]), None)
    masks, _ = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    check_close("sam-mini in PyTorch and in the engine, embedding", embedding, dump["image_embeddings"])
    check_close("sam-mini in PyTorch and in the engine, masks", masks, dump["low_res_masks"])


if __name__ == "__main__":
    torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    with torch.no_grad():
        originals()
        sam_of_transformers()
        mask2former()
        engine_to_torch()

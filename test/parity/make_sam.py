"""Records what the reference implementations of SAM answer on random weights, for test/model/sam.test.ts.

    python test/parity/make_sam.py        # torch, segment-anything, mobilesam-mirror, transformers, safetensors, pillow

Writes beside itself: sam-vit.pt (torch.save), sam-tiny-vit.pth (torch.save, legacy format), sam-hf.safetensors (transformers' names) and
sam.safetensors (inputs and outputs, keys MODEL/NAME). Weights are scaled by fan-in and batch norm's statistics are taken from data, so that
activations neither die nor explode; the script stops unless a black image and a shifted prompt move the outputs by more than a tenth of their
spread (mean absolute difference against standard deviation).
"""
from pathlib import Path

import numpy as np
import torch
from mobile_sam.modeling import tiny_vit_sam
from PIL import Image
from safetensors.torch import load_file, save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

HERE = Path(__file__).parent
DIM = 32  # width of the prompts
HEIGHT, WIDTH = 60, 84  # of the original image


def randomise(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if name.endswith("norm.weight") or (p.ndim == 1 and name.endswith("weight")):
            p.data = 1 + 0.2 * torch.randn_like(p)
        elif p.ndim == 1:
            p.data = 0.2 * torch.randn_like(p)
        elif "pos" in name or "biases" in name:
            p.data = 0.5 * torch.randn_like(p)
        elif any(word in name for word in ("embed.weight", "embeddings", "token")) and "proj" not in name and p.shape[0] <= 4:
            p.data = torch.randn_like(p)
        else:
            fan_in = p[0].numel() if p.ndim > 1 else 1
            gain = 6.0 if "q_proj" in name or "k_proj" in name else 1.7  # attention that is not uniform
            p.data = torch.randn_like(p) * (gain / fan_in) ** 0.5


def photograph(seed: int) -> np.ndarray:
    """Smooth colours, a few edges and noise: (HEIGHT, WIDTH, 3) bytes."""
    r = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    image = 128 + 90 * np.sin(x[..., None] * r.uniform(0.03, 0.2, 3) + y[..., None] * r.uniform(0.03, 0.2, 3) + r.uniform(0, 6, 3))
    for _ in range(3):
        cx, cy, radius = r.uniform(0, WIDTH), r.uniform(0, HEIGHT), r.uniform(8, 20)
        image[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = r.uniform(0, 255, 3)
    return np.clip(image + r.normal(0, 10, image.shape), 0, 255).astype(np.uint8)


# Size, widths, depths, heads, windows: grids 24, 12, 6, 6 in windows of 5 (padded to 15), 6 (exact), 4 (padded to 8).
TINY = (96, [16, 24, 32, 48], [1, 1, 2, 1], [1, 2, 2, 4], [1, 5, 6, 4])


class SmallTinyViT(tiny_vit_sam.TinyViT):
    """MobileSAM's encoder with its grid and neck in another size: the reference has 64 and 256 written into its code."""

    def __init__(self, size: int, dims: list[int], depths: list[int], heads: list[int], windows: list[int]):
        super().__init__(img_size=size, num_classes=10, embed_dims=dims, depths=depths, num_heads=heads, window_sizes=windows, drop_path_rate=0.0)
        self.grid = size // 16
        self.layers[2].downsample.conv2.c.stride = (1, 1)  # there decided by the width 320
        self.neck = nn.Sequential(
            nn.Conv2d(dims[-1], DIM, 1, bias=False), LayerNorm2d(DIM), nn.Conv2d(DIM, DIM, 3, padding=1, bias=False), LayerNorm2d(DIM)
        )

    def forward(self, x):
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x.view(x.shape[0], self.grid, self.grid, -1).permute(0, 3, 1, 2))


def sam_of(encoder: nn.Module, size: int, grid: int) -> Sam:
    encoder.img_size = size
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(DIM, (grid, grid), (size, size), 8),
        mask_decoder=MaskDecoder(transformer_dim=DIM, transformer=TwoWayTransformer(2, DIM, 8, 48), iou_head_hidden_dim=24),
    )


def prepared(image: np.ndarray, sam: Sam) -> torch.Tensor:
    resized = ResizeLongestSide(sam.image_encoder.img_size).apply_image(image)
    return sam.preprocess(torch.from_numpy(resized).permute(2, 0, 1)[None])


def answers(sam: Sam, image: np.ndarray, shift: float = 0.0) -> dict[str, torch.Tensor]:
    transform = ResizeLongestSide(sam.image_encoder.img_size)
    size = (HEIGHT, WIDTH)
    points = torch.tensor([[[20.0, 31.0], [50.0, 12.0]], [[66.0, 40.0], [9.0, 50.0]]]) + shift
    labels = torch.tensor([[1, 0], [1, 1]])
    boxes = torch.tensor([[8.0, 6.0, 40.0, 44.0], [30.0, 10.0, 80.0, 52.0]]) + shift
    points = transform.apply_coords_torch(points, size)
    boxes = transform.apply_boxes_torch(boxes, size)
    x = prepared(image, sam)
    embedding = sam.image_encoder(x)
    grid = embedding.shape[-1]
    mask_prompt = torch.linspace(-4, 4, 2 * 16 * grid * grid).view(2, 1, 4 * grid, 4 * grid).sin() * 5
    out = {"input": x, "embedding": embedding}
    prompts = {
        "points": dict(points=(points, labels), boxes=None, masks=None),
        "boxes": dict(points=None, boxes=boxes, masks=None),
        "both": dict(points=(points, labels), boxes=boxes, masks=mask_prompt),
    }
    for name, prompt in prompts.items():
        sparse, dense = sam.prompt_encoder(**prompt)
        out[f"{name}.sparse"] = sparse
        if prompt["masks"] is not None:
            out[f"{name}.dense"] = dense
        for multimask, suffix in ((True, ""), (False, ".single")):
            masks, iou = sam.mask_decoder(
                image_embeddings=embedding,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
            )
            out[f"{name}.masks{suffix}"] = masks
            out[f"{name}.iou{suffix}"] = iou
    out["boxes.full"] = sam.postprocess_masks(out["boxes.masks"][:1], transform.get_preprocess_shape(*size, transform.target_length), size)
    return {key: value.clone().contiguous() for key, value in out.items()}


def hub_model(heads: int = 8) -> SamModel:
    return SamModel(
        SamConfig(
            vision_config=SamVisionConfig(
                hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8, window_size=3,
                global_attn_indexes=[1], mlp_dim=48, num_pos_feats=8,
            ).to_dict(),
            prompt_encoder_config=SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=8).to_dict(),
            mask_decoder_config=SamMaskDecoderConfig(hidden_size=16, mlp_dim=32, num_attention_heads=heads, iou_head_hidden_dim=16).to_dict(),
        )
    ).eval()  # fmt: skip


def check_sensitive(name: str, reference: dict, other: dict, keys: list[str]) -> None:
    for key in keys:
        ratio = (reference[key] - other[key]).abs().mean() / reference[key].std()
        print(f"{name} {key}: moved by {ratio:.2f} of its spread {reference[key].std():.3f}")
        assert ratio > 0.1, (name, key, ratio)


def record(name: str, sam: Sam, image: np.ndarray, out: dict) -> None:
    sam.eval()
    with torch.no_grad():
        reference = answers(sam, image)
        outputs = [key for key in reference if "masks" in key or key.endswith("iou")]
        check_sensitive(f"{name}, black image", reference, answers(sam, np.zeros_like(image)), ["embedding", *outputs])
        check_sensitive(f"{name}, shifted prompt", reference, answers(sam, image, shift=12.0), outputs)
    kept = {key: value for key, value in reference.items() if name == "vit" or not (key == "input" or key.endswith("single"))}
    out.update({f"{name}/{key}": value for key, value in kept.items()})


def batch_norm_statistics(sam: Sam) -> None:
    for module in sam.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the average over all batches
    sam.image_encoder.train()
    with torch.no_grad():
        for seed in range(4):
            sam.image_encoder(torch.cat([prepared(photograph(100 + 4 * seed + i), sam) for i in range(4)]))


@torch.no_grad()
def main() -> None:
    torch.manual_seed(11)
    image = photograph(1)
    out = {"image": torch.from_numpy(image)}
    out["resized"] = torch.from_numpy(np.array(Image.fromarray(image).resize((37, 96), Image.BILINEAR)))

    # Grid 12 in windows of 5: padded to 15; block 1 attends to everything.
    vit = sam_of(
        ImageEncoderViT(
            img_size=96, patch_size=8, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2, out_chans=DIM, use_rel_pos=True, window_size=5,
            global_attn_indexes=(1,), norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
        ),
        96,
        12,
    )  # fmt: skip
    randomise(vit)
    torch.save(vit.state_dict(), HERE / "sam-vit.pt")
    record("vit", vit, image, out)

    tiny = sam_of(SmallTinyViT(*TINY), 96, 6)
    randomise(tiny)
    batch_norm_statistics(tiny)
    state = tiny.state_dict()
    torch.save(state, HERE / "sam-tiny-vit.pth", _use_new_zipfile_serialization=False)
    fresh = sam_of(SmallTinyViT(*TINY), 96, 6)
    fresh.load_state_dict(state)
    record("tiny-vit", fresh, image, out)

    # transformers' SamModel: other names, and the shared embedding twice.
    hub = hub_model()
    randomise(hub)
    hub.prompt_encoder.shared_embedding = hub.shared_image_embedding
    pixels = torch.randn(1, 3, 64, 64)
    boxes = torch.tensor([[[5.0, 9.0, 40.0, 50.0]]])
    answer = hub(pixel_values=pixels, input_boxes=boxes, multimask_output=True)
    black = hub(pixel_values=torch.zeros_like(pixels), input_boxes=boxes, multimask_output=True)
    moved = hub(pixel_values=pixels, input_boxes=boxes + 12, multimask_output=True)
    for other, name in ((black, "black image"), (moved, "shifted prompt")):
        check_sensitive(f"transformers, {name}", {"masks": answer.pred_masks}, {"masks": other.pred_masks}, ["masks"])
    hub.save_pretrained(HERE / "hub")
    save_file(load_file(HERE / "hub" / "model.safetensors"), HERE / "sam-hf.safetensors")
    for file in (HERE / "hub").iterdir():
        file.unlink()
    (HERE / "hub").rmdir()
    out.update({"hf/input": pixels, "hf/boxes": boxes[0], "hf/masks": answer.pred_masks[0], "hf/iou": answer.iou_scores[0]})

    # The same weights in a decoder of 4 heads, which config.json alone tells.
    four = hub_model(heads=4)
    four.load_state_dict(hub.state_dict())
    other = four(pixel_values=pixels, input_boxes=boxes, multimask_output=True)
    check_sensitive("transformers, 4 heads", {"masks": answer.pred_masks}, {"masks": other.pred_masks}, ["masks"])
    out.update({"hf4/masks": other.pred_masks[0], "hf4/iou": other.iou_scores[0]})

    save_file({key: value.contiguous() for key, value in out.items()}, HERE / "sam.safetensors")
    for name in ("sam-vit.pt", "sam-tiny-vit.pth", "sam-hf.safetensors", "sam.safetensors"):
        print(name, (HERE / name).stat().st_size)


if __name__ == "__main__":
    main()

"""Records what PyTorch gives as gradients of SAM, for test/model/sam-training.test.ts.

    python test/parity/make_sam_training.py        # what make_sam.py needs

Writes sam-training.safetensors beside itself: a small model's weights (weight/KEY), its input and prompts, and the gradients of one loss for
every parameter (gradient/KEY); relative positions whose tables are resampled, with their gradients (resampled/NAME). Computed in f64.
"""
from pathlib import Path

import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import add_decomposed_rel_pos
from torch import nn

from make_sam import photograph, prepared, randomise

HERE = Path(__file__).parent
DIM, SIZE, GRID = 16, 64, 8


def model() -> Sam:
    # Grid 8 in windows of 3: padded to 9; block 1 attends to everything.
    encoder = ImageEncoderViT(
        img_size=SIZE, patch_size=8, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2, out_chans=DIM, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1,), norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
    )  # fmt: skip
    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(DIM, (GRID, GRID), (SIZE, SIZE), 8),
        mask_decoder=MaskDecoder(transformer_dim=DIM, transformer=TwoWayTransformer(2, DIM, 8, 24), iou_head_hidden_dim=16),
    )
    randomise(sam)
    return sam


def loss_of(sam: Sam, x: torch.Tensor, prompts: dict[str, torch.Tensor]) -> torch.Tensor:
    """Points without a mask, then points with a box and a mask: every parameter of the prompt encoder takes part."""
    embedding = sam.image_encoder(x)
    points, labels = prompts["points"], prompts["labels"]
    loss = torch.zeros((), dtype=x.dtype)
    for boxes, masks in ((None, None), (prompts["boxes"], prompts["masks"])):
        sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=boxes, masks=masks)
        logits, iou = sam.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
        loss = loss + (logits * prompts["of_masks"]).mean() + (iou * prompts["of_iou"]).mean()
    return loss


def resampled(out: dict[str, torch.Tensor]) -> None:
    """A table for 5 rows on a grid of 4, one for 3 columns on a grid of 6."""
    q = torch.randn(2, 24, 4, dtype=torch.double, requires_grad=True)
    tables = [torch.randn(n, 4, dtype=torch.double, requires_grad=True) for n in (9, 5)]
    bias = add_decomposed_rel_pos(torch.zeros(2, 24, 24, dtype=torch.double), q, *tables, (4, 6), (4, 6))
    weight = torch.randn_like(bias)
    (bias * weight).sum().backward()
    values = {"q": q, "table_h": tables[0], "table_w": tables[1]}
    out.update({f"resampled/{name}": x.detach() for name, x in values.items()})
    out.update({f"resampled/gradient.{name}": x.grad for name, x in values.items()})
    out.update({"resampled/bias": bias.detach(), "resampled/weight": weight})


def main() -> None:
    torch.manual_seed(5)
    sam = model().double()
    pe = sam.prompt_encoder.pe_layer  # makes its coordinates in f32, whatever the model is
    encode = pe._pe_encoding
    pe._pe_encoding = lambda coords: encode(coords.double())
    x = prepared(photograph(1), sam).double()
    prompts = {
        "points": torch.tensor([[[20.0, 31.0], [50.0, 12.0]], [[46.0, 40.0], [9.0, 50.0]]]),
        "labels": torch.tensor([[1, 0], [1, 1]]),
        "boxes": torch.tensor([[8.0, 6.0, 40.0, 44.0], [30.0, 10.0, 60.0, 52.0]]),
        "masks": torch.linspace(-4, 4, 2 * 16 * GRID * GRID).view(2, 1, 4 * GRID, 4 * GRID).sin().double() * 5,
        "of_masks": torch.randn(2, 4, 4 * GRID, 4 * GRID, dtype=torch.double) * 10,
        "of_iou": torch.randn(2, 4, dtype=torch.double),
    }
    loss = loss_of(sam, x, prompts)
    loss.backward()
    out = {"input": x, "loss": loss.detach().reshape(1), **prompts}
    for name, p in sam.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
        out[f"gradient/{name}"] = p.grad
    out.update({f"weight/{name}": tensor for name, tensor in sam.state_dict().items() if not name.startswith("pixel_")})
    resampled(out)
    file = HERE / "sam-training.safetensors"
    save_file({key: (x if key == "labels" else x.float()).contiguous() for key, x in out.items()}, file)
    print(file.name, file.stat().st_size)


if __name__ == "__main__":
    main()

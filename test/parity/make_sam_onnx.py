"""Exports a small SAM to ONNX as its users do, for test/cli/sam-onnx.test.ts.

    python test/parity/make_sam_onnx.py        # what make_sam.py needs, onnx, onnxscript

Writes beside itself: sam-encoder.onnx, the same by the exporter that dynamo feeds (sam-encoder-dynamo.onnx, whose names for weights differ; it
fails on transformers' encoder), both again of an encoder with equal weights in many places, which exporters merge (sam-merged-encoder.onnx,
and sam-merged-encoder-dynamo.onnx within a module that normalises), and sam-decoder.onnx as segment-anything's scripts/export_onnx_model.py makes it, of the model of
sam-training.safetensors; encoder and decoder in half precision (sam-half-encoder.onnx, sam-half-decoder.onnx); sam-tiny-encoder.onnx and
sam-tiny-encoder-dynamo.onnx, whose batch norms are folded, of the encoder in sam-tiny-vit.pth; sam-hf-encoder.onnx and sam-hf-decoder.onnx with the inputs and outputs of optimum's export of transformers' SamModel
(vision_encoder.onnx, prompt_encoder_mask_decoder.onnx), of the model of sam-hf.safetensors. The other engine reads those weights.
"""
import tempfile
from pathlib import Path

import onnx
import torch
from torch import nn
from safetensors.torch import load_file
from segment_anything.utils.onnx import SamOnnxModel

from make_sam import TINY, SmallTinyViT, hub_model
from make_sam_training import DIM, GRID, SIZE, model

HERE = Path(__file__).parent


def original():
    sam = model().eval()
    weights = load_file(HERE / "sam-training.safetensors")
    sam.load_state_dict({key[7:]: x for key, x in weights.items() if key.startswith("weight/")}, strict=False)
    return sam


def export_dynamo(encoder: nn.Module, pixels: torch.Tensor, to: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.onnx.export(encoder, (pixels,), f"{folder}/encoder.onnx", dynamo=True, external_data=False)
        exported = onnx.load(f"{folder}/encoder.onnx")
    for node in exported.graph.node:  # where in whose folders each line of code stands
        kept = [entry for entry in node.metadata_props if "stack_trace" not in entry.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(exported, to)


class Normalised(nn.Module):
    def __init__(self, sam) -> None:
        super().__init__()
        self.sam = nn.Module()
        self.sam.image_encoder = sam.image_encoder
        self.register_buffer("pixel_mean", torch.rand(1, 3, 1, 1))

    def forward(self, x):
        scale = torch.tensor([0.25, 0.5, 2.0]).view(1, 3, 1, 1)
        return self.sam.image_encoder((x / 57 - self.pixel_mean) * scale)


def export_merged() -> None:
    """As initialised: norms of 1 and 0, positions of 0; and blocks 0 and 2 equal."""
    sam = original()
    encoder = sam.image_encoder
    encoder.blocks[2].load_state_dict(encoder.blocks[0].state_dict())
    for name, x in encoder.named_parameters():
        if "norm" in name or name.startswith(("neck.1", "neck.3")):
            x.fill_(1 if name.endswith("weight") else 0)
        elif "rel_pos" in name:
            x.zero_()
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    torch.onnx.export(encoder, (pixels,), HERE / "sam-merged-encoder.onnx", opset_version=17, dynamo=False)
    export_dynamo(Normalised(sam), pixels, HERE / "sam-merged-encoder-dynamo.onnx")


def export_decoder(sam, to: Path) -> None:
    dtype = next(sam.parameters()).dtype
    inputs = {
        "image_embeddings": torch.randn(1, DIM, GRID, GRID),
        "point_coords": torch.randint(0, SIZE, (1, 5, 2)).float(),
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, 4 * GRID, 4 * GRID),
        "has_mask_input": torch.tensor([1.0]),
        "orig_im_size": torch.tensor([150.0, 225.0]),
    }
    # Sizes are no numbers to be halved: those of photographs have no f16 of their own.
    values = [x if key == "orig_im_size" else x.to(dtype) for key, x in inputs.items()]
    torch.onnx.export(
        SamOnnxModel(sam, return_single_mask=False), tuple(values), to, input_names=list(inputs),
        output_names=["masks", "iou_predictions", "low_res_masks"],
        dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}}, opset_version=17, dynamo=False,
    )  # fmt: skip


def export_half() -> None:
    """In half precision, inputs and outputs too."""
    sam = original().half()
    positions = sam.prompt_encoder.pe_layer
    encoding = positions._pe_encoding
    positions._pe_encoding = lambda coords: encoding(coords.half())  # it makes f32 of its own
    pixels = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float16)
    torch.onnx.export(
        sam.image_encoder, (pixels,), HERE / "sam-half-encoder.onnx", input_names=["x"], output_names=["image_embeddings"], opset_version=17,
        dynamo=False,
    )  # fmt: skip
    export_decoder(sam, HERE / "sam-half-decoder.onnx")


def export_original() -> None:
    sam = original()
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    torch.onnx.export(
        sam.image_encoder, (pixels,), HERE / "sam-encoder.onnx", input_names=["x"], output_names=["image_embeddings"], opset_version=17,
        dynamo=False,
    )  # fmt: skip
    export_dynamo(sam.image_encoder, pixels, HERE / "sam-encoder-dynamo.onnx")
    export_decoder(sam, HERE / "sam-decoder.onnx")


def export_tiny() -> None:
    encoder = SmallTinyViT(*TINY).eval()
    state = torch.load(HERE / "sam-tiny-vit.pth")
    encoder.load_state_dict({key[14:]: x for key, x in state.items() if key.startswith("image_encoder.")})
    pixels = torch.zeros(1, 3, 96, 96)
    torch.onnx.export(encoder, (pixels,), HERE / "sam-tiny-encoder.onnx", opset_version=17, dynamo=False)
    export_dynamo(encoder, pixels, HERE / "sam-tiny-encoder-dynamo.onnx")


class VisionEncoder(nn.Module):
    def __init__(self, sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, pixel_values):
        positions = self.sam.get_image_wide_positional_embeddings()
        return self.sam.vision_encoder(pixel_values)[0], positions


class Decoder(nn.Module):
    def __init__(self, sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, input_points, input_labels, image_embeddings, image_positional_embeddings):
        sparse, dense = self.sam.prompt_encoder(
            input_points=input_points, input_labels=input_labels, input_boxes=None, input_masks=None
        )
        masks, iou = self.sam.mask_decoder(
            image_embeddings=image_embeddings,
            image_positional_embeddings=image_positional_embeddings,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )[:2]
        return iou, masks


def export_hub() -> None:
    sam = hub_model()
    sam.load_state_dict(load_file(HERE / "sam-hf.safetensors"), strict=False)
    sam.prompt_encoder.shared_embedding = sam.shared_image_embedding
    pixels = torch.zeros(1, 3, 64, 64)
    torch.onnx.export(
        VisionEncoder(sam), (pixels,), HERE / "sam-hf-encoder.onnx", input_names=["pixel_values"],
        output_names=["image_embeddings", "image_positional_embeddings"], dynamic_axes={"pixel_values": {0: "batch_size"}},
        opset_version=17, dynamo=False,
    )  # fmt: skip
    embeddings, positions = VisionEncoder(sam)(pixels)
    inputs = {
        "input_points": torch.rand(1, 1, 5, 2) * 64,
        "input_labels": torch.tensor([[[1, 0, 1, 1, 0]]]),
        "image_embeddings": embeddings,
        "image_positional_embeddings": positions,
    }
    points = {1: "point_batch_size", 2: "nb_points_per_image"}
    torch.onnx.export(
        Decoder(sam), tuple(inputs.values()), HERE / "sam-hf-decoder.onnx", input_names=list(inputs), output_names=["iou_scores", "pred_masks"],
        dynamic_axes={"input_points": points, "input_labels": points}, opset_version=17, dynamo=False,
    )  # fmt: skip


@torch.no_grad()
def main() -> None:
    export_original()
    export_half()
    export_merged()
    export_tiny()
    export_hub()
    for file in sorted(HERE.glob("sam-*.onnx")):
        print(file.name, file.stat().st_size)


if __name__ == "__main__":
    main()

"""Exports a small SAM to ONNX as its users do, for test/cli/sam-onnx.test.ts.

    python test/parity/make_sam_onnx.py        # what make_sam.py needs, onnx, onnxscript

Writes beside itself: sam-encoder.onnx, and sam-decoder.onnx as segment-anything's scripts/export_onnx_model.py makes it. The model is that
of sam-training.safetensors, whose weights are the same numbers for the other engine.
"""
from pathlib import Path

import torch
from safetensors.torch import load_file
from segment_anything.utils.onnx import SamOnnxModel

from make_sam_training import DIM, GRID, SIZE, model

HERE = Path(__file__).parent


def main() -> None:
    sam = model().eval()
    weights = load_file(HERE / "sam-training.safetensors")
    sam.load_state_dict({key[7:]: x for key, x in weights.items() if key.startswith("weight/")}, strict=False)
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    torch.onnx.export(
        sam.image_encoder, (pixels,), HERE / "sam-encoder.onnx", input_names=["x"], output_names=["image_embeddings"], opset_version=17,
        dynamo=False,
    )  # fmt: skip
    inputs = {
        "image_embeddings": torch.randn(1, DIM, GRID, GRID),
        "point_coords": torch.randint(0, SIZE, (1, 5, 2)).float(),
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, 4 * GRID, 4 * GRID),
        "has_mask_input": torch.tensor([1.0]),
        "orig_im_size": torch.tensor([150.0, 225.0]),
    }
    torch.onnx.export(
        SamOnnxModel(sam, return_single_mask=False), tuple(inputs.values()), HERE / "sam-decoder.onnx", input_names=list(inputs),
        output_names=["masks", "iou_predictions", "low_res_masks"],
        dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    for name in ("sam-encoder.onnx", "sam-decoder.onnx"):
        print(name, (HERE / name).stat().st_size)


if __name__ == "__main__":
    main()

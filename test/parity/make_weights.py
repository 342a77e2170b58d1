"""Writes one small state dict in every form that torch, NumPy, transformers and ONNX give it, for test/model/weights-forms.test.ts.

    python test/parity/make_weights.py        # torch, numpy, safetensors, onnx, ml_dtypes

Into weights/: truth.safetensors, what each form must be read as (unsigned.safetensors, numpy.safetensors, onnx.safetensors where a form cannot
hold all of it), the forms, and refused-*, which hold what weights do not.
"""
import collections
import json
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

OUT = Path(__file__).parent / "weights"
torch.manual_seed(11)
rng = np.random.default_rng(11)


def without_sources(path: Path) -> None:
    """Where the writer's packages lie is nobody's business."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data)


def forms_of_torch() -> None:
    base = torch.randn(4, 6)
    state = collections.OrderedDict(
        {
            "a.weight": base,
            "a.transposed": base.t(),
            "a.column": base[:, 2],
            "a.part": base[1:3, 1:5],
            "a.steps": base[::2, ::3],
            "a.last": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
            "a.same": base,
            "scalar": torch.tensor(2.5),
            "counter": torch.tensor(7),
            "empty": torch.zeros(0, 3),
            "parameter": torch.nn.Parameter(torch.randn(3)),
            **{str(t).removeprefix("torch."): torch.arange(-2, 3).to(t) for t in (torch.float16, torch.bfloat16, torch.float64)},
            **{str(t).removeprefix("torch."): torch.arange(5).to(t) for t in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)},
        }
    )
    plain = {key: x.detach().clone().contiguous() for key, x in state.items()}
    save_file(plain, OUT / "truth.safetensors")
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    beside = {"epoch": 3, "best": np.float64(0.5), "history": np.arange(3.0), "size": torch.Size([1, 2]), "kinds": frozenset({1}), "z": 1 + 2j}
    adam = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"params": [0], "betas": (0.9, 0.999)}]}
    torch.save(state, OUT / "zip.pt")
    torch.save(state, OUT / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": state, "optimizer": adam, "ema": torch.ones(3), **beside}, OUT / "wrapped.pt")
    torch.save({"state_dict": {f"module.{k}": x for k, x in state.items()}, **beside}, OUT / "lightning.ckpt", _use_new_zipfile_serialization=False)
    torch.save(state, OUT / "protocol5.bin", pickle_protocol=5)
    torch.save(state, OUT / "protocol4.pkl", pickle_protocol=4, _use_new_zipfile_serialization=False)
    with open(OUT / "dumped.pkl", "wb") as file:  # as Mask2Former's tool makes Swin's weights
        pickle.dump({"model": state, "__author__": "third_party", "matching_heuristics": True}, file)
    # They share no storage with others: torch writes them by a callable of their own.
    unsigned = {f"u{8 * n}": torch.arange(5).to(t) for n, t in ((2, torch.uint16), (4, torch.uint32), (8, torch.uint64))}
    save_file(unsigned, OUT / "unsigned.safetensors")
    torch.save(unsigned, OUT / "unsigned.pt")

    for fmt in ("safetensors", "bin"):
        folder = OUT / f"shards-{fmt}"
        folder.mkdir(exist_ok=True)
        stem = "model" if fmt == "safetensors" else "pytorch_model"
        keys, index = list(plain), {}
        for i, part in enumerate((keys[:7], keys[7:])):
            name = f"{stem}-0000{i + 1}-of-00002.{fmt}"
            tensors = {key: plain[key] for key in part}
            save_file(tensors, folder / name, {"format": "pt"}) if fmt == "safetensors" else torch.save(tensors, folder / name)
            index.update(dict.fromkeys(part, name))
        (folder / f"{stem}.{fmt}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))

    layer = torch.nn.Linear(2, 2)
    torch.save({"f8": torch.ones(4).to(torch.float8_e4m3fn)}, OUT / "refused-fp8.pt")
    torch.save({"c": torch.ones(4, dtype=torch.complex64)}, OUT / "refused-complex.pt")
    torch.save({"s": torch.eye(3).to_sparse()}, OUT / "refused-sparse.pt")
    torch.save({"n": (torch.ones(2, dtype=torch.complex64) * 1j).conj().imag}, OUT / "refused-negated.pt")
    torch.save(layer, OUT / "refused-module.pt")
    torch.jit.save(torch.jit.script(layer), str(OUT / "refused-script.pt"))
    without_sources(OUT / "refused-script.pt")


def forms_of_numpy() -> None:
    arrays = {
        "w": rng.normal(size=(2, 3, 2)).astype("f4"),  # bytes of every value, 0x80 to 0x9f among them
        "columns": np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
        "turned": np.arange(24, dtype="f4").reshape(2, 3, 4).transpose(1, 0, 2),
        "scalar": np.array(3.0, "f4"),
        "empty": np.zeros((0, 3), "f4"),
        **{t: np.arange(4).astype(t) for t in ("f8", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")},
    }
    save_arrays({key: np.ascontiguousarray(x).reshape(x.shape) for key, x in arrays.items()}, OUT / "numpy.safetensors")
    for protocol in range(6):
        with open(OUT / f"numpy{protocol}.pkl", "wb") as file:
            pickle.dump({"model": arrays, "__author__": "x", "matching_heuristics": True}, file, protocol=protocol)
    for name, array in {"big-endian": np.arange(3, dtype=">f4"), "objects": np.array([{}], dtype=object)}.items():
        with open(OUT / f"refused-{name}.pkl", "wb") as file:
            pickle.dump({"model": {"b": array}}, file)


def forms_of_onnx() -> None:
    types = {
        "f": ("f4", TensorProto.FLOAT),
        "d": ("f8", TensorProto.DOUBLE),
        "h": ("f2", TensorProto.FLOAT16),
        "bf": (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
        "i64": ("i8", TensorProto.INT64),
        "i32": ("i4", TensorProto.INT32),
        "i16": ("i2", TensorProto.INT16),
        "i8": ("i1", TensorProto.INT8),
        "u64": ("u8", TensorProto.UINT64),
        "u32": ("u4", TensorProto.UINT32),
        "u16": ("u2", TensorProto.UINT16),
        "u8": ("u1", TensorProto.UINT8),
        "b": ("?", TensorProto.BOOL),
    }
    arrays = {key: np.array([[-1.5, 0, 2]] if "f" in key or key in "dh" else [[0, 1, 2]]).astype(t) for key, (t, _) in types.items()}
    arrays |= {"i64": np.array([-2, 2**62 + 1, 0]), "u64": np.array([2**63 + 1], "u8"), "i8": np.array([-128, 127], "i1"), "scalar": np.array(2.5, "f4")}
    arrays["empty"] = np.zeros((0, 2), "f4")
    types |= {"scalar": types["f"], "empty": types["f"]}
    truth = {key: torch.from_numpy(x.view("i2")).view(torch.bfloat16) if key == "bf" else torch.from_numpy(x) for key, x in arrays.items()}
    save_file(truth, OUT / "onnx.safetensors")

    def model(tensors):
        return helper.make_model(helper.make_graph([], "g", [], [], initializer=tensors))

    onnx.save(model([numpy_helper.from_array(x, key) for key, x in arrays.items()]), OUT / "raw.onnx")
    onnx.save(model([helper.make_tensor(key, types[key][1], x.shape, x.flatten()) for key, x in arrays.items()]), OUT / "typed.onnx")
    outside = model([numpy_helper.from_array(x, key) for key, x in arrays.items()])
    (OUT / "external.data").unlink(missing_ok=True)
    onnx.save_model(outside, OUT / "external.onnx", save_as_external_data=True, location="external.data", size_threshold=0)


OUT.mkdir(exist_ok=True)
forms_of_torch()
forms_of_numpy()
forms_of_onnx()
print({path.name: path.stat().st_size for path in sorted(OUT.rglob("*")) if path.is_file()})

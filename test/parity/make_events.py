"""Records what the writer of TensorBoard 2.21.0 makes of a few scalars, into test/parity/data/events.json; or reads a run's event file:

    python make_events.py
    python make_events.py RUN     prints tags and steps as TensorBoard's reader finds them, and fails on what it cannot read
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

OUT = Path(__file__).parent / "data"
SCALARS = {"loss/total": [[1, 2.5], [300, 0.125]], "eval/Ä": [[70000, 1e-7], [5000000000, -3.0]]}


def record():
    with tempfile.TemporaryDirectory() as folder:
        writer = EventFileWriter(folder)
        for tag, points in SCALARS.items():
            for step, value in points:
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.add_event(Event(wall_time=1.0, step=step, summary=summary))
        writer.close()
        data = next(Path(folder).iterdir()).read_bytes()
    (OUT / "events.json").write_text(json.dumps({"hex": data.hex(), "scalars": SCALARS}, separators=(",", ":")) + "\n")


def read(run):
    accumulator = EventAccumulator(str(Path(run) / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    for tag in accumulator.Tags()["scalars"]:
        events = accumulator.Scalars(tag)
        steps = [e.step for e in events]
        assert len(set(steps)) == len(steps), f"{tag}: a step stands there twice"
        assert np.all(np.isfinite([e.value for e in events])), tag
        print(tag, steps, [round(e.value, 6) for e in events][-1])
    for tag in accumulator.Tags()["images"]:
        print(tag, [(e.step, e.width, e.height, len(e.encoded_image_string)) for e in accumulator.Images(tag)])


read(sys.argv[1]) if len(sys.argv) > 1 else record()

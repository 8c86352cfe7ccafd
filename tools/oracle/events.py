"""Two records of an event file as TensorBoard's own writer makes them: crates/reft-cli/src/train/watch/events.hex.

    python3 -m venv venv && venv/bin/pip install tensorboard==2.21.0
    venv/bin/python events.py
"""

import io

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

file = io.BytesIO()
writer = RecordWriter(file)
values = [Summary.Value(tag="train/loss", simple_value=0.625), Summary.Value(tag="train/grad_norm", simple_value=-3.0)]
# a step of 0 is written too, which protocol buffers leave out: readers take it as 0 either way
version = Event(wall_time=1.5, file_version="brain.Event:2").SerializeToString()
writer.write(version)
writer.write(Event(wall_time=1_700_000_000.25, step=300, summary=Summary(value=values)).SerializeToString())
print(file.getvalue().hex())

"""One of the processes by which MindSpore's planner is asked: a device, or the scheduler that brings them together.

Called as `python -m tests.planner.device FOLDER MODULE NAME ...`: plans the named cases of the module's `CASES`. Each
device adds what came of each case to FOLDER/device_<rank>.jsonl and writes the graphs below FOLDER/<name>.
"""

import gc
import importlib
import json
import os
import socket
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import mindspore
import numpy as np
from mindspore import Tensor
from mindspore.communication import create_group, get_rank, init

from tests.planner.graph import DEVICES


def main(folder, module, *names):
    mindspore.set_context(mode=mindspore.GRAPH_MODE, device_target="CPU")
    if os.environ["MS_ROLE"] == "MS_SCHED":
        init()
        return
    cases = importlib.import_module(module).CASES
    _await_scheduler()
    init()
    # The planner looks for the group of all GPUs; here the CPU's communication serves in its place.
    create_group("nccl_world_group", list(range(DEVICES)))
    mindspore.set_context(device_target="GPU")
    gc.freeze()  # MindSpore goes through all objects at each compilation
    with (folder / f"device_{get_rank()}.jsonl").open("w", buffering=1) as told:
        for name in names:
            print(name, flush=True)
            told.write(json.dumps([name, *_ask(cases[name], folder / name)]) + "\n")
    # Who leaves takes the others along, so each stays until its starter lets go of its standard input; and without a
    # device the plugin cannot shut down.
    sys.stdin.read()
    os._exit(0)


def _await_scheduler():
    """Wait until the scheduler listens: a device that comes too early tries again only after many seconds."""
    address = os.environ["MS_SCHED_HOST"], int(os.environ["MS_SCHED_PORT"])
    while True:
        try:
            socket.create_connection(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)


def _ask(case, folder):
    """Return the name of the error that building or planning `case` raised, and its text with all that was logged."""
    mindspore.reset_auto_parallel_context()
    mindspore.set_auto_parallel_context(
        parallel_mode=case.parallel_mode,
        search_mode="sharding_propagation",
        device_num=DEVICES,
        global_rank=get_rank(),
        full_batch=case.full_batch,
    )
    mindspore.set_context(save_graphs=2, save_graphs_path=str(folder))
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            with _errors_to(log):
                network = case.build().set_train()
                rows = case.shape[0] if case.full_batch else case.shape[0] // DEVICES
                network.compile(Tensor(np.ones((rows, *case.shape[1:]), np.float32)))
        except Exception as error:
            log.seek(0)
            return [type(error).__name__, f"{error}\n{log.read()}"]
    return ["", ""]


@contextmanager
def _errors_to(log):
    """Write the standard error, C++ code's included, into `log`: the planner says there why it refuses."""
    before = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

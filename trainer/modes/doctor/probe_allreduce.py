"""Averages the workers' ranks, on GPUs where each worker has one, and writes down the mean.

usage: horovodrun -np 2 python -m trainer.modes.doctor.probe_allreduce FOLDER
"""

import json
import sys
from pathlib import Path

from trainer.process import start_up

with start_up.without_the_unused():
    import tensorflow as tf

    from trainer import distributed


def main() -> None:
    """Writes <rank>.json into the folder that the command line names."""
    hvd = distributed.load_horovod()
    hvd.init()
    gpus = tf.config.list_physical_devices("GPU")
    mine = gpus[hvd.local_rank() :][:1] if len(gpus) >= hvd.local_size() else []
    tf.config.set_visible_devices(mine, "GPU")
    with tf.device("/gpu:0" if mine else "/cpu:0"):
        mean = hvd.allreduce(tf.constant([float(hvd.rank())]), op=hvd.Average, name="doctor")
    found = {"mean": float(mean[0]), "size": hvd.size(), "on": "GPUs" if mine else "CPU"}
    Path(sys.argv[1], f"{hvd.rank()}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

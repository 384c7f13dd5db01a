"""Loads TensorFlow, tf-slim and Horovod: prints a line of JSON for each, or why it fails.

usage: python -m trainer.modes.doctor.probe_libraries
"""

import json
from typing import Any


def tensorflow() -> dict[str, Any]:
    """Returns the cores and GPUs that it sees, and why the compiled kernels are not used, if so."""
    import tensorflow as tf

    from trainer.cpu_kernels import library
    from trainer.machine import cores

    gpus = len(tf.config.list_physical_devices("GPU"))
    reason = library.reason_for_none()
    kernels = {"missing": reason, "broken": reason.startswith(library.NOT_LOADED)}
    return {"cores": cores.available_cores(), "gpus": gpus, "kernels": kernels}


def slim() -> dict[str, Any]:
    """Returns how many update operations a batch normalization has."""
    import tensorflow as tf

    from models.slim_compat import slim

    with tf.Graph().as_default():
        images = tf.compat.v1.placeholder(tf.float32, [2, 8, 8, 3])
        slim.batch_norm(images, is_training=True, updates_collections=("updates",))
        return {"updates": len(tf.compat.v1.get_collection("updates"))}


def horovod() -> dict[str, Any]:
    """Returns what Horovod was built with."""
    from trainer import distributed

    hvd = distributed.load_horovod()
    return {"Gloo": hvd.gloo_built(), "MPI": hvd.mpi_built(), "NCCL": bool(hvd.nccl_built())}


def main() -> None:
    """Prints a line for each part, as soon as it is known."""
    for part in (tensorflow, slim, horovod):
        try:
            found = part()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the finding)
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"part": part.__name__, "found": found}), flush=True)


if __name__ == "__main__":
    main()

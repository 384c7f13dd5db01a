"""Loads TensorFlow, tf-slim and Horovod: prints a line of JSON for each, or why it fails.

usage: python -m trainer.modes.doctor.probe_libraries
"""

import json
from typing import Any

from trainer.errors import UserError
from trainer.process import start_up


def tensorflow() -> dict[str, Any]:
    """Returns the CPU, its cores, the GPUs, and which kernels take convolutions and BN."""
    with start_up.without_the_unused():
        import tensorflow as tf

    from trainer.machine import environment
    from trainer.process import host_cores

    return {
        "cpu": environment.cpu_name(),
        "cores": host_cores.available_cores(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "kernels": _find_kernels(),
    }


def _find_kernels() -> dict[str, Any]:
    """Returns the library of compiled kernels that is used, or why there is none.

    The fields: "wrong", what is wrong with the environment variable; "missing", why TensorFlow's
    own are used; "broken", whether that is a fault; "library", the file that the environment
    variable names; "convolutions", why those of bfloat16 are TensorFlow's. Each is empty where it
    does not apply.
    """
    import tensorflow as tf

    from trainer.cpu_kernels import library, switch

    try:
        named, reason = switch.read().library, library.reason_for_none()
    except UserError as error:
        return {
            "wrong": str(error),
            "missing": "",
            "broken": True,
            "library": "",
            "convolutions": "",
        }
    return {
        "wrong": "",
        "missing": reason,
        "broken": reason.startswith(library.NOT_LOADED),
        "library": str(named or ""),
        "convolutions": "" if reason else library.reason_for_no_convolutions(tf.bfloat16),
    }


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


def cuda() -> dict[str, Any]:
    """Returns the versions of NVIDIA's driver and libraries; see `probe_cuda.find`."""
    import tensorflow as tf

    from trainer import distributed
    from trainer.modes.doctor import probe_cuda

    return probe_cuda.find(tf, int(distributed.load_horovod().nccl_built()))


def main() -> None:
    """Prints a line for each part, as soon as it is known."""
    for part in (tensorflow, slim, horovod, cuda):
        try:
            found = part()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the finding)
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"part": part.__name__, "found": found}), flush=True)


if __name__ == "__main__":
    main()

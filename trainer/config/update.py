"""The flags of the update, and of the averaging of gradients before it."""

import dataclasses

from trainer.config.statement import Checked, flag


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """The update and its step size."""

    optimizer: str = flag(
        "momentum",
        "Update rule.",
        choices=("sgd", "momentum", "nesterov", "adam"),
        is_hparam=True,
    )
    base_learning_rate: float = flag(
        0.1,
        "Peak learning rate for a global batch of 256; scaled linearly with the global batch "
        "(arXiv:1706.02677).",
        minimum=0.0,
        is_hparam=True,
        elsewhere=("lr", "learning_rate", "initial_learning_rate"),
    )
    warmup_epochs: float = flag(
        5.0,
        "Epochs of linear warm-up from 0 to the peak learning rate (arXiv:1706.02677).",
        minimum=0.0,
        is_hparam=True,
        elsewhere=("lr_warmup_epochs",),
    )
    lr_schedule: str = flag(
        "cosine",
        "After the warm-up: cosine to 0, step (x 0.1 at 1/3, 2/3 and 8/9 of the run), "
        "polynomial (power 2, to 0), or constant.",
        choices=("cosine", "step", "polynomial", "constant"),
        is_hparam=True,
        elsewhere=("lr_scheduler", "sched"),
    )
    momentum: float = flag(
        0.9,
        "Of momentum and nesterov: share of the last update that the next one keeps; of adam: "
        "decay of the first moment.",
        minimum=0.0,
        below=1.0,
        is_hparam=True,
    )
    accumulate_steps: int = flag(
        1,
        "Batches per update and worker: their gradients are averaged before the one all-reduce. "
        "Pays where memory is too small for a larger batch, or the network between hosts is slow.",
        minimum=1,
        is_hparam=True,
        elsewhere=("gradient_accumulation_steps", "grad_accum_steps"),
    )
    label_smoothing: float = flag(
        0.0,
        "Share of the target spread over all classes (arXiv:1512.00567).",
        minimum=0.0,
        below=1.0,
        is_hparam=True,
        elsewhere=("smoothing",),
    )


@dataclasses.dataclass(frozen=True)
class CommunicationConfig(Checked):
    """The averaging of gradients by Horovod. HOROVOD_... variables of the user have precedence."""

    gradient_compression: str = flag(
        "none",
        "Type in which gradients travel: none (as they are, float32) or float16. Pays between "
        "hosts on a slow network; within a host, and on CPUs, converting costs more than it saves.",
        choices=("none", "float16"),
        is_hparam=True,
        elsewhere=("fp16_allreduce",),
    )
    fusion_threshold_mb: int | None = flag(
        None,
        "Gradients are fused into buffers of up to this size, MiB; 0: not at all. Larger pays on "
        "networks with a high latency. Default: Horovod's, 128.",
        minimum=0,
        maximum=1024,
    )
    autotune: bool = flag(
        False,
        "Let Horovod try fusion thresholds and cycle times in the first some hundred steps. Pays "
        "in long runs over many hosts.",
    )

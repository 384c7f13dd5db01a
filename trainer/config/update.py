"""The flags of the update, and of the averaging of gradients before it."""

import dataclasses

from trainer.config.statement import Checked, flag, parse_by_epoch
from trainer.errors import ConfigError

# Update rules that subtract the weight decay themselves: it is no part of their loss.
DECOUPLED = ("adamw", "lars", "lamb")
_EXPONENTIALLY = "--lr_schedule=exponential"
# MiB that are sent together without --fusion_threshold_mb: by Horovod, and in buckets of
# graph/reduction.py.
HOROVOD_BUFFER_MB = 128
BUCKET_MB = 32


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """The update and its step size."""

    optimizer: str = flag(
        "momentum",
        "Update rule. rmsprop: as in slim, with decay 0.9 and epsilon 1; adamw: weight decay apart "
        "from the gradient (arXiv:1711.05101); lars (arXiv:1708.03888), lamb (arXiv:1904.00962): "
        "each layer's step in proportion to its weights, for batches of thousands.",
        choices=("sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "lars", "lamb"),
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
    warmup_learning_rate: float | None = flag(
        None,
        "Learning rate of the first step, from which the warm-up rises; not scaled. Default: the "
        "peak's share of one warm-up step.",
        minimum=0.0,
        is_hparam=True,
        elsewhere=("warmup_lr", "warmup_init_lr"),
    )
    warmup_epochs: float = flag(
        5.0,
        "Epochs of linear warm-up to the peak learning rate (arXiv:1706.02677), at most half of "
        "the run; the first of n steps has 1 / n of it, or --warmup_learning_rate.",
        minimum=0.0,
        is_hparam=True,
        elsewhere=("lr_warmup_epochs",),
    )
    lr_schedule: str = flag(
        "cosine",
        "After the warm-up: cosine to 0, step (x 0.1 at 1/3, 2/3 and 8/9 of the run, or "
        "--lr_steps), polynomial (power 2, to 0), exponential (--lr_decay_factor), or constant.",
        choices=("cosine", "step", "polynomial", "exponential", "constant"),
        is_hparam=True,
        elsewhere=("lr_scheduler", "sched", "learning_rate_decay_type"),
    )
    lr_steps: str | None = flag(
        None,
        "EPOCH:FACTOR,...: from each epoch on the learning rate is the peak times its factor, with "
        "--lr_schedule=step; such as 30:0.1,60:0.01,80:0.001.",
        is_hparam=True,
        elsewhere=("lr_milestones", "decay_milestones", "piecewise_learning_rate_schedule"),
    )
    lr_decay_factor: float = flag(
        0.94,
        "With --lr_schedule=exponential, what the learning rate is multiplied by every "
        "--lr_decay_epochs, as in slim.",
        above=0.0,
        maximum=1.0,
        is_hparam=True,
        elsewhere=("learning_rate_decay_factor", "decay_rate"),
    )
    lr_decay_epochs: float = flag(
        2.0,
        "With --lr_schedule=exponential, epochs between two decays.",
        above=0.0,
        is_hparam=True,
        elsewhere=("num_epochs_per_decay", "decay_epochs"),
    )
    momentum: float = flag(
        0.9,
        "Of momentum, nesterov, rmsprop and lars: share of the last update that the next one "
        "keeps; of adam, adamw and lamb: decay of the first moment.",
        minimum=0.0,
        below=1.0,
        is_hparam=True,
    )
    trust_coefficient: float = flag(
        1e-3,
        "Of lars: a layer's step for a learning rate of 1, as a share of its weights' norm.",
        above=0.0,
        is_hparam=True,
        elsewhere=("eeta", "lars_eta", "trust_coeff"),
    )
    clip_global_norm: float | None = flag(
        None,
        "Largest L2 norm of the averaged gradient of all weights; one above it is scaled down "
        "(arXiv:1211.5063).",
        above=0.0,
        is_hparam=True,
        elsewhere=("clip_grad", "max_grad_norm", "grad_clip", "clip_gradients"),
    )
    accumulate_steps: int = flag(
        1,
        "Batches per update and worker: their gradients are averaged before the one all-reduce. "
        "Pays where memory is too small for a larger batch, or the network between hosts is slow.",
        minimum=1,
        is_hparam=True,
        elsewhere=("gradient_accumulation_steps", "grad_accum_steps"),
    )
    ema_decay: float | None = flag(
        None,
        "Decay of averages of all weights, which evaluations report beside the weights and "
        "checkpoints have under slim's names; less in the first updates, as in slim. Default: none "
        "are kept.",
        above=0.0,
        below=1.0,
        is_hparam=True,
        elsewhere=("moving_average_decay", "model_ema_decay", "ema"),
    )
    loss: str = flag(
        "softmax",
        "softmax: cross-entropy over all classes; sigmoid: mean binary cross-entropy of each class "
        "by itself, as mixup and CutMix are trained in arXiv:2110.00476. Also what evaluations "
        "report, and how probabilities follow from logits.",
        choices=("softmax", "sigmoid"),
        is_hparam=True,
        belongs_to_model=True,
        before="softmax",
        elsewhere=("bce_loss", "bce"),
    )
    label_smoothing: float = flag(
        0.0,
        "Share of the target spread over all classes (arXiv:1512.00567).",
        minimum=0.0,
        below=1.0,
        is_hparam=True,
        elsewhere=("smoothing",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_steps is not None and self.lr_schedule != "step":
            raise ConfigError(
                f"--lr_steps: must be given with --lr_schedule=step, got {self.lr_schedule!r}"
            )
        if self.lr_steps is not None and not self.epochs_and_factors:
            raise ConfigError(
                "--lr_steps: must be EPOCH:FACTOR,... with rising epochs and factors of at least "
                f"0, such as 30:0.1,60:0.01, got {self.lr_steps!r}"
            )
        for name, other, is_used in (
            ("momentum", "another --optimizer than sgd", self.optimizer != "sgd"),
            ("trust_coefficient", "--optimizer=lars", self.optimizer == "lars"),
            ("lr_decay_factor", _EXPONENTIALLY, self.lr_schedule == "exponential"),
            ("lr_decay_epochs", _EXPONENTIALLY, self.lr_schedule == "exponential"),
            ("warmup_learning_rate", "a warm-up (--warmup_epochs)", self.warmup_epochs > 0),
        ):
            value = getattr(self, name)
            if not is_used and value != type(self).__dataclass_fields__[name].default:
                raise ConfigError(f"--{name}: must be given with {other}, got {value}")
        if self.optimizer == "lars" and self.momentum == 0:
            raise ConfigError("--momentum: must be greater than 0 with --optimizer=lars, got 0.0")

    @property
    def epochs_and_factors(self) -> tuple[tuple[float, float], ...]:
        """Pairs of --lr_steps: epoch, share of the peak from it on; () where they make no sense."""
        return parse_by_epoch(self.lr_steps)


@dataclasses.dataclass(frozen=True)
class CommunicationConfig(Checked):
    """The averaging of gradients by Horovod. HOROVOD_... variables of the user have precedence."""

    gradient_reduction: str = flag(
        "average",
        "What all workers' gradients become: average, or adasum (arXiv:2006.02924: the sum of what "
        "is orthogonal, the average of what is equal). With adasum the number of workers must be a "
        "power of two, and the learning rate is scaled with one worker's batch, not with all.",
        choices=("average", "adasum"),
        is_hparam=True,
    )
    gradient_compression: str = flag(
        "none",
        "Type in which gradients travel: none (as they are, float32), float16, or bfloat16 (sums "
        "in float32). Pays between hosts on a slow network; within a host, and on CPUs, converting "
        "costs more than it saves.",
        choices=("none", "float16", "bfloat16"),
        is_hparam=True,
        elsewhere=("fp16_allreduce",),
    )
    fusion_threshold_mb: int | None = flag(
        None,
        "Gradients are fused into buffers of up to this size, MiB; 0: not at all. Larger pays on "
        f"networks with a high latency. Default: Horovod's, {HOROVOD_BUFFER_MB}; {BUCKET_MB} with "
        "--gradient_compression=bfloat16 or --gradient_reduction=adasum; 0 with --deterministic "
        "and three or more workers on GPUs or several hosts.",
        minimum=0,
        maximum=1024,
    )
    autotune: bool = flag(
        False,
        "Let Horovod try fusion thresholds and cycle times in the first some hundred steps. Pays "
        "in long runs over many hosts.",
    )

"""The flags of the network."""

import dataclasses

from trainer.config.statement import Checked, flag
from trainer.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked):
    """The network and the arguments of its arg scope."""

    model: str = flag(
        "resnet_v2_50",
        "resnet_v2_50, resnet_v2_101, resnet_v2_152, resnet_v2_200, keras_resnet_v2_50, _101, _152 "
        "(with Keras' first pool, for weights from Keras), or package.module:function.",
        is_hparam=True,
        belongs_to_model=True,
        belongs_to_weights=True,
        elsewhere=("arch", "model_name", "network"),
    )
    num_classes: int | None = flag(
        None, "Classes of the network. Default: as many as the data has.", minimum=1
    )
    weight_decay: float = flag(
        1e-4,
        "L2 coefficient on the kernels of convolutions and fully connected layers: loss += it * "
        "sum(w^2) / 2; of adamw, lars and lamb: the update has it, and not the loss.",
        minimum=0.0,
        is_hparam=True,
        elsewhere=("wd",),
    )
    decay_bn_and_biases: bool = flag(
        False,
        "Weight decay acts on biases and on BN's scales and offsets, too.",
        is_hparam=True,
    )
    batch_norm_decay: float = flag(
        0.997,
        "Decay of BN's moving statistics, which need some 5 / (1 - it) steps: short runs want 0.9.",
        minimum=0.0,
        below=1.0,
        is_hparam=True,
        elsewhere=("bn_decay", "bn_momentum"),
    )
    sync_batch_norm: bool = flag(
        False,
        "BN's statistics are of all workers' images together. Pays with few images per worker; "
        "costs two collectives per layer.",
        is_hparam=True,
        elsewhere=("sync_bn", "synchronized_batch_norm"),
    )
    batch_norm_epsilon: float = flag(
        1e-5,
        "Added to BN's variance.",
        above=0.0,
        belongs_to_model=True,
        belongs_to_weights=True,
    )
    precision: str = flag(
        "float32",
        "Type of activations and convolutions. Variables, BN, logits and loss are float32.",
        choices=("float32", "bfloat16", "float16"),
        is_hparam=True,
        elsewhere=("dtype", "amp", "fp16", "use_fp16"),
    )
    recompute: str = flag(
        "auto",
        "Activations that the backward pass computes again instead of the forward pass keeping "
        "them, for larger batches; the same bits. norms: BN and activation functions; blocks: all "
        "within residual units; auto: BN and ReLU where that takes no time, by the compiled "
        "kernels for CPUs.",
        choices=("auto", "none", "norms", "blocks"),
        changes_training=False,
        elsewhere=("checkpoint_activations", "grad_checkpointing", "gradient_checkpointing"),
    )
    tf32: bool = flag(
        True,
        "On GPUs, multiply float32 in TensorFloat-32 (10 bits of mantissa), as TensorFlow does by "
        "default. --notf32: in float32, at a fraction of the speed.",
        is_hparam=True,
    )
    layout: str = flag(
        "auto",
        "Order of the dimensions of maps on GPUs. auto: TensorFlow's layout optimizer chooses, by "
        "GPU and precision. nhwc: as the network is written; cuDNN may still transpose within it.",
        choices=("auto", "nhwc"),
        is_hparam=True,
    )
    xla: bool = flag(
        False,
        "Compile the graph with XLA. For GPUs: on CPUs it is slower.",
        is_hparam=True,
    )
    xla_scope: str = flag(
        "graph",
        "What --xla compiles. graph: clusters that XLA chooses in the whole graph; network: the "
        "network's forward and backward pass alone, without input, all-reduce and update.",
        choices=("graph", "network"),
        is_hparam=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.xla_scope != "graph" and not self.xla:
            raise ConfigError(f"--xla_scope: must be given with --xla, got {self.xla_scope!r}")
        if self.recompute in ("norms", "blocks") and self.xla:
            raise ConfigError(
                "--recompute: must be auto or none with --xla, which may merge the copies, got "
                f"{self.recompute!r}"
            )

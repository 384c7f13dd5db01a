"""The tags that people's own programs may rely on, whatever the code has."""

EVERY_STEP = frozenset(
    {
        "train/loss",
        "train/cross_entropy",
        "train/weight_decay_loss",
        "train/learning_rate",
        "train/gradient_norm",
        "perf/step_time_ms",
        "perf/images_per_sec",
        "perf/images_per_sec_per_worker",
        "perf/data_wait_ms",
        "perf/slowest_worker_step_ms",
        "perf/fastest_worker_step_ms",
    }
)
EVALUATION = frozenset({"eval/top1", "eval/top5", "eval/loss"})
OF_FEW_CLASSES = EVALUATION - {"eval/top5"}  # Of five classes or fewer it is always 1.
BENCHMARK = frozenset({"benchmark/<pass>/step_time_ms", "benchmark/<pass>/images_per_sec"})

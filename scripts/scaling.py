#!/usr/bin/env python3
"""How training scales with the number of workers: measured, from existing runs, and by a model.

  scripts/scaling.py run --workers 1,2 --out runs/scaling -- --precision=bfloat16
  scripts/scaling.py report runs/one runs/two result.json --out scaling.png
  scripts/scaling.py predict --images_per_sec 2375 --batch_size 256
  scripts/scaling.py published

`run` trains on synthetic images with each number of workers, in turns: with one batch per worker
(weak scaling), and with one batch over all (strong); then it reports. A worker on CPUs has as many
cores as it would have among all of them. `report` reads run folders and results of training.
`predict` and `published` are the model's (shared/scale_model.py). What communication alone costs,
measured within seconds on a machine whose speed changes, is benchmark_workers.py's.
"""

import argparse
import itertools
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shared import (
    process_tree,
    program,
    published_scaling,
    run_logs,
    scale_inputs,
    scale_model,
    scaling_chart,
    scaling_runs,
)
from shared.scale_model import Gradient, Knobs, Work
from shared.turns import Launch

from trainer.config import Config, DataConfig, ModelConfig
from trainer.errors import UserError
from trainer.process import files, host_cores, settings
from trainer.process.keeper import unless_nohup

_HOROVODRUN = str(Path(sys.executable).with_name("horovodrun"))
_TRAINER = (sys.executable, "-m", "trainer", "--dataset=synthetic", "--checkpoint_every=0")
_LOOK_SEC = 0.2
_MODEL, _IMAGE_SIZE, _BATCH_SIZE = "resnet_v2_50", 224, 256
_NETWORKS_GBIT = (25, 100, 400)
_GPUS = tuple(2**power for power in range(3, 11))
_VARIANTS = {
    "as it is": (Knobs(), False),
    "16 bits": (Knobs(sent_share=0.5), False),
    "4 batches": (Knobs(accumulate_steps=4), False),
    "cycle 10 ms": (Knobs(fusion_bytes=512 * 2**20, cycle_sec=0.01), False),
    "hierarchical": (Knobs(), True),
}


def plan_runs(workers: Sequence[int], batch_size: int) -> list[tuple[int, int]]:
    """Returns (workers, batch per worker) of each run of a round: weak scaling, then strong.

    Raises:
      UserError: the batch over all workers cannot be divided.
    """
    whole = batch_size * workers[-1]
    for number in workers:
        if whole % number:
            raise UserError(
                f"--batch_size: {workers[-1]} times it must be a multiple of each number of "
                f"workers, and {whole} is none of {number}"
            )
    weak = [(number, batch_size) for number in workers]
    return list(dict.fromkeys([*weak, *((number, whole // number) for number in workers)]))


def run(options: argparse.Namespace) -> list[Path]:
    """Trains with each number of workers, in turns; returns the folders of the logs."""
    planned = plan_runs(options.workers, options.batch_size)
    most = options.workers[-1]
    # As `machine.cores.bind_worker` shares them; of a quota, so many as it allows.
    available = host_cores.in_order()[: host_cores.available_cores()]
    even = available[: len(available) // most * most]  # The same for each, so that they compare.
    shares = [host_cores.share(even, worker, most) for worker in range(most)]
    has_gpu = settings.has_gpu()
    if not has_gpu and len(available) < most:
        raise UserError(f"--workers: must be at most {len(available)}, a core for each, got {most}")
    files.check_writable(options.out, "out", is_folder=True)
    folders = []
    for number in unless_nohup((signal.SIGTERM, signal.SIGHUP)):
        signal.signal(number, _leave)  # What runs would go on.
    process_tree.adopt_orphans()
    try:
        for turn in range(options.rounds):
            for workers, batch_size in planned if turn % 2 == 0 else planned[::-1]:
                folder = options.out / f"{workers}x{batch_size}-{turn}"
                by = [_HOROVODRUN, "-np", str(workers)] if workers > 1 else []
                flags = [f"--batch_size={batch_size}", f"--steps={options.steps}", *options.flags]
                mine = None if has_gpu else set(itertools.chain(*shares[:workers]))
                launch = Launch([*by, *_TRAINER, *flags], folder, mine)
                while not launch.has_ended():
                    time.sleep(_LOOK_SEC)
                folders.append(folder / "logs")
                rate = scaling_runs.read_run(folders[-1]).images_per_sec
                print(f"{workers} x {batch_size}: {rate:.2f} images/s", flush=True)
    finally:
        process_tree.end_below(os.getpid())
    return folders


def _leave(number: int, frame: object) -> None:
    del frame
    sys.exit(128 + number)


def report(places: Sequence[Path], picture: Path) -> None:
    """Prints the tables of some runs, and draws them."""
    series = scaling_runs.list_series([scaling_runs.read_run(place) for place in places])
    print(scaling_runs.format_series(series))
    scaling_chart.draw(series, picture)
    print(picture)


def gradients_of(model: str, image_size: int) -> tuple[Gradient, ...]:
    """Returns a network's gradients, from its graph."""
    from trainer.machine import loading  # What loads TensorFlow; reports do without.

    config = Config(model=ModelConfig(model=model), data=DataConfig(image_size=image_size))
    loading.load_tensorflow(config)
    from trainer.benchmark import gradient_order

    return scale_inputs.gradients_in(
        [(each.shape, each.ready) for each in gradient_order.list_gradients(config)]
    )


def _read_alone(folder: Path, asked: dict[str, str | None]) -> dict[str, run_logs.Curve]:
    """Returns the curves of a run of one worker; what it trained goes into `asked`, by flag.

    Raises:
      UserError: it had several workers, or trained something else than is asked for.
    """
    curves = run_logs.read_curves(folder, scaling_runs.TAGS)
    workers = scaling_runs.run_of_curves(curves).workers
    if workers != 1:
        raise UserError(f"--alone: must be a run of one worker; {folder} had {workers}")
    flags = run_logs.read_flags(folder, lambda line: print(line, file=sys.stderr))
    for name, wanted in asked.items():
        found = flags.get(name)
        if found is not None and wanted not in (None, found):
            raise UserError(f"--{name}: must be {found}, as in {folder}, got {wanted}")
        asked[name] = found or wanted
    return curves


def predict(options: argparse.Namespace) -> None:
    """Prints the efficiency on 8 to 1,024 GPUs by the model."""
    size = options.image_size
    asked = {"model": options.model, "image_size": size and str(size)}
    curves = [_read_alone(folder, asked) for folder in options.alone or ()]
    gradients = gradients_of(asked["model"] or _MODEL, int(asked["image_size"] or _IMAGE_SIZE))
    if curves:
        work = scale_inputs.read_alone(curves, gradients)
    else:
        work = Work(gradients, (options.batch_size or _BATCH_SIZE) / options.images_per_sec)
        print("no --alone: no worker is slower than another")
    inside = published_scaling.A100
    print(
        f"{sum(each.bytes for each in gradients) / 1e6:.0f} MB of gradients, "
        f"{1000 * (work.compute_sec + work.update_sec):.1f} ms a step; {options.gpus_per_host} "
        f"GPUs of a host by NVLink, {inside.bytes_per_sec / 1e9:.0f} GB/s"
    )
    for gbit in _NETWORKS_GBIT:
        print(f"{gbit} Gbit/s between hosts: efficiency, % (ms of a step as it is)")
        print(f"{'GPUs':>6}" + "".join(f"{name:>14}" for name in _VARIANTS))
        for gpus in _GPUS:
            per_host = min(gpus, options.gpus_per_host)
            line = f"{gpus:6}"
            for number, (knobs, is_hierarchical) in enumerate(_VARIANTS.values()):
                cost = published_scaling.ring_cost(
                    *(gpus // per_host, per_host, inside, published_scaling.network(gbit)),
                    is_hierarchical=is_hierarchical,
                )
                busy = scale_model.never_busy
                share = 100 * scale_model.efficiency(work, gpus, cost, busy, knobs)
                step_ms = 1000 * scale_model.step_sec(work, gpus, cost, busy, knobs)
                line += f"{share:14.1f}" if number else f"{share:6.1f} ({step_ms:5.1f})"
            print(line)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="train with each number of workers, and report")
    runs.add_argument(
        "--workers", type=program.whole_numbers, default=(1, 2), help="1,2 by default"
    )
    count = program.at_least(1)
    runs.add_argument("--batch_size", type=count, default=16, help="per worker; %(default)s")
    runs.add_argument("--steps", type=count, default=40, help="of a run; %(default)s")
    runs.add_argument("--rounds", type=count, default=3, help="of all runs; %(default)s")
    runs.add_argument("--out", type=program.path, required=True, help="folder for the logs")
    runs.add_argument("flags", nargs="*", help="of the trainer, after --")
    reports = commands.add_parser("report", help="compare runs that are there")
    reports.add_argument("runs", nargs="+", type=program.path, help="--logdir or --result_json")
    reports.add_argument("--out", type=program.path, default=Path("scaling.png"), help="a PNG")
    predicts = commands.add_parser("predict", help="8 to 1,024 GPUs by the model")
    rate = program.at_least(1e-3, float)
    predicts.add_argument("--images_per_sec", type=rate, help="of one GPU")
    predicts.add_argument("--batch_size", type=count, help=f"of it; {_BATCH_SIZE}")
    predicts.add_argument(
        "--alone", type=program.path, action="append", help="--logdir of one GPU, in its place"
    )
    predicts.add_argument("--model", help=f"that of --alone, or {_MODEL}")
    predicts.add_argument("--image_size", type=count, help=f"that of --alone, or {_IMAGE_SIZE}")
    predicts.add_argument("--gpus_per_host", type=count, default=8, help="%(default)s")
    commands.add_parser("published", help="published points beside the model's")
    options = parser.parse_args(argv)
    if options.command == "predict" and (options.alone is None) == (options.images_per_sec is None):
        parser.error("--images_per_sec, --alone: one of them must be given")
    if options.command == "predict" and options.alone and options.batch_size:
        parser.error("--batch_size: must be given with --images_per_sec; runs have their own")
    if options.command == "run" and len(options.workers) < 2:
        parser.error(f"--workers: must be several numbers, as 1,2, got {options.workers[0]}")
    if options.command == "report" and options.out.suffix != ".png":
        parser.error(f"--out: must end with .png, got {options.out}")
    if options.command == "predict" and any(gpus % options.gpus_per_host for gpus in _GPUS[3:]):
        parser.error(f"--gpus_per_host: must divide 64, got {options.gpus_per_host}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names."""
    options = parse_arguments(argv)
    if options.command == "run":
        report(run(options), options.out / "scaling.png")
    elif options.command == "report":
        report(options.runs, options.out)
    elif options.command == "predict":
        predict(options)
    else:
        names = {point.network for point in published_scaling.POINTS} - {"vgg16"}
        gradients = {name: gradients_of(name, 224) for name in sorted(names)}
        print(published_scaling.format_points(gradients | {"vgg16": published_scaling.vgg16()}))
        for number, point in enumerate(published_scaling.POINTS, start=1):
            print(f"{number}. {point.name}: {point.source}")


if __name__ == "__main__":
    program.run(main)

#!/usr/bin/env bash
# From a fresh clone to a trained network: sets everything up, then trains under horovodrun.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/train.sh [-np N] [flags]

Sets everything up where that is not done yet, and trains with N workers under horovodrun. With no
flags: resnet_v2_50 on handwritten digits, 2 workers, a few minutes on a CPU with AVX-512 and
bfloat16 instructions. `--help` after `-np 1` lists the flags. SLIM_HOROVOD_VENV: the environment to use, instead of .venv in the repository.

  -np N    workers. Default: one per GPU; 2 where there is none
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
workers=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
[[ $workers -gt 0 ]] || workers=2
case ${1-} in
  -h | --help)
    usage
    exit
    ;;
  -np)
    [[ ${2-} =~ ^[1-9][0-9]*$ ]] || {
      echo "train.sh: -np must be a whole number of workers, got '${2-}'" >&2
      exit 1
    }
    workers=$2
    shift 2
    ;;
esac

venv=$(realpath -ms "${SLIM_HOROVOD_VENV:-$root/.venv}")
"$root/scripts/setup.sh" --venv "$venv"
export PATH="$venv/bin:$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

if [[ $# -gt 0 ]]; then
  exec "$root/scripts/worker_environment.py" horovodrun -np "$workers" python -m trainer "$@"
fi

cd "$root"
logdir=runs/digits-$(date +%Y%m%d-%H%M%S)
python scripts/prepare_digits.py
scripts/worker_environment.py horovodrun -np "$workers" python -m trainer \
  --flagfile=scripts/recipes/digits.flags --data_dir=data/digits \
  --logdir="$logdir" --result_json="$logdir/result.json"
python - "$root/$logdir" "$venv" <<'END'
import json
import sys

logdir, venv = sys.argv[1:]
with open(f"{logdir}/result.json", encoding="utf-8") as file:
    evaluation = json.load(file)["result"]["eval"]
print(f"""
top-1 {evaluation["top1"]:.4f} on {evaluation["count"]} digits that were not trained on.

What to type next, after `source {venv}/bin/activate`:
  tensorboard --logdir={logdir}
      look at this run
  python -m trainer --benchmark
      how fast is this machine?
  scripts/train.sh --data_dir=DIR --validation_fraction=0.1 --logdir=runs/mine
      train on your own images, a folder per class""")
END

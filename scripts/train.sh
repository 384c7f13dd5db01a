#!/usr/bin/env bash
# From a fresh clone to a trained network: sets everything up, then trains under horovodrun.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/train.sh [-np N] [-H HOST:N,HOST:N... [--network-interface NAME]] [flags]

Sets everything up where that is not done yet, and trains with N workers under horovodrun. With no
flags: resnet_v2_50 on handwritten digits, 2 workers, a few minutes on a CPU with AVX-512 and
bfloat16 instructions. `python -m trainer --help` lists the flags. SLIM_HOROVOD_VENV: the
environment to use, instead of .venv in the repository.

  -np N    workers. Default: one per GPU; 2 where there is none; with -H as many as it says
  -H HOST:N,HOST:N...
           hosts, and how many workers each has. They are looked at first, over ssh: this folder and
           its environment must be on each by the same path, and ssh must ask for no password
  --network-interface NAME
           interface over which workers of several hosts are connected. Default: the first by name
           that all hosts have
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fail() {
  echo "train.sh: $*" >&2
  exit 1
}

workers='' hosts='' interface=''
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    -np)
      [[ ${2-} =~ ^[1-9][0-9]*$ ]] || fail "-np must be a whole number of workers, got '${2-}'"
      workers=$2
      ;;
    -H)
      [[ ${2-} =~ ^[^-:,\ ][^:,\ ]*(:[1-9][0-9]*)?(,[^-:,\ ][^:,\ ]*(:[1-9][0-9]*)?)*$ ]] ||
        fail "-H must be hosts with numbers of workers, such as host1:8,host2:8, got '${2-}'"
      hosts=''
      for host in ${2//,/ }; do
        [[ $host == *:* ]] || host=$host:1  # horovodrun wants a number.
        hosts+=${hosts:+,}$host
      done
      ;;
    --network-interface)
      [[ -n ${2-} ]] || fail "--network-interface must be the name of one"
      interface=$2
      ;;
    *) break ;;
  esac
  shift 2
done
[[ -n $hosts || -z $interface ]] || fail "--network-interface must be given with -H"
[[ -z $hosts || $# -gt 0 ]] || fail "-H must be followed by the flags of a training"
if [[ -z $workers && -n $hosts ]]; then
  workers=0
  for host in ${hosts//,/ }; do
    workers=$((workers + ${host#*:}))
  done
elif [[ -z $workers ]]; then
  workers=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    visible=$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cvE '^ *(-1)? *$' || true)
    workers=$((visible < workers ? visible : workers))
  fi
  [[ $workers -gt 0 ]] || workers=2
fi

venv=$(realpath -ms "${SLIM_HOROVOD_VENV:-$root/.venv}")
"$root/scripts/setup.sh" --venv "$venv"
export PATH="$venv/bin:$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

run=()
if [[ -n $hosts ]]; then
  asked=(${interface:+"--network_interface=$interface"})
  for ((i = 1; i <= $#; i++)); do
    case ${!i} in
      --data_dir=* | --logdir=*) asked+=("${!i}") ;;
      --data_dir | --logdir) asked+=("${@:i:2}") ;;
    esac
  done
  python -m trainer --mode=doctor --hosts="$hosts" "${asked[@]}" || exit 1
  run=(-H "$hosts" ${interface:+--network-interface "$interface"})
fi
if [[ $# -gt 0 ]]; then
  exec "$root/scripts/worker_environment.py" horovodrun -np "$workers" "${run[@]}" python -m trainer "$@"
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

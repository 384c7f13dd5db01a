#!/usr/bin/env bash
# Makes the environment: a virtual environment, pinned packages, Horovod built for their TensorFlow.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/setup.sh [--gpu | --cpu] [--venv DIR] [--python EXE]

Makes a virtual environment with pinned packages, and Horovod built for their TensorFlow. Where all
is in place it returns at once; what is outdated is renewed; what was interrupted is begun afresh.

  --gpu, --cpu    with CUDA and NCCL, or without. Default: as before; in a new environment --gpu
                  where nvidia-smi finds a GPU, else --cpu
  --venv DIR      the environment's folder. Default: .venv in the repository
  --python EXE    Python 3.10 to 3.13. Default: as before; in a new environment the newest on PATH
END
}

fail() {
  echo "setup.sh: $*" >&2
  exit 1
}

arguments=("$@")
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$repository/.venv mode='' python=''
while (($#)); do
  case $1 in
    --gpu | --cpu) mode=${1#--} ;;
    --venv | --python)
      [[ -n ${2:-} ]] || fail "$1 needs a value; see --help"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --venv=?* | --python=?*)
      name=${1%%=*}
      printf -v "${name#--}" %s "${1#*=}"
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown argument '$1'; see --help" ;;
  esac
  shift
done
venv=$(realpath -ms "$venv")
state=$venv/.slim-horovod # What this script knows about the environment, and nothing of pip's.

# Packages of another Python must not leak into the build, nor pip be told to install elsewhere.
unset PYTHONPATH PYTHONHOME
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

# Prints the version of a Python that can make an environment here; fails for any other, and for a
# version manager's stand-in for a Python that is not there.
python_version() {
  "$1" -c '
import sys, ensurepip, venv
if not (3, 10) <= sys.version_info < (3, 14): sys.exit(1)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

newest_python() {
  local name exe
  for name in python3.13 python3.12 python3.11 python3.10 python3 python; do
    while read -r exe; do
      # Not the environment's own, where that is active: it is to be cleared.
      if python_version "$exe" >/dev/null &&
        [[ $("$exe" -c 'import sys; print(sys.prefix)') != "$venv" ]]; then
        echo "$exe"
        return
      fi
    done < <(type -ap "$name")
  done
  fail "no usable Python 3.10 to 3.13 on PATH: apt-get install python3 python3-venv (Debian," \
    "Ubuntu), dnf install python3.12 (RHEL), or name one with --python"
}

# --- What is there, and what is wanted -----------------------------------------------------------

made_for='' made_from=''
if [[ -s $state/stamp ]]; then
  { read -r made_for && read -r made_from; } <"$state/stamp" || true
fi

if [[ -n $python ]]; then
  version=$(python_version "$python") ||
    fail "--python: must be a Python 3.10 to 3.13 with venv and ensurepip, got '$python'"
elif ! version=$(python_version "$venv/bin/python") || [[ $made_for != "$version $venv" ]]; then
  python=$(newest_python)
  version=$(python_version "$python")
fi

remembered=$mode # What a later run without --gpu and --cpu goes by.
[[ -n $mode || ! -s $state/mode ]] || remembered=$(<"$state/mode")
if [[ -z $remembered ]] && nvidia-smi -L >/dev/null 2>&1; then
  remembered=gpu
fi
mode=${remembered:-cpu}

requirements=("$repository/requirements/lock.txt")
[[ $mode == cpu ]] || requirements+=("$repository/requirements/gpu.txt")
wanted_for="$version $venv"
# Of all that the environment is made from, and of what is in it: a package that somebody has put in
# or taken out since, another TensorFlow for instance, is a reason to renew it.
fingerprint() {
  {
    cat "${requirements[@]}" "$repository"/{requirements/horovod.txt,setup.py,pyproject.toml} \
      "$repository"/scripts/{setup.sh,horovod/{*.py,*.h,patches/*/*.patch}} \
      "$repository"/trainer/cpu_kernels/src/*
    mpicc -show 2>/dev/null || true
    echo "$mode $repository"
    ls -d "$venv/lib/python$version"/site-packages/*.dist-info \
      "$repository"/trainer/cpu_kernels/_kernels.*-"${version/./}"-*.so 2>/dev/null || true
  } | sha256sum
}
if [[ $made_for == "$wanted_for" && $made_from == "$(fingerprint)" ]]; then
  echo "set up already: $venv (Python $version, $mode)"
  exit 0
fi

# --- Preparations --------------------------------------------------------------------------------

# Only what this script made may be cleared.
if [[ ! -d $state && -n $(ls -A "$venv" 2>/dev/null) ]]; then
  fail "--venv: must be new or made by this script, got '$venv'"
fi
build=("$repository/scripts/horovod/build.py")
[[ $mode == cpu ]] || build+=(--gpu)
# Before minutes go by: can Horovod be built here at all?
"${python:-$venv/bin/python}" "${build[@]}" --check

mkdir -p "$state"
exec 9>"$state/lock"
if ! flock --nonblock 9; then
  echo "waiting for another set-up of $venv"
  flock 9
  exec 9>&-
  exec "$BASH" "${BASH_SOURCE[0]}" "${arguments[@]}"
fi

# --- The work ------------------------------------------------------------------------------------

log=$state/setup.log
: >"$log"

# Runs a command into the log; says how long it took, or what it said last.
phase() {
  local title=$1 start=$SECONDS
  shift
  printf '%-52s' "$title"
  if "$@" >>"$log" 2>&1; then
    printf '%4d s\n' $((SECONDS - start))
  else
    printf ' failed\n'
    tail -n 3 "$log" >&2
    fail "stopped at '$title'; everything that was said: $log"
  fi
}

make_venv() {
  find "$venv" -mindepth 1 -maxdepth 1 ! -path "$state" -exec rm -rf {} +
  "$python" -m venv "$venv"
}

# From here to the end the environment counts as half made, and is not built upon.
rm -f "$state/stamp"
[[ -z $remembered ]] || echo "$remembered" >"$state/mode"

if [[ $made_for != "$wanted_for" ]]; then
  phase "Python $version in $venv" make_venv
fi
phase "pinned packages" "$venv/bin/python" -m pip install --no-compile \
  "${requirements[@]/#/--requirement=}"
# pip compiles all modules before it goes on, on one core. It holds the lock as well, so that a
# set-up after one that was interrupted waits for it.
"$venv/bin/python" -m compileall -q "$venv/lib/python$version/site-packages" >>"$log" 2>&1 &
compiling=$!
phase "Horovod for this TensorFlow ($mode)" "$venv/bin/python" "${build[@]}"
phase "slim-horovod itself" "$venv/bin/python" -m pip install --no-deps --no-build-isolation \
  --editable "$repository"
# `python -m trainer` would run a file trainer.py of the current folder: this comes before.
cat >"$venv/lib/python$version/site-packages/slim_horovod.pth" <<'END'
import sys; [__import__("trainer") for option, name in zip(sys.orig_argv, sys.orig_argv[1:]) if option == "-m" and name.split(".")[0] == "trainer"]
END
wait "$compiling" || true # Some packages hold files for other Pythons.
cd "$repository"
phase "proof: doctor, with a two-process all-reduce" "$venv/bin/python" -m trainer --mode=doctor

printf '%s\n' "$wanted_for" "$(fingerprint)" >"$state/stamp.new"
mv "$state/stamp.new" "$state/stamp"
echo "set up: $venv (Python $version, $mode) in $SECONDS s"

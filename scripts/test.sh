#!/usr/bin/env bash
# Sets everything up where that is not done yet, then lint, types and tests.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/test.sh [--quick] [pytest arguments]

  --quick    without the tests that start several processes or take long
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
selection=()
case ${1-} in
  -h | --help)
    usage
    exit
    ;;
  --quick)
    selection=(-m "not slow and not processes")
    shift
    ;;
esac

venv=$(realpath -ms "${SLIM_HOROVOD_VENV:-$root/.venv}")
"$root/scripts/setup.sh" --venv "$venv"
export PATH="$venv/bin:$PATH"
cd "$root"
ruff format --check .
ruff check .
mypy
# Hundreds of processes load the same modules: only the first one is to compile them.
unset PYTHONDONTWRITEBYTECODE
# Four tests at a time: many wait for a process, also on two cores. tests/conftest.py says which not together.
python -m pytest --numprocesses=4 --dist=loadfile "${selection[@]}" "$@"

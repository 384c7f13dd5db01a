#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: --dist=loadgroup accepts the tests of an xdist_group and runs
# them in several worker processes at once, without a word. With pytest 8.4.2 they run in one.
#
# Guess before: the newest releases of both keep a group in one process, as xdist's documentation
# says, or refuse each other. Cause: xdist marks a group by a suffix that it assigns to the private
# item._nodeid; pytest 9.2 keeps the name of a test in another attribute, and does not look there.
# For whoever runs tests that share a server, a port or a GPU: groups by file (--dist=loadfile) hold.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pytest-xdist==3.8.0 pytest==9.2.0
mkdir "$folder/tests"
cat > "$folder/tests/test_group.py" <<'END'
import os, time
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(20))
def test_which_process(number):
    time.sleep(0.05)
    with open(os.environ["PROCESSES"], "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], file=file)
END

processes() {  # The processes that have run tests of the group, for these words of the command.
  rm -f "$folder/processes"
  PROCESSES=$folder/processes "$folder/venv/bin/python" -m pytest -q -p no:cacheprovider \
    --numprocesses=2 "$@" "$folder/tests" >"$folder/output" || { cat "$folder/output"; exit 1; }
  [ "$(wc -l <"$folder/processes")" = 20 ]
  sort -u "$folder/processes" | tr '\n' ' '
}

new=$(processes --dist=loadgroup)
by_file=$(processes --dist=loadfile)
"$folder/venv/bin/pip" install --quiet pytest==8.4.2
old=$(processes --dist=loadgroup)
echo "pytest 9.2.0, loadgroup: a group of 20 tests ran in: $new"
echo "pytest 9.2.0, loadfile:  a file of 20 tests ran in:  $by_file"
echo "pytest 8.4.2, loadgroup: a group of 20 tests ran in: $old"
[ "$(wc -w <<<"$new")" = 2 ] && [ "$(wc -w <<<"$by_file")" = 1 ] && [ "$(wc -w <<<"$old")" = 1 ]
# Seen: "gw0 gw1", "gw0", "gw0" (either may be gw1).

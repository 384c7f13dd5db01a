#!/usr/bin/env bash
# TensorFlow 2.21.0 on Linux: of the memory that a process has after `import tensorflow`, two thirds
# are pages of libraries, which linking and registering operations have read. Training needs a sixth
# of them: once they are given back by madvise(MADV_DONTNEED), a convolution's training steps bring
# that many back, from the system's cache of files.
#
# Guess before: what is resident of the libraries is the code that is used, or becomes so with the
# first steps, and comes back at once.
# So the resident size of small jobs, in `top` or in limits by resident set, tells mostly what the
# start has read. (Pages that a process has changed, as a linker does, are not the file's: only
# mappings without such pages, in memory or swapped out, may be given back.)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 2>"$folder/pip.txt"
cat > "$folder/run.py" <<'END'
import ctypes
import re

import tensorflow as tf

FIELDS = ("Anonymous", "Swap")  # Changed pages in memory, and out of it.


def read_mib(name):
    with open("/proc/self/status", encoding="ascii") as status:
        return int(re.search(rf"^{name}:\s*(\d+) kB", status.read(), re.MULTILINE)[1]) / 2**10


def give_back():
    """Unmaps the pages of read-only parts of libraries, of which this process has changed none."""
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with open("/proc/self/smaps", encoding="utf-8") as smaps:
        text = smaps.read()
    for part in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)[1:]:
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r-[-x]p .*\.so[.\d]*\n", part)
        changed = [re.search(rf"^{name}:\s+0 kB$", part, re.MULTILINE) is None for name in FIELDS]
        if found and not any(changed):
            begin, end = (int(number, 16) for number in found.groups())
            assert advise(begin, end - begin, 4) == 0  # MADV_DONTNEED


print("loaded", round(read_mib("RssFile")), round(read_mib("VmRSS")))
give_back()
print("given_back", round(read_mib("RssFile")), round(read_mib("VmRSS")))
kernel = tf.Variable(tf.random.normal([3, 3, 3, 8]))
images = tf.random.normal([8, 32, 32, 3])


@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(images, kernel, 1, "SAME")))
    kernel.assign_sub(tape.gradient(loss, kernel))
    return loss


for _ in range(20):
    loss = step()
assert float(loss) == float(loss)
print("trained", round(read_mib("RssFile")), round(read_mib("VmRSS")))
END
cd "$folder"
"$folder/venv/bin/python" run.py 2>"$folder/log.txt" >"$folder/found" ||
  { tail -3 "$folder/log.txt"; exit 1; }
echo "MiB of files, and of all:"
cat "$folder/found"
python3 - <<'END'
rows = {name: (int(files), int(all_)) for name, files, all_ in map(str.split, open("found"))}
assert rows["loaded"][0] > 0.5 * rows["loaded"][1]
assert rows["trained"][0] < 0.3 * rows["loaded"][0]
END

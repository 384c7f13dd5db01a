#!/usr/bin/env bash
# TensorFlow 2.21.0: a bare `import tensorflow` imports Keras, although `tf.keras` is a lazy loader,
# and with Keras 3.15.1 matplotlib.pyplot and scikit-learn (with scipy), where they are installed.
#
# Guess before: tf.keras is loaded when it is first used, and who uses no Keras pays nothing for it.
# Cause: the last lines of tensorflow/__init__.py import keras.src.optimizers so that its optimizers
# register themselves; that loads all of Keras, whose image gallery imports pyplot, and whose
# wrappers for scikit-learn import that. An ImportError there is tolerated, and tf.keras still works
# later: so who starts many processes can leave out these seconds.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
  tensorflow==2.21.0 keras==3.15.1 matplotlib==3.11.2 scikit-learn==1.9.1
cat > "$folder/load.py" <<'END'
import sys, time

if "without" in sys.argv:
    sys.modules["keras.src.optimizers"] = None
start = time.perf_counter()
import tensorflow as tf
seconds = time.perf_counter() - start
if "without" in sys.argv:
    del sys.modules["keras.src.optimizers"]
loaded = [name for name in ("keras", "matplotlib.pyplot", "scipy.stats", "sklearn") if name in sys.modules]
layer = tf.keras.layers.Dense(3)(tf.ones([2, 5])).shape
print(f"{seconds:.1f} s, loaded {' '.join(loaded) or 'none'}; tf.keras gives {layer}")
END
cd "$folder"
for _ in 1 2; do  # The first time reads files that are not in memory yet.
  plain=$(TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" load.py 2>/dev/null)
  without=$(TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" load.py without 2>/dev/null)
done
echo "import tensorflow:                $plain"
echo "with keras.src.optimizers = None: $without"
[[ $plain == *"loaded keras matplotlib.pyplot scipy.stats sklearn; tf.keras gives (2, 3)" ]]
[[ $without == *"loaded none; tf.keras gives (2, 3)" ]]
# Seen: 9.2 s with keras, matplotlib.pyplot, scipy.stats and sklearn; 5.5 s with none of them.

#!/usr/bin/env bash
# load_weights of Keras 3.15.1 does not go by the names of layers: a layer called "third" gets the
# weights of "second" where the network has no layer "second", and what the file has beyond that is
# passed over without a word. The file has the layers as dense, dense_1, dense_2, whatever their names.
#
# Guess before: a file with more layers than the network is refused, or layers find theirs by name.
# So whoever takes a layer out of a network and loads its weights gets those of other layers, if only
# the shapes fit.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/load.py" <<'END'
import warnings

import h5py
import keras
import numpy as np

warnings.simplefilter("error", UserWarning)


def network(*names):
    layers = [keras.layers.Dense(4, name=name) for name in names]
    return keras.Sequential([keras.Input((4,)), *layers])


whole = network("first", "second", "third")
whole.save_weights("whole.weights.h5")
with h5py.File("whole.weights.h5") as file:
    print("in the file:", *file["layers"])
shorter = network("first", "third")
shorter.load_weights("whole.weights.h5")
for layer in shorter.layers:
    kernel = layer.get_weights()[0]
    taken = [each.name for each in whole.layers if np.array_equal(each.get_weights()[0], kernel)]
    print(layer.name, "has the weights of", *taken)
END
cd "$folder"
said=$(KERAS_BACKEND=jax "$folder/venv/bin/python" load.py 2>"$folder/log.txt")
echo "$said"
[[ $said == 'in the file: dense dense_1 dense_2
first has the weights of first
third has the weights of second' ]]

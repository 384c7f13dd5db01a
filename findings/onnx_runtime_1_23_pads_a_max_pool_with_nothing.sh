#!/usr/bin/env bash
# A Pad with zeros before a MaxPool, in ONNX Runtime 1.23.2 on CPUs: with its optimizations, which are
# on by default, the Pad becomes the padding of the pool, which has no values. On a map of -1 the pool
# answers -1 everywhere; the zeros that were padded, which are greater, do not count. Without
# optimizations it answers 0 at the border. 1.32.0 answers 0 both ways.
#
# Guess before: a Pad is merged into a pool only where its value is minus infinity, or not at all.
# So a network that pads with zeros before a max pool, as those of Keras' ResNet do, gave other answers
# than the one that it was made from.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/pool.py" <<'END'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

nodes = [
    helper.make_node("Pad", ["x", "pads"], ["padded"]),
    helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
]
pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")
infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, s, s]) for n, s in (("x", 4), ("y", 2))]
graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [pads])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
onnx.checker.check_model(model)
levels = onnxruntime.GraphOptimizationLevel
for name, level in (("without", levels.ORT_DISABLE_ALL), ("with", levels.ORT_ENABLE_ALL)):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (y,) = session.run(None, {"x": np.full((1, 1, 4, 4), -1, np.float32)})
    print(onnxruntime.__version__, name, "optimizations:", y.astype(int).ravel().tolist())
END
cd "$folder"
for version in 1.23.2 1.32.0; do
  python3 -m venv "$version"
  "$version/bin/pip" install --quiet "onnxruntime==$version" onnx==1.19.1
  "$version/bin/python" pool.py
done > said.txt
cat said.txt
[[ $(cat said.txt) == '1.23.2 without optimizations: [0, 0, 0, -1]
1.23.2 with optimizations: [-1, -1, -1, -1]
1.32.0 without optimizations: [0, 0, 0, -1]
1.32.0 with optimizations: [0, 0, 0, -1]' ]]

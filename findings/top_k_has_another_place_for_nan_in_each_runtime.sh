#!/usr/bin/env bash
# top_k of a row with one NaN, by one graph in TensorFlow 2.21.0, ONNX Runtime 1.32.0 (by tf2onnx
# 1.17.0) and LiteRT 2.3.0: ONNX Runtime has the NaN first, LiteRT last, and in TensorFlow its place
# in the answer depends on its place in the row: first, last, or left out.
#
# Guess before: wherever the NaN stands, TensorFlow passes it over, and so do the others, except that
# one which begins its comparisons with the row's first value may stay with a NaN there.
# So a converted network with NaN among its logits names other classes than the one that it was made
# from, and TensorFlow's own first of top_k need not be its argmax.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 tf2onnx==1.17.0 onnxruntime==1.32.0 \
  ai-edge-litert==2.3.0
cat > "$folder/convert.py" <<'END'
import numpy as np
import tensorflow as tf
import tf2onnx

rows = np.array([[np.nan, 1, 2, 0], [1, 2, np.nan, 0], [2, 1, 0, np.nan]], np.float32)
np.save("rows.npy", rows)
spec = tf.TensorSpec([None, 4], tf.float32, name="x")


@tf.function(input_signature=[spec])
def order(x):
    return {"best": tf.math.top_k(x, 3).indices}


module = tf.Module()
module.order = order
tf.saved_model.save(module, "model", signatures={"order": order.get_concrete_function()})
converter = tf.lite.TFLiteConverter.from_saved_model("model", signature_keys=["order"])
open("model.tflite", "wb").write(converter.convert())
tf2onnx.convert.from_function(order, [spec], opset=15, output_path="model.onnx")
print("TensorFlow", order(rows)["best"].numpy().tolist(), tf.argmax(rows, axis=1).numpy().tolist())
END
cat > "$folder/run.py" <<'END'
import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

rows = np.load("rows.npy")
session = onnxruntime.InferenceSession("model.onnx")
print("ONNX Runtime", session.run(None, {session.get_inputs()[0].name: rows})[0].tolist())
print("LiteRT", Interpreter("model.tflite").get_signature_runner("order")(x=rows)["best"].tolist())
END
cd "$folder"
said=$("$folder/venv/bin/python" convert.py 2>"$folder/log.txt"; "$folder/venv/bin/python" run.py 2>>"$folder/log.txt")
echo "$said"
[[ $said == 'TensorFlow [[0, 2, 1], [1, 0, 2], [0, 1, 2]] [2, 1, 0]
ONNX Runtime [[0, 2, 1], [2, 1, 0], [3, 0, 1]]
LiteRT [[2, 1, 3], [1, 0, 3], [0, 1, 2]]' ]]

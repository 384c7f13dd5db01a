"""The way of examples from shards, folders, plug-ins or a random generator to batches on a device.

`dataset.open_dataset` finds the data set that the flags name and checks it. The `Dataset` that it
returns adds streams of batches to a graph (`pipeline`). `trainer.graph.images` turns a batch into
what the network expects. Nothing is imported here, so that programs which only list or verify files
do not have to load TensorFlow.
"""

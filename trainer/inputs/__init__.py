"""Examples for the network: from shards, folders, plug-ins or at random, to batches on a device.

`dataset.open_dataset` finds out what there is and checks it; the `Dataset` adds streams of batches
to a graph (`pipeline`); `trainer.graph.images` makes of a batch what the network expects. Nothing
is imported here, so that programs that only convert images do not have to load TensorFlow.
"""

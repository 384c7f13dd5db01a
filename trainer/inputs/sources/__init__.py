"""The places that examples are read from: folders of images, TFRecord shards and their index."""

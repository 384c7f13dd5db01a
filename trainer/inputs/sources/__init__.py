"""Where examples are: folders of images, TFRecord shards, and their index."""

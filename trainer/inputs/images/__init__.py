"""The way from an encoded image to pixels of the network's size."""

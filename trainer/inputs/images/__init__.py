"""From an encoded image to pixels of the network's size."""

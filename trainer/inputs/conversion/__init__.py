"""What scripts do with data sets, and training never does: convert and verify them."""

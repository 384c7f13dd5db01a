"""Conversion and verification of data sets, which scripts do and training never does."""

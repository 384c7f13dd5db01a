"""Contestants of compare_peers.py: a program for each, and the protocol that they answer to."""

"""What compare_peers.py compares this project with: a process for each, and how they are asked."""

"""Checkpoints as authors publish them -> our networks: a file for each format, `reading.py` for what they share."""

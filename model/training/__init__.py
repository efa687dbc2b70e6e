"""The trainer: `loop.py` is the page to read; what it uses stands beside it, a file a subject."""

"""The tables of results: `blocks` says what stands in them, and each format is a file beside it."""

"""What the scores of retrieval are called; whatever computes, writes or shows them asks here."""

from __future__ import annotations

#: Of R@k, the share of queries with a right answer among the first k.
CUTOFFS = (1, 5, 10)
RECALLS = tuple(f"r{k}" for k in CUTOFFS)
SUMMED = RECALLS[:3]  # rSum is R@1, 5 and 10 of both directions, whatever else is shown
METRICS = (*RECALLS, "medr", "meanr")  # of each direction
DIRECTIONS = ("i2t", "t2i")

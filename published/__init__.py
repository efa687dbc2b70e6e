"""Published weights: a registry of what there is, and their download. Imports neither the extractors nor the model."""

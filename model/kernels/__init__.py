"""Exact fast ways to compute what a formula says.

Each file begins with the formula, then `reference`, which is the formula in a few lines of torch, then the fast way under
the same signature. A kernel owns no parameters: it takes the layers of the formula as arguments. The tests hold values,
gradients and running statistics of the two together.
"""

"""`python -m benchmarks.gpu`: the operators on a GPU, beside other people's kernels."""

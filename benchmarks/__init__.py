"""Timings of the operators, each with its error beside it."""

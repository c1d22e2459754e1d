"""The operators in plain PyTorch, where no compiled variant fits: on any device, from Torch 2.6 on.

The ops have the names, schemas, checks and results of the compiled ones, so everything above them is the
same. Where those go token by token these go in chunks of 64, in matrix form: sums are rounded differently,
and which tokens come together shows in the last bits. The build of this variant imports this package; no
other does.
"""

from __future__ import annotations

from . import registration  # noqa: F401  (importing it registers the ops)

"""The cut of quantised weights: groups of inputs that share a scale, panels of rows that lie together."""

GROUP = 32  # inputs; no rank's part of an input begins within a group, so that the number of ranks changes none
ROWS = 16  # of a panel: the weights of so many outputs lie together, as kernels/cpu/matmul.h says

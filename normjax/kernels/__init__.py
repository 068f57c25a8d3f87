"""Kernels in Pallas for TPUs, each beside the pure function that it computes."""

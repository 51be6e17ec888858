"""Triton kernels of bmpeft: needs torch and triton, knows nothing of bmpeft.

The directory above, `kernels/`, is deliberately no package: `kernels` is the name of another library
that transformers, trl and bitsandbytes look for.
"""

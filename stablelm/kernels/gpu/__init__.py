"""Triton kernels for a GPU: rotation, SwiGLU, LayerNorm after a residual sum; packed weights made dense.

Each of the first three is a PyTorch operator of its own (`torch.library`), forward and backward, so that
eager steps, compiled blocks, recomputation and fake tensors all take it as one piece. Arithmetic is float32
inside and rounded once at the end. Their twins, which define what is right, are the modules in `model/`.
Imported only when chosen (`model/fused.py`): Triton comes with PyTorch for CUDA and is not needed elsewhere.
`expansion.py` is called by `inference/packed_products.py`, whose product is the operator; its twin is
`kernels/cpu/packing.py`."""

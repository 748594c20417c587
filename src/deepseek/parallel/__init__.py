"""Across devices: the mesh, and data, tensor, pipeline and context parallelism, from outside."""

"""A run over many processes: the one room that knows of meshes."""

from stablelm.training.parallel.apply import parallelize
from stablelm.training.parallel.launch import finish, start
from stablelm.training.parallel.mesh import Layout, build_mesh

__all__ = ["Layout", "build_mesh", "finish", "parallelize", "start"]

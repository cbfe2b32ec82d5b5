"""Networks: one architecture a file, by name through `create`."""

from cmunext.networks.registry import builder, create, names

__all__ = ["builder", "create", "names"]

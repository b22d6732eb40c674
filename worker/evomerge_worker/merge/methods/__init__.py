"""The merge methods: a file each, that bears the method's published name and holds its function `merge`.

What parameters a method has stands in the contract, where manifests and recipes are checked.
"""

from functools import cache
from importlib import import_module

from evomerge_worker.merge.method import MergeMethod


@cache
def method_named(name: str) -> MergeMethod:
    """The method of that name."""
    merge: MergeMethod = import_module(f"{__name__}.{name}").merge
    return merge

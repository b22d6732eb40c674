"""What a space is: genes, and the recipe that a genome of them means."""

from typing import Protocol

from evomerge_contract.candidate import Genome
from evomerge_contract.recipe import Recipe
from evomerge_operator.search import Gene


class Space(Protocol):
    """A stage's space over a pool of models, once their layout is known. Pure, and it can be pickled."""

    @property
    def genes(self) -> tuple[Gene, ...]:
        """What is searched, in the order of a genome's values."""
        ...

    @property
    def ones(self) -> tuple[int, int] | None:
        """The fewest and the most binary genes that may be 1 in a genome; None: any number."""
        ...

    @property
    def deepest(self) -> int:
        """The layers of the deepest model that a genome can mean."""
        ...

    @property
    def summary(self) -> str:
        """Its dimensions and what they are of, in one line."""
        ...

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome: one value per gene, in physical units.

        Raises:
            ValueError: the genome has more or fewer values than there are genes.
        """
        ...

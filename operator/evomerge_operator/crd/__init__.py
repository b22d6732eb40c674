"""The CustomResourceDefinitions, made from the contract. Pure: only `python -m evomerge_operator.crd` writes files."""

"""Scoring a model on a data set: items, evaluators, figures and their intervals.

Importing this package is cheap; an evaluator imports torch.
"""

"""Scoring a model on a data set: items, evaluators by metric, figures and their intervals.

Importing this package is cheap; `evaluators` imports torch.
"""

"""The language all parts of EvoMerge speak: manifest, recipe, task, report. Pydantic and nothing else."""

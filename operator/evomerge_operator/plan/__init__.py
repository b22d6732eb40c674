"""What to do next: pure decisions over what is known of a run. The executors carry them out.

A run is prepare, then its stages, then conclude and export. A stage is a search for candidates, and a selection among
its finalists. Both executors, local and on a cluster, ask the same functions:

    run.py        a run and its stages: what is fixed, and where each stands
    progress.py   what is known of the candidates of one sequence
    next.py       which candidates to start now
    proposer.py   candidates as tasks: genomes asked for, decoded, replayed from a log
    settle.py     what a report makes of a candidate
    finish.py     the tasks after the search, and the report of a run
"""

"""The executor of one machine: worker processes, a log file, a terminal."""

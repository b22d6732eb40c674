"""A real one-node Kubernetes for tests, in a sandbox of its own. `python tests/cluster/lab` says what it can do."""

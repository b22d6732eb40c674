"""What the operator does for one EvoMerge: look, decide, act. Handlers and the API's details are elsewhere."""

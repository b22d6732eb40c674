"""Everything that speaks to Kubernetes, and the forms it speaks in."""

"""Planning beside the event loop: what may take long, or much memory, runs in helper processes with limits."""

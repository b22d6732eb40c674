"""The side that decides: search, space, plan, the executors that carry plans out, and the command line."""

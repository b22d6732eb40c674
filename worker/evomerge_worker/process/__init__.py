"""How tasks come in and reports go out: a supervisor without torch, and the session that it starts and watches."""

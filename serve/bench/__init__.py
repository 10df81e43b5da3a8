"""Our engine, server and commands beside a peer's. Servers are known only by HTTP."""

"""`slm bench engine`: how fast the engine itself reads and writes, beside others, each in a process of its own."""

"""The server's paths by subject. Each file takes what it needs from the application and returns a router."""

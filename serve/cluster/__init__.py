"""The server on Ray: an entrance with our HTTP application, engines as replicas, adapters where they are asked for."""

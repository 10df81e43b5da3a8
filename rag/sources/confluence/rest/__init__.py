"""Confluence over the network: Cloud (REST v2) and Data Center (REST v1)."""

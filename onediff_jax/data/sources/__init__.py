"""The kinds of data sources."""

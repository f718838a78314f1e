"""Commands that an operator runs besides the fetcher itself."""

"""From updates to commits: no outside library, no I/O."""

"""From VK's answers to commits: no outside library, no I/O."""

"""The loop and its state, from VK's answers to commits; uses no outside library and does no I/O itself."""

"""Models to compare with: each is a task like the others, or a few functions that need no training of their own."""

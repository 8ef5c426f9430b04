"""The embedded corpus: phantom radiographs that show what their reports say."""

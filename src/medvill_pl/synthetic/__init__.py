"""The embedded corpus: phantom films that show what their reports say."""

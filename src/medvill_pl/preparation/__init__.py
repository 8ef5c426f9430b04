"""From a data set as its publisher ships it to the corpus form."""

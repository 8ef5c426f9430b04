"""Report text to the 14 CheXpert observations."""

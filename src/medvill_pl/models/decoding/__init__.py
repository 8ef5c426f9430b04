"""Writing reports, and the likelihood of given ones, under the seq2seq mask (MedViLL, Sec. IV-C.4)."""

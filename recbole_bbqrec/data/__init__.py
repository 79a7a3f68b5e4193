"""Data: RecBole's sequential data set with item features and semantic codes, sequences, windows."""

"""The item tokenizer: semantic IDs learned from features and behaviour (paper, stage 1).

Pure torch, knows no RecBole. Enters: feature matrices and training sequences. Leaves: codes, codebooks, vectors.
"""

"""The item tokenizer: item features and training sequences in, semantic IDs out. Pure torch, knows no RecBole."""

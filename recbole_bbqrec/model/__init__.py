"""Models: similarity-enhanced attention, the item table, BBQRec, and RecBole's models on trimmed batches."""

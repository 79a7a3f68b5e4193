"""BBQRec and its parts, baselines, decoding of IDs (paper, stage 2).

Reads no files and trains nothing. Enters: a catalogue and histories. Leaves: losses and scores.
"""

"""Speech recognition: a Conformer with CTC on data in LibriSpeech's folder layout."""

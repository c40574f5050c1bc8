"""Judges: images in, judgements out. One file per judge; `base.make_judge` builds them by name."""

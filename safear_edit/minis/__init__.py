"""The embedded checkpoints, and the training of each (`python -m safear_edit.minis`)."""

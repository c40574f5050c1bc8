"""Editing methods, one file each: what it optimises, with the equation, and `fit`, which returns an Edit."""

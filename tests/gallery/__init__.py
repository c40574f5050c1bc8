"""Tests of `safear_edit/gallery/`."""

"""Tests of `safear_edit/editor/`."""

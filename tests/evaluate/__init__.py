"""Tests of `safear_edit/evaluate/`."""

"""Tests of `safear_edit/studies/`."""

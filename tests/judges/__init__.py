"""Tests of `safear_edit/judges/`."""

"""Tests of `safear_edit/files/`."""

"""Tests of `safear_edit/methods/`."""

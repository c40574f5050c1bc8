"""Tests of `safear_edit/spec/`."""

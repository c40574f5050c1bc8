"""Tests of `safear_edit/release/`."""

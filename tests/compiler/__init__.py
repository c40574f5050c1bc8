"""Tests of `safear_edit/compiler/`."""

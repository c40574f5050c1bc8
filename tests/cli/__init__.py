"""Tests of `safear_edit/cli/`."""

"""Tests of `safear_edit/pipeline/`."""

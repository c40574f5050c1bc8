"""Tests of `safear_edit/families/layers/`."""

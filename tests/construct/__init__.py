"""Tests of `safear_edit/construct/`."""

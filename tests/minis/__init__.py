"""Tests of `safear_edit/minis/`."""
